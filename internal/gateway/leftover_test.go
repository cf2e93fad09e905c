// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// endsSoon reads until the gateway ends the connection.
func endsSoon(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the connection is held for as long as the client likes")
	}
}

// Whoever announces a body and does not send it is let go on every path: net/http reads it before
// it answers.
func TestGatewayBodiesThatDoNotCome(t *testing.T) {
	testkit.NoLeaks(t)
	g := startGateway(
		t,
		testkit.AnswerText("fine"),
		func(c *Config) { c.BodyTimeout = 200 * time.Millisecond },
	)
	g.limits.headTimeout = 200 * time.Millisecond
	srv := httptest.NewServer(g)
	defer srv.Close()
	defer srv.CloseClientConnections()
	var conns []net.Conn
	stall := func(lines ...string) {
		for _, line := range lines {
			for _, extra := range []string{
				"Content-Length: 10", "Transfer-Encoding: chunked",
				"Content-Length: 10\r\nConnection: close",
				"Content-Length: 10\r\nExpect: 100-continue",
			} {
				c := testkit.DialRaw(t, srv)
				fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", line, extra)
				conns = append(conns, c)
			}
		}
	}
	stall(
		"GET /healthz",
		"HEAD /healthz",
		"GET "+hybrid.PathPublicKey,
		"GET "+ohttp.Path,
		"PUT "+ohttp.Path,
		"POST "+ohttp.Path,
		"POST /nowhere",
		"PUT "+hybrid.PathCompletion,
		"POST "+hybrid.PathCompletion,
	)
	for _, c := range conns {
		endsSoon(t, c)
	}
	conns = nil
	_ = g.Close()
	stall("GET /healthz", "POST "+ohttp.Path, "POST "+hybrid.PathCompletion)
	for _, c := range conns {
		endsSoon(t, c)
	}
}

// The bound on a body is not one for the connection's next request, however long after it comes.
func TestGatewayKeepsConnections(t *testing.T) {
	testkit.NoLeaks(t)
	g := startGateway(
		t,
		testkit.AnswerText("fine"),
		func(c *Config) { c.BodyTimeout = 100 * time.Millisecond },
	)
	srv := httptest.NewServer(g)
	defer srv.Close()
	defer srv.CloseClientConnections()
	c := testkit.DialRaw(t, srv)
	answers := bufio.NewReader(c)
	for _, request := range []string{
		"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
		"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
		"POST " + hybrid.PathCompletion + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
			t.Fatalf("%q: %d, %v", request, resp.StatusCode, err)
		}
		time.Sleep(200 * time.Millisecond) // the bound is over
	}

	server := testkit.TLSServer(t, g)
	client := &http.Client{Transport: testkit.ClientTransport(server)}
	defer client.CloseIdleConnections()
	for range 2 {
		body, in := io.Pipe()
		resp, err := client.Post(server.URL+"/healthz", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s %d", resp.Proto, resp.StatusCode)
		}
		_ = resp.Body.Close()
		_ = in.Close()
		time.Sleep(200 * time.Millisecond)
	}
}

// A refused request that waits for a word before it sends on is not waited for; nor is what a panic
// leaves unread.
func TestObliviousRefusedBodiesThatDoNotCome(t *testing.T) {
	testkit.NoLeaks(t)
	for name, authenticate := range map[string]func(*http.Request) error{
		"refused": func(*http.Request) error { return fault.ErrAuthentication },
		"a panic": func(*http.Request) error { panic("of Authenticate") },
	} {
		g := startGateway(t, testkit.AnswerText("never"), func(c *Config) {
			c.BodyTimeout, c.Authenticate = 200*time.Millisecond, allow(authenticate)
		})
		srv := httptest.NewServer(g)
		defer srv.Close()
		defer srv.CloseClientConnections()
		s := fakes.SealChunks(
			t,
			(&fakes.Rig{T: t, Handler: g}).KeyConfig(),
			false,
			fakes.Inner{}.Encode(t),
		)
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			c := testkit.DialRaw(t, srv)
			fmt.Fprintf(
				c,
				"POST %s HTTP/1.1\r\nHost: x\r\n"+
					"Content-Type: message/ohttp-chunked-req\r\n%sContent-Length: %d\r\n\r\n",
				ohttp.Path,
				expect,
				len(s.Body)+10,
			)
			_, _ = c.Write(s.Body)
			t.Log(name, expect)
			endsSoon(t, c)
		}
	}
}
