// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Under MemoryRequired keys for Oblivious HTTP for which there is too little locked memory are refused before the file is
// written, however little is missing.
func TestConfigsRequired(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	memoryChild(t, "configs", func(t *testing.T) {
		dir, limit := nobodysFolder(t)
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
			s, _ := createWeak(t, at, &KeyStoreOptions{Memory: MemoryRequired, Rotation: Rotation{Every: -1}})
			before, err := os.ReadFile(filepath.Join(at, keyStoreFile))
			if err != nil {
				t.Fatal(err)
			}
			limit.Cur = uint64(locked.Report().Locked) + pages*uint64(os.Getpagesize())
			allow(limit)
			_, err = s.configList(t.Context())
			after, _ := os.ReadFile(filepath.Join(at, keyStoreFile))
			switch same := bytes.Equal(before, after); {
			case err == nil && !same:
				made++
			case errors.Is(err, ErrMemoryLimit) && same:
				refused++
			default:
				t.Errorf("%d pages free: %v; the file is the same: %t", pages, err, same)
			}
			_ = s.Close()
		}
		if refused == 0 || made == 0 {
			t.Errorf("%d refused, %d made", refused, made)
		}
	})
}
