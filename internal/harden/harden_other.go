// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && unix

package harden

import (
	"errors"
	"fmt"
	"runtime"
)

// Process turns core dumps off. It cannot keep other processes from reading this one, and returns
// an error that says so.
func Process() error {
	if err := disableCoreDumps(); err != nil {
		return err
	}
	return fmt.Errorf("sealedchat: core dumps are off; keeping other processes out, on %s: %w",
		runtime.GOOS, errors.ErrUnsupported)
}

// Dumpable reports whether other processes of the same user can read this one. On this system
// nothing keeps them from it.
func Dumpable() bool { return true }

// CoreDumpsOff reports whether a crash writes no core dump.
func CoreDumpsOff() bool { return coreLimitIsZero() }
