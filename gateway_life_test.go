// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
)

func TestGatewayRequestLimit(t *testing.T) {
	padded := func(n int) string {
		const head, tail = `{"model":"m","messages":[{"role":"user","content":"`, `"}]}`
		return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
	}
	const limit = 100_000
	r := newRig(t, func(c *GatewayConfig) { c.MaxRequestBytes = limit })
	for _, chunked := range []bool{false, true} {
		for _, form := range []envelope.TagForm{envelope.Separate, envelope.Appended} {
			for size, status := range map[int]int{limit - 1: 200, limit: 200, limit + 1: 413, 2 * limit: 413} {
				req := postBody(t, bytes.NewReader(sealedBody(t, padded(size), form)))
				if chunked {
					req.ContentLength = -1
				}
				w := r.do(req)
				if w.Code != status {
					t.Errorf("%d bytes, chunked %v: %d %s", size, chunked, w.Code, w.Body)
				}
			}
		}
	}
	// A length that is too large is refused without reading, a stream that does not end when the limit is reached.
	req := postBody(t, untouchable{t})
	req.ContentLength = 1 << 40
	refused(t, "announced", r.do(req), 413)
	var read atomic.Int64
	req = postBody(t, readerFunc(func(p []byte) (int, error) { read.Add(int64(len(p))); return len(p), nil }))
	req.ContentLength = -1
	refused(t, "endless", r.do(req), 413)
	if n := read.Load(); n > 17<<20 { // some is thrown away, so that clients come to read the answer
		t.Errorf("%d bytes were read", n)
	}
	cut := postBody(t, io.MultiReader(bytes.NewReader(sealedBody(t, fineRequest, envelope.Separate)), brokenReader{"cut"}))
	refused(t, "cut", r.do(cut), 400)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// slowPost opens a connection, sends the head of a request and some of its body, and returns the connection.
func slowPost(t *testing.T, server *httptest.Server, header ...string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	head := postBody(t, nil, header...).Header
	fmt.Fprintf(c, "POST /v1/chat/secure_completion HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n")
	for name, values := range head {
		fmt.Fprintf(c, "%s: %s\r\n", name, values[0])
	}
	fmt.Fprintf(c, "\r\n{\"version\":")
	return c
}

func TestGatewaySlowBody(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *GatewayConfig) {
		c.BodyTimeout, c.Authenticate = 500*time.Millisecond, func(r *http.Request) error {
			if r.Header.Get("Authorization") == "Bearer wrong" {
				return ErrAuthentication
			}
			return nil
		}
	})
	server := httptest.NewServer(r.g)
	defer server.Close()
	defer server.CloseClientConnections()
	for _, c := range []struct{ auth, status string }{{"", "40[08]"}, {"Bearer wrong", "401"}} { // net/http waits for a body that is not read
		start := time.Now()
		conn := slowPost(t, server, "Authorization", c.auth)
		answer, err := io.ReadAll(conn)
		if ok, _ := regexp.Match("^HTTP/1.1 "+c.status+" ", answer); !ok {
			t.Errorf("%q: after %v got %q, %v", c.auth, time.Since(start), answer, err)
		}
		_ = conn.Close()
	}
	// The time for the body is not the time for the answer.
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		time.Sleep(700 * time.Millisecond)
		return respond(200, fineAnswer), nil
	}
	fast := postBody(t, bytes.NewReader(sealedBody(t, fineRequest, envelope.Separate)))
	req, _ := http.NewRequestWithContext(soon(t), "POST", server.URL+"/v1/chat/secure_completion", fast.Body)
	req.Header = fast.Header
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("a slow answer: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestGatewayConcurrencyCap(t *testing.T) { synctest.Test(t, testGatewayConcurrencyCap) }

func testGatewayConcurrencyCap(t *testing.T) {
	r := newRig(t, func(c *GatewayConfig) { c.MaxConcurrent = 2 })
	arrived, goOn := make(chan struct{}, 8), make(chan struct{})
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		arrived <- struct{}{}
		<-goOn
		return respond(200, fineAnswer), nil
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if w := r.do(post(t, fineRequest)); w.Code != 200 {
				t.Errorf("status %d", w.Code)
			}
		})
		<-arrived
	}
	start := time.Now()
	w := r.do(post(t, fineRequest))
	refused(t, "a third one", w, 503)
	if d := time.Since(start); d != placeWait {
		t.Errorf("it waited for %v", d)
	}
	if w.Header().Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
	if w := r.do(httptest.NewRequestWithContext(t.Context(), "GET", "/healthz", nil)); w.Code != 200 {
		t.Error("health is not answered under load")
	}
	close(goOn)
	wg.Wait()
	for range 5 { // slots come back, also after failures
		_ = r.do(postBody(t, strings.NewReader("x")))
		openedAnswer(t, "afterwards", r.do(post(t, fineRequest)))
	}
}

// hang is an upstream that answers nothing until the request ends, and says when it did.
func (r *rig) hang() (arrived, ended chan struct{}) {
	arrived, ended = make(chan struct{}, 8), make(chan struct{}, 8)
	r.answer = func(req *http.Request, _ []byte) (*http.Response, error) {
		arrived <- struct{}{}
		<-req.Context().Done()
		ended <- struct{}{}
		return nil, req.Context().Err()
	}
	return arrived, ended
}

func TestGatewayTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *GatewayConfig) { c.Timeout = time.Minute })
		r.hang()
		start := time.Now()
		refused(t, "timeout", r.do(post(t, fineRequest)), 504)
		if d := time.Since(start); d != time.Minute {
			t.Errorf("after %v", d)
		}
	})
}

func TestGatewayClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		arrived, ended := r.hang()
		body := sealedBody(t, fineRequest, envelope.Separate)
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.do(postBody(t, bytes.NewReader(body)).WithContext(ctx)) })
		<-arrived
		leave()
		<-ended
		wg.Wait()
		r.answer = nil
		openedAnswer(t, "the same request again", r.do(postBody(t, bytes.NewReader(body))))
	})
}

func TestGatewayClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		arrived, _ := r.hang()
		var wg sync.WaitGroup
		wg.Go(func() { refused(t, "a running request", r.do(post(t, fineRequest)), 503) })
		<-arrived
		for range 2 {
			if err := r.g.Close(); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		for _, req := range []*http.Request{postBody(t, untouchable{nil}), httptest.NewRequestWithContext(t.Context(), "GET", "/healthz", nil),
			httptest.NewRequestWithContext(t.Context(), "GET", "/pki/public_key", nil)} {
			if w := r.do(req); w.Code != 503 {
				t.Errorf("%s after Close: %d", req.URL.Path, w.Code)
			}
		}
		if _, err := r.g.cfg.Keys.Public(t.Context()); err != nil {
			t.Errorf("the caller's key store was closed: %v", err)
		}
	})
}

func TestGatewayCloseWipesOwnKeys(t *testing.T) {
	r := newRig(t, func(c *GatewayConfig) { c.Keys = nil })
	if err := r.g.cfg.Keys.adopt(storedKey(t, "rsa-2048")); err != nil {
		t.Fatal(err)
	}
	held, err := r.g.cfg.Keys.store.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held.Release()
	openedAnswer(t, "before", r.do(post(t, fineRequest)))
	_ = r.g.Close()
	if !wiped(held) {
		t.Fatal("the private key is still there")
	}
	if _, err := r.g.Keys(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Keys: %v", err)
	}
}

// Close ends running requests, also those whose body does not come: it cannot wait for BodyTimeout.
func TestGatewayCloseWithSlowBody(t *testing.T) {
	r := newRig(t, func(c *GatewayConfig) { c.BodyTimeout = 5 * time.Minute })
	server := httptest.NewServer(r.g)
	defer server.Close()
	defer server.CloseClientConnections()
	slowPost(t, server)
	for deadline := time.Now().Add(time.Minute); r.g.limits.bodies.Taken() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	_ = r.g.Close()
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func TestGatewaySurvivesPanics(t *testing.T) {
	const m = "MARKER-panic"
	for name, change := range map[string]func(*GatewayConfig, func()){
		"Authenticate": func(c *GatewayConfig, boom func()) { c.Authenticate = func(*http.Request) error { boom(); return nil } },
		"upstream": func(c *GatewayConfig, boom func()) {
			c.UpstreamTransport = roundTripFunc(func(req *http.Request) (*http.Response, error) {
				_ = req.Body.Close()
				boom()
				return respond(200, fineAnswer), nil
			})
		},
		"replay": func(c *GatewayConfig, boom func()) { c.Replay = &panickingReplay{NewReplayCache(0), boom} },
	} {
		for kind, value := range map[string]any{"string": m, "error": fmt.Errorf("%s", m), "struct": struct{ s string }{m}, "run time": nil} {
			armed, body := true, sealedBody(t, fineRequest, envelope.Separate)
			r := newRig(t, func(c *GatewayConfig) {
				change(c, func() {
					if armed && value == nil {
						_ = []string{m}[len(body):]
					}
					if armed {
						panic(value)
					}
				})
			})
			for range 3 {
				refused(t, name+" "+kind, r.do(postBody(t, bytes.NewReader(body))), 500)
			}
			if strings.Contains(r.logged(), m) || strings.Count(r.logged(), "panic survived") != 3 {
				t.Errorf("%s %s: log %s", name, kind, r.logged())
			}
			armed = false
			openedAnswer(t, name+": the same request afterwards", r.do(postBody(t, bytes.NewReader(body))))
		}
	}
}

type panickingReplay struct {
	ReplayCache
	boom func()
}

func (p *panickingReplay) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error) {
	p.boom()
	return p.ReplayCache.Claim(ctx, id, client, until)
}
