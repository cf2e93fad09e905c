// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// TestFailedExchangesSayWhy: errors name the kind of a failure, and none of the other end's words.
func TestFailedExchangesSayWhy(t *testing.T) {
	const m = "MARKER"
	raw := func(answer string) string { return rawPeer(t, answer) }
	proxied := func(by string, own bool) *http.Transport {
		rt := DefaultTransport()
		if own {
			rt.OnProxyConnectResponse = nil // as in a transport that a caller made
		}
		u, err := url.Parse(by)
		if err != nil {
			t.Fatal(err)
		}
		rt.Proxy = http.ProxyURL(u)
		return rt
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	http2 := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	}))
	http2.EnableHTTP2 = true
	http2.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are to fail
	http2.StartTLS()
	defer http2.Close()
	overTLS := func() *http.Transport {
		rt := DefaultTransport()
		rt.TLSClientConfig = http2.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		return rt
	}
	tooOld := overTLS()
	tooOld.TLSClientConfig.MinVersion, tooOld.TLSClientConfig.MaxVersion = tls.VersionTLS13,
		tls.VersionTLS12
	refusal := func(status string) string {
		return "HTTP/1.1 " + status + "\r\nContent-Length: 0\r\n\r\n"
	}
	for name, c := range map[string]struct {
		rt   *http.Transport
		url  string
		want string
	}{
		"407": {proxied(raw(refusal("407 "+m)), false), "https://h.test",
			"status 407: it wants a user"},
		"407, own": {proxied(raw(refusal("407 Proxy Authentication Required")), true),
			"https://h.test", "status 407: it wants a user"},
		"407, own words": {proxied(raw(refusal("407 "+m)), true), "https://h.test",
			"the HTTP exchange failed"},
		"403 of a proxy": {proxied(raw(refusal("403 "+m)), false), "https://h.test",
			"refused the connection with status 403"},
		"https to http": {DefaultTransport(), "https" + strings.TrimPrefix(plain.URL, "http"),
			"the URL says https, the server http"},
		"https to text": {DefaultTransport(), "https" +
			strings.TrimPrefix(raw("220 "+m+"\r\n"), "http"), "does not speak TLS"},
		"reset":   {overTLS(), http2.URL, "an HTTP/2 error"},
		"no HTTP": {DefaultTransport(), raw(m + " " + m + "\r\n\r\n"), "not HTTP/1"},
		"a header": {DefaultTransport(), raw("HTTP/1.1 200 OK\r\n" + m + "\r\n\r\n"),
			"the HTTP exchange failed"},
		"no TLS version": {tooOld, http2.URL, "the TLS handshake failed"},
		"closed at once": {DefaultTransport(), raw(""), "EOF"},
		"nobody listens": {DefaultTransport(), "http://127.0.0.1:1", "connection refused"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Exchange(c.rt, req, 1000)
		c.rt.CloseIdleConnections()
		if !errors.Is(err, fault.ErrConnection) || !strings.Contains(err.Error(), c.want) ||
			strings.Contains(err.Error(), m) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// rawPeer answers each connection with the same bytes, once something of a request has come.
func rawPeer(t *testing.T, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(c).ReadByte()
			_, _ = io.WriteString(c, answer)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}
