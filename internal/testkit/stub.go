// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// StubServer is a plain HTTP server on loopback that answers as one vector says, byte for byte: it
// writes its answers itself, so that no server library corrects them.
type StubServer struct {
	URL string // http://127.0.0.1:port

	c      Case
	others []Case // of the same kind, for redirects
	key    []byte // PEM, the answer to GET /pki/public_key

	mu       sync.Mutex // guards requests
	requests []StubRequest
}

// StubRequest is a request that a [StubServer] received.
type StubRequest struct {
	Method, Path string // Path with the query, as sent
	Header       http.Header
	Body         []byte
}

// maxStubBody bounds the request bodies that a stub keeps.
const maxStubBody = 64 << 20

// Stub starts a server for one response, http_error or server_key vector, and stops it when the
// test ends.
//
// A response or http_error is the answer to every POST, and GET /pki/public_key is answered with
// serverKeyPEM (nil: that of the key "server-4096"). A server_key is the answer to that GET, and
// every POST gets a 503. /c/NAME/…, where the redirects of some vectors lead, is answered with
// vector NAME. Everything else is a 404.
func Stub(t testing.TB, c Case, serverKeyPEM []byte) *StubServer {
	t.Helper()
	if c.HTTP.Status == 0 {
		t.Fatalf("testkit: vector %s/%s cannot be served", c.Kind, c.Name)
	}
	if serverKeyPEM == nil {
		serverKeyPEM = PublicPEM(t, "server-4096")
	}
	srv := listenTCP(t)
	s := &StubServer{URL: "http://" + srv.Addr(), c: c, others: Vectors(t, c.Kind),
		key: serverKeyPEM}
	srv.serve(s.serve)
	return s
}

// Requests returns the requests so far, in the order in which they were read.
func (s *StubServer) Requests() []StubRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// serve answers the requests of one connection until either side ends it.
func (s *StubServer) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(io.LimitReader(req.Body, maxStubBody))
		if err != nil {
			return
		}
		s.mu.Lock()
		s.requests = append(s.requests, StubRequest{req.Method, req.URL.RequestURI(), req.Header,
			body})
		s.mu.Unlock()
		answer, mode := s.answer(req)
		if mode == ModeReset {
			if tcp, ok := conn.(*net.TCPConn); ok {
				tcp.SetLinger(0) // has Close send RST instead of FIN
			}
			return
		}
		if _, err := conn.Write(answer); err != nil || mode == ModeClose || mode == ModeTruncate {
			return
		}
	}
}

func (s *StubServer) answer(req *http.Request) (raw []byte, mode string) {
	const text = "text/plain; charset=utf-8"
	if rest, ok := strings.CutPrefix(req.URL.Path, "/c/"); ok {
		name, _, _ := strings.Cut(rest, "/")
		if i := slices.IndexFunc(s.others, func(c Case) bool { return c.Name == name }); i >= 0 {
			other := s.others[i]
			return render(other.HTTP, other.File("body"), s.URL), other.HTTP.Mode
		}
	}
	keyFetch := req.Method == http.MethodGet && req.URL.Path == "/pki/public_key"
	switch {
	case keyFetch && s.c.Kind == ServerKey, req.Method == http.MethodPost && s.c.Kind != ServerKey:
		return render(s.c.HTTP, s.c.File("body"), s.URL), s.c.HTTP.Mode
	case keyFetch:
		return render(HTTP{Status: 200, Headers: [][2]string{{"Content-Type", text}}}, s.key,
			s.URL), ""
	case req.Method == http.MethodPost:
		return render(HTTP{Status: 503}, []byte(`{"detail":"only the key is served here"}`), s.URL),
			""
	}
	return render(HTTP{Status: 404}, nil, s.URL), ""
}

// truncateBy is how many bytes of the announced length ModeTruncate withholds.
const truncateBy = 100

// render writes one HTTP/1.1 answer. The status line's reason is fixed: clients must not need it.
func render(h HTTP, body []byte, base string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d Status\r\n", h.Status)
	for _, header := range h.Headers {
		fmt.Fprintf(&b, "%s: %s\r\n", header[0], strings.ReplaceAll(header[1], "{base}", base))
	}
	switch h.Mode {
	case "":
		if h.Status == http.StatusNoContent || h.Status == http.StatusNotModified {
			b.WriteString("\r\n") // these end with their head
			return b.Bytes()
		}
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", len(body))
		b.Write(body)
	case ModeGzip:
		var packed bytes.Buffer
		zw := gzip.NewWriter(&packed)
		zw.Write(body)
		zw.Close()
		fmt.Fprintf(&b, "Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", packed.Len())
		b.Write(packed.Bytes())
	case ModeChunked:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		for chunk := range slices.Chunk(body, 700) {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", len(chunk), chunk)
		}
		b.WriteString("0\r\n\r\n")
	case ModeClose:
		b.WriteString("Connection: close\r\n\r\n")
		b.Write(body)
	case ModeReset: // no answer
	case ModeTruncate:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", len(body))
		b.Write(body[:max(0, len(body)-truncateBy)])
	default:
		panic("testkit: unknown mode " + h.Mode)
	}
	return b.Bytes()
}
