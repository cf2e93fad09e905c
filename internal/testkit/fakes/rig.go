// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Rig is what stands around a gateway without a network: requests go into its handler, the upstream
// is a RoundTripper, and the log a writer. It is all three; the test makes the gateway with them.
type Rig struct {
	T       testing.TB
	Handler http.Handler                                        // the gateway
	Answer  func(*http.Request, []byte) (*http.Response, error) // nil: a completion

	mu   sync.Mutex
	sent []Forwarded
	log  bytes.Buffer
}

// Forwarded is a request that went upstream.
type Forwarded struct {
	URL, Body string
	Header    http.Header
}

// Logger writes to the rig's log, at every level.
func (r *Rig) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Write implements [io.Writer] for the log.
func (r *Rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

// Logged is the log so far.
func (r *Rig) Logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// Forwarded is what went upstream so far.
func (r *Rig) Forwarded() []Forwarded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Forwarded(nil), r.sent...)
}

// RoundTrip implements [http.RoundTripper] for the upstream.
func (r *Rig) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	r.sent = append(r.sent, Forwarded{req.URL.String(), string(body), req.Header.Clone()})
	r.mu.Unlock()
	if r.Answer != nil {
		return r.Answer(req, body)
	}
	return testkit.Respond(200, testkit.FineAnswer, "Content-Type", "application/json"), nil
}

// Do has the gateway serve req.
func (r *Rig) Do(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.Handler.ServeHTTP(w, req)
	return w
}

// Replays is a gateway's cache of replays.
type Replays interface {
	Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error)
	Release(ctx context.Context, id [32]byte) error
}

// PanickingReplay is a cache that calls Boom before each claim.
type PanickingReplay struct {
	Replays
	Boom func()
}

// Claim calls Boom, and then the cache.
func (p *PanickingReplay) Claim(
	ctx context.Context, id, client [32]byte, until time.Time,
) (bool, error) {
	p.Boom()
	return p.Replays.Claim(ctx, id, client, until)
}
