// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import "runtime"

// stackDepth is how much stack Do provides, in bytes: more than sealing, opening or parsing a key
// needs at its deepest.
const stackDepth = 32 << 10

// Do runs f, and leaves nothing of it on the stack, in registers or in signal frames, as far as the
// build can:
//
//   - With GOEXPERIMENT=runtimesecret ([RuntimeSecret]) it calls runtime/secret.Do, which also
//     erases the memory that f allocated, once the garbage collector finds it unreachable. Results
//     that have to last belong in memory that was allocated before.
//   - In other builds Do makes sure that f has [stackDepth] bytes of stack, and that the stack does
//     not move while it holds secrets. Do clears these bytes afterwards. On Linux, signals, which
//     would spill registers, wait meanwhile or go to other threads, and on amd64 Do overwrites the
//     vector registers. That costs a microsecond or two, and delays a stop of the world by at most
//     the longest stretch of f without a function call. CPU profiles do not see f.
//
// Calls nest: the stack of all nested calls together lies within the bytes of the outermost. A
// goroutine that has called Do keeps a stack of 64 KiB or more until the garbage collector shrinks
// it.
//
// On other processors than amd64 and arm64 the package cannot see how large a stack is: there, a
// stack of which more than 192 KiB was in use may move during f. On other systems than Linux it
// cannot see that a call is nested: there, a nested call may move the stack of the outer one.
//
// Do does not cover goroutines that f starts. A panic in f goes on from Do, with its value. If f
// ends its goroutine ([runtime.Goexit]), builds without runtimesecret leave the frames of f as they
// are.
func Do(f func()) { do(f) }

// attempt runs f and returns the value that it panics with. A deferred burn would run below the
// frames of f, which stay until the panic is recovered.
//
//go:noinline
func attempt(f func()) (caught any) {
	defer func() { caught = recover() }()
	f()
	return nil
}

// burnStep is how many bytes one call of burn clears.
const burnStep = 4 << 10

// burn uses n bytes of the stack and clears them, in steps, and what is left over in small ones:
// with what lies between the frames it uses at most a KiB more, which stackMargin has.
//
//go:noinline
func burn(n int) {
	if n < burnStep {
		burnRest(n)
		return
	}
	var frame [burnStep]byte  // zeros
	runtime.KeepAlive(&frame) // so that the compiler writes them
	burn(n - burnStep)
	runtime.KeepAlive(&frame)
}

//go:noinline
func burnRest(n int) {
	if n <= 0 {
		return
	}
	var frame [512]byte
	runtime.KeepAlive(&frame)
	burnRest(n - len(frame))
	runtime.KeepAlive(&frame)
}

// weightStep is how many bytes one call of weigh takes.
const weightStep = 16 << 10

// weigh calls f with weightStep bytes more of the stack in use. Nothing is written to them.
//
//go:noinline
func weigh(f func(), touch bool) {
	if touch { // never true, but it makes the frame this large
		var weight [weightStep]byte
		runtime.KeepAlive(&weight)
	}
	f()
}
