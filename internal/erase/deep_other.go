// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !gc || !(amd64 || arm64)

package erase

// weights is how many frames of weigh lie above the work. 48 KiB keep the garbage collector from
// moving a stack of 128 KiB, the size that a small stack has after growing.
const weights = 3

// deep runs f far down a stack that has room for it, and clears the stack that f used.
func deep(f func(), _ bool) { down(f, weights) }

// down calls itself n times with the weight, and then runs f.
func down(f func(), n int) {
	if n > 0 {
		weigh(func() { down(f, n-1) }, false)
		return
	}
	burn(stackDepth)
	caught := attempt(f)
	burn(stackDepth)
	if caught != nil {
		panic(caught)
	}
}
