// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

// lane is a transport that makes one connection and is lent to one request at a time. It is lent,
// idle or retired. A retired lane is never lent again, so it does not matter what net/http thinks
// of its connection.
type lane struct {
	pool   *Pool
	key    string
	http   *http.Transport
	life   context.Context // ends when it is retired, and a dial on the way with it
	end    context.CancelFunc
	spent  atomic.Bool // it has dialled
	since  time.Time   // idle since; the pool's
	secure bool        // the request goes to https; set before it is lent
	trace  httptrace.ClientTrace

	mu      sync.Mutex
	conn    *conn // nil until it is dialled
	content bool  // the request that it is lent to has content
	retired bool
}

func newLane(p *Pool, key string) *lane {
	l := &lane{pool: p, key: key}
	l.life, l.end = context.WithCancel(context.Background())
	t := p.settings.Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2, t.HTTP2 = false, nil
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{}
	}
	t.TLSClientConfig.NextProtos = []string{"http/1.1"} // through a proxy
	t.MaxConnsPerHost = 0                               // a second dial must fail, not wait
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = 1, 1, 0
	t.ReadBufferSize = readBuffer
	t.DialContext, t.DialTLSContext = l.dial, l.dialTLS
	l.http = t
	l.trace.PutIdleConn = l.answered
	return l
}

// dial serves http, and https through a proxy, where net/http has TLS of its own above the
// connection.
func (l *lane) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return l.pool.dial(ctx, network, addr)
	}, l.secure)
}

func (l *lane) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.connect(ctx, func(ctx context.Context) (net.Conn, error) {
		if !l.pool.tries2 {
			return l.pool.dialTLS(ctx, network, addr, "http/1.1")
		}
		c, err := l.pool.dialTLS(ctx, network, addr, "h2", "http/1.1")
		if err == nil && negotiated(c) == "h2" {
			_ = c.Close()
			l.pool.http2.Store(true)
			return nil, errHTTP2
		}
		return c, err
	}, false)
}

// connect makes the lane's one connection. blind is one that cannot see requests.
func (l *lane) connect(
	ctx context.Context, dial func(context.Context) (net.Conn, error), blind bool,
) (net.Conn, error) {
	if !l.spent.CompareAndSwap(false, true) {
		return nil, errSpent
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	inner, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	c := newConn(inner, blind, &l.pool.copies)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired {
		_ = inner.Close()
		return nil, errSpent
	}
	c.begin(l.content)
	l.conn = c
	return c, nil
}

// roundTrip has the lane for itself. It goes back to the pool, or is retired, with the answer's
// end.
func (l *lane) roundTrip(req *http.Request, content bool) (*http.Response, error) {
	l.lend(content, req.URL.Scheme == "https")
	reads := !content || l.pool.reads(req)
	if !reads { // a server that leaves content does not look for a request in it, then
		closing := *req
		closing.Close = true
		req = &closing
	}
	resp, err := l.http.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(),
		&l.trace)))
	if err != nil {
		l.retire()
		return nil, err
	}
	further := resp.StatusCode/100 == 2 && resp.ProtoMajor == 1 && !resp.Close &&
		reads && !(content && l.conn.blind)
	b := &body{ReadCloser: resp.Body, lane: l, further: further}
	if resp.Body == http.NoBody {
		b.finish(true)
		return resp, nil
	}
	resp.Body = b
	return resp, nil
}

// answered is called by net/http's reader when it would use the connection again, before it looks
// for more, and before anybody is told of the answer's end.
func (l *lane) answered(error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn.forget()
}

func (l *lane) lend(content, secure bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.content, l.secure = content, secure
	if l.conn != nil {
		l.conn.begin(content)
	}
}

// retire closes the connection below net/http. If the answer has ended, net/http's reader stands in
// [conn.Read] or comes there next, and leaves a clean buffer behind.
func (l *lane) retire() {
	l.mu.Lock()
	l.retired = true
	c := l.conn
	l.mu.Unlock()
	l.end()
	if c != nil {
		c.sever()
	}
}

// body is an answer's. Its end decides about the lane.
type body struct {
	io.ReadCloser
	lane    *lane
	further bool // the request and the answer's head allow a further request
	over    atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.finish(err == io.EOF)
	}
	return n, err
}

func (b *body) Close() error {
	b.finish(false)
	return b.ReadCloser.Close()
}

// finish gives the lane back, or retires it. net/http has settled what becomes of the connection
// before its body says EOF, or before RoundTrip returns if there is none.
func (b *body) finish(whole bool) {
	if !b.over.CompareAndSwap(false, true) {
		return
	}
	b.lane.conn.idle.Store(true)
	if c := b.lane.conn; whole && b.further && c.settled() && c.drained() {
		b.lane.pool.giveBack(b.lane)
		return
	}
	b.lane.retire()
}
