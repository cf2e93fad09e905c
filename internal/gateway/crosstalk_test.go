// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// lazyUpstream speaks HTTP/1.1 on a socket and keeps its connections. It reads the content of chat
// completions, and leaves that of all other requests for whatever reads the connection next.
type lazyUpstream struct {
	net.Listener
	answer string // to all other requests
	obeys  bool   // it closes when it is asked to

	mu    sync.Mutex
	conns int
	lines []string // with which requests began
	wg    sync.WaitGroup
}

func newLazyUpstream(t *testing.T, answer string, obeys bool) *lazyUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &lazyUpstream{Listener: l, answer: answer, obeys: obeys}
	u.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.conns++
			u.mu.Unlock()
			u.wg.Go(func() { defer c.Close(); u.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); u.wg.Wait() })
	return u
}

func (u *lazyUpstream) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		u.mu.Lock()
		u.lines = append(u.lines, strings.TrimSpace(line))
		u.mu.Unlock()
		length, closing := 0, false
		for field := ""; field != "\r\n"; {
			if field, err = in.ReadString('\n'); err != nil {
				return
			}
			_, _ = fmt.Sscanf(field, "Content-Length: %d", &length)
			closing = closing || field == "Connection: close\r\n"
		}
		answer := u.answer
		if strings.HasPrefix(line, "POST /v1/chat/completions ") {
			_, _ = io.CopyN(io.Discard, in, int64(length))
			answer = fmt.Sprintf(
				"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				len(testkit.FineAnswer),
				testkit.FineAnswer,
			)
		}
		if _, err := io.WriteString(c, answer); err != nil || closing && u.obeys {
			return
		}
	}
}

func (u *lazyUpstream) seen() (lines []string, conns int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append(lines, u.lines...), u.conns
}

// smuggledRequest swallows the beginning of whatever comes after it.
const smuggledRequest = "POST /v1/evil HTTP/1.1\r\nHost: upstream\r\n" +
	"Content-Type: application/json\r\nContent-Length: 400\r\n\r\n"

// TestMain silences the standard logger: net/http tells it of bytes that an upstream sends unasked.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// TestContentStaysWithItsClient has one client send content that the upstream leaves unread, and
// looks at what becomes of the next clients' requests, in both protocols.
func TestContentStaysWithItsClient(t *testing.T) {
	answers := map[string]string{
		"404 with content": "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
		"404":              "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
		"200 with content": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"200":              "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"204":              "HTTP/1.1 204 No Content\r\n\r\n",
	}
	for name, answer := range answers {
		for _, target := range []string{"POST /v1/moderations", "PUT /v1/files",
			"POST /v1/embeddings"} {
			if strings.HasPrefix(name, "2") && strings.HasSuffix(target, "embeddings") {
				continue // the upstream reads content there before it answers so
			}
			// One that is asked to close does not even take the content for a request of who sent
			// it.
			for _, obeys := range []bool{true, false} {
				t.Run(
					fmt.Sprint(target, " ", name, " ", obeys),
					func(t *testing.T) { staysWithItsClient(t, target, answer, obeys) },
				)
			}
		}
	}
}

func staysWithItsClient(t *testing.T, target, answer string, obeys bool) {
	u := newLazyUpstream(t, answer, obeys)
	r := newRig(t, func(c *Config) {
		c.Upstream, c.UpstreamTransport = "http://"+u.Addr().String()+"/v1", nil
		c.OHTTP.Allow = []string{"POST /v1/chat/completions", target}
	})
	method, path, _ := strings.Cut(target, " ")
	for range 4 {
		for _, victim := range []func() bool{
			func() bool { return r.Do(fakes.Post(t, fakes.FineRequest)).Code == 200 },
			func() bool {
				s := r.Seal(fakes.Inner{})
				a := s.Open(r.Send(s))
				return a.Status == 200 && a.Err == nil
			},
		} {
			s := r.Seal(fakes.Inner{Method: method, Path: path,
				Body: smuggledRequest + fakes.FineRequest})
			s.Open(r.Send(s))
			if !victim() {
				t.Error("a victim got no answer of its own")
			}
		}
	}
	victims := 0
	lines, _ := u.seen()
	for _, line := range lines {
		switch line {
		case "POST /v1/chat/completions HTTP/1.1":
			victims++
		case target + " HTTP/1.1":
		case "POST /v1/evil HTTP/1.1":
			if obeys && !strings.HasSuffix(target, "/embeddings") {
				t.Errorf("the upstream took %.80q for a request", line)
			}
		default:
			t.Errorf("the upstream took %.80q for a request", line)
		}
	}
	if victims != 8 {
		t.Errorf("%d victims' requests of 8", victims)
	}
}

// TestContentWhereItHasNoMeaning: it is refused under seal, before the upstream hears of it.
func TestContentWhereItHasNoMeaning(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS"} {
		r := newRig(t, func(c *Config) { c.OHTTP.Allow = []string{method + " /v1/models"} })
		for _, body := range []string{"x", smuggledRequest, strings.Repeat("x", 100_000)} {
			s := r.Seal(fakes.Inner{Method: method, Path: "/v1/models", Body: body})
			if a := s.Open(r.Send(s)); a.Status != 400 || a.Err != nil || len(r.Forwarded()) != 0 {
				t.Errorf("%s with %d bytes: %+v, %d upstream", method, len(body), a,
					len(r.Forwarded()))
			}
		}
		s := r.Seal(fakes.Inner{Method: method, Path: "/v1/models"})
		if a := s.Open(r.Send(s)); a.Status != 200 || len(r.Forwarded()) != 1 {
			t.Errorf("%s without content: %+v", method, a)
		}
	}
}

// TestUsualRequestsShareAConnection counts the connections of the ordinary path, in both protocols.
func TestUsualRequestsShareAConnection(t *testing.T) {
	u := newLazyUpstream(
		t,
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		true,
	)
	r := newRig(t, func(c *Config) {
		c.Upstream, c.UpstreamTransport = "http://"+u.Addr().String()+"/v1", nil
		c.OHTTP.Allow = []string{"POST /v1/chat/completions", "GET /v1/models"}
	})
	for range 10 {
		fakes.OpenedAnswer(t, "v1", r.Do(fakes.Post(t, fakes.FineRequest)))
		for _, m := range []fakes.Inner{{}, {Method: "GET", Path: "/v1/models"}} {
			s := r.Seal(m)
			if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil {
				t.Fatalf("%+v", a)
			}
		}
	}
	if lines, conns := u.seen(); len(lines) != 30 || conns != 1 {
		t.Errorf("%d requests over %d connections", len(lines), conns)
	}
}

// closeSeen is a foreign RoundTripper that looks at Request.Close.
type closeSeen struct{ seen []bool }

func (c *closeSeen) RoundTrip(req *http.Request) (*http.Response, error) {
	c.seen = append(c.seen, req.Close)
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	return testkit.Respond(200, testkit.FineAnswer, "Content-Type", "application/json"), nil
}

// TestForeignTransportIsToldToClose: requests with content, and no others.
func TestForeignTransportIsToldToClose(t *testing.T) {
	c := &closeSeen{}
	r := newRig(t, func(g *Config) {
		g.UpstreamTransport = c
		g.OHTTP.Allow = []string{"POST /v1/chat/completions", "GET /v1/models"}
	})
	fakes.OpenedAnswer(t, "v1", r.Do(fakes.Post(t, fakes.FineRequest)))
	for _, m := range []fakes.Inner{{}, {Method: "GET", Path: "/v1/models"}} {
		s := r.Seal(m)
		s.Open(r.Send(s))
	}
	if got := fmt.Sprint(c.seen); got != "[true true false]" {
		t.Error(got)
	}
}
