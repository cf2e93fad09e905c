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

// Process does what the root's HardenProcess says.
func Process() error {
	return errors.Join(disableCoreDumps(), setUndumpable())
}

func setUndumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("sealedchat: PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

// Dumpable reports that others of the same user may read this process. It is true for both other
// values: 1, and 2 of set-uid programs, whose cores root gets.
func Dumpable() bool {
	n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return err != nil || n != 0
}

// CoreDumpsOff reports that a crash writes no core. A core_pattern that pipes cores to a program
// does not obey RLIMIT_CORE.
func CoreDumpsOff() bool {
	if !Dumpable() {
		return true
	}
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	return err == nil && !bytes.HasPrefix(pattern, []byte("|")) && coreLimitIsZero()
}
