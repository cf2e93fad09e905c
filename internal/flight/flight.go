// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package flight shares one run of a slow function between all callers that ask for its result at
// the same time.
package flight

import (
	"context"
	"errors"
	"sync"
)

// errExited is the result of a function that ended its goroutine with runtime.Goexit.
var errExited = errors.New("flight: the function did not return")

// ErrOver is the error of Do after Close.
var ErrOver = errors.New("flight: over")

// Group runs one function at a time for its callers. The zero value is ready; it must not be copied
// after first use. All methods are safe for concurrent use.
//
// mu guards current, closed, and the waiters of every run. Invariant: current is the run that the
// next caller joins, or nil. A run that all callers have left is not current any more; it may still
// be ending beside the current one.
type Group[T any] struct {
	// KeepGoing lets a run finish although nobody waits for it any more. Without it, the context of
	// the run is cancelled when the last caller leaves. Set it before the first Do.
	KeepGoing bool

	mu      sync.Mutex
	current *run[T]
	closed  bool // no further run begins
	running sync.WaitGroup
}

// run is one call of the function.
type run[T any] struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{} // closed when the fields below are final

	value    T
	err      error
	panicked any
}

// Do joins the current run, or starts one, and waits for its result or for the end of ctx. fn runs
// in a goroutine of its own. Its context is derived from life alone: it ends with life, and has no
// deadline and no values of any caller. A panic in fn becomes a panic of every caller that waits.
// After Close the error is ErrOver.
func (g *Group[T]) Do(ctx, life context.Context, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, context.Cause(ctx)
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return zero, ErrOver
	}
	r := g.current
	if r == nil {
		r = g.start(life, fn)
	}
	r.waiters++
	g.mu.Unlock()

	select {
	case <-r.done:
		if r.panicked != nil {
			panic(r.panicked)
		}
		return r.value, r.err
	case <-ctx.Done():
		g.leave(r)
		return zero, context.Cause(ctx)
	}
}

// Close makes every later Do return ErrOver, and waits until no run is left. Callers that wait for
// a run still get its result. Close may be called more than once.
func (g *Group[T]) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
}

// start starts a run and makes it current. mu is held.
func (g *Group[T]) start(life context.Context, fn func(context.Context) (T, error)) *run[T] {
	ctx, cancel := context.WithCancel(life)
	r := &run[T]{cancel: cancel, done: make(chan struct{})}
	g.current = r
	g.running.Go(func() {
		defer cancel()
		r.err = errExited
		defer func() {
			r.panicked = recover()
			g.mu.Lock()
			if g.current == r {
				g.current = nil
			}
			g.mu.Unlock()
			close(r.done)
		}()
		r.value, r.err = fn(ctx)
	})
	return r
}

// leave ends the wait of one caller, and cancels the run if that was the last one.
func (g *Group[T]) leave(r *run[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r.waiters--
	if r.waiters > 0 || g.KeepGoing {
		return
	}
	if g.current == r {
		g.current = nil // a cancelled run has no result for later callers
	}
	r.cancel()
}
