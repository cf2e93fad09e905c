// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package harden

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// scrubbing lets one scrub run at a time: a scrub changes the collector's percentage and the number
// of processors, which are the process's, and sets them back.
var scrubbing sync.Mutex

const (
	scrubPerClass = 64 << 10 // bytes of each size class that a scrub overwrites at a time
	scrubMost     = 8 << 20  // and at most
	scrubStack    = 96 << 10 // bytes of stack that a scrub overwrites
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

// Scrub does what the root's ScrubHeap says.
func Scrub() {
	scrubbing.Lock()
	defer scrubbing.Unlock()
	percent := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(percent)
	defer onOneProcessor()()
	runtime.GC()  // what had a finalizer or lay in a sync.Pool is garbage after this one
	for range 2 { // what another goroutine had in use the first time may be free now
		runtime.GC()
		overwriteFree()
	}
	debug.FreeOSMemory()
	onFreshStack(debug.FreeOSMemory)
}

// onFreshStack moves this goroutine to a stack of 256 KiB, whose pages the system has just given,
// clears the free part of it, and runs f: stacks are made of whatever the heap has free, and keep
// what was there where nothing is written. The weight keeps the collector from moving the stack on,
// and f gives the one before back to the system.
//
//go:noinline
func onFreshStack(f func()) {
	var weight [80 << 10]byte
	burnStack()
	f()
	runtime.KeepAlive(&weight)
}

// onOneProcessor has one processor (of the scheduler's) do everything until restore is called. Each
// has some free memory that only goroutines on it get; the memory of the others goes back to all.
func onOneProcessor() (restore func()) {
	before := runtime.GOMAXPROCS(1)
	return func() {
		// which also goes on following the system's limits, as GOMAXPROCS does not
		runtime.SetDefaultGOMAXPROCS()
		if runtime.GOMAXPROCS(0) != before {
			runtime.GOMAXPROCS(before)
		}
	}
}

// overwriteFree allocates zeroed objects where the free ones were, which the collector, being off,
// does not take back meanwhile. Objects with pointers have memory of their own.
func overwriteFree() {
	const word, headerless = 8, 512 // above 512 bytes an object with pointers has a word more
	for _, size := range scrubClasses() {
		words := size / word
		if size > headerless {
			words--
		}
		overwriteClass(size, func() { runtime.KeepAlive(zeroed[byte](size)) })
		overwriteClass(size, func() { runtime.KeepAlive(zeroed[*byte](words)) })
	}
}

// overwriteClass allocates objects of a size until there is no free one among those there were:
// then the heap grows.
func overwriteClass(size int, allocate func()) {
	for total := 0; total < scrubMost; total += scrubPerClass {
		before := heapSpans()
		for n := 0; n < scrubPerClass; n += size {
			allocate()
		}
		if heapSpans() > before {
			return
		}
	}
}

// heapSpans is how many bytes of the heap are set aside for objects, living and free.
func heapSpans() (n uint64) {
	s := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
	}
	metrics.Read(s)
	for i := range s {
		if s[i].Value.Kind() == metrics.KindUint64 {
			n += s[i].Value.Uint64()
		}
	}
	return n
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
