// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestFullAuditLog has a process fill a file system of 64 KiB with its log: what cannot be written
// stops the caller or does not, as was chosen, and the next line says how many events are missing.
func TestFullAuditLog(t *testing.T) {
	testkit.RunWithOwnMounts(t, child(t, "full", t.TempDir(), ""))
}

func childFull(t *testing.T, dir, _ string) {
	keys := &testKeys{store: newTestStore()}
	testkit.MountSmallDisk(dir)
	for i, goesOn := range []bool{false, true} {
		path := filepath.Join(dir, "log", "audit.log")
		l := openLog(t, path, keys, &Options{KeepGoing: goesOn})
		writeNotes(t, l, 0, 2)
		before := l.Head().Seq
		filler := filepath.Join(dir, "filler")
		if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); !errors.Is(err,
			syscall.ENOSPC) {
			t.Fatal(err)
		}
		for range 3 {
			err := l.Record(t.Context(), "note", largeNote())
			if !goesOn && !errors.Is(err, syscall.ENOSPC) || goesOn && err != nil {
				t.Errorf("goes on %v: %v", goesOn, err)
			}
		}
		if r := mustVerify(t, path, keys, Head{}); r.Head.Seq != before {
			t.Errorf("%+v", r)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		writeNotes(t, l, 2, 3)
		if r := mustVerify(t, path, keys, Head{}); r.Head.Seq != before+1 ||
			r.Lost != uint64(3*(i+1)) ||
			r.Torn != 0 {
			t.Errorf("%+v", r)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	// A read-only file system, which stops root, too.
	path := filepath.Join(dir, "log", "audit.log")
	l := openLog(t, path, keys, nil)
	head := l.Head()
	l.turn <- struct{}{}
	l.dropFile() // or the mount would be busy
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY,
		""); err != nil {
		t.Fatal(err)
	}
	<-l.turn
	if err := l.Record(t.Context(), "note", note(0)); !errors.Is(err, syscall.EROFS) {
		t.Errorf("read-only: %v", err)
	}
	if r := mustVerify(t, path, keys, head); !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "1 events") {
		t.Errorf("what was lost and not said: %v", err)
	}
}
