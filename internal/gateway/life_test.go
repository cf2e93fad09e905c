// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

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
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/replay"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestGatewayRequestLimit(t *testing.T) {
	padded := func(n int) string {
		const head, tail = `{"model":"m","messages":[{"role":"user","content":"`, `"}]}`
		return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
	}
	const limit = 100_000
	r := newRig(t, func(c *Config) { c.MaxRequestBytes = limit })
	for _, chunked := range []bool{false, true} {
		for _, form := range []envelope.TagForm{envelope.Separate, envelope.Appended} {
			for size, status := range map[int]int{
				limit - 1: 200, limit: 200, limit + 1: 413, 2 * limit: 413,
			} {
				req := fakes.PostBody(t, bytes.NewReader(fakes.SealedBody(t, padded(size), form)))
				if chunked {
					req.ContentLength = -1
				}
				w := r.Do(req)
				if w.Code != status {
					t.Errorf("%d bytes, chunked %v: %d %s", size, chunked, w.Code, w.Body)
				}
			}
		}
	}
	// A length that is too large is refused without reading, a stream that does not end when the
	// limit is reached.
	req := fakes.PostBody(t, fakes.Untouchable{T: t})
	req.ContentLength = 1 << 40
	fakes.Refused(t, "announced", r.Do(req), 413)
	var read atomic.Int64
	req = fakes.PostBody(
		t,
		readerFunc(func(p []byte) (int, error) { read.Add(int64(len(p))); return len(p), nil }),
	)
	req.ContentLength = -1
	fakes.Refused(t, "endless", r.Do(req), 413)
	// some is thrown away, so that clients come to read the answer
	if n := read.Load(); n > 17<<20 {
		t.Errorf("%d bytes were read", n)
	}
	cut := fakes.PostBody(
		t,
		io.MultiReader(
			bytes.NewReader(fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)),
			brokenReader{"cut"},
		),
	)
	fakes.Refused(t, "cut", r.Do(cut), 400)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// slowPost opens a connection, sends the head of a request and some of its body, and returns the
// connection.
func slowPost(t *testing.T, server *httptest.Server, header ...string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	head := fakes.PostBody(t, nil, header...).Header
	fmt.Fprintf(c,
		"POST /v1/chat/secure_completion HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n")
	for name, values := range head {
		fmt.Fprintf(c, "%s: %s\r\n", name, values[0])
	}
	fmt.Fprintf(c, "\r\n{\"version\":")
	return c
}

func TestGatewaySlowBody(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) {
		c.BodyTimeout = 500 * time.Millisecond
		c.Authenticate = allow(func(r *http.Request) error {
			if r.Header.Get("Authorization") == "Bearer wrong" {
				return fault.ErrAuthentication
			}
			return nil
		})
	})
	server := httptest.NewServer(r.s)
	defer server.Close()
	defer server.CloseClientConnections()
	// net/http waits for a body that is not read
	for _, c := range []struct{ auth, status string }{{"", "40[08]"}, {"Bearer wrong", "401"}} {
		start := time.Now()
		conn := slowPost(t, server, "Authorization", c.auth)
		answer, err := io.ReadAll(conn)
		if ok, _ := regexp.Match("^HTTP/1.1 "+c.status+" ", answer); !ok {
			t.Errorf("%q: after %v got %q, %v", c.auth, time.Since(start), answer, err)
		}
		_ = conn.Close()
	}
	// The time for the body is not the time for the answer.
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		time.Sleep(700 * time.Millisecond)
		return testkit.Respond(200, testkit.FineAnswer), nil
	}
	fast := fakes.PostBody(
		t,
		bytes.NewReader(fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)),
	)
	req, _ := http.NewRequestWithContext(
		testkit.Within(t, 0),
		"POST",
		server.URL+"/v1/chat/secure_completion",
		fast.Body,
	)
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
	r := newRig(t, func(c *Config) { c.MaxConcurrent = 2 })
	arrived, goOn := make(chan struct{}, 8), make(chan struct{})
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		arrived <- struct{}{}
		<-goOn
		return testkit.Respond(200, testkit.FineAnswer), nil
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if w := r.Do(fakes.Post(t, fakes.FineRequest)); w.Code != 200 {
				t.Errorf("status %d", w.Code)
			}
		})
		<-arrived
	}
	start := time.Now()
	w := r.Do(fakes.Post(t, fakes.FineRequest))
	fakes.Refused(t, "a third one", w, 503)
	if d := time.Since(start); d != placeWait {
		t.Errorf("it waited for %v", d)
	}
	if w.Header().Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
	if w := r.Do(httptest.NewRequestWithContext(t.Context(), "GET", "/healthz",
		nil)); w.Code != 200 {
		t.Error("health is not answered under load")
	}
	close(goOn)
	wg.Wait()
	for range 5 { // slots come back, also after failures
		_ = r.Do(fakes.PostBody(t, strings.NewReader("x")))
		fakes.OpenedAnswer(t, "afterwards", r.Do(fakes.Post(t, fakes.FineRequest)))
	}
}

// hang is an upstream that answers nothing until the request ends, and says when it did.
func (r *rig) hang() (arrived, ended chan struct{}) {
	arrived, ended = make(chan struct{}, 8), make(chan struct{}, 8)
	r.Answer = func(req *http.Request, _ []byte) (*http.Response, error) {
		arrived <- struct{}{}
		<-req.Context().Done()
		ended <- struct{}{}
		return nil, req.Context().Err()
	}
	return arrived, ended
}

func TestGatewayTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Timeout = time.Minute })
		r.hang()
		start := time.Now()
		fakes.Refused(t, "timeout", r.Do(fakes.Post(t, fakes.FineRequest)), 504)
		if d := time.Since(start); d != time.Minute {
			t.Errorf("after %v", d)
		}
	})
}

func TestGatewayClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		arrived, ended := r.hang()
		body := fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.Do(fakes.PostBody(t, bytes.NewReader(body)).WithContext(ctx)) })
		<-arrived
		leave()
		<-ended
		wg.Wait()
		r.Answer = nil
		fakes.OpenedAnswer(t, "the same request again",
			r.Do(fakes.PostBody(t, bytes.NewReader(body))))
	})
}

func TestGatewayClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		arrived, _ := r.hang()
		var wg sync.WaitGroup
		wg.Go(
			func() {
				fakes.Refused(t, "a running request", r.Do(fakes.Post(t, fakes.FineRequest)), 503)
			},
		)
		<-arrived
		for range 2 {
			if err := r.s.Close(); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		for _, req := range []*http.Request{fakes.PostBody(
			t, fakes.Untouchable{T: nil},
		), httptest.NewRequestWithContext(t.Context(), "GET", "/healthz", nil),
			httptest.NewRequestWithContext(t.Context(), "GET", "/pki/public_key", nil)} {
			if w := r.Do(req); w.Code != 503 {
				t.Errorf("%s after Close: %d", req.URL.Path, w.Code)
			}
		}
		if _, err := r.s.cfg.Keys.Public(t.Context()); err != nil {
			t.Errorf("the caller's key store was closed: %v", err)
		}
	})
}

func TestGatewayCloseWipesOwnKeys(t *testing.T) {
	r := newRig(t, func(c *Config) { c.OwnKeys = true })
	held, err := r.s.cfg.Keys.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held.Release()
	fakes.OpenedAnswer(t, "before", r.Do(fakes.Post(t, fakes.FineRequest)))
	_ = r.s.Close()
	if !held.IsWiped() {
		t.Fatal("the private key is still there")
	}
	if _, err := r.s.Keys(t.Context()); !errors.Is(err, fault.ErrClosed) {
		t.Errorf("Keys: %v", err)
	}
}

// Close ends running requests, also those whose body does not come: it cannot wait for BodyTimeout.
func TestGatewayCloseWithSlowBody(t *testing.T) {
	r := newRig(t, func(c *Config) { c.BodyTimeout = 5 * time.Minute })
	server := httptest.NewServer(r.s)
	defer server.Close()
	defer server.CloseClientConnections()
	slowPost(t, server)
	for deadline := time.Now().Add(time.Minute); r.s.limits.bodies.Taken() == 0 &&
		time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	_ = r.s.Close()
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func TestGatewaySurvivesPanics(t *testing.T) {
	const m = "MARKER-panic"
	for name, change := range map[string]func(*Config, func()){
		"Authenticate": func(c *Config, boom func()) {
			c.Authenticate = func(*http.Request) (string, time.Duration, error) {
				boom()
				return "", 0, nil
			}
		},
		"upstream": func(c *Config, boom func()) {
			c.UpstreamTransport = testkit.RoundTrip(func(req *http.Request) (*http.Response,
				error) {
				_ = req.Body.Close()
				boom()
				return testkit.Respond(200, testkit.FineAnswer), nil
			})
		},
		"replay": func(c *Config, boom func()) {
			c.Replay = &fakes.PanickingReplay{Replays: replay.NewMemory(0), Boom: boom}
		},
	} {
		for kind, value := range map[string]any{
			"string": m, "error": fmt.Errorf("%s", m), "struct": struct {
				s string
			}{m}, "run time": nil,
		} {
			armed, body := true, fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
			r := newRig(t, func(c *Config) {
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
				fakes.Refused(t, name+" "+kind, r.Do(fakes.PostBody(t, bytes.NewReader(body))), 500)
			}
			if strings.Contains(r.Logged(), m) || strings.Count(r.Logged(), "panic survived") != 3 {
				t.Errorf("%s %s: log %s", name, kind, r.Logged())
			}
			armed = false
			fakes.OpenedAnswer(
				t,
				name+": the same request afterwards",
				r.Do(fakes.PostBody(t, bytes.NewReader(body))),
			)
		}
	}
}
