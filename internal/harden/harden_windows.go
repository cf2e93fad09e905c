// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package harden

import (
	"errors"
	"fmt"
)

// Process does nothing on Windows, and returns an error that says so.
func Process() error {
	return fmt.Errorf("sealedchat: nothing was done to harden the process, on Windows: %w",
		errors.ErrUnsupported)
}

// Dumpable reports whether other processes of the same user can read this one. On this system
// nothing keeps them from it.
func Dumpable() bool { return true }

// CoreDumpsOff reports whether a crash writes no core dump.
func CoreDumpsOff() bool { return false }
