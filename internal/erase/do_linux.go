// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !goexperiment.runtimesecret

package erase

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// RuntimeSecret tells whether this build has runtime/secret.
const RuntimeSecret = false

func do(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer restore(blockSignals())
	defer scrubRegisters()
	deep(f)
}

// blockSignals keeps the runtime from interrupting this thread: the kernel writes all registers into a signal's frame, and
// nobody clears that.
func blockSignals() (before unix.Sigset_t, ok bool) {
	var block unix.Sigset_t
	for _, s := range []unix.Signal{unix.SIGURG, unix.SIGPROF} {
		word := uint(s-1) / bitsPerWord
		block.Val[word] |= 1 << (uint(s-1) % bitsPerWord)
	}
	return before, unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before) == nil
}

func restore(before unix.Sigset_t, ok bool) {
	if ok {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	}
}

const bitsPerWord = 32 << (^uint(0) >> 63) // of unix.Sigset_t, whose words are as wide as uint

// scrubRegisters has zeros copied through every vector register that a copy of this size goes through. The length must not
// be a constant: copies of a known length are compiled into moves through one register.
//
//go:noinline
func scrubRegisters() { copyZeros(registerFile) }

const registerFile = 256 // bytes: sixteen registers of 16

//go:noinline
func copyZeros(n int) {
	var from, to [registerFile]byte
	copy(to[:n], from[:n])
	runtime.KeepAlive(&to)
}
