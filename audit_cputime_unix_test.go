// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package sealedchat

import (
	"syscall"
	"testing"
)

// cpuTime is what this process has used, in seconds, in the kernel too.
func cpuTime(t testing.TB) float64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
