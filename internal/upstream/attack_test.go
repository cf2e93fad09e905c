// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"testing"
)

// TestAnswersInOnePiece: an answer that comes in one piece with more than was asked for. The rest
// stands in net/http's buffer by then, and is not the next request's answer.
func TestAnswersInOnePiece(t *testing.T) {
	log.SetOutput(io.Discard) // net/http tells of it
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	const rest = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for name, test := range map[string]struct{ target, content, answer string }{
		"length":     {"POST /v1/chat/completions", "prompt", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		"chunks":     {"POST /v1/chat/completions", "prompt", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		"trailer":    {"POST /v1/chat/completions", "prompt", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"},
		"nothing":    {"POST /v1/chat/completions", "prompt", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		"204":        {"POST /v1/chat/completions", "prompt", "HTTP/1.1 204 No\r\n\r\n"},
		"no content": {"GET /v1/models", "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		"HEAD":       {"HEAD /v1/models", "", "HTTP/1.1 200 OK\r\nContent-Length: 47\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRawServer(t, func(s *rawServer, c net.Conn, in *bufio.Reader, line string, length int) bool {
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
			for range 200 {
				if _, _, err := call(t, p.For(""), method, base+path, test.content); err != nil {
					t.Fatal(err)
				}
				status, body, err := call(t, p.For(""), "POST", base+"/v1/victim", "the victim's prompt")
				if status != 200 || body != "ok" || err != nil {
					t.Fatalf("the victim: %d %q %v", status, body, err)
				}
			}
		})
	}
}
