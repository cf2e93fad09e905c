// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestFullDisk has a process fill a file system of 64 KiB, which it mounts where nobody else sees
// it.
func TestFullDisk(t *testing.T) {
	testkit.RunWithOwnMounts(t, child(t, "full", t.TempDir(), ""))
}

func childFullDisk(t *testing.T, dir, _ string) {
	testkit.MountSmallDisk(dir)
	keys := filepath.Join(dir, "keys")
	s, _ := createWeak(t, keys, nil)
	if err := s.Rotate(t.Context()); err != nil { // so that the locks are there
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	before, sealed := fingerprints(s), sealTo(t, s, "x")
	for what, f := range map[string]func() error{
		"rotate": func() error { return s.Rotate(t.Context()) },
		"passwd": func() error {
			return s.ChangePassphrase(t.Context(), secret(t, passphrase), secret(t, passphrase2))
		},
		"pin": func() error { return s.AcceptPin(t.Context(), "https://a.test", [32]byte{1}) },
	} {
		testkit.Unchanged(t, what, keys, func() {
			err := f()
			wantError(t, what, err, syscall.ENOSPC)
			if err == nil || !strings.Contains(err.Error(), "no space left") ||
				!strings.Contains(err.Error(), "saving the key store") {
				t.Errorf("%s: the error does not say what happened: %v", what, err)
			}
		})
		if !slices.Equal(fingerprints(s), before) {
			t.Errorf("%s: it changed in memory", what)
		}
	}
	if plain, err := s.OpenEnvelope(t.Context(), sealed); err != nil || string(plain) != "x" {
		t.Errorf("%q, %v", plain, err)
	}
	if !slices.Equal(fingerprints(openWeak(t, keys, passphrase, nil)), before) {
		t.Error("other keys on the disk")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if again := openWeak(t, keys, passphrase2, nil); !slices.Equal(fingerprints(again),
		fingerprints(s)) || len(again.Keys()) != 3 {
		t.Error("other keys on the disk")
	}
}
