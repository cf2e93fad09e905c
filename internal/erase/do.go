// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import "runtime"

const (
	// stackDepth is more than the deepest stack that sealing, opening or parsing a key needs, in bytes.
	stackDepth = 32 << 10
	// ballast is how much of the stack is in use before the work begins. The garbage collector moves a stack of which less
	// than a quarter is in use to a smaller one, and leaves the old one as it is: with this much it does not.
	ballast = 48 << 10
)

// Do runs f, and leaves nothing of it on the stack, in registers or in signal frames, as far as the build can:
//
//   - With GOEXPERIMENT=runtimesecret ([RuntimeSecret]) through runtime/secret.Do, which also has what f allocated erased
//     once the garbage collector finds it unreachable. Results that are to last belong into memory made before.
//   - Elsewhere the stack is grown before, to 128 KiB, so that it does not move with secrets in it, and cleared after. On
//     Linux signals, which would spill registers, wait meanwhile or go to other threads, and on amd64 vector registers
//     are overwritten. That costs a few microseconds, and delays a stop of the world by no more than the longest stretch
//     of f without a function call. Profiles of the processor's time do not see f.
//
// Calls nest, but each level takes another 80 KiB of stack.
//
// Other goroutines that f starts are not covered. A panic in f passes through.
func Do(f func()) { do(f) }

// deep runs f far down a stack that has room for it, and clears what f used.
//
//go:noinline
func deep(f func()) {
	var weight [ballast]byte
	burn(stackDepth)
	defer burn(stackDepth)
	f()
	runtime.KeepAlive(&weight)
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
