// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && unix

package sealedchat

import (
	"errors"
	"fmt"
	"runtime"
)

func hardenProcess() error {
	if err := disableCoreDumps(); err != nil {
		return err
	}
	return fmt.Errorf("sealedchat: core dumps are off; keeping other processes out, on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func dumpable() bool     { return true }
func coreDumpsOff() bool { return coreLimitIsZero() }
