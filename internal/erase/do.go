// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

// stackDepth is more than the deepest stack that sealing, opening or parsing a key needs, in bytes.
const stackDepth = 48 << 10

// Do runs f, and leaves nothing of it on the stack, in registers or in signal frames, as far as the build can:
//
//   - With GOEXPERIMENT=runtimesecret ([RuntimeSecret]) through runtime/secret.Do, which also has what f allocated erased
//     once the garbage collector finds it unreachable. Results that are to last belong into memory made before.
//   - Elsewhere the stack is grown before, so that it need not move with secrets in it, and cleared after. On Linux the
//     signals of the runtime that would spill registers (SIGURG, SIGPROF) wait meanwhile, and vector registers are
//     overwritten. That costs about 5 µs, and delays a stop of the world by no more than the longest stretch of f
//     without a function call.
//
// Other goroutines that f starts are not covered. A panic in f passes through.
func Do(f func()) { do(f) }

// burn makes the stack stackDepth deep and clears it.
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
