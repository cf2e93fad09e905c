// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain silences the standard logger: net/http tells it of bytes that an upstream sends unasked.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// rawServer speaks HTTP/1.1 on a socket, and reads a request's content only if its script says so.
type rawServer struct {
	net.Listener
	script func(s *rawServer, c net.Conn, in *bufio.Reader, line string, length int) (keep bool)

	mu    sync.Mutex
	conns int
	lines []string // of requests, wherever they began
	wg    sync.WaitGroup
}

func newRawServer(
	t *testing.T, script func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
		length int) bool,
) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{Listener: l, script: script}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
			s.wg.Go(func() { defer c.Close(); s.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); s.wg.Wait() })
	return s
}

func (s *rawServer) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		s.mu.Lock()
		s.lines = append(s.lines, strings.TrimSpace(line))
		s.mu.Unlock()
		length := 0
		for {
			field, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if field == "\r\n" {
				break
			}
			_, _ = fmt.Sscanf(field, "Content-Length: %d", &length)
		}
		if !s.script(s, c, in, line, length) {
			return
		}
	}
}

func (s *rawServer) seen() (lines []string, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(lines, s.lines...), s.conns
}

// obedient reads all content.
func obedient(s *rawServer, c net.Conn, in *bufio.Reader, line string, length int) bool {
	_, _ = io.CopyN(io.Discard, in, int64(length))
	_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	return err == nil
}

func readsCompletions(req *http.Request) bool { return req.URL.Path == "/v1/chat/completions" }

func newPool(t *testing.T) *Pool {
	p := New(&http.Transport{IdleConnTimeout: 90 * time.Second}, readsCompletions)
	t.Cleanup(p.Close)
	return p
}

func call(t *testing.T, rt http.RoundTripper, method, url, content string) (status int, body string,
	err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var r io.Reader
	if content != "" {
		r = strings.NewReader(content)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	if req.Body != nil {
		req.Body = struct{ io.ReadCloser }{req.Body} // of a type that net/http does not know
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

const smuggled = "POST /v1/evil HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"

// TestContentNeverBeginsARequest has an upstream leave content unread on connections that it keeps.
func TestContentNeverBeginsARequest(t *testing.T) {
	answers := map[string]string{
		"404, content":    "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!",
		"404, no content": "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
		"404, chunks": "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: " +
			"chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n",
		"200, content":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"200, no content": "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"204":             "HTTP/1.1 204 No Content\r\n\r\n",
		"304":             "HTTP/1.1 304 Not Modified\r\n\r\n",
		"500":             "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
		"informed before": "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: " +
			"0\r\n\r\n",
	}
	targets := []string{
		"GET /v1/models", "HEAD /v1/models", "DELETE /v1/models", "OPTIONS /v1/models",
		"POST /v1/embeddings", "PUT /v1/embeddings", "POST /v1/chat/completions",
	}
	sizes := map[string]int{"small": 0, "large": 4 << 20}
	for name, answer := range answers {
		for _, target := range targets {
			for size, padding := range sizes {
				method, path, _ := strings.Cut(target, " ")
				if path == "/v1/chat/completions" && name[0] != '4' && name[0] != '5' &&
					name[0] != '3' && size == "small" {
					continue // the upstream reads content there before it answers 2xx
				}
				if testing.Short() && size == "large" {
					continue
				}
				t.Run(target+"/"+name+"/"+size, func(t *testing.T) {
					s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader,
						line string, length int) bool {
						if strings.HasPrefix(line, "POST /v1/victim") {
							return obedient(s, c, in, line, length)
						}
						if _, err := io.WriteString(c, answer); err != nil {
							return false
						}
						return true // and what was not read is the next request
					})
					p := newPool(t)
					base := "http://" + s.Addr().String()
					for range 3 {
						content := smuggled + strings.Repeat("x", padding)
						_, _, _ = call(t, p.For(""), method, base+path, content)
						status, body, err := call(t, p.For(""), "POST", base+"/v1/victim",
							"the victim's prompt")
						if status != 200 || body != "ok" || err != nil {
							t.Errorf("the victim: %d %q %v", status, body, err)
						}
					}
					p.Close()
					lines, _ := s.seen()
					victims := 0
					for _, line := range lines {
						if strings.HasPrefix(line, "POST /v1/victim ") {
							victims++
						}
					}
					if victims != 3 {
						t.Errorf("%d victims: %q", victims, lines)
					}
				})
			}
		}
	}
}

// TestConnectionsAreReused counts connections of what a gateway usually sends.
func TestConnectionsAreReused(t *testing.T) {
	for _, test := range []struct {
		name, method, path, content, answer string
		conns                               int
	}{
		{"completion", "POST", "/v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1},
		{"large", "POST", "/v1/chat/completions", strings.Repeat("x", 1<<20),
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1},
		{"stream", "POST", "/v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1},
		{"list", "GET", "/v1/models", "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1},
		{"nothing", "POST", "/v1/chat/completions", "prompt", "HTTP/1.1 204 No Content\r\n\r\n", 1},
		{"head", "HEAD", "/v1/models", "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 1},
		{"other path", "POST", "/v1/moderations", "prompt",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 20},
		{"refused", "POST", "/v1/chat/completions", "prompt",
			"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno", 20},
		{"not there", "GET", "/v1/models", "", "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", 20},
		{"closing", "POST", "/v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
				length int) bool {
				_, _ = io.CopyN(io.Discard, in, int64(length))
				_, err := io.WriteString(c, test.answer)
				return err == nil && !strings.Contains(test.answer, "close")
			})
			p := newPool(t)
			for range 20 {
				if _, _, err := call(t, p.For(""), test.method,
					"http://"+s.Addr().String()+test.path, test.content); err != nil {
					t.Fatal(err)
				}
			}
			if lines, conns := s.seen(); conns != test.conns || len(lines) != 20 {
				t.Errorf("%d requests, %d connections, want %d", len(lines), conns, test.conns)
			}
		})
	}
}

// TestUnfinishedAnswers: an answer that is not read to its end ends its connection.
func TestUnfinishedAnswers(t *testing.T) {
	s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
		length int) bool {
		_, _ = io.CopyN(io.Discard, in, int64(length))
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n%s",
			strings.Repeat("x", 9000))
		return err == nil
	})
	p := newPool(t)
	for range 50 {
		req, _ := http.NewRequestWithContext(t.Context(), "GET",
			"http://"+s.Addr().String()+"/v1/models", nil)
		resp, err := p.For("").RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(resp.Body, make([]byte, 8999))
		resp.Body.Close()
	}
	if _, conns := s.seen(); conns != 50 {
		t.Errorf("%d connections", conns)
	}
}

// TestEarlyAnswers: an answer of status 200, read to its end, that began before the content was
// sent. The server reads no content before the client has the answer's head, and all of it then.
func TestEarlyAnswers(t *testing.T) {
	came := make(chan struct{})
	s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
		length int) bool {
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		<-came
		_, _ = io.CopyN(io.Discard, in, int64(length))
		return err == nil
	})
	p := newPool(t)
	for range 10 {
		content := strings.NewReader(strings.Repeat("x", 16<<20)) // more than sockets hold
		req, err := http.NewRequestWithContext(t.Context(), "POST",
			"http://"+s.Addr().String()+"/v1/chat/completions", content)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := p.For("").RoundTrip(req)
		came <- struct{}{}
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
			t.Errorf("%q, %v", b, err)
		}
		resp.Body.Close()
	}
	if _, conns := s.seen(); conns != 10 {
		t.Errorf("%d connections", conns)
	}
}

// TestEndedConnections: a connection that the upstream ended while it was idle fails nobody who
// comes later.
func TestEndedConnections(t *testing.T) {
	s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
		length int) bool {
		obedient(s, c, in, line, length)
		return false
	})
	p := newPool(t)
	for range 100 {
		_, body, err := call(t, p.For(""), "POST",
			"http://"+s.Addr().String()+"/v1/chat/completions", "prompt")
		if err != nil || body != "ok" {
			t.Fatalf("%q %v", body, err)
		}
		for p.living() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// living counts the idle connections that have not ended.
func (p *Pool) living() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.idle {
		if !l.conn.dead.Load() {
			n++
		}
	}
	return n
}

// TestUnaskedAnswers: what an upstream sends without a request is nobody's answer.
func TestUnaskedAnswers(t *testing.T) {
	s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
		length int) bool {
		obedient(s, c, in, line, length)
		time.Sleep(time.Millisecond)
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		return err == nil
	})
	p := newPool(t)
	for range 20 {
		_, body, err := call(t, p.For(""), "POST",
			"http://"+s.Addr().String()+"/v1/chat/completions", "prompt")
		if err != nil || body != "ok" {
			t.Fatalf("%q %v", body, err)
		}
		for p.living() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestKeysAreApart: what belongs to one key uses no connection of another.
func TestKeysAreApart(t *testing.T) {
	s := newRawServer(t, obedient)
	p := newPool(t)
	for range 5 {
		for _, key := range []string{"", "a", "b"} {
			if _, _, err := call(t, p.For(key), "POST",
				"http://"+s.Addr().String()+"/v1/chat/completions", "x"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, conns := s.seen(); conns != 3 {
		t.Errorf("%d connections", conns)
	}
}

// TestOneRequestAtATime: a connection that is lent serves nobody else.
func TestOneRequestAtATime(t *testing.T) {
	const clients, rounds = 8, 30
	s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
		length int) bool {
		content := make([]byte, length)
		_, _ = io.ReadFull(in, content)
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, content)
		return err == nil
	})
	p := newPool(t)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for j := range rounds {
				want := fmt.Sprint("client ", i, " round ", j)
				_, body, err := call(t, p.For(""), "POST",
					"http://"+s.Addr().String()+"/v1/chat/completions", want)
				if err != nil || body != want {
					t.Errorf("%q %v, want %q", body, err, want)
				}
			}
		})
	}
	wg.Wait()
	if _, conns := s.seen(); conns > clients {
		t.Errorf("%d connections for %d clients", conns, clients)
	}
}

// TestContentNeedsALength: without one, net/http would write chunks that nobody counts.
func TestContentNeedsALength(t *testing.T) {
	p := newPool(t)
	body := &closeCounter{Reader: bytes.NewReader([]byte("x"))}
	req, _ := http.NewRequest("POST", "http://127.0.0.1:1/", body)
	if _, err := p.For("").RoundTrip(req); err != errLength || body.closed != 1 {
		t.Errorf("%v, closed %d times", err, body.closed)
	}
}

type closeCounter struct {
	io.Reader
	closed int
}

func (c *closeCounter) Close() error { c.closed++; return nil }
