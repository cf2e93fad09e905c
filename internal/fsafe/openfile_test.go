// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func openShared(t *testing.T, d *Dir) *os.File {
	t.Helper()
	f, err := d.OpenShared("f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLockFile(t *testing.T) {
	d := newDir(t)
	one, two := openShared(t, d), openShared(t, d)
	for range 3 {
		if err := LockFile(one, 0); err != nil {
			t.Fatal(err)
		}
		for _, wait := range []time.Duration{0, time.Millisecond} {
			wantErr(t, LockFile(two, wait), ErrLocked)
		}
		// the lock keeps out only those who take it
		if _, err := two.WriteAt([]byte("x"), 0); err != nil {
			t.Error(err)
		}
		if err := UnlockFile(one); err != nil {
			t.Fatal(err)
		}
		if err := LockFile(two, 0); err != nil {
			t.Fatal(err)
		}
		wantErr(t, LockFile(one, 0), ErrLocked)
		if err := UnlockFile(two); err != nil {
			t.Fatal(err)
		}
	}
	if err := LockFile(one, 0); err != nil {
		t.Fatal(err)
	}
	if err := one.Close(); err != nil { // lets go of it
		t.Fatal(err)
	}
	if err := LockFile(two, 0); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{LockFile(one, time.Hour), UnlockFile(one)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}

func TestCurrent(t *testing.T) {
	d := newDir(t)
	f := openShared(t, d)
	want := func(what string, size int64, named bool) {
		t.Helper()
		gotSize, gotNamed, err := d.Current(f, "f")
		if gotSize != size || gotNamed != named || err != nil {
			t.Errorf("%s: %d, %v, %v", what, gotSize, gotNamed, err)
		}
	}
	want("new", 0, true)
	if _, err := f.WriteAt([]byte("abc"), 4); err != nil {
		t.Fatal(err)
	}
	want("written", 7, true)
	write(t, d, "f", "another")
	want("replaced", 7, false)
	f = openShared(t, d)
	want("opened again", 7, true)
	if runtime.GOOS != "windows" {
		if err := os.Rename(filepath.Join(d.Path(), "f"),
			filepath.Join(d.Path(), "g")); err != nil {
			t.Fatal(err)
		}
		want("renamed", 7, false)
		if err := os.Symlink("g", filepath.Join(d.Path(), "f")); err != nil {
			t.Fatal(err)
		}
		want("a link to it", 7, false)
	}
	f.Close()
	if _, _, err := d.Current(f, "f"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/f"} {
		if _, err := d.OpenShared(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
