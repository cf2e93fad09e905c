// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestGatewayReplay(t *testing.T) {
	r := newRig(t, nil)
	body := fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
	send := func(header ...string) *httptest.ResponseRecorder {
		return r.Do(fakes.PostBody(t, bytes.NewReader(body), header...))
	}
	for _, status := range []int{500, 429, 400} { // after failures it may be repeated
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			return testkit.Respond(status, ""), nil
		}
		if w := send(); w.Code == 409 || w.Code == 200 {
			t.Errorf("upstream %d: %d", status, w.Code)
		}
	}
	r.Answer = nil
	fakes.OpenedAnswer(t, "the first", send())
	fakes.Refused(t, "again", send(), 409)
	fakes.Refused(t, "under another id", send("X-Payload-ID", "another"), 409)
	other := hybrid.PercentEncode(publicOf(t, "rsa-2048").PEM())
	fakes.Refused(t, "for another key", send("X-Public-Key", other), 409)
	// The wrapped key counts, not the text around it: with another payload it is the same message
	// key.
	e, err := envelope.Parse(bytes.Clone(body), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	e.TagForm = envelope.Appended
	fakes.Refused(t, "in the other form", r.Do(fakes.PostBody(t,
		bytes.NewReader(envelope.Append(nil, &e)))), 409)
	fakes.Refused(t, "with white space", r.Do(fakes.PostBody(t,
		bytes.NewReader(append([]byte("  "), body...)))), 409)
	fakes.OpenedAnswer(t, "another request", r.Do(fakes.Post(t, fakes.FineRequest)))
	if n := len(r.Forwarded()); n != 5 {
		t.Errorf("%d requests went upstream", n)
	}
}

func TestGatewayReplayWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *sealedchat.GatewayConfig) { c.ReplayWindow = time.Hour })
		body := fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
		for range 2 {
			fakes.OpenedAnswer(t, "new", r.Do(fakes.PostBody(t, bytes.NewReader(body))))
			time.Sleep(time.Hour - time.Nanosecond)
			fakes.Refused(t, "within the window", r.Do(fakes.PostBody(t, bytes.NewReader(body))),
				409)
			time.Sleep(time.Nanosecond)
		}
	})
}

func TestGatewayConcurrentDuplicates(t *testing.T) {
	r := newRig(t, nil)
	body := fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		time.Sleep(20 * time.Millisecond)
		return testkit.Respond(200, testkit.FineAnswer), nil
	}
	var served, replayed atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			switch w := r.Do(fakes.PostBody(t, bytes.NewReader(body))); w.Code {
			case 200:
				served.Add(1)
			case 409:
				replayed.Add(1)
			default:
				t.Errorf("status %d", w.Code)
			}
		})
	}
	wg.Wait()
	if served.Load() != 1 || replayed.Load() != 19 || len(r.Forwarded()) != 1 {
		t.Errorf("%d served, %d refused, %d upstream", served.Load(), replayed.Load(),
			len(r.Forwarded()))
	}
}

// countingReplay keeps a count of claims that stand.
type countingReplay struct {
	sealedchat.ReplayCache
	standing atomic.Int32
	fail     error
}

func (c *countingReplay) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool,
	error) {
	if c.fail != nil {
		return true, c.fail
	}
	ok, err := c.ReplayCache.Claim(ctx, id, client, until)
	if ok {
		c.standing.Add(1)
	}
	return ok, err
}

func (c *countingReplay) Release(ctx context.Context, id [32]byte) error {
	if ctx.Err() != nil {
		return ctx.Err() // as a cache over a network would
	}
	c.standing.Add(-1)
	return c.ReplayCache.Release(ctx, id)
}

func TestGatewayReplayCacheFails(t *testing.T) {
	cache := &countingReplay{fail: errors.New("MARKER: no cache")}
	r := newRig(t, func(c *sealedchat.GatewayConfig) { c.Replay = cache })
	fakes.Refused(t, "cache down", r.Do(fakes.Post(t, fakes.FineRequest)), 503)
	if len(r.Forwarded()) != 0 || cache.standing.Load() != 0 {
		t.Error("served without a replay cache, or released what was not claimed")
	}
}

// brokenWriter is a connection whose client has gone when the answer comes.
type brokenWriter struct {
	header http.Header
	at     string // "write" or "flush"
}

func (b *brokenWriter) Header() http.Header { return b.header }
func (b *brokenWriter) WriteHeader(int)     {}

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.at == "write" {
		return 0, http.ErrHandlerTimeout
	}
	return len(p), nil
}

func (b *brokenWriter) FlushError() error {
	if b.at == "flush" {
		return http.ErrHandlerTimeout
	}
	return nil
}

func TestGatewayReleasesUndeliveredAnswers(t *testing.T) {
	for _, at := range []string{"write", "flush", "never"} {
		cache := &countingReplay{ReplayCache: sealedchat.NewReplayCache(0)}
		r := newRig(t, func(c *sealedchat.GatewayConfig) { c.Replay = cache })
		body := fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
		r.g.ServeHTTP(&brokenWriter{http.Header{}, at}, fakes.PostBody(t, bytes.NewReader(body)))
		if want := map[bool]int32{true: 1}[at == "never"]; cache.standing.Load() != want {
			t.Errorf("%s: %d claims stand, want %d", at, cache.standing.Load(), want)
		}
		w := r.Do(fakes.PostBody(t, bytes.NewReader(body)))
		if want := map[bool]int{true: 409, false: 200}[at == "never"]; w.Code != want {
			t.Errorf("%s: again: %d", at, w.Code)
		}
	}
	// A client that left takes its context along; the claim is released all the same.
	cache := &countingReplay{ReplayCache: sealedchat.NewReplayCache(0)}
	r := newRig(t, func(c *sealedchat.GatewayConfig) { c.Replay = cache })
	ctx, leave := context.WithCancel(t.Context())
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		leave()
		return nil, ctx.Err()
	}
	_ = r.Do(fakes.Post(t, fakes.FineRequest).WithContext(ctx))
	if cache.standing.Load() != 0 {
		t.Error("the claim of a client that left stands")
	}
}
