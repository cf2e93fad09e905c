// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// This file has the rules for every HTTP request that the package sends of its own accord: which URLs, which
// addresses, which TLS, no redirects, and how much of an answer is read.

// DefaultTransport returns a new transport with the settings that clients use when Config.Transport is nil: TLS 1.2
// or later, HTTP/2, the proxy of the environment, up to 100 idle connections per host for 90 s, and pings that notice
// a dead HTTP/2 connection after 45 s. Change it before handing it over: for a private certificate authority set
// TLSClientConfig.RootCAs. It is the caller's, who closes its idle connections at the end.
func DefaultTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         newDialer().DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		MaxIdleConns:        100,
		MaxIdleConnsPerHost: 100,
		IdleConnTimeout:     90 * time.Second,

		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // compression is undone under a cap, see readBody
	}
}

func newDialer() *net.Dialer {
	return &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
}

// parseBaseURL checks a base URL and returns it without a trailing slash. Plain http is an error unless allowed.
func parseBaseURL(text string, allowHTTP bool) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL") // the parser's error quotes the text, which may hold a password
	}
	switch {
	case u.Scheme == "http" && !allowHTTP:
		return nil, fmt.Errorf("%w: http is not encrypted, use https", ErrInsecureURL)
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%w: the scheme must be https", ErrInsecureURL)
	case u.User != nil:
		return nil, errors.New("user info in the URL is refused")
	case u.RawQuery != "" || u.ForceQuery:
		return nil, errors.New("a query in the URL is refused")
	case u.Fragment != "" || strings.Contains(text, "#"):
		return nil, errors.New("a fragment in the URL is refused")
	case u.Opaque != "" || u.Hostname() == "":
		return nil, errors.New("the URL has no host")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return nil, errors.New("the port is not from 1 to 65535")
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return nil, errors.New("the port is empty")
	}
	u = u.JoinPath()
	u.RawPath = strings.TrimRight(u.EscapedPath(), "/") // escaped: a trailing %2F is part of a name
	if u.Path, err = url.PathUnescape(u.RawPath); err != nil {
		return nil, errors.New("not a URL")
	}
	return u, nil
}

// newTransport puts rt (nil = a DefaultTransport of its own) under the rules for requests to base. field names the
// configuration field that rt comes from. owned reports that nobody else has the transport's connections.
func newTransport(rt http.RoundTripper, base *url.URL, field string) (_ http.RoundTripper, owned bool, err error) {
	if rt == nil {
		own := DefaultTransport()
		if base.Scheme == "http" {
			own.DialContext = nil // loopbackOnly has a dialer that looks before it connects
		}
		rt, owned = own, true
	}
	t, isTransport := rt.(*http.Transport)
	if isTransport && t.TLSClientConfig != nil && t.TLSClientConfig.MinVersion != 0 && t.TLSClientConfig.MinVersion < tls.VersionTLS12 {
		return nil, false, configError(field, "TLSClientConfig.MinVersion is below TLS 1.2")
	}
	if base.Scheme == "http" {
		switch {
		case isTransport:
			rt, owned = loopbackOnly(t), true
		case !isLoopbackLiteral(base.Hostname()):
			// Where a foreign RoundTripper dials cannot be seen, so the URL itself must say that it is loopback.
			return nil, false, &ConfigError{Field: field, Err: fmt.Errorf(
				"%w: http over a RoundTripper that is not an *http.Transport needs a loopback IP address in the URL", ErrInsecureURL)}
		}
	}
	return rt, owned, nil
}

// closeIdle closes what a transport of newTransport's own making keeps open.
func closeIdle(rt http.RoundTripper) {
	if t, ok := rt.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

func isLoopbackLiteral(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// loopbackOnly is t without a proxy, and refusing to connect anywhere but to a loopback address.
func loopbackOnly(t *http.Transport) *http.Transport {
	t = t.Clone()
	t.Proxy = nil
	dial := t.DialContext
	if dial == nil {
		d := newDialer()
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			host, _, err := net.SplitHostPort(address)
			if err != nil || !isLoopbackLiteral(host) {
				return errNotLoopback
			}
			return nil
		}
		dial = d.DialContext
	}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
			_ = c.Close()
			return nil, errNotLoopback
		}
		return c, nil
	}
	return t
}

var errNotLoopback = fmt.Errorf("%w: http to an address that is not loopback", ErrInsecureURL)

const maxErrorWait = 5 * time.Second // for the words of an error whose status is known

// answer is what is left of an HTTP response after reading it.
type answer struct {
	status int
	header http.Header
	body   []byte // owned by the receiver
}

// exchange sends req and reads its answer: at most limit bytes of a 200, before and after decompression, more is
// ErrTooLarge; of anything else only the beginning. A caller's ended context comes back as its cause, every other
// failure as ErrConnection.
func exchange(rt http.RoundTripper, req *http.Request, limit int64) (*answer, error) {
	resp, err := send(rt, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return readFailure(req.Context(), resp)
	}
	a := &answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = readBody(resp, limit); err != nil {
		clear(a.body[:cap(a.body)])
		if errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		return nil, exchangeError(req.Context(), describe(req), err, true)
	}
	return a, nil
}

// send returns when the header of the answer has come. The caller closes its body.
func send(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	req.Header.Set("Accept-Encoding", "identity") // ciphertext does not compress
	resp, err := rt.RoundTrip(req)                // no http.Client: redirects and cookies have no business here
	if err == nil && resp == nil {
		err = errors.New("the RoundTripper returned nothing")
	}
	if err != nil {
		return nil, unsentError(req, exchangeError(req.Context(), describe(req), err, false))
	}
	return resp, nil
}

func describe(req *http.Request) string { return req.Method + " " + req.URL.Path }

// readFailure reads the beginning of an answer that is none of those that were hoped for.
func readFailure(ctx context.Context, resp *http.Response) (*answer, error) {
	stalled := time.AfterFunc(maxErrorWait, func() { _ = resp.Body.Close() })
	defer stalled.Stop()
	body, err := readBody(resp, maxErrorBody) // an error without words is still an error
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, fault.AttemptTimeout) {
		return nil, fault.Ended(ctx)
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: body}, nil
}

// countedBody knows whether anybody has read of a request's body: if not, the request cannot have been served.
type countedBody struct {
	io.ReadCloser
	read *atomic.Bool // also by what GetBody returned
}

func (b *countedBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.ReadCloser.Read(p)
}

// unsentError marks the error of a request of which nothing was sent, as far as that is known.
func unsentError(req *http.Request, err error) error {
	failed, ok := errors.AsType[*fault.ConnectionError](err)
	if body, counted := req.Body.(*countedBody); ok && counted {
		failed.Unsent = !body.read.Load()
	}
	return err
}

// neverSent marks the error of an exchange that comes before the request, of which nothing was sent then, whatever became of
// the exchange. Others may have err as soon as it is handed on.
func neverSent(err error) error {
	if failed, ok := errors.AsType[*fault.ConnectionError](err); ok {
		failed.Unsent = true
	}
	return err
}

func exchangeError(ctx context.Context, what string, err error, answered bool) error {
	if errors.Is(err, ErrInsecureURL) {
		return errNotLoopback
	}
	if cause := context.Cause(ctx); cause != nil {
		if !errors.Is(cause, fault.AttemptTimeout) {
			return fault.Ended(ctx)
		}
		err = fault.AttemptTimeout
	}
	return &fault.ConnectionError{What: what, Err: err, Answered: answered}
}

func gzipError(err error) error {
	if err == nil || errors.Is(err, ErrTooLarge) {
		return err
	}
	return errors.Join(fault.Gzip, err)
}

// readBody reads a response's body and undoes gzip. On ErrTooLarge, or a broken stream, it returns what it has, up to
// limit, together with the error.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit && resp.StatusCode == http.StatusOK {
		return nil, fmt.Errorf("%w: answer of %d bytes, limit %d", ErrTooLarge, resp.ContentLength, limit)
	}
	raw := &cappedReader{r: resp.Body, left: limit, limit: limit}
	switch strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding"))) {
	case "", "identity":
		return readAll(raw, resp.ContentLength)
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(raw)
		if err != nil {
			return nil, gzipError(err)
		}
		body, err := readAll(&cappedReader{r: z, left: limit, limit: limit}, -1)
		return body, gzipError(err)
	default:
		return nil, fault.ContentEncoding
	}
}

// readAll is io.ReadAll with the buffer made in one piece when the size is known. Those that it outgrows are cleared.
func readAll(r io.Reader, size int64) ([]byte, error) {
	const most = 1 << 20 // a promise of more is believed as it arrives
	b := make([]byte, 0, min(max(size, 511), most)+1)
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		if len(b) == cap(b) {
			outgrown := b
			b = append(b, 0)[:len(b)]
			clear(outgrown)
		}
	}
}

// cappedReader fails with ErrTooLarge, unlike io.LimitReader, which pretends that the stream has ended.
type cappedReader struct {
	r           io.Reader
	left, limit int64
}

func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left <= 0 { // exactly at the limit: only the end may follow
		var one [1]byte
		n, err := c.r.Read(one[:])
		if n > 0 {
			return 0, fmt.Errorf("%w: answer of more than %d bytes", ErrTooLarge, c.limit)
		}
		return 0, err
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}
