// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build gc && (amd64 || arm64)

package erase

import (
	"runtime"
	"unsafe"
)

// stackMargin is room for the frames of this package, and for the bytes that the runtime keeps free
// below.
const stackMargin = 4 << 10

// stackBounds returns the lowest address of the stack of this goroutine, and the address after the
// highest. The g of the runtime begins with them, at offsets that cgo and the compiler rely on.
// They are numbers and not pointers: the stack may have moved since.
func stackBounds() (lo, hi uintptr)

// stack returns how many bytes of the stack the caller and its callers use, and how many are free.
//
//go:noinline
func stack() (used, free int) {
	var here byte
	at := uintptr(unsafe.Pointer(&here))
	lo, hi := stackBounds()
	return int(hi - at), int(at - lo)
}

// reserve makes the stack grow to what deep needs, at once: call by call it would double several
// times, and each time the runtime would move all frames. Nothing is written.
//
//go:noinline
func reserve(touch bool) {
	if touch { // never true, but it makes the frame this large
		var room [stackDepth + stackMargin]byte
		runtime.KeepAlive(&room)
	}
}

// deep runs f where the stack has enough room and will not move, and then clears the stack that f
// used.
//
// Two events move a stack. If it has no room for the next frame, it grows: so deep makes it grow
// before f. And the garbage collector moves a stack of which less than a quarter is in use to one
// of half the size: so deep uses a quarter of it before f, with empty frames if necessary.
//
// Within another call of Do both are true already. Then deep must not let the stack grow, since the
// bytes of the outer call would stay behind. It clears the free part of the outer call's bytes.
func deep(f func(), nested bool) {
	used, free := stack()
	if !nested {
		for free < stackDepth+stackMargin {
			reserve(false)
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
