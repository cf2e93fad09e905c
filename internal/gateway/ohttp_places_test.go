// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// A gateway that is busy remembers some of what it refuses, says of these alone that they were not
// processed, and has room for requests when it is idle again.
func TestObliviousBusyFillsNoReplays(t *testing.T) { synctest.Test(t, testBusyFillsNoReplays) }

func testBusyFillsNoReplays(t *testing.T) {
	keys := onlyKey("key-of-the-client")
	began, release := make(chan struct{}, 100), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(release) })
	defer goOn()
	r := newRig(t, func(c *Config) {
		c.MaxConcurrent, c.Authenticate, c.Replay = 1, keys, replay.NewMemory(70)
	})
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		began <- struct{}{}
		<-release
		return testkit.Respond(200, testkit.FineAnswer), nil
	}
	s := r.Seal(fakes.Inner{})
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- r.Send(s) }()
	<-began
	var said, silent []*fakes.Sealed
	var wait sync.WaitGroup
	sealed, answers := make([]*fakes.Sealed, 100), make([]*httptest.ResponseRecorder, 100)
	for i := range sealed {
		sealed[i] = r.Seal(fakes.Inner{})
		wait.Go(func() { answers[i] = r.Send(sealed[i]) })
		synctest.Wait() // it waits for a place
	}
	wait.Wait()
	for i, s := range sealed {
		a := s.Open(answers[i])
		if a.Err != nil || a.Status != 503 || a.Header.Get("Retry-After") != "1" {
			t.Fatalf("%+v", a)
		}
		if a.Header.Get(ohttp.HeaderProcessed) == "no" {
			said = append(said, s)
		} else {
			silent = append(silent, s)
		}
	}
	goOn()
	if a := s.Open(<-done); a.Status != 200 {
		t.Errorf("the first: %+v", a)
	}
	if len(said) < 4 || len(said) > 50 || len(silent) < 50 {
		t.Fatalf("of %d it was said, of %d not", len(said), len(silent))
	}
	for _, s := range said {
		if r.Send(s); len(r.Forwarded()) != 1 {
			t.Fatal("one that is said not to have been processed was served later on")
		}
	}
	if r.Send(silent[0]); len(r.Forwarded()) != 2 { // or else it would be remembered, too
		t.Error("another one was not served")
	}
	s = r.Seal(fakes.Inner{})
	if a := s.Open(r.Send(s)); a.Status != 200 {
		t.Errorf("when it is idle again: %+v", a)
	}
}

// Somebody without a key who has captured the beginning of a request has two read on, none once it
// was served, and no place.
func TestObliviousCopiesAreTwo(t *testing.T) {
	keys := onlyKey("key-of-the-client")
	for name, c := range map[string]struct {
		cache  ReplayCache
		copies int64
		status int
	}{
		"not served yet":        {replay.NewMemory(0), 2, 0},
		"served":                {replay.NewMemory(0), 0, 200},
		"served, another cache": {&sharedReplay{ReplayCache: replay.NewMemory(0)}, 2, 200},
	} {
		var judged atomic.Int64
		r := newRig(t, func(g *Config) {
			g.MaxConcurrent, g.Replay, g.BodyTimeout = 4, c.cache, time.Minute
			g.Authenticate = func(r *http.Request) (string, time.Duration, error) {
				judged.Add(1)
				return keys(r)
			}
		})
		srv := httptest.NewServer(r.s)
		defer srv.Close()
		defer srv.CloseClientConnections()
		message := fakes.Inner{
			Body: `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat(
				"x",
				20000,
			) + `"}]}`,
		}.Encode(
			t,
		)
		captured := fakes.SealFor(t, r.KeyConfig(), message)
		if c.status != 0 {
			if a := captured.Open(r.Send(captured)); a.Status != c.status {
				t.Fatalf("%s: %+v", name, a)
			}
		}
		judged.Store(0)
		var conns []net.Conn
		for range 6 {
			conn := testkit.DialRaw(t, srv)
			fmt.Fprintf(
				conn,
				"POST %s HTTP/1.1\r\nHost: x\r\n"+
					"Content-Type: message/ohttp-chunked-req\r\nContent-Length: %d\r\n\r\n",
				ohttp.Path,
				len(captured.Body),
			)
			_, _ = conn.Write(captured.Body[:len(captured.Body)-1])
			conns = append(conns, conn)
		}
		limits := &r.s.limits
		reading := func() bool {
			return judged.Load() == 6 && limits.heads.Taken() == 0 &&
				limits.deliveries.Taken() == c.copies &&
				(limits.bodies.Taken() > 0) == (c.copies > 0)
		}
		for deadline := time.Now().Add(time.Minute); !reading(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf(
					"%s: %d copies were judged, %d are read on",
					name,
					judged.Load(),
					limits.deliveries.Taken(),
				)
			}
		}
		if n := len(r.s.places); n != 0 {
			t.Errorf("%s: %d places are taken", name, n)
		}
		if n := limits.bodies.Taken(); n > c.copies*int64(len(captured.Body)+firstShare) {
			t.Errorf("%s: %d bytes are on the way", name, n)
		}
		s := r.Seal(fakes.Inner{})
		if a := s.Open(r.Send(s)); a.Status != 200 {
			t.Errorf("%s: a client: %+v", name, a)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		for deadline := time.Now().Add(time.Minute); limits.deliveries.Taken() > 0 &&
			time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if n := limits.deliveries.Len(); n != 0 { // not even with a count of 0
			t.Errorf("%s: %d copies are left", name, n)
		}
	}
}

// A copy that ends gives its own back, not the other copy's too.
func TestObliviousCopiesAreGivenBackOnce(t *testing.T) {
	r := newRig(t, func(g *Config) { g.MaxConcurrent, g.BodyTimeout = 4, time.Minute })
	srv := httptest.NewServer(r.s)
	defer srv.Close()
	defer srv.CloseClientConnections()
	message := fakes.Inner{
		Body: `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 20000) +
			`"}]}`,
	}.Encode(
		t,
	)
	captured := fakes.SealFor(t, r.KeyConfig(), message)
	var conns []net.Conn
	for range 2 {
		conn := testkit.DialRaw(t, srv)
		fmt.Fprintf(
			conn,
			"POST %s HTTP/1.1\r\nHost: x\r\n"+
				"Content-Type: message/ohttp-chunked-req\r\nContent-Length: %d\r\n\r\n",
			ohttp.Path,
			len(captured.Body),
		)
		_, _ = conn.Write(captured.Body[:len(captured.Body)-1])
		conns = append(conns, conn)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d copies, %d places", what, r.s.limits.deliveries.Taken(),
					len(r.s.places))
			}
		}
	}
	until(
		"both begin",
		func() bool { return r.s.limits.deliveries.Taken() == 2 && len(r.s.places) == 0 },
	)
	_ = conns[0].Close()
	until("one ends", func() bool { return r.s.limits.deliveries.Taken() < 2 })
	s := r.Seal(fakes.Inner{})
	// by then the other one's end is over, whatever it gave back
	if a := s.Open(r.Send(s)); a.Status != 200 {
		t.Errorf("a client: %+v", a)
	}
	if n := r.s.limits.deliveries.Taken(); n != 1 {
		t.Errorf("%d copies are left", n)
	}
}

// sharedReplay is a cache that the gateway does not know from inside.
type sharedReplay struct{ ReplayCache }

// Authenticate does not hear of a captured request whose date is over: it may count what it is
// asked.
func TestObliviousOldRequestsAreNobodys(t *testing.T) {
	asked := 0
	r := newRig(t, func(c *Config) {
		c.Authenticate = func(*http.Request) (string, time.Duration, error) {
			asked++
			return "", 0, fault.ErrAuthentication
		}
	})
	for age, c := range map[time.Duration]struct{ status, asked int }{
		24 * time.Hour: {400, 0}, -24 * time.Hour: {400, 0}, 3 * time.Minute: {400, 0},
		time.Minute: {401, 1},
	} {
		asked = 0
		s := r.Seal(fakes.Inner{Header: []bhttp.Field{dated(time.Now().Add(-age))}})
		if a := s.Open(r.Send(s)); a.Status != c.status || asked != c.asked {
			t.Errorf("%v old: Authenticate was asked %d times: %+v", age, asked, a)
		}
	}
}

// A header in chunks of a byte each does not make the gateway open more than it says.
func TestObliviousHeaderInManyChunks(t *testing.T) {
	r := newRig(t, nil)
	send := func(field, chunk int) (answer fakes.InnerAnswer, size int) {
		message := fakes.Inner{
			Header: []bhttp.Field{{Name: "x", Value: strings.Repeat("y", field)}},
			Body:   strings.Repeat("z", 300<<10),
		}.Encode(
			t,
		)
		head := message[:field+100] // and a little more
		var pieces [][]byte
		for piece := range slices.Chunk(head, chunk) {
			pieces = append(pieces, piece)
		}
		s := fakes.SealChunks(t, r.KeyConfig(), true, append(pieces, message[len(head):])...)
		w := r.Send(s)
		return s.Open(w), len(s.Body)
	}
	for _, c := range []struct{ field, chunk, status int }{
		{60 << 10, 1, 413}, {10 << 10, 1, 413}, {5 << 10, 1, 200}, {60 << 10, 1 << 10, 200},
		{60 << 10, 16 << 10, 200},
	} {
		if a, size := send(c.field, c.chunk); a.Status != c.status || a.Err != nil {
			t.Errorf(
				"a header of %d bytes in chunks of %d, %d bytes in all: %d, %v",
				c.field,
				c.chunk,
				size,
				a.Status,
				a.Err,
			)
		}
	}
}

// An answer to HEAD has no content, and is whole without.
func TestObliviousHead(t *testing.T) {
	for name, chunked := range map[string][]string{"chunks": {"chunked"}, "nothing said": nil} {
		r := newRig(t, func(c *Config) {
			c.OHTTP.Allow = []string{"HEAD /v1/models", "GET /v1/models"}
		})
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			p := testkit.Respond(200, "", "Content-Type", "application/json")
			p.ContentLength, p.TransferEncoding, p.ProtoMajor = -1, chunked, 1
			return p, nil
		}
		s := r.Seal(fakes.Inner{Method: http.MethodHead, Path: "/v1/models"})
		if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil || a.Body != "" {
			t.Errorf("%s: %+v", name, a)
		}
		s = r.Seal(fakes.Inner{Method: http.MethodGet, Path: "/v1/models"})
		if a := s.Open(r.Send(s)); a.Status == 200 && a.Err == nil {
			t.Errorf("%s: GET without content: %+v", name, a)
		}
	}
}

// SECURITY.md says what an account sees of the upstream's refusals, and what it may say to the
// upstream.
func TestObliviousUpstreamsOwnWords(t *testing.T) {
	r := newRig(t, nil)
	const words = "Traceback: /opt/model.py"
	for status, passes := range map[int]bool{
		400: true, 404: true, 429: true, 500: true, 503: true, 302: false, 401: false, 403: false,
		407: false,
	} {
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			return testkit.Respond(status, words, "Content-Type", "text/plain"), nil
		}
		s := r.Seal(fakes.Inner{})
		w := r.Send(s)
		if strings.Contains(w.Body.String(), words) {
			t.Errorf("%d: in the clear", status)
		}
		if a := s.Open(w); a.Err != nil || (a.Body == words) != passes ||
			(a.Status == status) != passes {
			t.Errorf("%d: %+v", status, a)
		}
	}
	const body = `{"model":"m","messages":[],"base_url":"http://a.test/",` +
		`"api_key":"k","security_tier":"maximum"}`
	r.Send(r.Seal(fakes.Inner{Body: body}))
	if sent := r.Forwarded(); sent[len(sent)-1].Body != body {
		t.Errorf("%s", sent[len(sent)-1].Body)
	}
}
