// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package harden

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// disableCoreDumps also lowers the hard limit: only root can undo that.
func disableCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("sealedchat: RLIMIT_CORE: %w", err)
	}
	return nil
}

// coreLimitIsZero reports whether RLIMIT_CORE allows no core dump.
func coreLimitIsZero() bool {
	var r unix.Rlimit
	return unix.Getrlimit(unix.RLIMIT_CORE, &r) == nil && r.Cur == 0
}
