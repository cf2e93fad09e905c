// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// soon is the deadline of everything that touches the network.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestHeadersThatLeave(t *testing.T) {
	s := fakes.NewServer(t)
	var mu sync.Mutex
	heads := map[string]http.Header{}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		heads[r.Method] = r.Header.Clone()
		mu.Unlock()
		http.SetCookie(w, &http.Cookie{Name: "tracker", Value: "1"})
		s.ServeHTTP(w, r)
	})
	plain := httptest.NewServer(h)
	defer plain.Close()
	secure := testkit.TLSServer(t, h)
	own := testkit.ClientTransport(secure)
	defer own.CloseIdleConnections()
	own.DisableCompression = false // the caller's transport must not add Accept-Encoding: gzip
	for _, c := range []struct {
		url       string
		transport http.RoundTripper
	}{{plain.URL, nil}, {secure.URL, own}} {
		for _, full := range []bool{false, true} {
			client := startClient(t, c.url, func(k *sealedchat.Config) {
				k.Keys, k.Transport = storedKeys(t, "rsa-3072"), c.transport
				if full {
					k.APIKey, k.Tier = secret(t, "sk-1"), sealedchat.TierHigh
				}
			})
			for range 2 { // the second time there could be cookies
				clear(heads)
				_ = client.AcceptServerKey(publicOf(t, "rsa-2048").Fingerprint())
				if _, err := client.Chat(soon(t), ask("x")); err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				want := []string{"Accept-Encoding", "Content-Length", "Content-Type", "User-Agent",
					"X-Payload-Id", "X-Public-Key"}
				if full {
					want = append(want, "Authorization", "X-Security-Tier")
				}
				for method, names := range map[string][]string{"GET": {"Accept-Encoding",
					"User-Agent"}, "POST": want} {
					var got []string
					for name := range heads[method] {
						got = append(got, name)
					}
					slices.Sort(got)
					slices.Sort(names)
					if !slices.Equal(got, names) {
						t.Errorf("%s: %v, want %v", method, got, names)
					}
					if ua := heads[method].Values("User-Agent"); len(ua) != 1 ||
						ua[0] != "sealedchat" {
						t.Errorf("%s: User-Agent %q", method, ua)
					}
					if enc := heads[method].Values("Accept-Encoding"); len(enc) != 1 ||
						enc[0] != "identity" {
						t.Errorf("%s: Accept-Encoding %q", method, enc)
					}
				}
				mu.Unlock()
			}
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var reached atomic.Int32
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		reached.Add(1)
	}))
	defer target.Close()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			for _, location := range []string{target.URL + "/x", "/elsewhere",
				"//" + target.Listener.Addr().String(), "", "http://[::1", "%zz"} {
				s := fakes.NewServer(t)
				var hits atomic.Int32
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,
					r *http.Request) {
					if r.URL.Path == "/elsewhere" {
						reached.Add(1)
					}
					if r.Method != method {
						s.ServeHTTP(w, r)
						return
					}
					hits.Add(1)
					w.Header()["Location"] = []string{location}
					w.WriteHeader(status)
				}))
				client := startClient(t, server.URL, func(c *sealedchat.Config) {
					c.APIKey, c.Keys = secret(t, "sk-1"), storedKeys(t, "rsa-2048")
				})
				_, err := client.Chat(soon(t), ask("x"))
				if e, ok := errors.AsType[*sealedchat.APIError](err); !ok ||
					e.StatusCode != status || !strings.Contains(err.Error(), "redirect") {
					t.Errorf("%s %d to %q: %v", method, status, location, err)
				}
				if hits.Load() != 1 {
					t.Errorf("%s %d to %q: asked %d times", method, status, location, hits.Load())
				}
				server.Close()
			}
		}
	}
	if reached.Load() != 0 {
		t.Errorf("%d redirects were followed", reached.Load())
	}
}

func TestHTTPOnlyToLoopback(t *testing.T) {
	l := testkit.ForeignAddress(t)
	var touched atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		touched.Add(1)
	}), ReadHeaderTimeout: time.Second}
	server.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateActive {
			touched.Add(1) // bytes of a request have come
		}
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	foreign := l.Addr().String()
	_, port, _ := net.SplitHostPort(foreign)

	// a name that resolves to somewhere else
	dialForeign := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, foreign)
	}
	for name, c := range map[string]struct {
		url       string
		transport http.RoundTripper
	}{
		"literal":            {"http://" + foreign, nil},
		"literal, transport": {"http://" + foreign, sealedchat.DefaultTransport()},
		"literal, foreign": {"http://127.0.0.1:" + port,
			&http.Transport{DialContext: dialForeign}},
		"name": {"http://localhost:" + port, &http.Transport{DialContext: dialForeign}},
		"proxy of a transport": {"http://" + foreign,
			&http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: foreign})}},
	} {
		client := startClient(t, c.url, func(k *sealedchat.Config) {
			k.Transport, k.Keys = c.transport, storedKeys(t, "rsa-2048")
		})
		_, err := client.Chat(soon(t), ask("x"))
		if !errors.Is(err, sealedchat.ErrInsecureURL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if touched.Load() != 0 {
		t.Errorf("%d requests came through", touched.Load())
	}
	if _, err := sealedchat.NewSecureCompletionClient(
		sealedchat.Config{BaseURL: "http://127.0.0.1:1",
			Trust: sealedchat.TrustHTTPS()}); !errors.Is(err, sealedchat.ErrInsecureURL) {
		t.Errorf("without InsecureAllowHTTP: %v", err)
	}
}

// To loopback no proxy is used, wherever it is named: it would read along.
func TestHTTPUsesNoProxy(t *testing.T) {
	var proxied atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		proxied.Add(1)
	}))
	defer proxy.Close()
	at, _ := url.Parse(proxy.URL)
	s := fakes.NewServer(t)
	server := httptest.NewServer(s)
	defer server.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	for name, transport := range map[string]http.RoundTripper{
		"default": nil, "transport": &http.Transport{Proxy: http.ProxyURL(at)},
	} {
		client := startClient(t, server.URL, func(c *sealedchat.Config) {
			c.Transport, c.Keys = transport, storedKeys(t, "rsa-3072")
		})
		if _, err := client.Chat(soon(t), ask("x")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	given := &http.Transport{Proxy: http.ProxyURL(at)}
	startClient(t, server.URL, func(c *sealedchat.Config) { c.Transport = given })
	if given.Proxy == nil || given.DialContext != nil {
		t.Error("the caller's transport was changed")
	}
	if proxied.Load() != 0 {
		t.Errorf("%d requests went through a proxy", proxied.Load())
	}
}

func TestTLSVersions(t *testing.T) {
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false,
		tls.VersionTLS12: true, tls.VersionTLS13: true} {
		s := fakes.NewServer(t)
		server := httptest.NewUnstartedServer(s)
		server.TLS = &tls.Config{MinVersion: version, MaxVersion: version}
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		transport := sealedchat.DefaultTransport()
		transport.TLSClientConfig.RootCAs = testkit.ClientTransport(server).TLSClientConfig.RootCAs
		client := startClient(t, server.URL, func(c *sealedchat.Config) {
			c.Transport, c.Keys = transport, storedKeys(t, "rsa-3072")
		})
		_, err := client.Chat(soon(t), ask("x"))
		if (err == nil) != ok || (!ok && !errors.Is(err, sealedchat.ErrConnection)) {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		transport.CloseIdleConnections()
		server.Close()
	}
}

func TestUntrustedCertificate(t *testing.T) {
	s := fakes.NewServer(t)
	server := testkit.TLSServer(t, s)
	client := startClient(t, server.URL, func(c *sealedchat.Config) {
		c.Keys = storedKeys(t, "rsa-2048")
	})
	_, err := client.Chat(soon(t), ask("x"))
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok ||
		!errors.Is(err, sealedchat.ErrConnection) {
		t.Errorf("got %v", err)
	}
	if gets, posts := s.Counts(); gets+posts != 0 {
		t.Error("something was sent")
	}
}

// InsecureSkipVerify needs a pin, or a verification of one's own.
func TestInsecureSkipVerify(t *testing.T) {
	skip := func() *http.Transport {
		return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	}
	own := skip()
	own.TLSClientConfig.VerifyConnection = func(tls.ConnectionState) error { return nil }
	store, err := sealedchat.NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for name, c := range map[string]struct {
		transport *http.Transport
		trust     sealedchat.Trust
		ok        bool
	}{
		"TrustHTTPS": {skip(), sealedchat.TrustHTTPS(), false},
		"FirstUse":   {skip(), sealedchat.FirstUse(store), false},
		"Pin":        {skip(), sealedchat.Pin(strings.Repeat("ab", 32)), true},
		"own":        {own, sealedchat.TrustHTTPS(), true},
	} {
		_, err := sealedchat.NewSecureCompletionClient(
			sealedchat.Config{BaseURL: "https://server.test", Transport: c.transport,
				Trust: c.trust})
		if e, ok := errors.AsType[*sealedchat.ConfigError](err); (err == nil) != c.ok ||
			(!c.ok && (!ok || e.Field != "Config.Transport")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a broken peer says in the place of HTTP is quoted at most, and bounded.
func TestPeersWordsInErrors(t *testing.T) {
	const marker = "peers-own-words"
	for name, raw := range map[string]string{
		"no HTTP":      marker + " is not HTTP\r\n\r\n",
		"status":       "HTTP/1.1 2x0 " + marker + "\r\n\r\n",
		"header":       "HTTP/1.1 200 OK\r\n" + marker + " without a colon\r\n\r\n",
		"length":       "HTTP/1.1 200 OK\r\nContent-Length: " + marker + "\r\n\r\n",
		"two lengths":  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"transfer":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + marker + "\r\n\r\n",
		"chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + marker + "\r\n",
		"nothing":      "",
		"cut":          "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nxx",
		"endless head": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 12<<20),
		"location": "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://[" + marker +
			"\r\n\r\n",
		"control chars": "HTTP/1.1 200 OK\r\nX-\x1b[31m" + marker + "\x00: 1\r\n\r\n",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(time.Minute))
					// all of it: closing with unread bytes resets the connection
					_, _ = http.ReadRequest(bufio.NewReader(c))
					_, _ = c.Write([]byte(raw))
				})
			}
		})
		client := startClient(t, "http://"+l.Addr().String(), func(c *sealedchat.Config) {
			c.Keys = storedKeys(t, "rsa-2048")
		})
		_, err = client.ServerKey(soon(t))
		_, refused := errors.AsType[*sealedchat.APIError](err)
		if name == "location" != refused || !refused && !errors.Is(err, sealedchat.ErrConnection) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			text := err.Error()
			if len(text) > 500 || strings.ContainsAny(text, "\x1b\x00\r\n") {
				t.Errorf("%s: %q", name, text)
			}
			if before, _, found := strings.Cut(text, marker); found &&
				strings.Count(before, `"`)%2 == 0 {
				t.Errorf("%s: the peer's words are not quoted: %s", name, text)
			}
		}
		l.Close()
		wg.Wait()
	}
}
