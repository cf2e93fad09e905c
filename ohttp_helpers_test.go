// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// tinyGateway is a gateway of the second protocol that trusts everybody, and that tests can make misbehave.
type tinyGateway struct {
	t    testing.TB
	url  string
	ring *keyRing

	mu      sync.Mutex
	signer  ed25519.PrivateKey                            // nil: the list is not signed
	inner   http.HandlerFunc                              // serves what was sealed
	outer   func(http.ResponseWriter, *http.Request) bool // sees requests first; true: it has answered
	mangle  func([]byte) []byte                           // changes whole sealed answers
	list    func([]byte) []byte                           // changes the list after it was signed
	now     func() time.Time                              // of signatures
	last    *bhttp.Request
	content []byte
	fetches int
	posts   int
	outside http.Header // of the last POST
}

// newTiny makes a gateway with one X-Wing key whose requests inner serves, without a network.
func newTiny(t testing.TB, inner http.HandlerFunc) *tinyGateway {
	t.Helper()
	g := &tinyGateway{t: t, ring: &keyRing{}, inner: inner, now: time.Now}
	g.addKey(ohttp.XWing)
	t.Cleanup(g.ring.Close)
	return g
}

// startTiny is newTiny on loopback.
func startTiny(t testing.TB, inner http.HandlerFunc) *tinyGateway {
	t.Helper()
	g := newTiny(t, inner)
	srv := httptest.NewServer(g)
	g.url = srv.URL
	t.Cleanup(srv.Close)
	return g
}

// addKey adds a key, which is listed first among those of its kind.
func (g *tinyGateway) addKey(kem uint16) *PublicKey {
	g.t.Helper()
	k, err := g.ring.add(kem)
	if err != nil {
		g.t.Fatal(err)
	}
	return newConfigKey(k.Config())
}

// rotate adds a key and forgets all before it.
func (g *tinyGateway) rotate() *PublicKey {
	g.t.Helper()
	fresh := g.addKey(ohttp.XWing)
	g.ring.forgetOthers()
	return fresh
}

func (g *tinyGateway) key() *PublicKey { return newConfigKey(g.ring.Configs()[0]) }

// sign makes the gateway sign its lists, and returns the signer's fingerprint.
func (g *tinyGateway) sign() string {
	g.t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		g.t.Fatal(err)
	}
	g.set(func() { g.signer = key })
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	return hex.EncodeToString(sum[:])
}

func (g *tinyGateway) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

func (g *tinyGateway) counts() (fetches, posts int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fetches, g.posts
}

func (g *tinyGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	outer, mangle := g.outer, g.mangle
	if r.Method == http.MethodGet {
		g.fetches++
	} else {
		g.posts++
		g.outside = r.Header.Clone()
	}
	g.mu.Unlock()
	if outer != nil && outer(w, r) {
		return
	}
	if r.URL.Path != ohttp.Path {
		http.NotFound(w, r)
		return
	}
	if r.Method == http.MethodGet {
		g.serveList(w)
		return
	}
	x, err := ohttp.Open(r.Body, g.ring, 0)
	if err != nil {
		unknownKey(w)
		return
	}
	defer x.Close()
	q, body, err := bhttp.ReadRequest(x.Request(), bhttp.Limits{})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	content, err := body.ReadAll()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.set(func() { g.last, g.content = q, content })
	in, err := http.NewRequestWithContext(r.Context(), q.Method, q.Path, bytes.NewReader(content))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	in.Header = httpx.HeaderOf(q.Header)
	w.Header().Set("Content-Type", ohttp.TypeResponse)
	var whole bytes.Buffer
	sealed := &tinyWriter{header: make(http.Header), flush: w.(http.Flusher).Flush}
	var to io.Writer = w
	if mangle != nil {
		to, sealed.flush = &whole, func() {}
	}
	if sealed.w, err = x.Response(to); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer sealed.w.Close()
	g.mu.Lock()
	inner := g.inner
	g.mu.Unlock()
	inner(sealed, in)
	sealed.finish()
	if mangle != nil {
		_, _ = w.Write(mangle(whole.Bytes()))
	}
}

func (g *tinyGateway) serveList(w http.ResponseWriter) {
	list := ohttp.AppendConfigs(nil, g.ring.Configs()...)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.signer != nil {
		w.Header().Set(ohttp.HeaderSignature, ohttp.SignList(g.signer, list, g.now(), g.now().Add(24*time.Hour)))
	}
	if g.list != nil {
		list = g.list(list)
	}
	w.Header().Set("Content-Type", ohttp.TypeKeys)
	_, _ = w.Write(list)
}

func unknownKey(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	_, _ = io.WriteString(w, `{"type":"https://iana.org/assignments/http-problem-types#ohttp-key","title":"key identifier unknown"}`)
}

// tinyWriter seals what a handler answers, one chunk for each flush.
type tinyWriter struct {
	w      *ohttp.Writer
	header http.Header
	enc    bhttp.Encoder
	begun  bool
	cut    bool
	flush  func()
}

func (w *tinyWriter) Header() http.Header { return w.header }

func (w *tinyWriter) WriteHeader(status int) {
	if w.begun {
		return
	}
	w.begun = true
	var fields []bhttp.Field
	for name, values := range w.header {
		for _, v := range values {
			fields = append(fields, bhttp.Field{Name: strings.ToLower(name), Value: v})
		}
	}
	head, err := w.enc.ResponseHead(nil, status, fields)
	if err != nil {
		panic(err)
	}
	_, _ = w.w.Write(head)
}

func (w *tinyWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if _, err := w.w.Write(w.enc.Content(nil, b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (w *tinyWriter) Flush() {
	w.WriteHeader(http.StatusOK)
	if w.w.Flush() == nil {
		w.flush()
	}
}

// abandon leaves the answer without an end.
func (w *tinyWriter) abandon() { w.cut = true }

func (w *tinyWriter) finish() {
	if w.cut {
		_ = w.w.Flush()
		return
	}
	w.WriteHeader(http.StatusOK)
	end, err := w.enc.End(nil, nil, 0)
	if err != nil {
		panic(err)
	}
	_, _ = w.w.Write(end)
	_ = w.w.Finish()
}

// ohttpClient is a client of the second protocol for the server at url, which trusts whatever HTTPS says. change may be nil.
func ohttpClient(t testing.TB, url string, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	c := Config{BaseURL: url, Protocol: ProtocolOHTTP, Trust: TrustHTTPS(), InsecureAllowHTTP: true, MaxRetries: -1}
	if change != nil {
		change(&c)
	}
	client, err := NewSecureCompletionClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// chatAgain asks, and once more if the server's key has changed, as a program would whose prompts may run twice.
func chatAgain(c *SecureCompletionClient) (*ChatResponse, error) {
	answer, err := c.Chat(context.Background(), ask("x"))
	if outer, ok := errors.AsType[*OuterError](err); ok && outer.KeyChanged {
		return c.Chat(context.Background(), ask("x"))
	}
	return answer, err
}
