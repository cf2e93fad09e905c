// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// faultTarget answers each POST with its own body after a count, and counts.
func faultTarget(t *testing.T) (addr string, served *atomic.Int32) {
	served = new(atomic.Int32)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		n := served.Add(1)
		w.Header().Set("X-Target", r.Header.Get("X-Client"))
		fmt.Fprintf(w, "%d:%s", n, body)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), served
}

// faultResult is the result of an exchange for the client.
type faultResult struct {
	status int
	header http.Header
	body   string
	doErr  error // no answer
	err    error // an answer that broke off
}

func faultPost(t *testing.T, addr, body string) faultResult {
	t.Helper()
	return faultPostFor(t, addr, body, time.Minute)
}

// faultPostFor is faultPost by a client that gives up after a while.
func faultPostFor(t *testing.T, addr, body string, patience time.Duration) (res faultResult) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/x?y=z",
		strings.NewReader(body))
	req.Header.Set("X-Client", "c")
	resp, err := client.Do(req)
	if err != nil {
		res.doErr = err
		return res
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return faultResult{status: resp.StatusCode, header: resp.Header, body: string(b), err: err}
}

func TestFaults(t *testing.T) {
	NoLeaks(t)
	text := strings.Repeat("0123456789", 200)
	whole := "1:" + text
	noAnswer := func(r faultResult) bool { return r.doErr != nil }
	for fault, c := range map[Fault]struct {
		served int32 // requests that reached the target
		ok     func(faultResult) bool
	}{
		Pass: {1, func(r faultResult) bool {
			return r.status == 200 && r.body == whole && r.err == nil &&
				r.header.Get("X-Target") == "c"
		}},
		Delay:          {1, func(r faultResult) bool { return r.body == whole && r.err == nil }},
		Slow:           {1, func(r faultResult) bool { return r.body == whole && r.err == nil }},
		ResetEarly:     {0, noAnswer},
		ResetInRequest: {0, noAnswer},
		ResetAfter:     {1, noAnswer},
		HalfClose:      {0, noAnswer},
		Stall:          {1, func(r faultResult) bool { return r.doErr != nil || r.err != nil }},
		Truncate: {1, func(r faultResult) bool {
			return r.err != nil && strings.HasPrefix(whole, r.body)
		}},
		TruncateReset: {1, func(r faultResult) bool { return r.doErr != nil || r.err != nil }},
		HalfHeader:    {1, noAnswer},
		LongLength:    {1, func(r faultResult) bool { return r.err != nil }},
		ShortLength: {1, func(r faultResult) bool {
			return r.err == nil && r.body != whole && strings.HasPrefix(whole, r.body)
		}},
		CutChunks: {1, func(r faultResult) bool { return r.err != nil }},
		BadChunks: {1, func(r faultResult) bool { return r.err != nil }},
		Garbage:   {0, noAnswer},
		GarbageBody: {0, func(r faultResult) bool {
			return r.status == 200 && r.err == nil && r.body != whole
		}},
		Corrupt: {1, func(r faultResult) bool {
			return r.err == nil && r.body != whole && len(r.body) == len(whole)
		}},
		HTML: {0, func(r faultResult) bool {
			return r.status >= 502 && strings.Contains(r.body, FaultText)
		}},
		HTML200: {0, func(r faultResult) bool {
			return r.status == 200 && strings.Contains(r.body, FaultText)
		}},
		Empty: {0, func(r faultResult) bool {
			return r.status == 200 && r.body == "" && r.err == nil
		}},
		Plaintext: {0, func(r faultResult) bool {
			return r.status == 200 && strings.Contains(r.body, `"`+FaultText+`"`)
		}},
		Status: {0, func(r faultResult) bool {
			return r.status >= 400 && strings.Contains(r.body, FaultText)
		}},
		// there is nothing to replay
		Replay: {1, func(r faultResult) bool { return r.body == whole }},
	} {
		addr, served := faultTarget(t)
		p := NewFaultProxy(t, addr, 7, fault)
		patience := time.Minute
		if fault == Stall {
			patience = time.Second
		}
		if r := faultPostFor(t, p.Addr(), text, patience); !c.ok(r) || served.Load() != c.served {
			t.Errorf("%s: status %d, %d bytes, %v, %v; the target served %d", fault, r.status,
				len(r.body), r.doErr, r.err, served.Load())
		}
		if r := faultPost(t, p.Addr(), "next"); !strings.HasSuffix(r.body, ":next") ||
			r.err != nil {
			t.Errorf("after %s: %+v", fault, r)
		}
		if got := p.Faults(); !slices.Equal(got, []Fault{fault, Pass}) {
			t.Errorf("%s: faults %v", fault, got)
		}
		p.Close()
		if r := faultPost(t, p.Addr(), "closed"); r.doErr == nil {
			t.Errorf("%s: it serves after Close", fault)
		}
	}
}

func TestFaultReplay(t *testing.T) {
	addr, _ := faultTarget(t)
	p := NewFaultProxy(t, addr, 1, Pass, ResetAfter, Replay, Replay)
	for i, want := range []string{"1:a", "", "2:b", "3:c", "5:e"} {
		if r := faultPost(t, p.Addr(), string(rune('a'+i))); r.body != want {
			t.Errorf("exchange %d: %+v, want %q", i, r, want)
		}
	}
}

func TestFaultsComeFromTheSeed(t *testing.T) {
	addr, _ := faultTarget(t)
	play := func(seed uint64) []Fault {
		p := NewFaultProxy(t, addr, seed)
		for range 1000 {
			p.next()
		}
		return p.Faults()
	}
	first := play(1)
	if !slices.Equal(first, play(1)) || slices.Equal(first, play(2)) {
		t.Error("the faults do not depend on the seed alone")
	}
	passed := 0
	for _, fault := range append(slices.Clone(allFaults), Pass) {
		n := 0
		for _, f := range first {
			if f == fault {
				n++
			}
		}
		if n == 0 {
			t.Errorf("%s never happens", fault)
		}
		if fault == Pass {
			passed = n
		}
	}
	if passed < 300 || passed > 500 {
		t.Errorf("%d of 1000 pass", passed)
	}
}
