// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestAnswersInOnePiece: an answer that comes in one piece with more than was asked for. The rest
// stands in net/http's buffer by then, and is not the next request's answer.
func TestAnswersInOnePiece(t *testing.T) {
	told := logged(t)
	const rest = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for name, test := range map[string]struct{ target, content, answer string }{
		"length": {"POST /v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		"chunks": {"POST /v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		"trailer": {"POST /v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: " +
				"X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"},
		"nothing": {"POST /v1/chat/completions", "prompt",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		"204":        {"POST /v1/chat/completions", "prompt", "HTTP/1.1 204 No\r\n\r\n"},
		"no content": {"GET /v1/models", "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		"HEAD":       {"HEAD /v1/models", "", "HTTP/1.1 200 OK\r\nContent-Length: 47\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string,
				length int) bool {
				if strings.HasPrefix(line, "POST /v1/victim") {
					return obedient(s, c, in, line, length)
				}
				_, _ = io.CopyN(io.Discard, in, int64(length))
				_, err := io.WriteString(c, test.answer+rest)
				return err == nil
			})
			p := newPool(t)
			base := "http://" + s.Addr().String()
			method, path, _ := strings.Cut(test.target, " ")
			for range 600 {
				if _, _, err := call(t, p.For(""), method, base+path, test.content); err != nil {
					t.Fatal(err)
				}
				status, body, err := call(t, p.For(""), "POST", base+"/v1/victim",
					"the victim's prompt")
				if status != 200 || body != "ok" || err != nil {
					t.Fatalf("the victim: %d %q %v", status, body, err)
				}
			}
			if s := told(); strings.Contains(s, "evil") || strings.Contains(s, "ok") {
				t.Errorf("in the log: %.200s", s)
			}
		})
	}
}

// TestContentUnderWay: an answer of status 200 that is read to its end while the last piece of the
// content, which the server does not read, is still being written.
func TestContentUnderWay(t *testing.T) {
	conns := 0
	dial := func(context.Context, string, string) (net.Conn, error) {
		conns++
		ours, server := net.Pipe() // it holds nothing
		t.Cleanup(func() { server.Close() })
		go func() {
			in := bufio.NewReader(server)
			head, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if in.Buffered() == 0 && head.ContentLength > 1 { // the last piece is on its way
				_, _ = in.Peek(1)
			}
			_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}()
		return ours, nil
	}
	p := New(&http.Transport{DialContext: dial}, readsCompletions)
	defer p.Close()
	for range 5 {
		_, body, err := call(t, p.For(""), "POST", "http://upstream/v1/chat/completions",
			strings.Repeat("x", pieceSize))
		if body != "ok" || err != nil || p.living() != 0 {
			t.Errorf("%q, %v, %d connections are idle", body, err, p.living())
		}
	}
	if conns != 5 {
		t.Errorf("%d connections", conns)
	}
}

// logged returns what net/http writes to its log, without zero bytes.
func logged(t *testing.T) func() string {
	var mu sync.Mutex
	var text strings.Builder
	before := log.Writer()
	t.Cleanup(func() { log.SetOutput(before) })
	log.SetOutput(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return text.WriteString(strings.ReplaceAll(string(b), `\x00`, ""))
	}))
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
