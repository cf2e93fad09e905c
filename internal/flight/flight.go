// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package flight shares one run of a slow function between however many callers ask for its result.
package flight

import (
	"context"
	"errors"
	"sync"
)

// errExited is the result of a function that left through runtime.Goexit.
var errExited = errors.New("flight: the function did not return")

// ErrOver is what Do returns after Close.
var ErrOver = errors.New("flight: over")

// Group hands out one run at a time; one that was abandoned may still be ending beside it. The zero
// value is ready; it must not be copied after first use. All methods may be called from several
// goroutines.
type Group[T any] struct {
	// KeepGoing lets a run finish although nobody waits for it any more. Otherwise its context is
	// cancelled when the last caller leaves. Set it before the first Do.
	KeepGoing bool

	mu      sync.Mutex
	current *run[T]
	over    bool // no further run begins
	running sync.WaitGroup
}

type run[T any] struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{} // closed when the fields below are final

	value    T
	err      error
	panicked any
}

// Do joins the run that is under way, or starts one, and waits for its result or the end of ctx. fn
// runs on a goroutine of its own under a context that carries no deadline and no values of any
// caller's; it ends with life. A panic in fn becomes a panic in everyone who waits.
func (g *Group[T]) Do(ctx, life context.Context, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, context.Cause(ctx)
	}
	g.mu.Lock()
	if g.over {
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

// Close makes every later Do return ErrOver, and blocks until no run is under way. Those who wait
// for one still get its result. It may be called more than once.
func (g *Group[T]) Close() {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	g.running.Wait()
}

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

func (g *Group[T]) leave(r *run[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r.waiters--
	if r.waiters > 0 || g.KeepGoing {
		return
	}
	if g.current == r {
		g.current = nil // a cancelled run has nothing to offer to those who come now
	}
	r.cancel()
}
