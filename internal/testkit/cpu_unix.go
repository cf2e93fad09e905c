// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package testkit

import (
	"syscall"
	"time"
)

// CPUTime is how long this process has computed, in user and system mode, its garbage collector
// included. Where that is not known, it is how long the process has run.
func CPUTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
