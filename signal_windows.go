// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// endingSignals: Go tells of a console that is closed, of logging off and of shutting down as SIGTERM.
func endingSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// raise ends the process with the status that Ctrl-C gives it: an event of one's own would reach others in the console.
func raise(os.Signal) { windows.ExitProcess(uint32(windows.STATUS_CONTROL_C_EXIT)) }
