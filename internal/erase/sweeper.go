// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import (
	"runtime"
	"sync"
	"time"
)

// sweepDelay bounds how long garbage with secrets stays in memory, and how often the program pays
// for a collection.
const sweepDelay = time.Second

// Sweeper runs the garbage collector some time after a caller asks for it, once for all callers
// that ask meanwhile. In [RuntimeSecret] builds, the memory that [Do] left on the heap is erased
// only when the garbage collector finds it. In other builds that would erase nothing, and a Sweeper
// does nothing. The zero Sweeper is ready. It is safe for concurrent use.
//
// mu guards timer and closed. Invariant: running counts the timers that are pending or whose
// collection runs.
type Sweeper struct {
	collect func() // set by tests; nil is runtime.GC

	mu      sync.Mutex
	timer   *time.Timer // pending, or nil
	closed  bool
	running sync.WaitGroup
}

// Soon runs the garbage collector in a second.
func (s *Sweeper) Soon() {
	if !RuntimeSecret && s.collect == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil || s.closed {
		return
	}
	s.running.Add(1)
	s.timer = time.AfterFunc(sweepDelay, func() {
		defer s.running.Done()
		s.mu.Lock()
		s.timer = nil // garbage of later calls needs another collection
		s.mu.Unlock()
		s.sweep()
	})
}

// Close stops a pending collection, waits for one that runs, and collects for the last time. It is
// idempotent.
func (s *Sweeper) Close() {
	s.mu.Lock()
	last := !s.closed
	s.closed = true
	if s.timer != nil && s.timer.Stop() {
		s.running.Done()
	}
	s.mu.Unlock()
	s.running.Wait()
	if last && (RuntimeSecret || s.collect != nil) {
		s.sweep()
	}
}

func (s *Sweeper) sweep() {
	if s.collect != nil {
		s.collect()
		return
	}
	runtime.GC()
}
