// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package sealedchat

import (
	"syscall"
	"time"
)

// cpuTime is what the whole process has used, in user and system mode: the garbage collector is in it, other programs
// on the machine are not.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
