// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"unsafe"
)

// TestMoveTo checks that a moved key works, that only the new memory has its seed and its scalar,
// and that Close clears the new memory.
func TestMoveTo(t *testing.T) {
	forKEMs(t, func(t *testing.T, generated one) {
		seed := generated.Seed()
		k, err := NewPrivateKey(1, generated.config.kem.id, seed)
		if err != nil {
			t.Fatal(err)
		}
		heap := k.seed
		memory := make([]byte, SecretSize)
		if err := k.MoveTo(memory); err != nil {
			t.Fatal(err)
		}
		if !isZero(heap) {
			t.Error("the seed was copied, not moved")
		}
		if !bytes.Contains(memory, seed) || !bytes.Equal(k.Seed(), seed) {
			t.Error("the seed is not there")
		}
		if bytes.Equal(memory[32:], make([]byte, 32)) {
			t.Error("the scalar is not there")
		}
		inside := func(p unsafe.Pointer) bool {
			lo := uintptr(unsafe.Pointer(&memory[0]))
			return uintptr(p) >= lo && uintptr(p) < lo+SecretSize
		}
		if !inside(unsafe.Pointer(&k.seed[0])) {
			t.Error("the key's own seed lies elsewhere")
		}
		sealed, q := seal(t, k.config, []byte("q"))
		x, got, err := openRequest(sealed, one{k})
		if err != nil || string(got) != "q" {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := readAnswer(q, sealAnswer(t, x, "a")); err != nil || string(got) != "a" {
			t.Errorf("%q, %v", got, err)
		}
		k.Close()
		if !isZero(memory) {
			t.Error("Close left the memory as it was")
		}
		if err := k.MoveTo(memory); !errors.Is(err, ErrUsed) {
			t.Errorf("a closed key: %v", err)
		}
	})
}

// A key that cannot be moved is left as it was.
func TestMoveToTooSmall(t *testing.T) {
	forKEMs(t, func(t *testing.T, generated one) {
		for _, n := range []int{0, 31, SecretSize - 1} {
			k, err := NewPrivateKey(1, generated.config.kem.id, generated.Seed())
			if err != nil {
				t.Fatal(err)
			}
			before := numbers(reflect.ValueOf(k.key), 0)
			memory := make([]byte, n)
			if err := k.MoveTo(memory); !errors.Is(err, ErrShape) {
				t.Errorf("%d bytes: %v", n, err)
			}
			if !bytes.Equal(numbers(reflect.ValueOf(k.key), 0), before) || !isZero(memory) {
				t.Errorf("%d bytes: not put back", n)
			}
			sealed, _ := seal(t, k.config, []byte("q"))
			if _, got, err := openRequest(sealed, one{k}); err != nil || string(got) != "q" {
				t.Errorf("%d bytes: %q, %v", n, got, err)
			}
			k.Close()
		}
	})
}
