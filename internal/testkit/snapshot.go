// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Snapshot describes every file in a folder: bytes, mode, and time of the last write.
func Snapshot(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		text, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		fmt.Fprintf(&b, "%s %v %v %x\n", e.Name(), info.Mode(), info.ModTime().UnixNano(),
			sha256.Sum256(text))
	}
	return b.String()
}

// Unchanged fails the test if f changes anything in dir.
func Unchanged(t testing.TB, what, dir string, f func()) {
	t.Helper()
	before := Snapshot(t, dir)
	f()
	if Snapshot(t, dir) != before {
		t.Errorf("%s: something changed on the disk", what)
	}
}
