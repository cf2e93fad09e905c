// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import (
	"runtime"
	"sync"
	"time"
)

// sweepDelay bounds how long garbage with secrets in it lies about, and how often the program pays
// for a collection.
const sweepDelay = time.Second

// Sweeper collects garbage some time after it is asked to, once for all who ask meanwhile: in
// [RuntimeSecret] builds what [Do] left on the heap is erased only when the garbage collector finds
// it. Elsewhere that would erase nothing, and a Sweeper does nothing. The zero Sweeper is ready.
// Safe for concurrent use.
type Sweeper struct {
	collect func() // runtime.GC, but for tests

	mu      sync.Mutex
	timer   *time.Timer // pending, or nil
	closed  bool
	running sync.WaitGroup
}

// Soon has the garbage collected in a second.
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
		s.timer = nil // what is left from now on is for the next time
		s.mu.Unlock()
		s.sweep()
	})
}

// Close ends the waiting, collects for the last time, and waits for a collection that is under way.
// Idempotent.
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
