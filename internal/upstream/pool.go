// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package upstream carries a gateway's requests to its upstream over connections that keep its
// clients apart, and that keep no copy of what they sent.
//
// Over HTTP/1 content that a server leaves unread stands at the head of the next request on the
// same connection. So a connection carries one request at a time, and a further one only after an
// answer that shows that nothing is left:
//
//   - its status was 2xx, and it was read to its end;
//   - it began after the content had been written, down to its last piece;
//   - nothing stood behind it that had come with it;
//   - the request had no content, or went where the upstream reads all content ([Pool]'s reads).
//
// net/http decides on reuse by rules of its own, in goroutines of its own, and cannot be told
// afterwards. Its decision is of no effect here: each connection has an [http.Transport] of its
// own, a lane, which is lent to one request and is never used again unless the rules above hold.
// HTTP/2 frames its requests and needs none of this: once an upstream speaks it, one transport
// serves all.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errClosed = errors.New("the upstream's connections are closed")
	errSpent  = errors.New("the connection is spent") // a lane makes one
	errHTTP1  = errors.New("the upstream speaks HTTP/1")
	errHTTP2  = errors.New("the upstream speaks HTTP/2")
	errLength = errors.New("content of unknown length")
)

const (
	maxIdle  = 100 // connections
	maxTries = 3   // an ended connection, the other version of HTTP, and one that is right
)

// Pool has the connections to one upstream. Its methods may be called from several goroutines.
//
// Lock order: Pool.mu, or lane.mu; neither is held while the other is taken, or while a connection
// is used or closed.
type Pool struct {
	settings *http.Transport // never used: what lanes and shared are made of
	shared   *http.Transport // HTTP/2 only
	tries2   bool            // HTTP/2 may be offered
	http2    atomic.Bool     // the upstream speaks it, as far as is known
	reads    func(*http.Request) bool
	copies   copies

	mu     sync.Mutex
	closed bool
	idle   []*lane // the longest idle first; none of them is lent
	expiry *time.Timer
}

// New makes a pool of connections with the settings of t, which stays the caller's. Its limits on
// the number of connections do not hold, except IdleConnTimeout; at most 100 connections are idle.
// reads reports whether the upstream reads all content of a request before it answers 2xx. The
// caller closes the pool.
func New(t *http.Transport, reads func(*http.Request) bool) *Pool {
	// as the caller has them: Clone may fill the second
	protocols, next := t.Protocols, t.TLSNextProto
	p := &Pool{settings: t.Clone(), reads: reads}
	replaceOldDials(p.settings)
	p.tries2 = speaksHTTP2(p.settings, protocols, next)
	p.shared = p.settings.Clone()
	p.shared.Protocols = new(http.Protocols)
	p.shared.Protocols.SetHTTP2(true)
	p.shared.DialTLSContext = p.dialHTTP2
	return p
}

// For is the way upstream for what belongs to key: connections that served one key serve no other.
// Over HTTP/2 they do.
func (p *Pool) For(key string) http.RoundTripper { return keyed{p, key} }

type keyed struct {
	pool *Pool
	key  string
}

// RoundTrip implements [http.RoundTripper]. Content needs a length.
func (k keyed) RoundTrip(req *http.Request) (*http.Response, error) {
	p := k.pool
	content := req.Body != nil && req.Body != http.NoBody
	if content && req.ContentLength <= 0 {
		_ = req.Body.Close()
		return nil, errLength
	}
	for try := 1; ; try++ {
		resp, err := p.attempt(k.key, req, content, try > 1)
		missed := errors.Is(err, errSpent) || errors.Is(err, errHTTP1) || errors.Is(err, errHTTP2)
		if !missed || try == maxTries { // net/http dials again only if req may be sent again
			return resp, err
		}
		if content {
			if req.GetBody == nil {
				return nil, err
			}
			again := *req
			if again.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
			req = &again
		}
	}
}

func (p *Pool) attempt(key string, req *http.Request, content, fresh bool) (*http.Response, error) {
	if p.http2.Load() {
		return p.shared.RoundTrip(req)
	}
	var l *lane
	if !fresh {
		l = p.take(key)
	}
	if l == nil {
		l = newLane(p, key)
	}
	return l.roundTrip(req, content)
}

// take lends the connection that was used last, or none.
func (p *Pool) take(key string) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.idle) - 1; i >= 0; i-- {
		if l := p.idle[i]; l.key == key {
			p.idle = slices.Delete(p.idle, i, i+1)
			if !l.conn.dead.Load() {
				return l
			}
		}
	}
	return nil
}

// giveBack takes a lane whose connection may carry a further request.
func (p *Pool) giveBack(l *lane) {
	l.since = time.Now()
	if out := p.keep(l); out != nil {
		out.retire()
	}
}

// keep returns the lane for which there is no room.
func (p *Pool) keep(l *lane) (out *lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return l
	}
	p.idle = append(p.idle, l)
	if len(p.idle) > maxIdle {
		out = p.idle[0]
		p.idle = slices.Delete(p.idle, 0, 1)
	}
	if after := p.settings.IdleConnTimeout; after > 0 && p.expiry == nil {
		p.expiry = time.AfterFunc(after, p.expire)
	}
	return out
}

// expire ends what was idle for too long, and comes again while anything is idle.
func (p *Pool) expire() {
	for _, l := range p.expired() {
		l.retire()
	}
}

func (p *Pool) expired() []*lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, after := time.Now(), p.settings.IdleConnTimeout
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].since) >= after {
		n++
	}
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.expiry = nil
	if len(p.idle) > 0 {
		p.expiry = time.AfterFunc(after-now.Sub(p.idle[0].since), p.expire)
	}
	return old
}

// Close ends the idle connections, and those that are lent when their answers end. No further
// request is carried.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.CloseIdle()
}

// CloseIdle ends the idle connections.
func (p *Pool) CloseIdle() {
	for _, l := range p.takeAll() {
		l.retire()
	}
	p.shared.CloseIdleConnections()
}

func (p *Pool) takeAll() []*lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.expiry != nil {
		p.expiry.Stop()
		p.expiry = nil
	}
	idle := p.idle
	p.idle = nil
	return idle
}

func (p *Pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// speaksHTTP2 tells whether a transport would offer HTTP/2 in TLS.
func speaksHTTP2(
	t *http.Transport, protocols *http.Protocols,
	next map[string]func(string, *tls.Conn) http.RoundTripper,
) bool {
	switch {
	case protocols != nil:
		return protocols.HTTP2()
	case next != nil:
		return next["h2"] != nil
	}
	return t.ForceAttemptHTTP2 ||
		t.TLSClientConfig == nil && t.DialContext == nil && t.DialTLSContext == nil
}

// dial makes a connection without TLS.
func (p *Pool) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.isClosed() {
		return nil, errClosed
	}
	if p.settings.DialContext != nil {
		return p.settings.DialContext(ctx, network, addr)
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// dialTLS makes a connection with TLS, over records of ours unless the settings have a way of their
// own.
func (p *Pool) dialTLS(ctx context.Context, network, addr string, alpn ...string) (net.Conn,
	error) {
	if p.isClosed() {
		return nil, errClosed
	}
	if p.settings.DialTLSContext != nil {
		return p.settings.DialTLSContext(ctx, network, addr)
	}
	raw, err := p.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{}
	if p.settings.TLSClientConfig != nil {
		config = p.settings.TLSClientConfig.Clone()
	}
	config.NextProtos = alpn
	config.DynamicRecordSizingDisabled = true // a piece is a record, see sealable
	if config.ServerName == "" {
		if config.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			_ = raw.Close()
			return nil, err
		}
	}
	if limit := p.settings.TLSHandshakeTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	c := tls.Client(newRecords(raw), config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func negotiated(c net.Conn) string {
	if c, ok := c.(*tls.Conn); ok {
		return c.ConnectionState().NegotiatedProtocol
	}
	return ""
}

// dialHTTP2 makes a connection for shared, which must not get one of HTTP/1.
func (p *Pool) dialHTTP2(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := p.dialTLS(ctx, network, addr, "h2", "http/1.1")
	if err != nil {
		return nil, err
	}
	if negotiated(c) != "h2" {
		_ = c.Close()
		p.http2.Store(false)
		return nil, errHTTP1
	}
	return c, nil
}
