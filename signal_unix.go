// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package sealedchat

import (
	"os"
	"syscall"
	"time"
)

func endingSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// raise sends the signal to the process, whose default handling of it is back, and gives it time to die of it.
func raise(s os.Signal) {
	if number, ok := s.(syscall.Signal); ok && syscall.Kill(os.Getpid(), number) == nil {
		time.Sleep(raisePatience)
	}
}
