// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"reflect"
	"testing"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// The key schedule begins with the key: nothing of it may stay where the cipher was.
func TestWipeCiphers(t *testing.T) {
	key := bytes.Repeat([]byte{0xa5, 0x5a, 0x3c, 0xc3}, 8)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	cbc := cipher.NewCBCEncrypter(block, make([]byte, aes.BlockSize))
	for name, v := range map[string]any{"block": block, "GCM": gcm, "CBC": cbc} {
		found := contains(v, key[:16])
		if !found {
			t.Errorf("%s: the key was not there to begin with: this test knows nothing", name)
		}
		Wipe(v)
		if contains(v, key[:16]) {
			t.Errorf("%s: the key is still there", name)
		}
	}
}

// What all ciphers of a kind share stays, whether it is named or is a value of an interface that is
// named.
func TestOthers(t *testing.T) {
	type table struct{ numbers []int }
	type cipherOfMany struct {
		key    [4]uint64
		table  *table
		random io.Reader
		own    table
	}
	for name, others := range map[string][]reflect.Type{
		"types":      {reflect.TypeFor[*table](), reflect.TypeFor[*bytes.Reader]()},
		"interfaces": {reflect.TypeFor[io.Reader](), reflect.TypeFor[*table]()},
		"none":       nil,
	} {
		shared := &table{numbers: []int{1, 2, 3}}
		text := []byte("abc")
		v := &cipherOfMany{key: [4]uint64{1, 2, 3, 4}, table: shared, random: bytes.NewReader(text),
			own: table{numbers: []int{4}}}
		moved := 0
		if err := Move(v, func(n int) ([]byte, error) {
			moved = n
			return make([]byte, n), nil
		}, func() error { return nil }, others...); err != nil {
			t.Fatal(err)
		}
		text = []byte("abc")
		v.random = bytes.NewReader(text)
		Wipe(v, others...)
		stays := name != "none"
		if (shared.numbers[0] == 1) != stays || (string(text) == "abc") != stays ||
			(moved == 8) != stays {
			t.Errorf("%s: %v, %q, %d bytes moved", name, shared.numbers, text, moved)
		}
		if v.key != [4]uint64{} || v.own.numbers[0] != 0 {
			t.Errorf("%s: its own numbers are left", name)
		}
	}
}

// Values that reach themselves through slices end, and are wiped.
func TestWipeCycles(t *testing.T) {
	a := []any{nil, []int{1}, nil}
	a[0] = a
	a[2] = &a
	Wipe(&a)
	if a[1].([]int)[0] != 0 {
		t.Error("a number is left")
	}
}

// contains looks for secret in all that walk shows.
func contains(v any, secret []byte) bool {
	l := &looker{secret: secret}
	walk(v, nil, l)
	return l.found
}

type looker struct {
	secret []byte
	found  bool
	total  int
	inside func(p unsafe.Pointer) bool
	out    int
}

func (l *looker) plain(p unsafe.Pointer, size uintptr) {
	l.found = l.found || bytes.Contains(unsafe.Slice((*byte)(p), size), l.secret)
}

func (l *looker) slice(header unsafe.Pointer, size uintptr) {
	b := *(*[]byte)(header)
	if len(b) == 0 {
		return
	}
	l.total += len(b) * int(size)
	p := unsafe.Pointer(unsafe.SliceData(b))
	if l.inside != nil && !l.inside(p) {
		l.out++
	}
	l.plain(p, uintptr(len(b))*size)
}

func storedKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(testkit.KeyPEM(t, "client-4096"))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

func TestMoveKey(t *testing.T) {
	key := storedKey(t)
	plain := []byte("what was sealed before")
	sealed, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	var old [][]big.Word
	for _, n := range append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq,
		key.Precomputed.Qinv}, key.Primes...) {
		old = append(old, n.Bits())
	}
	prime := bytes.Clone(littleEndian(key.Primes[0]))
	var to []byte
	err = Move(key, func(size int) ([]byte, error) {
		to = make([]byte, size)
		return to, nil
	}, func() error {
		got, err := rsa.DecryptOAEP(sha256.New(), nil, key, sealed, nil)
		if err == nil && !bytes.Equal(got, plain) {
			err = errors.New("it opens to something else")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(to)))
	l := &looker{secret: prime, inside: func(p unsafe.Pointer) bool {
		return uintptr(p) >= start && uintptr(p) < start+uintptr(len(to))
	}}
	walk(key, nil, l)
	if !l.found || l.out > 0 {
		t.Errorf("after the move: prime there: %v; slices elsewhere: %d", l.found, l.out)
	}
	// The exported numbers, and crypto/rsa's own form of them: N and d with their Montgomery
	// helpers, p, q, dP, dQ, qInv.
	if want := 11 * key.Size(); l.total != want {
		t.Errorf("%d bytes moved, want %d: crypto/rsa has changed the shape of its keys, look at "+
			"what is left outside", l.total, want)
	}
	for i, words := range old {
		for _, w := range words {
			if w != 0 {
				t.Errorf("number %d is still where it was", i)
				break
			}
		}
	}
	if err := key.Validate(); err != nil {
		t.Error(err)
	}
	Wipe(key)
	if !bytes.Equal(to, make([]byte, len(to))) {
		t.Error("the moved numbers are not wiped")
	}
}

func littleEndian(n *big.Int) []byte {
	w := n.Bits()
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))),
		len(w)*int(unsafe.Sizeof(w[0])))
}

func TestMoveBack(t *testing.T) {
	key := storedKey(t)
	d := new(big.Int).Set(key.D)
	refused := errors.New("refused")
	var to []byte
	err := Move(key, func(size int) ([]byte, error) {
		to = make([]byte, size)
		return to, nil
	}, func() error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if key.D.Cmp(d) != 0 || key.Validate() != nil {
		t.Error("the key did not come back")
	}
	if !bytes.Equal(to, make([]byte, len(to))) {
		t.Error("copies are left")
	}
	full := errors.New("no memory")
	err = Move(key, func(int) ([]byte, error) {
		return nil, full
	}, func() error { t.Error("tested"); return nil })
	if !errors.Is(err, full) || key.D.Cmp(d) != 0 {
		t.Errorf("got %v", err)
	}
}

type node struct {
	next  *node
	any   any
	bytes []byte
	alias []byte
	words [2]uint64
	text  string
	table map[string][]byte
	inner []*node
}

func TestWalkShapes(t *testing.T) {
	shared := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}
	n := &node{bytes: shared, alias: shared, words: [2]uint64{10, 11}, text: "text",
		table: map[string][]byte{"x": {12}}}
	n.next = n // a cycle
	n.any = &node{bytes: []byte{13}}
	n.inner = []*node{nil, {alias: []byte{14}}}
	var to []byte
	if err := Move(n, func(size int) ([]byte, error) {
		to = make([]byte, size)
		return to, nil
	}, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if len(to) != 16+8+8 {
		t.Errorf("%d bytes moved", len(to))
	}
	if !bytes.Equal(n.bytes, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}) || &n.bytes[0] != &n.alias[0] ||
		shared[8] != 0 {
		t.Errorf("%v, %v, %v", n.bytes, n.alias, shared)
	}
	if cap(n.bytes) != 9 {
		t.Errorf("capacity %d reaches the neighbour", cap(n.bytes))
	}
	Wipe(n)
	if n.bytes[0] != 0 || n.words[1] != 0 || n.any.(*node).bytes[0] != 0 ||
		n.inner[1].alias[0] != 0 {
		t.Errorf("left: %+v", n)
	}
	if n.text != "text" || n.table["x"][0] != 12 {
		t.Errorf("strings and maps are not its business: %+v", n)
	}
	for _, v := range []any{nil, 7, "x", (*node)(nil), node{}, struct {
		p *int
	}{}, []byte{1}, map[string]int{}, func() {}, make(chan int)} {
		Wipe(v) // does not panic
	}
}

func TestDo(t *testing.T) {
	ran := false
	Do(func() { ran = true })
	if !ran {
		t.Error("nothing ran")
	}
	defer func() {
		if got := recover(); got != "as it was" {
			t.Errorf("recovered %v", got)
		}
		Do(func() {}) // and the thread is in order
	}()
	Do(func() { Do(func() { panic("as it was") }) })
}

func BenchmarkDo(b *testing.B) {
	for b.Loop() {
		Do(func() {})
	}
}
