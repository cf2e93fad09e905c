// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import "runtime"

// stackDepth is more than the deepest stack that sealing, opening or parsing a key needs, in bytes.
const stackDepth = 32 << 10

// Do runs f, and leaves nothing of it on the stack, in registers or in signal frames, as far as the
// build can:
//
//   - With GOEXPERIMENT=runtimesecret ([RuntimeSecret]) through runtime/secret.Do, which also has
//     what f allocated erased once the garbage collector finds it unreachable. Results that are to
//     last belong into memory made before.
//   - Elsewhere Do sees to it that f finds [stackDepth] bytes of stack, and that the stack does not
//     move with secrets in it; Do clears these bytes afterwards. On Linux signals, which would
//     spill registers, wait meanwhile or go to other threads, and on amd64 vector registers are
//     overwritten. That costs a microsecond or two, and delays a stop of the world by no more than
//     the longest stretch of f without a function call. Profiles of the processor's time do not
//     see f.
//
// Calls nest; the stack of them all together is within the bytes of the outermost. A goroutine that
// has called Do keeps a stack of 64 KiB or more until the garbage collector shrinks it.
//
// Where package erase cannot see how large a stack is (neither amd64 nor arm64), a stack of which
// more than 192 KiB was in use before may move during f. Where it cannot see that a call is nested
// (not on Linux), a nested call may move the stack of the outer one.
//
// Other goroutines that f starts are not covered. A panic in f goes on from Do, with its value.
// When f ends its goroutine ([runtime.Goexit]), the ordinary build leaves its frames as they are.
func Do(f func()) { do(f) }

// attempt returns the value that f panics with: a deferred burn would run below the frames of f,
// which stay as they are until the panic has been recovered.
//
//go:noinline
func attempt(f func()) (caught any) {
	defer func() { caught = recover() }()
	f()
	return nil
}

// burn uses n bytes of the stack, and clears them.
//
//go:noinline
func burn(n int) byte {
	var frame [1 << 10]byte
	if n > len(frame) {
		frame[0] = burn(n - len(frame))
	}
	for i := range frame {
		frame[i] = 0
	}
	return frame[n%len(frame)]
}

// weightStep is how many bytes one call of weigh takes.
const weightStep = 16 << 10

// weigh calls f with weightStep bytes more of the stack in use. Nothing is written to them.
//
//go:noinline
func weigh(f func(), touch bool) {
	if touch { // never: the frame is as large as if it were so
		var weight [weightStep]byte
		runtime.KeepAlive(&weight)
	}
	f()
}
