// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"sync"
	"time"
)

// deadlines bound how long a handler waits for its client. The server's end sets them from another
// goroutine than the handler's.
//
// Over HTTP/2, net/http hands each deadline over to the goroutine of the connection, which costs
// more than a chunk's cipher. There, a deadline is a timer of the request's own, and net/http hears
// of those that pass. They have the same effect: net/http ends the stream either way.
//
// Invariant: once over is set, no timer touches the request's ResponseWriter, which is no longer
// valid.
type deadlines struct {
	mu   sync.Mutex
	own  bool // they are timers of the request's own
	over bool // the handler has returned

	read, write deadline
}

// deadline is one of them. at is zero while there is none; it tells a timer that was stopped too
// late. Both are guarded by the deadlines' lock.
type deadline struct {
	timer *time.Timer // nil until it is needed
	at    time.Time
}

type direction int

const (
	reading direction = 1 << iota
	writing
	unbounded time.Duration = -1
)

// ownDeadlines tells requests over HTTP/2 from a server that sets no deadlines itself.
func ownDeadlines(r *http.Request) bool {
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	return ok && r.ProtoMajor == 2 && server.ReadTimeout <= 0 && server.WriteTimeout <= 0
}

// within bounds the time for what is still read of the request, or written of the answer. Where a
// server cannot, its own timeouts hold. Over HTTP/1 the bound on reading stays in force when a
// request is refused: net/http reads on before it answers.
func (h *request) within(d time.Duration, what direction) {
	h.deadlines.mu.Lock()
	defer h.deadlines.mu.Unlock()
	switch {
	case h.deadlines.over:
	case d != 0 && h.s.life.Err() != nil: // once the server is closing, nothing takes the bound back
	case h.deadlines.own && d != 0:
		h.setTimers(d, what)
	default:
		h.setDeadlines(d, what)
	}
}

// withinAfter is within for what net/http writes once the handler has returned.
func (h *request) withinAfter(d time.Duration, what direction) {
	h.deadlines.mu.Lock()
	defer h.deadlines.mu.Unlock()
	if h.s.life.Err() == nil {
		h.setDeadlines(d, what)
	}
}

// setDeadlines has net/http keep the time.
func (h *request) setDeadlines(d time.Duration, what direction) {
	at := time.Now().Add(d)
	if d == unbounded {
		at = time.Time{}
	}
	control := http.NewResponseController(h.w)
	if what&reading != 0 {
		_ = control.SetReadDeadline(at)
	}
	if what&writing != 0 {
		_ = control.SetWriteDeadline(at)
	}
}

// setTimers keeps the time itself. The deadlines' lock is held.
func (h *request) setTimers(d time.Duration, what direction) {
	for _, one := range [...]struct {
		what direction
		*deadline
	}{{reading, &h.deadlines.read}, {writing, &h.deadlines.write}} {
		switch {
		case what&one.what == 0:
		case d == unbounded:
			one.stop()
		case one.timer == nil:
			one.at = time.Now().Add(d)
			one.timer = time.AfterFunc(d, func() { h.passed(one.deadline, one.what) })
		default:
			one.at = time.Now().Add(d)
			one.timer.Reset(d)
		}
	}
}

func (d *deadline) stop() {
	d.at = time.Time{}
	if d.timer != nil {
		d.timer.Stop()
	}
}

// passed tells net/http of a deadline that has passed, unless it was taken back meanwhile.
func (h *request) passed(d *deadline, what direction) {
	h.deadlines.mu.Lock()
	defer h.deadlines.mu.Unlock()
	if h.deadlines.over || d.at.IsZero() || time.Until(d.at) > 0 {
		return
	}
	d.at = time.Time{}
	h.setDeadlines(-time.Second, what) // in the past: net/http acts at once
}

// end takes back what is timed, as the handler returns.
func (d *deadlines) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	d.read.stop()
	d.write.stop()
}
