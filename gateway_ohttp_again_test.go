// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// Only the gateway says that nothing was processed, and only where nothing was.
func TestObliviousMaybeProcessed(t *testing.T) {
	r := newRig(t, nil)
	for _, status := range []int{429, 503} {
		r.answer = func(*http.Request, []byte) (*http.Response, error) {
			resp := respond(status, `{"error":{}}`)
			resp.Header.Set(ohttp.HeaderProcessed, "no")
			resp.Header.Set("Retry-After", "7")
			return resp, nil
		}
		s := r.seal(innerRequest{})
		a := s.open(r.send(s))
		if a.status != status || a.header.Get(ohttp.HeaderProcessed) != "" || (a.header.Get("Retry-After") != "") != (status == 429) {
			t.Errorf("the upstream's %d: %+v", status, a)
		}
		s = r.seal(innerRequest{})
		r.send(s)
		if a := s.open(r.send(s)); a.status != 409 || a.header.Get(ohttp.HeaderProcessed) != "" {
			t.Errorf("sent again: %+v", a)
		}
	}
	r.answer = func(*http.Request, []byte) (*http.Response, error) { return nil, errors.New("down") }
	s := r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 502 || a.header.Get(ohttp.HeaderProcessed) != "" {
		t.Errorf("no answer: %+v", a)
	}
}

// untilReplay knows nothing, and tells until when it was to remember.
type untilReplay struct{ until time.Time }

func (u *untilReplay) Claim(_ context.Context, _, _ [32]byte, until time.Time) (bool, error) {
	u.until = until
	return true, nil
}
func (*untilReplay) Release(context.Context, [32]byte) error { return nil }

// What is accepted at the end of its window is remembered for longer, and what was forgotten meanwhile is not accepted.
func TestObliviousReplayAtTheEdge(t *testing.T) {
	cache := &untilReplay{}
	r := newRig(t, func(c *GatewayConfig) { c.Replay = cache; c.OHTTP.DateWindow = time.Hour })
	date := time.Now().Add(-time.Hour + time.Minute).Truncate(time.Second)
	s := r.seal(innerRequest{header: []bhttp.Field{dated(date)}})
	if a := s.open(r.send(s)); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	if want := date.Add(time.Hour + time.Minute); !cache.until.Equal(want) {
		t.Errorf("remembered until %v, want %v", cache.until, want)
	}
	for age, status := range map[time.Duration]int{time.Hour: 0, 61*time.Minute - 10*time.Second: 0, 61 * time.Minute: 400} {
		q := &obliviousRequest{gatewayRequest: &gatewayRequest{g: r.g}, exchange: &ohttp.Exchange{}, date: time.Now().Add(-age)}
		if got := q.claimExchange(t.Context()); (got == nil) != (status == 0) || got != nil && (got.status != status || got.kind != ohttp.ProblemDate) {
			t.Errorf("%v after its date: %+v", age, got)
		}
	}
}
