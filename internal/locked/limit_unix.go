// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin || freebsd || netbsd || openbsd

package locked

import (
	"math"

	"golang.org/x/sys/unix"
)

// limit returns RLIMIT_MEMLOCK in bytes. A negative number means that there is no limit.
func limit() int64 {
	var r unix.Rlimit
	// two numbers stand for infinity
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r) != nil || uint64(r.Cur) >= math.MaxInt64 {
		return -1
	}
	return int64(r.Cur)
}
