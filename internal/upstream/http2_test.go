// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func countDials(n *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		n.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// TestHTTP2 finds out what the upstream speaks, and shares one connection.
func TestHTTP2(t *testing.T) {
	testkit.NoLeaks(t)
	var conns atomic.Int64
	srv := testkit.TLSServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s", r.Proto, b)
	}))
	transport := testkit.ClientTransport(srv)
	transport.DialContext = countDials(&conns)
	p := New(transport, readsCompletions)
	defer p.Close()
	for range 10 {
		if _, body, err := call(t, p.For(""), "POST", srv.URL+"/v1/other", "prompt"); err != nil ||
			body != "HTTP/2.0 prompt" {
			t.Fatalf("%q, %v", body, err)
		}
	}
	if n := conns.Load(); n > 2 {
		t.Errorf("%d connections: one to find out and one to use", n)
	}
}

// TestHTTP2IsNotKept: an upstream that no longer speaks HTTP/2 is served over HTTP/1, and the other
// way round.
func TestHTTP2IsNotKept(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s", r.Proto, b)
	})
	two := testkit.TLSServer(t, handler)
	one := httptest.NewUnstartedServer(handler)
	one.TLS = two.TLS.Clone()
	one.TLS.NextProtos = []string{"http/1.1"}
	one.StartTLS()
	t.Cleanup(one.Close)
	transport := testkit.ClientTransport(two)
	transport.TLSClientConfig.RootCAs.AddCert(one.Certificate())
	var to atomic.Pointer[string]
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, *to.Load())
	}
	p := New(transport, readsCompletions)
	defer p.Close()
	for i := range 8 {
		srv, want := two, "HTTP/2.0 prompt"
		if i%2 == 1 {
			srv, want = one, "HTTP/1.1 prompt"
		}
		address := srv.Listener.Addr().String()
		to.Store(&address)
		p.CloseIdle()
		two.CloseClientConnections()
		_, body, err := call(t, p.For(""), "POST", "https://example.com/v1/chat/completions",
			"prompt")
		// the end of the other connection may reach this one first
		for try := 0; err != nil && try < 3; try++ {
			_, body, err = call(t, p.For(""), "POST", "https://example.com/v1/chat/completions",
				"prompt")
		}
		if err != nil || body != want && i%2 == 1 {
			t.Fatalf("%d: %q, %v", i, body, err)
		}
	}
}

// TestHTTP2EndsWithItsRules: where an upstream goes back to HTTP/1, content that it may leave has a
// connection of its own from the first request on.
func TestHTTP2EndsWithItsRules(t *testing.T) {
	var mu sync.Mutex
	from, requests := make(map[string]bool), 0 // over HTTP/1
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		if r.ProtoMajor == 1 {
			from[r.RemoteAddr] = true
			requests++
		}
	})
	two := testkit.TLSServer(t, handler)
	one := httptest.NewUnstartedServer(handler)
	one.TLS = two.TLS.Clone()
	one.TLS.NextProtos = []string{"http/1.1"}
	one.StartTLS()
	t.Cleanup(one.Close)
	transport := testkit.ClientTransport(two)
	transport.TLSClientConfig.RootCAs.AddCert(one.Certificate())
	var to atomic.Pointer[string]
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, *to.Load())
	}
	p := New(transport, readsCompletions)
	defer p.Close()
	const url = "https://example.com/v1/other"
	address := two.Listener.Addr().String()
	to.Store(&address)
	if _, _, err := call(t, p.For(""), "POST", url, "prompt"); err != nil || !p.http2.Load() {
		t.Fatal(err, p.http2.Load())
	}
	address = one.Listener.Addr().String()
	for seen := 0; seen < 5; { // the end of the other connection may reach some requests first
		two.CloseClientConnections()
		_, _, _ = call(t, p.For(""), "POST", url, "prompt")
		mu.Lock()
		seen = requests
		mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(from) != requests {
		t.Errorf("%d connections for %d requests", len(from), requests)
	}
}

// TestHTTP1OverTLS reuses its connections, and offers no HTTP/2 where the settings do not.
func TestHTTP1OverTLS(t *testing.T) {
	var conns atomic.Int64
	srv := testkit.TLSServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s", r.Proto, b)
	}))
	transport := testkit.ClientTransport(srv)
	transport.DialContext = countDials(&conns)
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	p := New(transport, readsCompletions)
	defer p.Close()
	for _, size := range []int{1, 300, 1186, 16384, 16385, 100_000, 3 << 20} {
		want := strings.Repeat("x", size)
		if _, body, err := call(t, p.For(""), "POST", srv.URL+"/v1/chat/completions",
			want); err != nil || body != "HTTP/1.1 "+want {
			t.Fatalf("%d bytes came back as %d: %v", size, len(body), err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// pipes is a network in memory, of servers that read content and answer.
type pipes struct {
	mu    sync.Mutex
	open  int
	conns int
}

func (s *pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	s.mu.Lock()
	s.open++
	s.conns++
	s.mu.Unlock()
	go func() {
		defer func() {
			s.mu.Lock()
			s.open--
			s.mu.Unlock()
		}()
		defer server.Close()
		in := bufio.NewReader(server)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(server,
				"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	}()
	return client, nil
}

func (s *pipes) counts() (open, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.conns
}

// TestIdleConnections: how many there are, for how long, and that none outlives the pool.
func TestIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &pipes{}
		p := New(&http.Transport{DialContext: s.dial, IdleConnTimeout: 90 * time.Second},
			readsCompletions)
		ask := func() *http.Response {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://upstream/v1/models",
				nil)
			resp, err := p.For("").RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
		end := func(resp *http.Response) {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		var all []*http.Response
		for range maxIdle + 20 {
			all = append(all, ask())
		}
		for _, resp := range all {
			end(resp)
		}
		synctest.Wait()
		if open, conns := s.counts(); open != maxIdle || conns != maxIdle+20 {
			t.Errorf("%d of %d connections are open", open, conns)
		}
		time.Sleep(60 * time.Second)
		end(ask())
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if open, conns := s.counts(); open != 1 || conns != maxIdle+20 {
			t.Errorf("after 91 s %d of %d connections are open", open, conns)
		}
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if open, _ := s.counts(); open != 0 {
			t.Errorf("%d connections stay open", open)
		}
		late := ask()
		end(ask())
		p.Close()
		end(late)
		synctest.Wait()
		if open, _ := s.counts(); open != 0 {
			t.Errorf("%d connections outlive the pool", open)
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://upstream/v1/models", nil)
		if _, err := p.For("").RoundTrip(req); err == nil {
			t.Error("a closed pool carries requests")
		}
	})
}

// TestCancelledDial ends with its request.
func TestCancelledDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		p := New(&http.Transport{DialContext: dial}, readsCompletions)
		defer p.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://upstream/v1/models", nil)
		if _, err := p.For("").RoundTrip(req); err == nil {
			t.Error("no error")
		}
	}) // which waits for the dial's goroutine
}
