// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/hpke"
	"io"
	"reflect"
	"sync"
	"testing"
	"unsafe"
)

// numbers collects the bytes of every array and slice of integers that v reaches, without those
// that all keys share.
func numbers(v reflect.Value, depth int) (all []byte) {
	if !v.IsValid() || depth > 16 {
		return nil
	}
	for _, t := range shared {
		if v.Type().Implements(t) {
			return nil
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return numbers(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			all = append(all, numbers(v.Field(i), depth+1)...)
		}
	case reflect.Slice:
		if isPlain(v.Type().Elem()) {
			all = append(all, unsafe.Slice((*byte)(v.UnsafePointer()),
				v.Len()*int(v.Type().Elem().Size()))...)
		}
	case reflect.Array:
		if v.CanAddr() && isPlain(v.Type()) {
			all = append(all, unsafe.Slice((*byte)(unsafe.Pointer(v.UnsafeAddr())),
				v.Type().Size())...)
		}
	}
	return all
}

// isPlain reports whether a type consists of integers alone.
func isPlain(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return isPlain(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !isPlain(t.Field(i).Type) {
				return false
			}
		}
		return true
	}
	return t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64
}

func isZero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// TestWipe counts the bytes that wiping reaches. Fewer bytes mean that the types of the standard
// library have changed their form.
func TestWipe(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		least := map[uint16]int{X25519: 2 * 32, XWing: 32 + 64 + 3*512 + 9*512 +
			32}[key.config.kem.id]
		seed := key.Seed()
		// as crypto/hpke writes it: X25519's is clamped
		k, err := NewPrivateKey(key.config.id, key.config.kem.id, seed)
		if err != nil {
			t.Fatal(err)
		}
		key = one{k}
		of := key.PrivateKey.key
		before := numbers(reflect.ValueOf(of), 0)
		if len(before) < least || isZero(before) {
			t.Fatalf("%d bytes are reached, want %d", len(before), least)
		}
		if !bytes.Contains(before, seed) {
			t.Error("the seed is not among them")
		}
		sealed, q := seal(t, key.config, []byte("q"))
		x, err := Open(bytes.NewReader(sealed), key, 0)
		if err != nil {
			t.Fatal(err)
		}
		kept := key.PrivateKey.seed
		key.Close()
		key.Close()
		if !isZero(kept) {
			t.Error("the seed was forgotten, not wiped")
		}
		if !isZero(numbers(reflect.ValueOf(of), 0)) {
			t.Error("numbers of the key are left")
		}
		if key.Seed() != nil {
			t.Error("the seed is left")
		}
		if _, err := Open(bytes.NewReader(sealed), key, 0); err != ErrUnknownKey {
			t.Errorf("a closed key: %v", err)
		}
		// What was begun goes on, and what all keys share still works.
		answer := sealAnswer(t, x, "a")
		if got, err := readAnswer(q, answer); err != nil || string(got) != "a" {
			t.Errorf("%q, %v", got, err)
		}
		another := newKey(t, 1, key.config.kem.id)
		sealed, _ = seal(t, another.config, []byte("q"))
		if _, got, err := openRequest(sealed, another); err != nil || string(got) != "q" {
			t.Errorf("another key: %q, %v", got, err)
		}
		if sealed, _ := seal(t, key.config, []byte("q")); len(sealed) == 0 {
			t.Error("the public configuration did not outlive the key")
		}
	})
}

// TestWipeContexts looks at the keys of requests and answers.
func TestWipeContexts(t *testing.T) {
	key := newKey(t, 1, X25519)
	q, err := NewRequest(key.config)
	if err != nil {
		t.Fatal(err)
	}
	sender, secret := q.sender, q.secret
	const least = nonceSize + 15*16 // base nonce, key schedule
	if n := numbers(reflect.ValueOf(sender), 0); len(n) < least || isZero(n) {
		t.Fatalf("%d bytes are reached, want %d", len(n), least)
	}
	q.Close()
	if !isZero(numbers(reflect.ValueOf(sender), 0)) || !isZero(secret) {
		t.Error("the sender's numbers are left")
	}
	sealed, q := seal(t, key.config, []byte("q"))
	x, err := Open(bytes.NewReader(sealed), key, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	secret = x.secret
	w, err := x.Response(&b)
	if err != nil {
		t.Fatal(err)
	}
	if !isZero(secret) {
		t.Error("the exported secret is left")
	}
	w.Write([]byte("a"))
	plain := w.plain
	if cap(plain) != MaxChunk {
		t.Errorf("the Writer's buffer of %d bytes will move", cap(plain))
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if !isZero(plain[:cap(plain)]) {
		t.Error("the plaintext is left in the Writer")
	}
	secret = q.secret
	r, err := q.Response(&b, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err != nil {
		t.Fatal(err)
	}
	plain = r.plain
	r.Close()
	if !isZero(secret) || !isZero(plain) {
		t.Error("the Reader's secrets are left")
	}
	for name, end := range map[string]string{"io.EOF": "", "an error": "x"} {
		sealed, q := seal(t, key.config, []byte("q"))
		x, err := Open(bytes.NewReader(sealed), key, 0)
		if err != nil {
			t.Fatal(err)
		}
		x.Request().ReadByte()
		buf := x.request.buf
		io.ReadAll(x.Request())
		if x.request.done != nil || len(buf) == 0 || !isZero(buf) {
			t.Error("a request that was read is not wiped")
		}
		r, err := q.Response(bytes.NewReader(append(sealAnswer(t, x, "an", "swer"), end...)), 0)
		if err != nil {
			t.Fatal(err)
		}
		r.ReadByte()
		buf = r.buf
		io.ReadAll(r)
		if r.done != nil || len(buf) == 0 || !isZero(buf) {
			t.Errorf("after %s the Reader is not wiped", name)
		}
	}
	x, err = Open(bytes.NewReader(sealed), key, 0)
	if err != nil {
		t.Fatal(err)
	}
	if w, err = x.Response(&b); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("never sent"))
	plain = w.plain
	w.Close()
	if !isZero(plain) || w.done != nil {
		t.Error("a Writer that was given up is not wiped")
	}
	a, err := newAnswer(aes256, make([]byte, 32), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := numbers(reflect.ValueOf(a.gcm), 0); len(n) < 15*16 || isZero(n) {
		t.Fatalf("%d bytes of the answer's GCM are reached", len(n))
	}
	a.wipe()
	if !isZero(numbers(reflect.ValueOf(a.gcm), 0)) {
		t.Error("the answer's key schedule is left")
	}
}

// TestCloseWaits closes a key while requests are being opened with it: they open, or find no key.
func TestCloseWaits(t *testing.T) {
	key := newKey(t, 1, X25519)
	sealed, _ := seal(t, key.config, []byte("q"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				_, got, err := openRequest(sealed, key)
				if err == ErrUnknownKey {
					return
				}
				if err != nil || string(got) != "q" {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
	}
	key.Close()
	wg.Wait()
}

// TestSuites compares the table of sizes with crypto/hpke, which knows the sizes and does not
// export them.
func TestSuites(t *testing.T) {
	for _, k := range kems {
		if k.new().ID() != k.id {
			t.Errorf("%#x is %#x", k.id, k.new().ID())
		}
		key, err := k.new().GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		enc, _, err := hpke.NewSender(key.PublicKey(), hpke.HKDFSHA256(), hpke.AES256GCM(), nil)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if len(key.PublicKey().Bytes()) != k.public || len(enc) != k.enc || len(seed) != k.seed {
			t.Errorf("%#x: Npk %d, Nenc %d, Nsk %d", k.id, len(key.PublicKey().Bytes()), len(enc),
				len(seed))
		}
	}
	for _, a := range []*aead{aes128, aes256} {
		if a.new().ID() != a.id {
			t.Errorf("%#x is %#x", a.id, a.new().ID())
		}
	}
	if hpke.HKDFSHA256().ID() != kdfHKDFSHA256 {
		t.Error("KDF")
	}
}
