// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package httpx has the rules for every HTTP request that the module sends of its own accord: which
// URLs, which addresses, which TLS, no redirects, how much of an answer is read, and what becomes
// of a body in the clear.
package httpx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// DefaultTransport returns a new transport. The function of the same name in package sealedchat
// documents its settings.
func DefaultTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         NewDialer().DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second,
		},
		MaxIdleConns:        100,
		MaxIdleConnsPerHost: 100,
		IdleConnTimeout:     90 * time.Second,

		OnProxyConnectResponse: fault.CheckProxy, // so that errors can name its status
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // compression is undone under a cap, see readBody
	}
}

// NewDialer returns the dialer of the module's own transports.
func NewDialer() *net.Dialer {
	return &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
}

// ParseBaseURL checks a base URL and returns it without a trailing slash. Plain http is an error
// unless allowed. Its errors repeat nothing of the text, which may hold a password.
func ParseBaseURL(text string, allowHTTP bool) (*url.URL, error) {
	switch begins := strings.ToLower(text[:min(len(text), len("https://"))]); {
	case strings.ContainsAny(text, "\r\n"):
		return nil, errors.New("the URL holds a line break: trim it")
	case strings.TrimSpace(text) != text:
		return nil, errors.New("there is white space around the URL: trim it")
	case !strings.HasPrefix(begins, "https:") && !strings.HasPrefix(begins, "http:"):
		return nil, fmt.Errorf("%w: a URL begins with https://", fault.ErrInsecureURL)
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL") // the parser's error quotes the text
	}
	switch {
	case u.Scheme == "http" && !allowHTTP:
		return nil, ErrPlainHTTP
	case u.Scheme != "https" && u.Scheme != "http": // never: see above
		return nil, fmt.Errorf("%w: a URL begins with https://", fault.ErrInsecureURL)
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

// ErrPlainHTTP is the error of a base URL with http where that is not allowed.
var ErrPlainHTTP = fmt.Errorf("%w: http is not encrypted, use https", fault.ErrInsecureURL)

// NewTransport puts rt (nil = a DefaultTransport of its own) under the rules for requests to base.
// owned reports that nobody else has the transport's connections. The error says why rt is refused;
// the caller adds which field of a configuration it came from.
func NewTransport(rt http.RoundTripper, base *url.URL) (_ http.RoundTripper, owned bool, err error) {
	if rt == nil {
		own := DefaultTransport()
		if base.Scheme == "http" {
			own.DialContext = nil // loopbackOnly has a dialer that looks before it connects
		}
		rt, owned = own, true
	}
	t, isTransport := rt.(*http.Transport)
	if isTransport && t.TLSClientConfig != nil && t.TLSClientConfig.MinVersion != 0 &&
		t.TLSClientConfig.MinVersion < tls.VersionTLS12 {
		return nil, false, errors.New("TLSClientConfig.MinVersion is below TLS 1.2")
	}
	if base.Scheme == "http" {
		switch {
		case isTransport:
			rt, owned = loopbackOnly(t), true
		case !IsLoopbackLiteral(base.Hostname()):
			// Where a foreign RoundTripper dials cannot be seen: the URL itself must say that it is
			// loopback.
			return nil, false, fmt.Errorf("%w: http over a RoundTripper that is not an *http.Transport "+
				"needs a loopback IP address in the URL", fault.ErrInsecureURL)
		}
	}
	return rt, owned, nil
}

// CloseIdle closes what a transport of NewTransport's own making keeps open.
func CloseIdle(rt http.RoundTripper) {
	if t, ok := rt.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// IsLoopbackLiteral reports whether host is a loopback address, not a name.
func IsLoopbackLiteral(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// loopbackOnly is t without a proxy, and refusing to connect anywhere but to a loopback address.
func loopbackOnly(t *http.Transport) *http.Transport {
	t = t.Clone()
	t.Proxy = nil
	dial := t.DialContext
	if dial == nil {
		d := NewDialer()
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			host, _, err := net.SplitHostPort(address)
			if err != nil || !IsLoopbackLiteral(host) {
				return ErrNotLoopback
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
			return nil, ErrNotLoopback
		}
		return c, nil
	}
	return t
}

// ErrNotLoopback is the error of a dial over http to anywhere but this machine.
var ErrNotLoopback = fmt.Errorf("%w: http to an address that is not loopback", fault.ErrInsecureURL)

// SameOrigin compares scheme, host and port.
func SameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Hostname(), b.Hostname()) &&
		PortOf(a) == PortOf(b)
}

// PortOf is a URL's port, also where it is the scheme's own.
func PortOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if strings.EqualFold(u.Scheme, "http") {
		return "80"
	}
	return "443"
}

// OriginOf is a base URL in one spelling: what is remembered for it must not be forgotten over
// another one.
func OriginOf(base *url.URL) string {
	u := *base
	u.Host = strings.ToLower(u.Host)
	if PortOf(&u) == PortOf(&url.URL{Scheme: u.Scheme}) {
		u.Host = strings.TrimSuffix(u.Host, ":"+PortOf(&u))
	}
	return u.String()
}
