// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package harden

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Process turns core dumps off, and keeps other processes of the same user from reading this one.
func Process() error {
	return errors.Join(disableCoreDumps(), setUndumpable())
}

// setUndumpable makes the process unreadable for others of the same user.
func setUndumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("sealedchat: PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

// Dumpable reports whether other processes of the same user can read this one. It is true for the
// values 1 and 2; 2 is that of set-uid programs, whose core dumps root gets.
func Dumpable() bool {
	n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return err != nil || n != 0
}

// CoreDumpsOff reports whether a crash writes no core dump. A core_pattern that pipes dumps to a
// program ignores RLIMIT_CORE.
func CoreDumpsOff() bool {
	if !Dumpable() {
		return true
	}
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	return err == nil && !bytes.HasPrefix(pattern, []byte("|")) && coreLimitIsZero()
}
