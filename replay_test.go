// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

func replayID(n uint64) (id [32]byte) {
	binary.LittleEndian.PutUint64(id[:], n)
	return id
}

// mustClaim demands what Claim says.
func mustClaim(t *testing.T, c ReplayCache, n uint64, until time.Time, want bool) {
	t.Helper()
	if got, err := c.Claim(t.Context(), replayID(n), [32]byte{1}, until); got != want || err != nil {
		t.Errorf("Claim(%d): %v, %v; want %v", n, got, err, want)
	}
}

func TestReplayCacheExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewReplayCache(100)
		until := time.Now().Add(time.Hour)
		mustClaim(t, c, 1, until, true)
		mustClaim(t, c, 1, until, false)
		mustClaim(t, c, 2, until, true)
		time.Sleep(time.Hour - time.Nanosecond)
		mustClaim(t, c, 1, until.Add(time.Hour), false) // asking does not prolong it
		time.Sleep(time.Nanosecond)
		mustClaim(t, c, 1, until.Add(time.Hour), true)
		mustClaim(t, c, 1, until.Add(time.Hour), false)
		mustClaim(t, c, 3, time.Now().Add(-time.Second), true) // over before it began
		mustClaim(t, c, 3, time.Now().Add(time.Second), true)
		mustClaim(t, c, 3, time.Now().Add(time.Second), false)
		if n := len(c.(*replayCache).known); n > 3 {
			t.Errorf("%d entries are held", n)
		}
	})
}

func TestReplayCacheRelease(t *testing.T) {
	c := NewReplayCache(0)
	until := time.Now().Add(time.Hour)
	for range 3 {
		mustClaim(t, c, 1, until, true)
		mustClaim(t, c, 1, until, false)
		for range 2 { // releasing twice, or what was never claimed, is nothing
			if c.Release(t.Context(), replayID(1)) != nil || c.Release(t.Context(), replayID(9)) != nil {
				t.Error("Release failed")
			}
		}
	}
	mustClaim(t, c, 2, until, true)
	if err := c.Release(t.Context(), replayID(1)); err != nil {
		t.Error(err)
	}
	mustClaim(t, c, 2, until, false)
	// Somebody else's repeat is refused, and takes nothing from the one who may.
	if ok, err := c.Claim(t.Context(), replayID(1), [32]byte{2}, until); ok || err != nil {
		t.Errorf("another client: %v, %v", ok, err)
	}
	mustClaim(t, c, 1, until, true)
}

func TestReplayCacheForgetsTheOldest(t *testing.T) {
	const most = 8
	c := NewReplayCache(most)
	until := time.Now().Add(time.Hour)
	for n := range uint64(3 * most) {
		mustClaim(t, c, n, until.Add(time.Duration(n)), true)
		for old := range n {
			if remembered := n-old < most; remembered {
				mustClaim(t, c, old, until, false)
			}
		}
		if size := len(c.(*replayCache).known); size > most {
			t.Fatalf("%d entries, at most %d", size, most)
		}
	}
	mustClaim(t, c, 0, until, true) // forgotten long ago
	// One that was released and claimed again is as old as it was.
	c = NewReplayCache(3)
	mustClaim(t, c, 1, until, true)
	mustClaim(t, c, 2, until, true)
	_ = c.Release(t.Context(), replayID(1))
	mustClaim(t, c, 1, until.Add(1), true)
	mustClaim(t, c, 3, until, true)
	mustClaim(t, c, 4, until, true) // 1 goes
	mustClaim(t, c, 2, until, false)
	mustClaim(t, c, 3, until, false)
	mustClaim(t, c, 1, until, true)
}

func TestReplayCacheMemory(t *testing.T) {
	const most = 1000
	until := time.Now().Add(time.Hour)
	for name, storm := range map[string]func(c ReplayCache, n uint64){
		"claims": func(c ReplayCache, n uint64) { _, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, until) },
		"releases": func(c ReplayCache, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, until.Add(time.Duration(n)))
			_ = c.Release(t.Context(), replayID(n))
		},
		"one id": func(c ReplayCache, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(1), [32]byte{1}, until.Add(time.Duration(n)))
			_ = c.Release(t.Context(), replayID(1))
		},
		"one id, one time": func(c ReplayCache, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(1), [32]byte{1}, until)
			_ = c.Release(t.Context(), replayID(1))
			_, _ = c.Claim(t.Context(), replayID(1), [32]byte{1}, until)
			_ = c.Release(t.Context(), replayID(1))
			_, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, until)
		},
		"expired": func(c ReplayCache, n uint64) { _, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, time.Time{}) },
	} {
		c := NewReplayCache(most).(*replayCache)
		_, _ = c.Claim(t.Context(), replayID(0), [32]byte{1}, until) // stands at the head of the queue all the time
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range uint64(50 * most) {
			storm(c, n+2)
			if len(c.known) > most || cap(c.queue) > 8*most {
				t.Fatalf("%s: after %d there are %d entries and a queue of %d", name, n, len(c.known), cap(c.queue))
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4000*most {
			t.Errorf("%s: %d bytes for %d entries", name, grown, most)
		}
		runtime.KeepAlive(c)
	}
}

func TestReplayCacheOneWins(t *testing.T) {
	c := NewReplayCache(0)
	until := time.Now().Add(time.Hour)
	var won [64]atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for n := range won {
				if ok, err := c.Claim(t.Context(), replayID(uint64(n)), [32]byte{1}, until); err != nil {
					t.Error(err)
				} else if ok {
					won[n].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for n := range won {
		if won[n].Load() != 1 {
			t.Errorf("%d was claimed %d times", n, won[n].Load())
		}
	}
}

// TestReplayCacheModel compares with a list that is searched from end to end.
func TestReplayCacheModel(t *testing.T) {
	type entry struct {
		n        uint64
		client   byte
		released bool
		until    time.Time
	}
	for round := range 20 {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, uint64(round)))
			most := 1 + random.IntN(12)
			c := NewReplayCache(most)
			var model []entry // in the order of arrival
			remove := func(gone func(entry) bool) {
				kept := model[:0]
				for _, e := range model {
					if !gone(e) {
						kept = append(kept, e)
					}
				}
				model = kept
			}
			for step := range 3000 {
				n := random.Uint64N(30)
				switch random.IntN(8) {
				case 0:
					_ = c.Release(t.Context(), replayID(n))
					for i := range model {
						model[i].released = model[i].released || model[i].n == n
					}
				case 1:
					time.Sleep(time.Duration(random.IntN(5)) * time.Second)
				default:
					now := time.Now()
					remove(func(e entry) bool { return !now.Before(e.until) })
					client := byte(random.IntN(2))
					known, want := false, true
					for i, e := range model {
						if e.n == n {
							known, want = true, e.released && e.client == client
							model[i].released = e.released && !want
						}
					}
					until := now.Add(20 * time.Second) // as a gateway: one window for all
					got, err := c.Claim(t.Context(), replayID(n), [32]byte{1, client}, until)
					if err != nil || got != want {
						t.Fatalf("seed %d, round %d, step %d: Claim(%d) is %v, %v; want %v, at most %d, model %v", seed, round, step, n, got, err, want, most, model)
					}
					if !known {
						if len(model) == most {
							model = model[1:]
						}
						model = append(model, entry{n, client, false, until})
					}
				}
			}
		})
	}
}

func TestGatewayReplay(t *testing.T) {
	r := newRig(t, nil)
	body := sealedBody(t, fineRequest, envelope.Separate)
	send := func(header ...string) *httptest.ResponseRecorder {
		return r.do(postBody(t, bytes.NewReader(body), header...))
	}
	for _, status := range []int{500, 429, 400} { // after failures it may be repeated
		r.answer = func(*http.Request, []byte) (*http.Response, error) { return respond(status, ""), nil }
		if w := send(); w.Code == 409 || w.Code == 200 {
			t.Errorf("upstream %d: %d", status, w.Code)
		}
	}
	r.answer = nil
	openedAnswer(t, "the first", send())
	refused(t, "again", send(), 409)
	refused(t, "under another id", send("X-Payload-ID", "another"), 409)
	other := hybrid.PercentEncode(publicOf(t, "rsa-2048").PEM())
	refused(t, "for another key", send("X-Public-Key", other), 409)
	// The wrapped key counts, not the text around it: with another payload it is the same message key.
	e, err := envelope.Parse(bytes.Clone(body), maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	e.TagForm = envelope.Appended
	refused(t, "in the other form", r.do(postBody(t, bytes.NewReader(envelope.Append(nil, &e)))), 409)
	refused(t, "with white space", r.do(postBody(t, bytes.NewReader(append([]byte("  "), body...)))), 409)
	openedAnswer(t, "another request", r.do(post(t, fineRequest)))
	if n := len(r.forwarded()); n != 5 {
		t.Errorf("%d requests went upstream", n)
	}
}

func TestGatewayReplayWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *GatewayConfig) { c.ReplayWindow = time.Hour })
		body := sealedBody(t, fineRequest, envelope.Separate)
		for range 2 {
			openedAnswer(t, "new", r.do(postBody(t, bytes.NewReader(body))))
			time.Sleep(time.Hour - time.Nanosecond)
			refused(t, "within the window", r.do(postBody(t, bytes.NewReader(body))), 409)
			time.Sleep(time.Nanosecond)
		}
	})
}

func TestGatewayConcurrentDuplicates(t *testing.T) {
	r := newRig(t, nil)
	body := sealedBody(t, fineRequest, envelope.Separate)
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		time.Sleep(20 * time.Millisecond)
		return respond(200, fineAnswer), nil
	}
	var served, replayed atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			switch w := r.do(postBody(t, bytes.NewReader(body))); w.Code {
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
	if served.Load() != 1 || replayed.Load() != 19 || len(r.forwarded()) != 1 {
		t.Errorf("%d served, %d refused, %d upstream", served.Load(), replayed.Load(), len(r.forwarded()))
	}
}

// countingReplay keeps a count of claims that stand.
type countingReplay struct {
	ReplayCache
	standing atomic.Int32
	fail     error
}

func (c *countingReplay) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error) {
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
	r := newRig(t, func(c *GatewayConfig) { c.Replay = cache })
	refused(t, "cache down", r.do(post(t, fineRequest)), 503)
	if len(r.forwarded()) != 0 || cache.standing.Load() != 0 {
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
		cache := &countingReplay{ReplayCache: NewReplayCache(0)}
		r := newRig(t, func(c *GatewayConfig) { c.Replay = cache })
		body := sealedBody(t, fineRequest, envelope.Separate)
		r.g.ServeHTTP(&brokenWriter{http.Header{}, at}, postBody(t, bytes.NewReader(body)))
		if want := map[bool]int32{true: 1}[at == "never"]; cache.standing.Load() != want {
			t.Errorf("%s: %d claims stand, want %d", at, cache.standing.Load(), want)
		}
		w := r.do(postBody(t, bytes.NewReader(body)))
		if want := map[bool]int{true: 409, false: 200}[at == "never"]; w.Code != want {
			t.Errorf("%s: again: %d", at, w.Code)
		}
	}
	// A client that left takes its context along; the claim is released all the same.
	cache := &countingReplay{ReplayCache: NewReplayCache(0)}
	r := newRig(t, func(c *GatewayConfig) { c.Replay = cache })
	ctx, leave := context.WithCancel(t.Context())
	r.answer = func(*http.Request, []byte) (*http.Response, error) { leave(); return nil, ctx.Err() }
	_ = r.do(post(t, fineRequest).WithContext(ctx))
	if cache.standing.Load() != 0 {
		t.Error("the claim of a client that left stands")
	}
}
