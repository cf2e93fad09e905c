// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

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
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// A gateway that is busy remembers some of what it refuses, says of these alone that they were not processed, and has room
// for requests when it is idle again.
func TestObliviousBusyFillsNoReplays(t *testing.T) { synctest.Test(t, testBusyFillsNoReplays) }

func testBusyFillsNoReplays(t *testing.T) {
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	began, release := make(chan struct{}, 100), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(release) })
	defer goOn()
	r := newRig(t, func(c *GatewayConfig) {
		c.MaxConcurrent, c.Authenticate, c.Replay = 1, keys, NewReplayCache(70)
	})
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		began <- struct{}{}
		<-release
		return respond(200, fineAnswer), nil
	}
	s := r.seal(innerRequest{})
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- r.send(s) }()
	<-began
	var said, silent []*sealedTest
	var wait sync.WaitGroup
	sealed, answers := make([]*sealedTest, 100), make([]*httptest.ResponseRecorder, 100)
	for i := range sealed {
		sealed[i] = r.seal(innerRequest{})
		wait.Go(func() { answers[i] = r.send(sealed[i]) })
		synctest.Wait() // it waits for a place
	}
	wait.Wait()
	for i, s := range sealed {
		a := s.open(answers[i])
		if a.err != nil || a.status != 503 || a.header.Get("Retry-After") != "1" {
			t.Fatalf("%+v", a)
		}
		if a.header.Get(ohttp.HeaderProcessed) == "no" {
			said = append(said, s)
		} else {
			silent = append(silent, s)
		}
	}
	goOn()
	if a := s.open(<-done); a.status != 200 {
		t.Errorf("the first: %+v", a)
	}
	if len(said) < 4 || len(said) > 50 || len(silent) < 50 {
		t.Fatalf("of %d it was said, of %d not", len(said), len(silent))
	}
	for _, s := range said {
		if r.send(s); len(r.forwarded()) != 1 {
			t.Fatal("one that is said not to have been processed was served later on")
		}
	}
	if r.send(silent[0]); len(r.forwarded()) != 2 { // or else it would be remembered, too
		t.Error("another one was not served")
	}
	s = r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 200 {
		t.Errorf("when it is idle again: %+v", a)
	}
}

// Somebody without a key who has captured the beginning of a request has two read on, none once it was served, and no place.
func TestObliviousCopiesAreTwo(t *testing.T) {
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cache  ReplayCache
		copies int64
		status int
	}{
		"not served yet":        {NewReplayCache(0), 2, 0},
		"served":                {NewReplayCache(0), 0, 200},
		"served, another cache": {&sharedReplay{ReplayCache: NewReplayCache(0)}, 2, 200},
	} {
		var judged atomic.Int64
		r := newRig(t, func(g *GatewayConfig) {
			g.MaxConcurrent, g.Replay, g.BodyTimeout = 4, c.cache, time.Minute
			g.Authenticate = func(r *http.Request) error {
				judged.Add(1)
				return keys(r)
			}
		})
		srv := httptest.NewServer(r.g)
		defer srv.Close()
		defer srv.CloseClientConnections()
		message := innerRequest{body: `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 20000) + `"}]}`}.encode(t)
		captured := sealFor(t, r.keyConfig(), message)
		if c.status != 0 {
			if a := captured.open(r.send(captured)); a.status != c.status {
				t.Fatalf("%s: %+v", name, a)
			}
		}
		judged.Store(0)
		var conns []net.Conn
		for range 6 {
			conn := rawDial(t, srv)
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: message/ohttp-chunked-req\r\nContent-Length: %d\r\n\r\n",
				ohttp.Path, len(captured.body))
			_, _ = conn.Write(captured.body[:len(captured.body)-1])
			conns = append(conns, conn)
		}
		limits := &r.g.limits
		reading := func() bool {
			return judged.Load() == 6 && limits.heads.Taken() == 0 && limits.deliveries.Taken() == c.copies &&
				(limits.bodies.Taken() > 0) == (c.copies > 0)
		}
		for deadline := time.Now().Add(time.Minute); !reading(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d copies were judged, %d are read on", name, judged.Load(), limits.deliveries.Taken())
			}
		}
		if n := len(r.g.slots); n != 0 {
			t.Errorf("%s: %d places are taken", name, n)
		}
		if n := limits.bodies.Taken(); n > c.copies*int64(len(captured.body)+firstShare) {
			t.Errorf("%s: %d bytes are on the way", name, n)
		}
		s := r.seal(innerRequest{})
		if a := s.open(r.send(s)); a.status != 200 {
			t.Errorf("%s: a client: %+v", name, a)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		for deadline := time.Now().Add(time.Minute); limits.deliveries.Taken() > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if n := limits.deliveries.Len(); n != 0 { // not even with a count of 0
			t.Errorf("%s: %d copies are left", name, n)
		}
	}
}

// A copy that ends gives its own back, not the other copy's too.
func TestObliviousCopiesAreGivenBackOnce(t *testing.T) {
	r := newRig(t, func(g *GatewayConfig) { g.MaxConcurrent, g.BodyTimeout = 4, time.Minute })
	srv := httptest.NewServer(r.g)
	defer srv.Close()
	defer srv.CloseClientConnections()
	message := innerRequest{body: `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 20000) + `"}]}`}.encode(t)
	captured := sealFor(t, r.keyConfig(), message)
	var conns []net.Conn
	for range 2 {
		conn := rawDial(t, srv)
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: message/ohttp-chunked-req\r\nContent-Length: %d\r\n\r\n",
			ohttp.Path, len(captured.body))
		_, _ = conn.Write(captured.body[:len(captured.body)-1])
		conns = append(conns, conn)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d copies, %d places", what, r.g.limits.deliveries.Taken(), len(r.g.slots))
			}
		}
	}
	until("both begin", func() bool { return r.g.limits.deliveries.Taken() == 2 && len(r.g.slots) == 0 })
	_ = conns[0].Close()
	until("one ends", func() bool { return r.g.limits.deliveries.Taken() < 2 })
	s := r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 200 { // by then the other one's end is over, whatever it gave back
		t.Errorf("a client: %+v", a)
	}
	if n := r.g.limits.deliveries.Taken(); n != 1 {
		t.Errorf("%d copies are left", n)
	}
}

// sharedReplay is a cache that the gateway does not know from inside.
type sharedReplay struct{ ReplayCache }

// Authenticate does not hear of a captured request whose date is over: it may count what it is asked.
func TestObliviousOldRequestsAreNobodys(t *testing.T) {
	asked := 0
	r := newRig(t, func(c *GatewayConfig) {
		c.Authenticate = func(*http.Request) error { asked++; return ErrAuthentication }
	})
	for age, c := range map[time.Duration]struct{ status, asked int }{
		24 * time.Hour: {400, 0}, -24 * time.Hour: {400, 0}, 3 * time.Minute: {400, 0}, time.Minute: {401, 1},
	} {
		asked = 0
		s := r.seal(innerRequest{header: []bhttp.Field{dated(time.Now().Add(-age))}})
		if a := s.open(r.send(s)); a.status != c.status || asked != c.asked {
			t.Errorf("%v old: Authenticate was asked %d times: %+v", age, asked, a)
		}
	}
}

// A header in chunks of a byte each does not make the gateway open more than it says.
func TestObliviousHeaderInManyChunks(t *testing.T) {
	r := newRig(t, nil)
	send := func(field, chunk int) (answer innerAnswer, size int) {
		message := innerRequest{header: []bhttp.Field{{Name: "x", Value: strings.Repeat("y", field)}}, body: strings.Repeat("z", 300<<10)}.encode(t)
		head := message[:field+100] // and a little more
		var pieces [][]byte
		for piece := range slices.Chunk(head, chunk) {
			pieces = append(pieces, piece)
		}
		s := chunkedRequest(t, r.keyConfig(), true, append(pieces, message[len(head):])...)
		w := r.send(s)
		return s.open(w), len(s.body)
	}
	for _, c := range []struct{ field, chunk, status int }{
		{60 << 10, 1, 413}, {10 << 10, 1, 413}, {5 << 10, 1, 200}, {60 << 10, 1 << 10, 200}, {60 << 10, 16 << 10, 200},
	} {
		if a, size := send(c.field, c.chunk); a.status != c.status || a.err != nil {
			t.Errorf("a header of %d bytes in chunks of %d, %d bytes in all: %d, %v", c.field, c.chunk, size, a.status, a.err)
		}
	}
}

// An answer to HEAD has no content, and is whole without.
func TestObliviousHead(t *testing.T) {
	for name, chunked := range map[string][]string{"chunks": {"chunked"}, "nothing said": nil} {
		r := newRig(t, func(c *GatewayConfig) { c.OHTTP.Allow = []string{"HEAD /v1/models", "GET /v1/models"} })
		r.answer = func(*http.Request, []byte) (*http.Response, error) {
			p := respond(200, "", "Content-Type", "application/json")
			p.ContentLength, p.TransferEncoding, p.ProtoMajor = -1, chunked, 1
			return p, nil
		}
		s := r.seal(innerRequest{method: http.MethodHead, path: "/v1/models"})
		if a := s.open(r.send(s)); a.status != 200 || a.err != nil || a.body != "" {
			t.Errorf("%s: %+v", name, a)
		}
		s = r.seal(innerRequest{method: http.MethodGet, path: "/v1/models"})
		if a := s.open(r.send(s)); a.status == 200 && a.err == nil {
			t.Errorf("%s: GET without content: %+v", name, a)
		}
	}
}

// SECURITY.md says what an account sees of the upstream's refusals, and what it may say to the upstream.
func TestObliviousUpstreamsOwnWords(t *testing.T) {
	r := newRig(t, nil)
	const words = "Traceback: /opt/model.py"
	for status, passes := range map[int]bool{400: true, 404: true, 429: true, 500: true, 503: true, 302: false, 401: false, 403: false, 407: false} {
		r.answer = func(*http.Request, []byte) (*http.Response, error) {
			return respond(status, words, "Content-Type", "text/plain"), nil
		}
		s := r.seal(innerRequest{})
		w := r.send(s)
		if strings.Contains(w.Body.String(), words) {
			t.Errorf("%d: in the clear", status)
		}
		if a := s.open(w); a.err != nil || (a.body == words) != passes || (a.status == status) != passes {
			t.Errorf("%d: %+v", status, a)
		}
	}
	const body = `{"model":"m","messages":[],"base_url":"http://a.test/","api_key":"k","security_tier":"maximum"}`
	r.send(r.seal(innerRequest{body: body}))
	if sent := r.forwarded(); sent[len(sent)-1].body != body {
		t.Errorf("%s", sent[len(sent)-1].body)
	}
}
