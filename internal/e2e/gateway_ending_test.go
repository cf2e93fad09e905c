// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// What only the end of a connection ends is refused, unless its form has an end: a server that dies
// closes it, too.
func TestObliviousEndOfConnection(t *testing.T) {
	var raw string
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		// or closing resets the connection, and the answer with it
		_, _ = io.Copy(io.Discard, req.Body)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func(c net.Conn) { _ = c.Close() }(conn)
		_, _ = conn.Write([]byte(raw))
	}))
	defer up.Close()
	g := newGateway(t, sealedchat.GatewayConfig{
		Upstream: up.URL + "/v1", AllowUnauthenticated: true, Keys: storedKeys(t, "rsa-2048"),
		OHTTP: sealedchat.GatewayOHTTP{Allow: []string{"POST /v1/chat/completions",
			"POST /v1/audio"}},
	})
	r := &fakes.Rig{T: t, Handler: g}
	const (
		close1 = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "
		close0 = "HTTP/1.0 200 OK\r\nContent-Type: "
	)
	for name, c := range map[string]struct {
		path, raw string
		status    int
		whole     bool
	}{
		"text": {"/v1/chat/completions", close1 + "text/plain\r\n\r\nhalf of", 502, true},
		"text in HTTP/1.0": {"/v1/chat/completions", close0 + "text/plain\r\n\r\nhalf of", 502,
			true},
		"events somewhere": {"/v1/audio", close1 + "text/event-stream\r\n\r\ndata: 1\n\n", 502,
			true},
		"events of a chat": {
			"/v1/chat/completions", close0 + "text/event-stream\r\n\r\n" + testkit.FineEvents, 200,
			true,
		},
		"events, cut": {
			"/v1/chat/completions", close0 + "text/event-stream\r\n\r\ndata: 1\n\n", 200, false,
		},
		"JSON":      {"/v1/audio", close0 + "application/json\r\n\r\n{}", 200, true},
		"JSON, cut": {"/v1/audio", close0 + "application/json\r\n\r\n{", 200, false},
		"text with its length": {
			"/v1/audio", close0 + "text/plain\r\nContent-Length: 4\r\n\r\nfour", 200, true,
		},
		"text in chunks": {
			"/v1/audio", close1 +
				"text/plain\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n",
			200, true,
		},
	} {
		raw = c.raw
		s := r.Seal(fakes.Inner{Path: c.path})
		if a := s.Open(r.Send(s)); a.Status != c.status || (a.Err == nil) != c.whole {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
