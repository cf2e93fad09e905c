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
	testkit.NoLeaks(t)
	const most = 32 << 20 // for 500 connections
	fields := func(size int) string {
		var b strings.Builder
		for b.Len() < size {
			fmt.Fprintf(&b, "X-%d: %s\r\n", b.Len(), strings.Repeat("v", 100))
		}
		return b.String()
	}
	fits := fields(headerBytes - 200)
	const line = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
	for name, c := range map[string]struct {
		secure bool
		send   string
		answer string
		times  int64 // the bound
	}{
		"answered":                       {send: line + fits + "\r\n", answer: "HTTP/1.1 200"},
		"answered, TLS":                  {secure: true, send: line + fits + "\r\n", answer: "HTTP/1.1 200"},
		"header does not end":            {send: line + fits},
		"header does not end, TLS":       {secure: true, send: line + fits},
		"one field does not end":         {send: line + "X: " + strings.Repeat("v", headerBytes)},
		"thousands of fields do not end": {send: line + strings.Repeat("a:\r\n", headerBytes/4), times: 4}, // for 10 seconds at most
		"body does not come":             {send: "POST " + hybrid.PathCompletion + " HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n" + fits + "\r\n"},
		"HTTP/2":                         {secure: true, send: http2Request(headerBytes-500, true), answer: "\x00"},
		"HTTP/2 header does not end":     {secure: true, send: http2Request(headerBytes-500, false), answer: "\x00"},
	} {
		g := startGateway(t, testkit.AnswerText("fine"), nil)
		addr := serveGateway(t, g, c.secure)
		conns, bound := int64(500), most*max(c.times, 1)
		if c.secure { // handshakes cost CPU
			conns, bound = conns/4, bound/4
		}
		protos := []string{"http/1.1"}
		if strings.HasPrefix(name, "HTTP/2") {
			protos = []string{"h2"}
		}
		before := heapAndStacks()
		var open []net.Conn
		for range conns {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
			client := conn
			if c.secure { // nobody keeps the client's end, whose memory is not the server's
				client = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: protos}) // the test's own server
			}
			if _, err := io.WriteString(client, c.send); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			answer := make([]byte, len(c.answer))
			if _, err := io.ReadFull(client, answer); err != nil || string(answer) != c.answer {
				t.Fatalf("%s: %q, %v", name, answer, err)
			}
		}
		grown := heapAndStacks() - before
		for i := 0; i < 5 && c.answer == ""; i++ { // what was sent has come when the memory no longer grows
			time.Sleep(20 * time.Millisecond)
			grown = max(grown, heapAndStacks()-before)
		}
		t.Logf("%s: %d KiB, %d bytes a connection", name, grown>>10, grown/conns)
		if grown > bound {
			t.Errorf("%s: %d MiB for %d connections", name, grown>>20, conns)
		}
		for _, conn := range open {
			_ = conn.Close()
		}
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
	frame := func(kind, flags, stream byte, payload string) string {
		n := len(payload)
		return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, 0, 0, 0, stream}) + payload
	}
	return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, "") + frame(1, flags, 1, block)
}
