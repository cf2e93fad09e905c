// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"runtime"
	"runtime/debug"
	"sync"
)

// scrubbing lets one scrub run at a time: the collector's percentage, which a scrub saves and sets back, is the process's.
var scrubbing sync.Mutex

const (
	scrubPerClass = 64 << 10 // bytes of each size class that a scrub overwrites
	scrubStack    = 48 << 10 // bytes of stack that a scrub overwrites
)

// scrubClasses are the sizes of small objects in this runtime, in bytes.
func scrubClasses() []int {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	var sizes []int
	for _, class := range stats.BySize {
		if class.Size > 0 {
			sizes = append(sizes, int(class.Size))
		}
	}
	const step, last = 512, 32 << 10 // of the largest classes not all are listed
	for n := stats.BySize[len(stats.BySize)-1].Size/step*step + step; n <= last; n += step {
		sizes = append(sizes, int(n))
	}
	return sizes
}

// ScrubHeap overwrites what the heap has free, where the standard library leaves copies of secrets that nothing can
// reach any more (crypto/rsa: the padded message and intermediate numbers of each answer opened), and gives free memory
// back to the system. It costs three garbage collections, of the host's garbage too: about 4 ms with a small heap, and
// in proportion more with a large one. On a heap of tens of megabytes with many gaps, some copies may survive. It reaches
// nothing that is still referenced: close clients and key stores first where that counts. Nothing in this package calls it.
// Safe for concurrent use.
func ScrubHeap() {
	scrubbing.Lock()
	defer scrubbing.Unlock()
	burnStack() // before the collections, which free the stacks that were outgrown
	percent := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(percent)
	runtime.GC()
	runtime.GC() // what had a finalizer or lay in a sync.Pool is garbage now
	overwriteFree()
	debug.FreeOSMemory()
}

// overwriteFree allocates zeroed objects where the free ones were, which the collector, being off, does not take back
// meanwhile. Objects with pointers have memory of their own.
func overwriteFree() {
	const word, headerless = 8, 512 // above 512 bytes an object with pointers has a word more
	for _, size := range scrubClasses() {
		words := size / word
		if size > headerless {
			words--
		}
		for n := 0; n < scrubPerClass; n += size {
			runtime.KeepAlive(zeroed[byte](size))
			runtime.KeepAlive(zeroed[*byte](words))
		}
	}
}

// zeroed allocates on the heap, for the compiler does not see that nobody keeps the result.
//
//go:noinline
func zeroed[T any](n int) []T { return make([]T, n) }

// burnStack overwrites the stack below its caller.
//
//go:noinline
func burnStack() {
	var stack [scrubStack]byte
	clear(stack[:])
	runtime.KeepAlive(&stack)
}
