// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

const (
	pathReady  = "/readyz"
	pathHealth = "/healthz"

	readyFor  = time.Second // for which an answer holds: anybody may ask
	readyWait = 3 * time.Second
)

// readiness answers whether the gateway can serve. Whoever comes while one is asking waits for what
// he hears.
type readiness struct {
	ask func(context.Context) error
	log *slog.Logger

	draining atomic.Bool

	mu    sync.Mutex // held while one asks
	asked time.Time  // when err was heard; zero: never
	err   error
}

var errDraining = errors.New("draining")

// drain has it answer from now on that it is not ready.
func (r *readiness) drain() { r.draining.Store(true) }

// check returns what is missing, or nil.
func (r *readiness) check(ctx context.Context) error {
	if r.draining.Load() {
		return errDraining
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked.IsZero() && time.Since(r.asked) < readyFor {
		return r.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyWait)
	defer cancel()
	before := r.err
	r.err, r.asked = r.ask(ctx), time.Now()
	switch {
	case r.err != nil && before == nil:
		r.log.Warn("not ready", "cause", r.err)
	case r.err == nil && before != nil:
		r.log.Info("ready again")
	}
	return r.err
}

// reason is what anybody may hear of an error. The log has the rest.
func reason(err error) string {
	switch text := err.Error(); {
	case errors.Is(err, errDraining):
		return "draining"
	case strings.HasPrefix(text, "the replay memory: "):
		return "replay memory"
	case strings.HasPrefix(text, "the keys: "):
		return "keys"
	case errors.Is(err, sealedchat.ErrClosed):
		return "closing"
	}
	return "unknown"
}

// before answers /readyz, and leaves all other requests to next.
func (r *readiness) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != pathReady {
			next.ServeHTTP(w, req)
			return
		}
		r.ServeHTTP(w, req)
	})
}

// ServeHTTP answers whether the gateway is ready: 200, or 503 with a word why not.
func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	answer, status := map[string]string{"status": "ready"}, http.StatusOK
	if err := r.check(req.Context()); err != nil {
		status = http.StatusServiceUnavailable
		answer = map[string]string{"status": "not ready", "reason": reason(err)}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // whoever asked may be gone
}
