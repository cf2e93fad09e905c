// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && unix

package harden

import (
	"errors"
	"fmt"
	"runtime"
)

// Process does what the root's HardenProcess says.
func Process() error {
	if err := disableCoreDumps(); err != nil {
		return err
	}
	return fmt.Errorf("sealedchat: core dumps are off; keeping other processes out, on %s: %w",
		runtime.GOOS, errors.ErrUnsupported)
}

// Dumpable reports that others of the same user may read this process: here nothing keeps them out.
func Dumpable() bool { return true }

// CoreDumpsOff reports that a crash writes no core.
func CoreDumpsOff() bool { return coreLimitIsZero() }
