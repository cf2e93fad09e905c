// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// deadlineWriter notes the deadlines that net/http is told, as what is left until then.
type deadlineWriter struct {
	http.ResponseWriter
	read, written []time.Duration
}

func (w *deadlineWriter) SetReadDeadline(at time.Time) error {
	w.read = append(w.read, left(at))
	return nil
}

func (w *deadlineWriter) SetWriteDeadline(at time.Time) error {
	w.written = append(w.written, left(at))
	return nil
}

// left is unbounded for no deadline.
func left(at time.Time) time.Duration {
	if at.IsZero() {
		return unbounded
	}
	return time.Until(at)
}

// Over HTTP/2 net/http hears of a deadline when it passes, and of no other. It never hears of one
// after the handler has returned.
func TestOwnDeadlines(t *testing.T) {
	const past = -time.Second
	for name, c := range map[string]struct {
		run           func(h *request, closeServer func())
		read, written []time.Duration
	}{
		"one that passes": {func(h *request, _ func()) {
			h.within(time.Minute, reading)
			time.Sleep(time.Hour)
		}, []time.Duration{past}, nil},
		"both": {func(h *request, _ func()) {
			h.within(time.Minute, reading|writing)
			time.Sleep(time.Hour)
		}, []time.Duration{past}, []time.Duration{past}},
		"not yet": {func(h *request, _ func()) {
			h.within(time.Minute, reading|writing)
			time.Sleep(time.Minute - 1)
		}, nil, nil},
		"taken back": {func(h *request, _ func()) {
			h.within(time.Minute, reading|writing)
			time.Sleep(time.Second)
			h.within(unbounded, reading)
			time.Sleep(time.Hour)
		}, nil, []time.Duration{past}},
		"put off": {func(h *request, _ func()) {
			h.within(time.Minute, writing)
			time.Sleep(time.Minute - 1)
			h.within(time.Minute, writing)
			time.Sleep(time.Minute - 1)
		}, nil, nil},
		"brought forward": {func(h *request, _ func()) {
			h.within(time.Hour, writing)
			h.within(time.Minute, writing)
			time.Sleep(time.Minute)
			synctest.Wait()
		}, nil, []time.Duration{past}},
		"again after one that passed": {func(h *request, _ func()) {
			h.within(time.Minute, writing)
			time.Sleep(time.Hour)
			h.within(time.Minute, writing)
			time.Sleep(time.Hour)
		}, nil, []time.Duration{past, past}},
		"the handler has returned": {func(h *request, _ func()) {
			h.within(time.Minute, reading|writing)
			h.release()
			h.within(time.Second, reading|writing)
			h.within(0, reading|writing)
			time.Sleep(time.Hour)
		}, nil, nil},
		"the server closes": {func(h *request, closeServer func()) {
			h.within(time.Minute, reading|writing)
			closeServer()
			h.within(0, reading|writing)
			h.within(unbounded, reading|writing)
			h.within(time.Hour, reading|writing)
		}, []time.Duration{0}, []time.Duration{0}},
		"what net/http writes later": {func(h *request, _ func()) {
			h.within(time.Minute, writing)
			h.withinAfter(time.Hour, writing)
			h.release()
			time.Sleep(time.Hour)
		}, nil, []time.Duration{time.Hour}},
		"the server closes before that": {func(h *request, closeServer func()) {
			closeServer()
			h.withinAfter(time.Hour, writing)
		}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				life, closeServer := context.WithCancel(t.Context())
				defer closeServer()
				w := &deadlineWriter{}
				h := &request{s: &Server{life: life}, w: w, deadlines: deadlines{own: true}}
				c.run(h, closeServer)
				synctest.Wait()
				h.release()
				if !slices.Equal(w.read, c.read) || !slices.Equal(w.written, c.written) {
					t.Errorf("reading %v, want %v; writing %v, want %v", w.read, c.read, w.written,
						c.written)
				}
			})
		})
	}
}

// A deadline whose timer has fired while the request sets another one is the new one.
func TestDeadlineThatFiresLate(t *testing.T) {
	for name, next := range map[string]time.Duration{"taken back": unbounded, "put off": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &deadlineWriter{}
				h := &request{s: &Server{life: t.Context()}, w: w, deadlines: deadlines{own: true}}
				h.within(time.Minute, writing)
				h.deadlines.mu.Lock()
				time.Sleep(time.Minute) // the timer's function waits for the lock
				h.setTimers(next, writing)
				h.deadlines.mu.Unlock()
				synctest.Wait()
				h.release()
				if len(w.written) > 0 {
					t.Errorf("net/http was told of %v", w.written)
				}
			})
		})
	}
}

// Only over HTTP/2, and only where the server sets no deadlines, do requests have their own.
func TestWhoHasOwnDeadlines(t *testing.T) {
	for name, c := range map[string]struct {
		major  int
		server *http.Server // nil: another one
		want   bool
	}{
		"HTTP/2":                   {2, &http.Server{ReadHeaderTimeout: 1, IdleTimeout: 1}, true},
		"HTTP/1":                   {1, &http.Server{}, false},
		"HTTP/3":                   {3, &http.Server{}, false},
		"a server's ReadTimeout":   {2, &http.Server{ReadTimeout: 1}, false},
		"a server's WriteTimeout":  {2, &http.Server{WriteTimeout: 1}, false},
		"a server of another kind": {2, nil, false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.ProtoMajor = c.major
		if c.server != nil {
			r = r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, c.server))
		}
		if got := ownDeadlines(r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
