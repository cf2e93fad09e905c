// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package harden

import (
	"errors"
	"fmt"
)

// Process does what the root's HardenProcess says.
func Process() error {
	return fmt.Errorf("sealedchat: nothing was done to harden the process, on Windows: %w",
		errors.ErrUnsupported)
}

// Dumpable reports that others of the same user may read this process: here nothing keeps them out.
func Dumpable() bool { return true }

// CoreDumpsOff reports that a crash writes no core.
func CoreDumpsOff() bool { return false }
