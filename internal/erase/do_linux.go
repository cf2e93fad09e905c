// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !(goexperiment.runtimesecret && (amd64 || arm64))

package erase

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// RuntimeSecret reports whether this build has runtime/secret.
const RuntimeSecret = false

func do(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, ok := blockSignals()
	defer restore(before, ok)
	defer scrubRegisters()
	deep(f, ok && isWithin(before))
}

// isWithin reports whether a thread with this signal mask is within another call of Do. Only Do
// blocks SIGURG, with which the runtime interrupts goroutines. Programs that start threads in C
// with every signal blocked also do, but they block SIGABRT too.
func isWithin(before unix.Sigset_t) bool {
	return hasSignal(before, unix.SIGURG) && !hasSignal(before, unix.SIGABRT)
}

// hasSignal reports whether a set has a signal.
func hasSignal(set unix.Sigset_t, s unix.Signal) bool {
	return set.Val[uint(s-1)/bitsPerWord]&(1<<(uint(s-1)%bitsPerWord)) != 0
}

// blockSignals keeps this thread from being interrupted: the kernel would write all registers into
// a signal frame, and nobody would clear that. Other threads take signals that are sent to the
// process. Signals from the runtime to this thread wait.
func blockSignals() (before unix.Sigset_t, ok bool) {
	block := blocked()
	return before, unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before) == nil
}

// blocked returns all signals except those that the thread causes itself, and those that C
// libraries need (32 to 34).
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

// restore undoes blockSignals.
func restore(before unix.Sigset_t, ok bool) {
	if ok {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	}
}

const bitsPerWord = 32 << (^uint(0) >> 63) // of unix.Sigset_t, whose words are as wide as uint

// scrubRegisters copies zeros through the vector registers that a copy of this size uses: on amd64
// X0 to X15. On arm64 copies use other registers, and the vector registers keep their contents. The
// length must not be a constant: the compiler turns copies of a known length into moves through one
// register.
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
