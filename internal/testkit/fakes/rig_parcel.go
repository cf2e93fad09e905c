// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

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

// Protocol names a protocol in tests of both.
type Protocol string

// The protocols.
const (
	V1    Protocol = "v1"
	OHTTP Protocol = "OHTTP"
)

// Parcel is a sealed request of either protocol.
type Parcel struct {
	Protocol Protocol
	Path     string
	Header   http.Header
	Body     []byte
	Sealed   *Sealed // of the second protocol
}

// Parcels returns one with a prompt of that size in each protocol.
func (r *Rig) Parcels(size int) []*Parcel {
	r.T.Helper()
	prompt := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat(
		"x",
		size,
	) + `"}]}`
	message := Inner{Body: prompt}.Encode(r.T)
	var pieces [][]byte
	for piece := range slices.Chunk(message, 1<<10) {
		pieces = append(pieces, piece)
	}
	s := SealChunks(r.T, r.KeyConfig(), true, pieces...)
	return []*Parcel{
		{
			V1,
			hybrid.PathCompletion,
			PostBody(r.T, nil).Header,
			SealedBody(r.T, prompt, envelope.Separate),
			nil,
		},
		{OHTTP, ohttp.Path, OHTTPPost(r.T, nil).Header, s.Body, s},
	}
}

// Request is the parcel with a body, from an address.
func (p *Parcel) Request(t testing.TB, body io.Reader, from string) *http.Request {
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, p.Path, body)
	req.Header, req.RemoteAddr = p.Header, from+":1"
	req.Header.Del("Expect")
	return req
}

// Status is what the answer says in the end.
func (p *Parcel) Status(code int, header http.Header, body io.Reader) (status int, again string) {
	if p.Sealed == nil || header.Get("Content-Type") != ohttp.TypeResponse {
		return code, header.Get("Retry-After")
	}
	a := p.Sealed.Read(body)
	return a.Status, a.Header.Get("Retry-After")
}

// SendParcel has the gateway serve a parcel.
func (r *Rig) SendParcel(p *Parcel, body io.Reader, from string) (status int, again string) {
	w := r.Do(p.Request(r.T, body, from))
	return p.Status(w.Code, w.Header(), w.Body)
}

// Drip is a body that comes in pieces, each after a while. It ends with the test.
type Drip struct {
	Ctx   context.Context
	Rest  []byte
	First int // bytes that come at once
	Piece int
	After time.Duration
}

// Read implements [io.Reader].
func (d *Drip) Read(p []byte) (int, error) {
	if len(d.Rest) == 0 {
		return 0, io.EOF
	}
	if d.First == 0 {
		select {
		case <-time.After(d.After):
			d.First = d.Piece
		case <-d.Ctx.Done():
			return 0, d.Ctx.Err()
		}
	}
	n := copy(p, d.Rest[:min(d.First, len(d.Rest))])
	d.Rest, d.First = d.Rest[n:], d.First-n
	return n, nil
}

// PipeListener is a gateway's server whose connections are pipes, so that its time is the test's.
type PipeListener struct {
	conns  chan net.Conn
	done   chan struct{}
	secure bool
}

// Accept implements [net.Listener].
func (l *PipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *PipeListener) Close() error { return nil }

// Addr implements [net.Listener].
func (l *PipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// Dial connects to the server.
func (l *PipeListener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// StartPiped starts a server; with a TLSConfig it speaks HTTP/2.
func StartPiped(t *testing.T, server *http.Server) *PipeListener {
	l := &PipeListener{
		conns:  make(chan net.Conn),
		done:   make(chan struct{}),
		secure: server.TLSConfig != nil,
	}
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

// Post sends a parcel over a connection of its own.
func (l *PipeListener) Post(t *testing.T, p *Parcel, body io.Reader) int {
	t.Helper()
	transport := &http.Transport{DialContext: l.Dial}
	url := "http://gateway.test" + p.Path
	if l.secure {
		url = "https://gateway.test" + p.Path
		// a pipe of the test's
		transport.ForceAttemptHTTP2, transport.TLSClientConfig = true, &tls.Config{
			InsecureSkipVerify: true,
		}
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = p.Header
	req.Header.Del("Expect")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Error(p.Protocol, err)
		return 0
	}
	defer resp.Body.Close()
	if (resp.ProtoMajor == 2) != l.secure {
		t.Error(resp.Proto)
	}
	status, _ := p.Status(resp.StatusCode, resp.Header, resp.Body)
	return status
}
