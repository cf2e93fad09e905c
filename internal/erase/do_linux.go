// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !(goexperiment.runtimesecret && (amd64 || arm64))

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
	before, ok := blockSignals()
	defer restore(before, ok)
	defer scrubRegisters()
	deep(f, ok && isWithin(before))
}

// isWithin says whether a thread with this mask is within another call of Do. Nobody else blocks
// SIGURG, with which the runtime interrupts goroutines, except programs that start threads in C
// with every signal blocked, which includes SIGABRT.
func isWithin(before unix.Sigset_t) bool {
	return hasSignal(before, unix.SIGURG) && !hasSignal(before, unix.SIGABRT)
}

func hasSignal(set unix.Sigset_t, s unix.Signal) bool {
	return set.Val[uint(s-1)/bitsPerWord]&(1<<(uint(s-1)%bitsPerWord)) != 0
}

// blockSignals keeps this thread from being interrupted: the kernel writes all registers into a
// signal's frame, and nobody clears that. What is sent to the process another thread takes; what
// the runtime sends to this one waits.
func blockSignals() (before unix.Sigset_t, ok bool) {
	block := blocked()
	return before, unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before) == nil
}

// blocked is every signal but those that the thread brings upon itself, and those that C libraries
// need (32 to 34).
func blocked() (set unix.Sigset_t) {
	for i := range set.Val {
		set.Val[i] = ^set.Val[i]
	}
	for _, s := range []unix.Signal{
		unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT,
		unix.SIGSYS, 32, 33, 34,
	} {
		set.Val[uint(s-1)/bitsPerWord] &^= 1 << (uint(s-1) % bitsPerWord)
	}
	return set
}

func restore(before unix.Sigset_t, ok bool) {
	if ok {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	}
}

const bitsPerWord = 32 << (^uint(0) >> 63) // of unix.Sigset_t, whose words are as wide as uint

// scrubRegisters has zeros copied through every vector register that a copy of this size goes
// through: on amd64 X0 to X15. On arm64 copies go through other registers, and these keep what they
// hold. The length must not be a constant: copies of a known length are compiled into moves through
// one register.
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
