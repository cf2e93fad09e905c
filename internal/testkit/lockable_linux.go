// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"syscall"
	"testing"
)

// NeedLocked skips a test if this process cannot lock n more bytes of memory.
func NeedLocked(t testing.TB, n int) {
	t.Helper()
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Munmap(b) }()
	if err := syscall.Mlock(b); err != nil {
		t.Skipf("it needs %d bytes of locked memory, and ulimit -l says no: %v", n, err)
	}
}
