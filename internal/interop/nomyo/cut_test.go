// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// cutter is a proxy before the gateway. It breaks the exchange of the first POST and passes all
// other traffic.
type cutter struct {
	when string // see the constants
	how  string

	next    string // URL of the gateway's own listener
	client  *http.Client
	working <-chan struct{} // closed when the upstream has the request
	posts   atomic.Int32
}

const (
	beforeGateway = "before the gateway" // it never sees the request
	whileWorking  = "while the gateway works"
	beforeAnswer  = "before the answer" // the gateway has answered, and nothing of that arrives
	withinAnswer  = "within the answer" // head and half of the body arrive

	byReset    = "reset"            // RST
	byClose    = "close"            // FIN, over TLS after close_notify
	byTruncate = "truncate"         // FIN without close_notify
	by504      = "504 of the proxy" // an answer of the proxy's own
)

// front puts the proxy before a gateway. The gateway gets a listener of its own, so that it writes
// to a real connection.
func (c *cutter) front(t *testing.T) func(http.Handler) http.Handler {
	return func(gateway http.Handler) http.Handler {
		c.next = listen(t, gateway, nil).URL
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		c.client = &http.Client{Transport: transport, Timeout: scriptDeadline}
		return c
	}
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	first := r.Method == http.MethodPost && c.posts.Add(1) == 1
	if first && c.when == beforeGateway {
		c.cut(w, nil)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if first && c.when == whileWorking {
		go func() {
			select {
			case <-c.working:
			case <-time.After(scriptDeadline):
			}
			cancel()
		}()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, c.next+r.URL.Path, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	req.Header = r.Header.Clone()
	resp, err := c.client.Do(req)
	if err != nil {
		c.cut(w, nil)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	switch {
	case first && c.when == beforeAnswer:
		c.cut(w, nil)
	case first && c.when == withinAnswer:
		var part bytes.Buffer
		fmt.Fprintf(&part, "HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%s", resp.StatusCode,
			len(body), body[:len(body)/2])
		c.cut(w, part.Bytes())
	default:
		for _, name := range []string{"Content-Type", "Retry-After"} {
			if v := resp.Header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = w.Write(body)
	}
}

// cut sends part and ends the client's connection.
func (c *cutter) cut(w http.ResponseWriter, part []byte) {
	if c.how == by504 {
		w.WriteHeader(http.StatusGatewayTimeout)
		_, _ = io.WriteString(w, "<html>504 Gateway Time-out</html>")
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if len(part) > 0 {
		_, _ = conn.Write(part)
		time.Sleep(200 * time.Millisecond) // a reset overtakes bytes that the peer has not read yet
	}
	raw := conn
	secure, isTLS := conn.(*tls.Conn)
	if isTLS {
		raw = secure.NetConn()
	}
	switch c.how {
	case byReset:
		_ = raw.(*net.TCPConn).SetLinger(0)
		_ = raw.Close()
	case byTruncate:
		_ = raw.Close()
	default:
		_ = conn.Close()
	}
}
