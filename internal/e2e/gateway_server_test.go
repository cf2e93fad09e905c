// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// headerBytes is what a header has at most in a gateway's own http.Server.
const headerBytes = 8 << 10

// serveGateway starts what Gateway.Server returns on loopback, and returns its address.
func serveGateway(t *testing.T, g *sealedchat.Gateway, secure bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := g.Server("")
	served := make(chan struct{})
	go func() {
		defer close(served)
		if secure {
			server.TLSConfig = testkit.ServerTLS(t)
			_ = server.ServeTLS(l, "", "")
		} else {
			_ = server.Serve(l)
		}
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l.Addr().String()
}

// heapAndStacks is what the process uses after a collection.
func heapAndStacks() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestGatewayServerIdleConnections opens connections that have sent long headers, whole and not,
// and do nothing more.
func TestGatewayServerIdleConnections(t *testing.T) {
	const most = 32 << 20 // for 500 connections
	fields := func(size int) string {
		var b strings.Builder
		for b.Len() < size {
			fmt.Fprintf(&b, "X-%d: %s\r\n", b.Len(), strings.Repeat("v", 100))
		}
		return b.String()
	}
	fits, long := fields(headerBytes-200), "X: "+strings.Repeat("v", 100<<10)
	const line = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
	for name, c := range map[string]struct {
		secure bool
		send   string
		answer string
		times  int64 // the bound
		ends   bool  // the server ends the connection, with or without an answer
	}{
		"answered": {send: line + fits + "\r\n", answer: "HTTP/1.1 200"},
		"answered, TLS": {secure: true, send: line + fits + "\r\n",
			answer: "HTTP/1.1 200"},
		"header does not end":      {send: line + fits},
		"header does not end, TLS": {secure: true, send: line + fits},
		"one field does not end":   {send: line + "X: " + strings.Repeat("v", headerBytes)},
		// for 10 seconds at most
		"thousands of fields do not end": {
			send: line + strings.Repeat("a:\r\n", headerBytes/4), times: 4,
		},
		"body does not come": {
			send: "POST " + hybrid.PathCompletion + " HTTP/1.1\r\nHost: x\r\n" +
				"Content-Length: 9000000\r\n" + fits + "\r\n",
		},
		"long field does not end":      {send: line + long, ends: true},
		"long field does not end, TLS": {secure: true, send: line + long, ends: true},
		"HTTP/2 frame does not end": {
			secure: true, send: http2Preface + "\x0f\xff\xff\x01\x01\x00\x00\x00\x01", ends: true,
		},
		"HTTP/2": {
			secure: true, send: http2Request(headerBytes-500, true), answer: "\x00",
		},
		"HTTP/2 header does not end": {
			secure: true, send: http2Request(headerBytes-500, false), answer: "\x00",
		},
	} {
		t.Run(name, func(t *testing.T) {
			// What one case leaves must not count in the next one: its connections end first.
			testkit.NoLeaks(t)
			addr := serveGateway(t, startGateway(t, testkit.AnswerText("fine"), nil), c.secure)
			conns, bound := int64(500), most*max(c.times, 1)
			if !testkit.Long() {
				conns, bound = conns*2/5, bound*2/5
			}
			if c.secure { // handshakes cost CPU
				conns, bound = conns/4, bound/4
			}
			connect := func() net.Conn {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				client := conn
				if c.secure { // nobody keeps the client's end, whose memory is not the server's
					protos := []string{"http/1.1"}
					if strings.HasPrefix(name, "HTTP/2") {
						protos = []string{"h2"}
					}
					// the test's own server
					client = tls.Client(conn, &tls.Config{InsecureSkipVerify: true,
						NextProtos: protos})
				}
				if _, err := io.WriteString(client, c.send); err != nil && !c.ends {
					t.Fatal(err)
				}
				answer := make([]byte, len(c.answer))
				if _, err := io.ReadFull(client, answer); err != nil || string(answer) != c.answer {
					t.Fatalf("%q, %v", answer, err)
				}
				return conn
			}
			first := connect() // pays for what a server needs once
			defer first.Close()
			before := heapAndStacks()
			for range conns {
				defer connect().Close()
			}
			grown := heapAndStacks() - before
			// what was sent has come when the memory no longer grows
			for i := 0; i < 5 && c.answer == ""; i++ {
				time.Sleep(20 * time.Millisecond)
				grown = max(grown, heapAndStacks()-before)
			}
			t.Logf("%d KiB, %d bytes a connection", grown>>10, grown/conns)
			if grown > bound {
				t.Errorf("%d KiB for %d connections, at most %d", grown>>10, conns, bound>>10)
			}
		})
	}
}

// http2Request is a connection's first bytes, with a request for /healthz that has a long header.
func http2Request(size int, whole bool) string {
	block := "\x82\x87\x04\x08/healthz\x41\x01x" // GET, https, :path, :authority
	for i := 0; len(block) < size; i++ {
		block += fmt.Sprintf("\x00\x06x-%04d\x64", i) + strings.Repeat("v", 100)
		size -= 32 // which HTTP/2 counts for each field
	}
	flags := byte(0x1) // the stream ends
	if whole {
		flags |= 0x4 // the header ends
	}
	n := len(block)
	head := []byte{byte(n >> 16), byte(n >> 8), byte(n), 1, flags, 0, 0, 0, 1}
	return http2Preface + string(head) + block
}

// http2Preface ends with a frame of settings, none of which is set.
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
