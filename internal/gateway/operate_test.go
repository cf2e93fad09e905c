// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/replay"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// askedReplay is a memory of replays that says whether it answers.
type askedReplay struct {
	ReplayCache
	err error
}

func (a askedReplay) Ready(ctx context.Context) error { return errors.Join(ctx.Err(), a.err) }

// A gateway says what it lacks, or nothing.
func TestGatewayReady(t *testing.T) {
	memory := replay.NewMemory(0)
	away := errors.New("no answer")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		cache ReplayCache
		ctx   context.Context
		close func(*rig)
		is    error
		says  string
	}{
		"its own memory":  {ctx: t.Context()},
		"cannot be asked": {cache: struct{ ReplayCache }{memory}, ctx: t.Context()},
		"answers":         {cache: askedReplay{memory, nil}, ctx: t.Context()},
		"does not answer": {askedReplay{memory, away}, t.Context(), nil, away,
			"the replay memory: "},
		"the caller has no time": {askedReplay{memory, nil}, canceled, nil, context.Canceled, ""},
		"closed": {nil, t.Context(), func(r *rig) { _ = r.s.Close() }, fault.ErrClosed,
			"gateway"},
		"without keys": {nil, t.Context(), func(r *rig) { r.s.cfg.Keys.Close() }, fault.ErrClosed,
			"the keys: "},
	} {
		r := newRig(t, func(g *Config) { g.Replay = c.cache })
		if c.close != nil {
			c.close(r)
		}
		err := r.s.Ready(c.ctx)
		if !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v with %q", name, err, c.is, c.says)
		}
		if c.close == nil && len(r.Forwarded()) != 0 {
			t.Errorf("%s: the upstream was asked", name)
		}
	}
}

const fineTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestTraceGrammar(t *testing.T) {
	for s, want := range map[string]bool{
		fineTrace: true,
		"00-00000000000000000000000000000001-1000000000000000-00": true,
		"00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-ff": true,
		"": false, "00": false, fineTrace[:54]: false, fineTrace + "0": false,
		fineTrace + "-00": false, " " + fineTrace: false, fineTrace + "\n": false,
		"01" + fineTrace[2:]: false, "ff" + fineTrace[2:]: false, "0x" + fineTrace[2:]: false,
		strings.ToUpper(fineTrace):                                false,
		strings.Replace(fineTrace, "-", "_", 1):                   false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g": false,
		"00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01": false,
	} {
		if got := validTrace(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

// The sealed traceparent goes upstream if the operator wants it, over v1 the request's own; never
// one that somebody put outside of what is sealed, and no tracestate.
func TestTraceUpstream(t *testing.T) {
	other := strings.Replace(fineTrace, "4bf9", "aaaa", 1)
	for name, c := range map[string]struct {
		on     bool
		traces []string
		want   string
	}{
		"wanted":            {true, []string{fineTrace}, fineTrace},
		"not wanted":        {false, []string{fineTrace}, ""},
		"none":              {true, nil, ""},
		"twice":             {true, []string{fineTrace, fineTrace}, ""},
		"not a traceparent": {true, []string{"00-1-2-01"}, ""},
		"a later version":   {true, []string{"01" + fineTrace[2:]}, ""},
	} {
		r := newRig(t, func(g *Config) { g.TraceUpstream = c.on })
		fields := []bhttp.Field{{Name: "tracestate", Value: "a=b"}}
		for _, v := range c.traces {
			fields = append(fields, bhttp.Field{Name: "traceparent", Value: v})
		}
		outside := fakes.OHTTPPost(t, bytes.NewReader(r.Seal(fakes.Inner{Header: fields}).Body))
		outside.Header.Set(headerTrace, other)
		r.Do(outside)
		v1 := r.Parcels(10)[0]
		inClear := v1.Request(t, bytes.NewReader(v1.Body), "192.0.2.1")
		inClear.Header[headerTrace] = c.traces
		inClear.Header.Set("Tracestate", "a=b")
		r.Do(inClear)
		if len(r.Forwarded()) != 2 {
			t.Fatalf("%s: %d requests went upstream", name, len(r.Forwarded()))
		}
		for i, f := range r.Forwarded() {
			if got := strings.Join(f.Header.Values(headerTrace), " "); got != c.want ||
				f.Header.Get("Tracestate") != "" {
				t.Errorf("%s, request %d: %q, want %q", name, i, got, c.want)
			}
		}
	}
}

// An account has so many places and no more, whatever the others do; it gets them back.
func TestAccountPlaces(t *testing.T) {
	release := make(chan struct{})
	began := make(chan struct{}, 8)
	r := newRig(t, func(g *Config) {
		g.AccountPlaces, g.MaxConcurrent = 2, 6
		g.Authenticate = func(q *http.Request) (string, time.Duration, error) {
			return q.RemoteAddr, 0, nil // as long as a limiter's key, and longer
		}
	})
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		began <- struct{}{}
		<-release
		return testkit.Respond(200, testkit.FineAnswer, "Content-Type", "application/json"), nil
	}
	long := strings.Repeat("account", 20)
	send := func(p *fakes.Parcel, account string) (int, string) {
		return r.SendParcel(p, bytes.NewReader(p.Body), account)
	}
	var all sync.WaitGroup
	for _, account := range []string{long + "a", long + "a", long + "b"} {
		all.Go(func() {
			if status, _ := send(r.Parcels(10)[1], account); status != 200 {
				t.Errorf("%s: %d", account, status)
			}
		})
		<-began
	}
	for _, p := range r.Parcels(10) {
		if status, again := send(p, long+"a"); status != 429 || again != "1" {
			t.Errorf("%s: %d, Retry-After %q", p.Protocol, status, again)
		}
	}
	all.Go(func() {
		if status, _ := send(r.Parcels(10)[1], long+"b"); status != 200 {
			t.Errorf("another account: %d", status)
		}
	})
	<-began
	close(release)
	all.Wait()
	for _, p := range r.Parcels(10) {
		if status, _ := send(p, long+"a"); status != 200 {
			t.Errorf("%s, with places again: %d", p.Protocol, status)
		}
	}
	if n, keys := r.s.limits.accounts.Taken(), r.s.limits.accounts.Len(); n != 0 || keys != 0 {
		t.Errorf("%d places of %d accounts are still taken", n, keys)
	}
}

// Those who are nobody in particular share no limit, and a negative one is wrong.
func TestAccountPlacesOfNobody(t *testing.T) {
	r := newRig(t, func(g *Config) { g.AccountPlaces = 1 })
	release, began := make(chan struct{}), make(chan struct{}, 2)
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		began <- struct{}{}
		<-release
		return testkit.Respond(200, testkit.FineAnswer, "Content-Type", "application/json"), nil
	}
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			p := r.Parcels(10)[1]
			if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1"); status != 200 {
				t.Errorf("%d", status)
			}
		})
	}
	<-began
	<-began
	close(release)
	all.Wait()
	c := Config{Upstream: "https://a.test/v1", AllowUnauthenticated: true, AccountPlaces: -1}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "AccountPlaces") {
		t.Errorf("%v", err)
	}
}
