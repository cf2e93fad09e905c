// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// askWithLittleRoom is the connection of a client that has sent a request, and has little room for
// the answer.
func askWithLittleRoom(t *testing.T, srv *httptest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	if err := fakes.SealedPost(t, srv.URL).Write(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestGatewayClientThatDoesNotRead has a client ask for more than fits into socket buffers, and
// read none of it.
func TestGatewayClientThatDoesNotRead(t *testing.T) {
	testkit.NoLeaks(t)
	g := startGateway(
		t,
		testkit.AnswerText(strings.Repeat("x", 24<<20)),
		func(c *sealedchat.GatewayConfig) {
			c.MaxConcurrent, c.BodyTimeout = 1, 500*time.Millisecond
		},
	)
	returned := make(chan struct{}, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.ServeHTTP(w, r)
		returned <- struct{}{}
	}))
	defer srv.Close()
	askWithLittleRoom(t, srv)
	select {
	case <-returned:
	case <-time.After(30 * time.Second):
		t.Fatal("the gateway still writes to a client that does not read")
	}
	if n := g.Stats().InFlight; n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

// TestGatewayCloseEndsStalledAnswers has Close find an answer that nobody reads, long before its
// time is over.
func TestGatewayCloseEndsStalledAnswers(t *testing.T) {
	testkit.NoLeaks(t)
	g := startGateway(
		t,
		testkit.AnswerText(strings.Repeat("x", 24<<20)),
		func(c *sealedchat.GatewayConfig) { c.BodyTimeout = time.Hour },
	)
	srv := httptest.NewServer(g)
	defer srv.Close()
	conn := askWithLittleRoom(t, srv)
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the answer has begun
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = g.Close()
	}()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatal("Close waits for a client that does not read")
	}
}

// TestGatewayCloseDuringHTTP2Requests closes gateways while handlers return: a writer whose handler
// has returned must not be touched, and with HTTP/2 that would end the process.
func TestGatewayCloseDuringHTTP2Requests(t *testing.T) {
	for range 20 {
		g := startGateway(t, testkit.AnswerText("fine"), nil)
		srv := testkit.TLSServer(t, g)
		client := &http.Client{Transport: testkit.ClientTransport(srv)}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				req := fakes.SealedPost(t, srv.URL).WithContext(ctx)
				// refused: handlers return quickly
				req.Header.Set(hybrid.HeaderPublicKey, "malformed")
				resp, err := client.Do(req)
				if err != nil {
					return
				}
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusServiceUnavailable {
					return
				}
			}
		}()
		time.Sleep(time.Millisecond) // some requests into it; which does not matter
		_ = g.Close()
		<-done
		cancel()
		client.CloseIdleConnections()
		srv.Close()
	}
}

// TestAnswersMadeToBeLarge decodes answers that are small on the wire and would be huge in memory.
func TestAnswersMadeToBeLarge(t *testing.T) {
	const n = 1 << 17
	const start = `{"id":"1","object":"chat.completion","created":1,"model":"m","choices":`
	inMessage := func(members string) string {
		return start + `[{"message":{"role":"assistant",` + members + `}}]}`
	}
	many := func(s string, n int) string {
		return strings.TrimSuffix(strings.Repeat(s+",", n), ",")
	}
	for name, answer := range map[string]string{
		"tool calls": inMessage(`"tool_calls":[` + many(`{}`, n) + `]`),
		"parts":      inMessage(`"content":[` + many(`{"type":""}`, n) + `]`),
		"members":    inMessage(many(`"":0`, n)),
		"choices":    start + `[` + many(`{"message":{}}`, n) + `]}`,
		"top level":  start + `[],` + many(`"":0`, n) + `}`,
		"metadata":   start + `[],"_metadata":{` + many(`"":0`, n) + `}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := chatjson.CheckCompletion([]byte(answer), chatjson.Asked{}); err != nil {
				if name != "choices" || !errors.Is(err, sealedchat.ErrResponseSchema) {
					t.Fatal(err) // or else this test would show nothing
				}
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := chatjson.CheckWeight([]byte(answer)); !errors.Is(err,
				sealedchat.ErrResponseSchema) {
				t.Errorf("weighed: %v", err)
			}
			if _, err := chatjson.NewEventText([]byte(answer), false); !errors.Is(
				err,
				sealedchat.ErrResponseSchema,
			) {
				t.Errorf("as a stream: %v", err)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("%d MiB were allocated", grown>>20)
			}
		})
	}
	long := `{"id":"` + strings.Repeat("x", 1<<20) +
		`","object":"chat.completion","created":1,"model":"m","choices":[{"message":{"content":"` +
		strings.Repeat("x", 1<<20) + `"}}]}`
	events, err := chatjson.NewEventText([]byte(long), false)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(events)
	if err != nil || bytes.Count(text, []byte(`"id"`)) != 1 || len(text) > 3<<20 {
		t.Errorf("an id of 1 MiB made %d bytes of events, %v", len(text), err)
	}
}
