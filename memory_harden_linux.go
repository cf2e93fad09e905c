// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func hardenProcess() error {
	return errors.Join(disableCoreDumps(), setUndumpable())
}

func setUndumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("sealedchat: PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

// dumpable is true for both other values: 1, and 2 of set-uid programs, whose cores root gets.
func dumpable() bool {
	n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return err != nil || n != 0
}

func coreDumpsOff() bool {
	if !dumpable() {
		return true
	}
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	return err == nil && !bytes.HasPrefix(pattern, []byte("|")) && coreLimitIsZero()
}
