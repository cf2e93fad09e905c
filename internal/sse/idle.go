// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Idle reads an event stream, and ends it when no piece of it comes for too long. Only the wait for
// a piece counts: a reader may take its time between two calls of Read. One goroutine reads.
type Idle struct {
	src   io.Reader
	limit time.Duration
	begun func() bool
	end   func()

	timer *time.Timer
	over  atomic.Bool // limit was reached: whatever src said then is no end
}

// NewIdle bounds each wait for src by limit, from when begun is true on; until then a model may
// think. end makes a Read of src that waits return. limit <= 0 is none.
func NewIdle(src io.Reader, limit time.Duration, begun func() bool, end func()) *Idle {
	return &Idle{src: src, limit: limit, begun: begun, end: end}
}

// Read implements [io.Reader]. The error of a stream that stood still is [fault.ErrStalled], and
// stays.
func (r *Idle) Read(p []byte) (int, error) {
	if r.over.Load() {
		return 0, fault.ErrStalled
	}
	if r.limit <= 0 || !r.begun() {
		return r.src.Read(p)
	}
	if r.timer == nil {
		r.timer = time.AfterFunc(r.limit, func() {
			r.over.Store(true)
			r.end()
		})
	} else {
		r.timer.Reset(r.limit)
	}
	defer r.timer.Stop() // also in a panic
	n, err := r.src.Read(p)
	if err != nil && r.over.Load() {
		err = fault.ErrStalled
	}
	return n, err
}
