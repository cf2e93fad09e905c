// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Only the gateway says that nothing was processed, and only where nothing was.
func TestObliviousMaybeProcessed(t *testing.T) {
	r := newRig(t, nil)
	for _, status := range []int{429, 503} {
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			resp := testkit.Respond(status, `{"error":{}}`)
			resp.Header.Set(ohttp.HeaderProcessed, "no")
			resp.Header.Set(ohttp.HeaderRefusedBy, "gateway")
			resp.Header.Set("Retry-After", "7")
			return resp, nil
		}
		s := r.Seal(fakes.Inner{})
		a := s.Open(r.Send(s))
		if a.Status != status || a.Header.Get(ohttp.HeaderProcessed) != "" ||
			a.Header.Get(ohttp.HeaderRefusedBy) != "" ||
			(a.Header.Get("Retry-After") != "") != (status == 429) {
			t.Errorf("the upstream's %d: %+v", status, a)
		}
		s = r.Seal(fakes.Inner{})
		r.Send(s)
		if a := s.Open(r.Send(s)); a.Status != 409 || a.Header.Get(ohttp.HeaderProcessed) != "" ||
			a.Header.Get(ohttp.HeaderRefusedBy) != "gateway" {
			t.Errorf("sent again: %+v", a)
		}
	}
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		return nil, errors.New("down")
	}
	s := r.Seal(fakes.Inner{})
	if a := s.Open(r.Send(s)); a.Status != 502 || a.Header.Get(ohttp.HeaderProcessed) != "" ||
		a.Header.Get(ohttp.HeaderRefusedBy) != "gateway" {
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

// What is accepted at the end of its window is remembered for longer, and what was forgotten
// meanwhile is not accepted.
func TestObliviousReplayAtTheEdge(t *testing.T) {
	cache := &untilReplay{}
	r := newRig(t, func(c *Config) { c.Replay = cache; c.OHTTP.DateWindow = time.Hour })
	date := time.Now().Add(-time.Hour + time.Minute).Truncate(time.Second)
	s := r.Seal(fakes.Inner{Header: []bhttp.Field{dated(date)}})
	if a := s.Open(r.Send(s)); a.Status != 200 {
		t.Fatalf("%+v", a)
	}
	if want := date.Add(time.Hour + time.Minute); !cache.until.Equal(want) {
		t.Errorf("remembered until %v, want %v", cache.until, want)
	}
	for age, status := range map[time.Duration]int{
		time.Hour: 0, 61*time.Minute - 10*time.Second: 0, 61 * time.Minute: 400,
	} {
		q := &ohttpRequest{
			request:  &request{s: r.s},
			exchange: &ohttp.Exchange{},
			date:     time.Now().Add(-age),
		}
		if got := q.claimExchange(t.Context()); (got == nil) != (status == 0) ||
			got != nil && (got.status != status || got.kind != ohttp.ProblemDate) {
			t.Errorf("%v after its date: %+v", age, got)
		}
	}
}
