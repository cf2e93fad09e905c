// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Under locked.Required keys for Oblivious HTTP for which there is too little locked memory are
// refused before the file is written, however little is missing.
func TestConfigsRequired(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	testkit.RunInChild(t, "configs", func(t *testing.T) {
		dir, limit := testkit.NobodysFolder(t)
		full := limit
		allow := func(l unix.Rlimit) {
			if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
				t.Fatal(err)
			}
		}
		refused, made := 0, 0
		for pages := range uint64(20) {
			allow(full)
			at := filepath.Join(dir, fmt.Sprint(pages))
			s, _ := createWeak(t, at, &Options{Memory: locked.Required,
				Rotation: Rotation{Every: -1}})
			before, err := os.ReadFile(filepath.Join(at, fileName))
			if err != nil {
				t.Fatal(err)
			}
			limit.Cur = uint64(locked.Report().Locked) + pages*uint64(os.Getpagesize())
			allow(limit)
			_, err = s.Configs(t.Context())
			after, _ := os.ReadFile(filepath.Join(at, fileName))
			switch same := bytes.Equal(before, after); {
			case err == nil && !same:
				made++
			case errors.Is(err, fault.ErrMemoryLimit) && same:
				refused++
			default:
				t.Errorf("%d pages free: %v; the file is the same: %t", pages, err, same)
			}
			s.Close()
		}
		if refused == 0 || made == 0 {
			t.Errorf("%d refused, %d made", refused, made)
		}
	})
}

// What a change of the passphrase opens follows the store's policy.
func TestChangePassphraseUnderPolicy(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	testkit.RunInChild(t, "change passphrase", func(t *testing.T) {
		dir, limit := testkit.NobodysFolder(t)
		for _, policy := range []locked.Policy{locked.Required, locked.Off} {
			s, _ := createWeak(t, filepath.Join(dir, fmt.Sprint(policy)), &Options{Memory: policy})
			old, next := secret(t, passphrase), secret(t, passphrase2)
			before := locked.Report()
			if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK,
				&unix.Rlimit{Cur: uint64(before.Locked), Max: limit.Max}); err != nil {
				t.Fatal(err)
			}
			err := s.ChangePassphrase(t.Context(), old, next)
			if errors.Is(err, fault.ErrMemoryLimit) != (policy == locked.Required) ||
				(err != nil) != (policy == locked.Required) {
				t.Errorf("%v: %v", policy, err)
			}
			if n := locked.Report().Misses - before.Misses; n != 0 {
				t.Errorf("%v: %d buffers were not locked that were to be", policy, n)
			}
			if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
				t.Fatal(err)
			}
		}
	})
}
