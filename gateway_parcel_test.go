// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// parcel is a sealed request of either protocol.
type parcel struct {
	protocol Protocol
	path     string
	header   http.Header
	body     []byte
	sealed   *sealedTest // of the second protocol
}

// parcels returns one with a prompt of that size in each protocol.
func (r *rig) parcels(size int) []*parcel {
	r.t.Helper()
	prompt := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", size) + `"}]}`
	message := innerRequest{body: prompt}.encode(r.t)
	var pieces [][]byte
	for piece := range slices.Chunk(message, 1<<10) {
		pieces = append(pieces, piece)
	}
	s := chunkedRequest(r.t, r.keyConfig(), true, pieces...)
	return []*parcel{
		{ProtocolEnvelope, hybrid.PathCompletion, postBody(r.t, nil).Header, sealedBody(r.t, prompt, envelope.Separate), nil},
		{ProtocolOHTTP, ohttp.Path, obliviousPost(r.t, nil).Header, s.body, s},
	}
}

func (p *parcel) request(t testing.TB, body io.Reader, from string) *http.Request {
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, p.path, body)
	req.Header, req.RemoteAddr = p.header, from+":1"
	req.Header.Del("Expect")
	return req
}

// status is what the answer says in the end.
func (p *parcel) status(code int, header http.Header, body io.Reader) (status int, again string) {
	if p.sealed == nil || header.Get("Content-Type") != ohttp.TypeResponse {
		return code, header.Get("Retry-After")
	}
	a := p.sealed.read(body)
	return a.status, a.header.Get("Retry-After")
}

func (r *rig) sendParcel(p *parcel, body io.Reader, from string) (status int, again string) {
	w := r.do(p.request(r.t, body, from))
	return p.status(w.Code, w.Header(), w.Body)
}

// drip is a body that comes in pieces, each after a while. It ends with the test.
type drip struct {
	ctx   context.Context
	rest  []byte
	first int // bytes that come at once
	piece int
	after time.Duration
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		return 0, io.EOF
	}
	if d.first == 0 {
		select {
		case <-time.After(d.after):
			d.first = d.piece
		case <-d.ctx.Done():
			return 0, d.ctx.Err()
		}
	}
	n := copy(p, d.rest[:min(d.first, len(d.rest))])
	d.rest, d.first = d.rest[n:], d.first-n
	return n, nil
}

// pipeListener is a gateway's server whose connections are pipes, so that its time is the test's.
type pipeListener struct {
	conns  chan net.Conn
	done   chan struct{}
	secure bool
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// startPiped starts a server; with a TLSConfig it speaks HTTP/2.
func startPiped(t *testing.T, server *http.Server) *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{}), secure: server.TLSConfig != nil}
	go func() {
		if l.secure {
			_ = server.ServeTLS(l, "", "")
		} else {
			_ = server.Serve(l)
		}
	}()
	t.Cleanup(func() {
		close(l.done)
		_ = server.Close()
	})
	return l
}

// post sends a parcel over a connection of its own.
func (l *pipeListener) post(t *testing.T, p *parcel, body io.Reader) int {
	t.Helper()
	transport := &http.Transport{DialContext: l.dial}
	url := "http://gateway.test" + p.path
	if l.secure {
		url = "https://gateway.test" + p.path
		transport.ForceAttemptHTTP2, transport.TLSClientConfig = true, &tls.Config{InsecureSkipVerify: true} // a pipe of the test's
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = p.header
	req.Header.Del("Expect")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Error(p.protocol, err)
		return 0
	}
	defer resp.Body.Close()
	if (resp.ProtoMajor == 2) != l.secure {
		t.Error(resp.Proto)
	}
	status, _ := p.status(resp.StatusCode, resp.Header, resp.Body)
	return status
}
