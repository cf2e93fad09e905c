// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

func TestKeyStoreOptionErrors(t *testing.T) {
	for _, c := range []struct {
		o     KeyStoreOptions
		field string
	}{
		{KeyStoreOptions{Bits: 1024}, "Bits"}, {KeyStoreOptions{Bits: 2049}, "Bits"}, {KeyStoreOptions{Bits: 8192}, "Bits"},
		{KeyStoreOptions{Bits: -1}, "Bits"}, {KeyStoreOptions{Iterations: 1}, "Iterations"},
		{KeyStoreOptions{Iterations: 599_999}, "Iterations"}, {KeyStoreOptions{Iterations: 10_000_001}, "Iterations"},
		{KeyStoreOptions{Iterations: -1}, "Iterations"},
	} {
		dir := storeDir(t)
		_, e1 := NewEphemeralKeyStore(&c.o)
		_, e2 := CreateKeyStore(t.Context(), dir, secret(t, passphrase), &c.o)
		_, e3 := OpenKeyStore(t.Context(), dir, secret(t, passphrase), &c.o)
		for _, err := range []error{e1, e2, e3} {
			if e, ok := errors.AsType[*ConfigError](err); !ok || e.Field != "KeyStoreOptions."+c.field {
				t.Errorf("%+v: %v", c.o, err)
			}
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: a folder was made", c.o)
		}
	}
	for _, bits := range []int{0, 2048, 3072, 4096} {
		if s, err := NewEphemeralKeyStore(&KeyStoreOptions{Bits: bits}); err != nil {
			t.Error(bits, err)
		} else if s.Close(); bits == 0 && s.store.Bits() != 4096 {
			t.Errorf("%d bits by default", s.store.Bits())
		}
	}
}
