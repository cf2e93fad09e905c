// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestFullAuditLog has a process fill a file system of 64 KiB with its log: what cannot be written stops the caller or
// does not, as he chose, and the next line says how many events are missing.
func TestFullAuditLog(t *testing.T) {
	testkit.RunWithOwnMounts(t, child(t, "full audit", t.TempDir(), ""))
}

func childFullAuditLog(t *testing.T, dir, _ string) {
	keys, _ := createWeak(t, storeDir(t), nil)
	testkit.MountSmallDisk(dir)
	for i, policy := range []AuditFailure{AuditStop, AuditGoOn} {
		path := filepath.Join(dir, "log", "audit.log")
		l := openAuditLog(t, path, keys, &AuditLogOptions{OnFailure: policy})
		writeNotes(t, l, 0, 2)
		before := l.Head().Seq
		filler := filepath.Join(dir, "filler")
		if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		large := Event{Type: EventNote, Details: map[string]any{"s": strings.Repeat("x", 20_000)}}
		for range 3 {
			err := l.Record(t.Context(), large)
			if policy == AuditStop && !errors.Is(err, syscall.ENOSPC) || policy == AuditGoOn && err != nil {
				t.Errorf("policy %v: %v", policy, err)
			}
		}
		if r := mustVerify(t, path, keys, nil); r.Head.Seq != before {
			t.Errorf("%+v", r)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		writeNotes(t, l, 2, 3)
		if r := mustVerify(t, path, keys, nil); r.Head.Seq != before+1 || r.Lost != uint64(3*(i+1)) || r.Torn != 0 {
			t.Errorf("%+v", r)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	// A read-only file system, which stops root, too.
	path := filepath.Join(dir, "log", "audit.log")
	l := openAuditLog(t, path, keys, nil)
	head := l.Head()
	l.turn <- struct{}{}
	l.dropFile() // or the mount would be busy
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	<-l.turn
	if err := l.Record(t.Context(), note(0)); !errors.Is(err, syscall.EROFS) {
		t.Errorf("read-only: %v", err)
	}
	if r := mustVerify(t, path, keys, &head); !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "1 events") {
		t.Errorf("what was lost and not said: %v", err)
	}
}
