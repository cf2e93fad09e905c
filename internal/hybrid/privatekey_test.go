// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package hybrid

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"sync"
	"testing"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// ownKey parses a stored key of the caller's own: protect changes it.
func ownKey(t *testing.T, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(testkit.KeyPEM(t, name))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

func protectedKey(t *testing.T, name string) *PrivateKey {
	t.Helper()
	k, err := NewPrivateKey(ownKey(t, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Protect(locked.BestEffort); err != nil {
		t.Fatal(err)
	}
	return k
}

func sealedFor(t *testing.T, k *PublicKey, plaintext string) *envelope.Envelope {
	t.Helper()
	text, err := k.AppendSealed(nil, &envelope.Envelope{}, []byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	e, err := envelope.Parse(text, len(text))
	if err != nil {
		t.Fatal(err)
	}
	return &e
}

func TestProtectedKey(t *testing.T) {
	for _, name := range []string{"rsa-2048", "rsa-3072", "client-4096"} {
		k := protectedKey(t, name)
		memory := k.memory.Bytes()
		n := len(k.key.Primes[0].Bits())
		if n == 0 || !contains(memory, &k.key.Primes[0].Bits()[0]) ||
			!contains(memory, &k.key.D.Bits()[0]) {
			t.Errorf("%s: the numbers lie elsewhere", name)
		}
		if contains(memory, &k.public.key.N.Bits()[0]) {
			t.Errorf("%s: the public key would go with the private one", name)
		}
		if k.Locked() != k.memory.Locked() {
			t.Errorf("%s: Locked() says %v", name, k.Locked())
		}
		fingerprint := k.public.Fingerprint()
		e := sealedFor(t, k.public, "a prompt")
		got, err := k.Open(e, nil)
		if err != nil || string(got) != "a prompt" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		k.Wipe()
		if k.key != nil || k.memory.Bytes() != nil {
			t.Errorf("%s: wipe left something", name)
		}
		if again, err := ParsePublicKey(k.public.PEM()); err != nil ||
			again.Fingerprint() != fingerprint {
			t.Errorf("%s: the public key did not outlive the private one: %v", name, err)
		}
		sealedFor(t, k.public, "still possible")
	}
}

// contains reports whether word lies in memory.
func contains(memory []byte, word *big.Word) bool {
	for i := 0; i+8 <= len(memory); i += 8 {
		if wordAt(memory, i) == word {
			return true
		}
	}
	return false
}

// One key, many goroutines, as gateways use it.
func TestProtectedKeyConcurrently(t *testing.T) {
	k := protectedKey(t, "rsa-2048")
	defer k.Wipe()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 8 {
				if got, err := k.Open(sealedFor(t, k.public, "x"), nil); err != nil ||
					string(got) != "x" {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}

// A key that fails its test after the move goes back to where it was, whole, and is not called
// locked.
func TestProtectRefusesAnotherKeysPublicHalf(t *testing.T) {
	k, err := NewPrivateKey(ownKey(t, "rsa-2048"))
	if err != nil {
		t.Fatal(err)
	}
	real := k.public
	if k.public, err = NewPublicKey(&testkit.Key(t, "rsa-3072").PublicKey); err != nil {
		t.Fatal(err)
	}
	if err := k.Protect(locked.BestEffort); err == nil {
		t.Fatal("a key that opens nothing was taken")
	}
	if k.memory != nil || k.Locked() {
		t.Error("it is called protected")
	}
	k.public = real
	if err := k.key.Validate(); err != nil {
		t.Errorf("the key did not come back: %v", err)
	}
	if _, err := k.Open(sealedFor(t, k.public, "x"), nil); err != nil {
		t.Error(err)
	}
	k.Wipe()
}

// Less than all numbers found is no protection, and is said.
func TestProtectUnknownShape(t *testing.T) {
	whole := ownKey(t, "rsa-2048")
	// crypto/rsa's own form is missing
	bare := &rsa.PrivateKey{PublicKey: whole.PublicKey, D: whole.D, Primes: whole.Primes}
	k, err := NewPrivateKey(bare)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Protect(locked.BestEffort); !errors.Is(err, ErrKeyShape) {
		t.Errorf("got %v", err)
	}
	if _, err := k.Open(sealedFor(t, k.public, "x"), nil); err != nil {
		t.Errorf("the ordinary key does not work: %v", err)
	}
}

func TestProtectOff(t *testing.T) {
	k, err := NewPrivateKey(ownKey(t, "rsa-2048"))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Protect(locked.Off); err != nil || k.memory != nil {
		t.Errorf("%v, %v", err, k.memory)
	}
	d := k.key.D.Bits()
	k.Wipe()
	for _, w := range d {
		if w != 0 {
			t.Fatal("ordinary memory was not wiped")
		}
	}
}

// The plaintext goes where it is told to, and nowhere else: what came stays ciphertext.
func TestOpenInto(t *testing.T) {
	k := protectedKey(t, "rsa-2048")
	defer k.Wipe()
	const prompt = "a prompt that is long enough to be recognised wherever it lies"
	e := sealedFor(t, k.public, prompt)
	var to []byte
	got, err := Open(e, []*PrivateKey{k}, nil, func(n int) ([]byte, error) {
		to = make([]byte, n)
		return to, nil
	})
	if err != nil || string(got) != prompt {
		t.Fatalf("%q, %v", got, err)
	}
	if &got[0] != &to[0] || len(to) != len(prompt) {
		t.Error("it lies elsewhere")
	}
	if bytes.Contains(e.Sealed[:cap(e.Sealed)], []byte(prompt[:16])) {
		t.Error("the plaintext lies where the ciphertext came, too")
	}

	full := errors.New("no memory")
	e = sealedFor(t, k.public, prompt)
	if _, err := Open(e, []*PrivateKey{k}, nil, func(int) ([]byte, error) {
		return nil, full
	}); !errors.Is(err, full) {
		t.Errorf("without room: %v", err)
	}
	e = sealedFor(t, k.public, prompt)
	e.Sealed[20] ^= 1
	if _, err := Open(e, []*PrivateKey{k}, nil, func(n int) ([]byte, error) {
		to = make([]byte, n)
		return to, nil
	}); !errors.Is(err, fault.ErrDecryption) {
		t.Errorf("changed: %v", err)
	}
	if !bytes.Equal(to, make([]byte, len(to))) {
		t.Error("a refused plaintext was handed out")
	}
	// shorter than nonce and tag: the codec lets none pass, and nothing may panic
	e.Sealed = e.Sealed[:5]
	if _, err := Open(e, []*PrivateKey{k}, nil, func(n int) ([]byte, error) {
		return make([]byte, n), nil
	}); !errors.Is(err, fault.ErrDecryption) {
		t.Errorf("cut: %v", err)
	}
}

func wordAt(memory []byte, i int) *big.Word { return (*big.Word)(unsafe.Pointer(&memory[i])) }
