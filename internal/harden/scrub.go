// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package harden

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// scrubbing lets one scrub run at a time. A scrub changes two settings of the process, the
// percentage of the garbage collector and the number of processors, and sets them back.
var scrubbing sync.Mutex

const (
	scrubPerClass = 64 << 10 // bytes of a size class that a scrub overwrites at a time
	scrubMost     = 8 << 20  // bytes of a size class that a scrub overwrites at most
	scrubStack    = 96 << 10 // bytes of stack that a scrub overwrites
)

// scrubClasses returns the sizes of small objects in this runtime, in bytes.
func scrubClasses() []int {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	var sizes []int
	for _, class := range stats.BySize {
		if class.Size > 0 {
			sizes = append(sizes, int(class.Size))
		}
	}
	const step, last = 512, 32 << 10 // the runtime does not list all of the largest classes
	for n := stats.BySize[len(stats.BySize)-1].Size/step*step + step; n <= last; n += step {
		sizes = append(sizes, int(n))
	}
	return sizes
}

// Scrub collects garbage, overwrites the free memory of the heap as far as it can reach it, and
// gives free memory back to the system. Only one Scrub runs at a time.
func Scrub() {
	scrubbing.Lock()
	defer scrubbing.Unlock()
	percent := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(percent)
	defer onOneProcessor()()
	runtime.GC()  // objects with finalizers and those in a sync.Pool are garbage after this
	for range 2 { // memory that another goroutine used the first time may be free now
		runtime.GC()
		overwriteFree()
	}
	debug.FreeOSMemory()
	onFreshStack(debug.FreeOSMemory)
}

// onFreshStack moves this goroutine to a stack of 256 KiB whose pages are fresh from the system,
// clears the free part of that stack, and runs f. Stacks are made from free memory of the heap, and
// keep its old contents where nothing is written. The weight keeps the garbage collector from
// moving the stack on, and f gives the old stack back to the system.
//
//go:noinline
func onFreshStack(f func()) {
	var weight [80 << 10]byte
	burnStack()
	f()
	runtime.KeepAlive(&weight)
}

// onOneProcessor lets a single processor of the scheduler run everything until restore is called.
// Each processor has some free memory that only its goroutines get; the memory of the others
// becomes free for all.
func onOneProcessor() (restore func()) {
	before := runtime.GOMAXPROCS(1)
	return func() {
		// unlike GOMAXPROCS, this also makes the runtime follow the limits of the system again
		runtime.SetDefaultGOMAXPROCS()
		if runtime.GOMAXPROCS(0) != before {
			runtime.GOMAXPROCS(before)
		}
	}
}

// overwriteFree allocates zeroed objects in the places of free ones. The garbage collector is off
// meanwhile, so it does not take them back. Objects with pointers have memory of their own.
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

// overwriteClass allocates objects of one size until no free one is left: then the heap grows.
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

// heapSpans returns how many bytes of the heap hold objects, living and free.
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

// zeroed allocates on the heap: the compiler cannot see that nobody keeps the result.
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
