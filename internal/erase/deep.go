// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build gc && (amd64 || arm64)

package erase

import "unsafe"

// stackMargin is for the frames of this package, and for what the runtime keeps free below.
const stackMargin = 4 << 10

// stackBounds are the lowest address of this goroutine's stack, and the one above the highest. The
// runtime's g begins with them, at offsets that cgo and the compiler rely on. They are numbers: the
// stack may have moved when somebody looks at them.
func stackBounds() (lo, hi uintptr)

// stack is how many bytes of the stack the caller and its callers use, and how many are free.
//
//go:noinline
func stack() (used, free int) {
	var here byte
	at := uintptr(unsafe.Pointer(&here))
	lo, hi := stackBounds()
	return int(hi - at), int(at - lo)
}

// deep runs f where the stack has room for it and will not move, and clears what f used.
//
// Two things move a stack. It has no room for the next frame: so it grows before f, if need be.
// And the garbage collector moves a stack of which less than a quarter is in use to one of half the
// size: so a quarter is in use before f, if need be with frames that hold nothing.
//
// Inside another call both are so already. Then deep must not let the stack grow, since that would
// leave the outer work behind, and clears what is free of the outer call's bytes.
func deep(f func(), nested bool) {
	used, free := stack()
	if !nested {
		for free < stackDepth+stackMargin {
			burn(stackDepth + stackMargin)
			used, free = stack()
		}
		if used < (used+free)/4 {
			weigh(func() { deep(f, false) }, false)
			return
		}
	}
	caught := attempt(f)
	burn(min(stackDepth, free-stackMargin))
	if caught != nil {
		panic(caught)
	}
}
