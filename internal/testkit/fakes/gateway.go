// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// Gateway is a gateway of Oblivious HTTP that trusts everybody, and that tests can make misbehave.
// While requests run, its fields are read and changed within [Gateway.Set].
type Gateway struct {
	URL  string
	Ring *KeyRing

	Signer ed25519.PrivateKey // nil: the list is not signed
	Inner  http.HandlerFunc   // serves what was sealed
	// sees requests first; true: it has answered
	Outer  func(http.ResponseWriter, *http.Request) bool
	Mangle func([]byte) []byte // changes whole sealed answers
	List   func([]byte) []byte // changes the list after it was signed
	Now    func() time.Time    // of signatures

	Last    *bhttp.Request // the last request that was opened
	Content []byte         // its body
	Outside http.Header    // of the last POST
	Fetches int
	Posts   int

	t  testing.TB
	mu sync.Mutex
}

// Key is a key configuration of a [Gateway].
type Key struct{ *ohttp.Config }

// Fingerprint is in the form that the public package prints.
func (k Key) Fingerprint() string { return hybrid.HexFingerprint(k.Config.Fingerprint()) }

// NewGateway makes a gateway with one X-Wing key whose requests inner serves, without a network.
func NewGateway(t testing.TB, inner http.HandlerFunc) *Gateway {
	t.Helper()
	g := &Gateway{t: t, Ring: &KeyRing{}, Inner: inner, Now: time.Now}
	g.AddKey(ohttp.XWing)
	t.Cleanup(g.Ring.Close)
	return g
}

// StartGateway is NewGateway on loopback.
func StartGateway(t testing.TB, inner http.HandlerFunc) *Gateway {
	t.Helper()
	g := NewGateway(t, inner)
	srv := httptest.NewServer(g)
	g.URL = srv.URL
	t.Cleanup(srv.Close)
	return g
}

// AddKey adds a key, which is listed first among those of its kind.
func (g *Gateway) AddKey(kem uint16) Key {
	g.t.Helper()
	k, err := g.Ring.Add(kem)
	if err != nil {
		g.t.Fatal(err)
	}
	return Key{k.Config()}
}

// Rotate adds a key and forgets all before it.
func (g *Gateway) Rotate() Key {
	g.t.Helper()
	fresh := g.AddKey(ohttp.XWing)
	g.Ring.ForgetOthers()
	return fresh
}

// Key is the first key of the list.
func (g *Gateway) Key() Key { return Key{g.Ring.Configs()[0]} }

// Sign makes the gateway sign its lists, and returns the signer's fingerprint.
func (g *Gateway) Sign() string {
	g.t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		g.t.Fatal(err)
	}
	g.Set(func() { g.Signer = key })
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	return hex.EncodeToString(sum[:])
}

// Set runs change while no request reads or changes a field.
func (g *Gateway) Set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// Counts tells how many lists were fetched and how many requests came.
func (g *Gateway) Counts() (fetches, posts int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Fetches, g.Posts
}

func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	outer, mangle := g.Outer, g.Mangle
	if r.Method == http.MethodGet {
		g.Fetches++
	} else {
		g.Posts++
		g.Outside = r.Header.Clone()
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
	x, err := ohttp.Open(r.Body, g.Ring, 0)
	if err != nil {
		UnknownKey(w)
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
	g.Set(func() { g.Last, g.Content = q, content })
	in, err := http.NewRequestWithContext(r.Context(), q.Method, q.Path, bytes.NewReader(content))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	in.Header = httpx.HeaderOf(q.Header)
	w.Header().Set("Content-Type", ohttp.TypeResponse)
	var whole bytes.Buffer
	sealed := &Writer{header: make(http.Header), flush: w.(http.Flusher).Flush}
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
	inner := g.Inner
	g.mu.Unlock()
	inner(sealed, in)
	sealed.finish()
	if mangle != nil {
		_, _ = w.Write(mangle(whole.Bytes()))
	}
}

func (g *Gateway) serveList(w http.ResponseWriter) {
	list := ohttp.AppendConfigs(nil, g.Ring.Configs()...)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.Signer != nil {
		w.Header().Set(ohttp.HeaderSignature, ohttp.SignList(g.Signer, list, g.Now(),
			g.Now().Add(24*time.Hour)))
	}
	if g.List != nil {
		list = g.List(list)
	}
	w.Header().Set("Content-Type", ohttp.TypeKeys)
	_, _ = w.Write(list)
}

// UnknownKey is the answer to a key that a gateway does not have.
func UnknownKey(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	_, _ = io.WriteString(w,
		`{"type":"https://iana.org/assignments/http-problem-types#ohttp-key",`+
			`"title":"key identifier unknown"}`)
}

// Writer seals what a handler answers, one chunk for each flush.
type Writer struct {
	w      *ohttp.Writer
	header http.Header
	enc    bhttp.Encoder
	begun  bool
	cut    bool
	flush  func()
}

func (w *Writer) Header() http.Header { return w.header }

func (w *Writer) WriteHeader(status int) {
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

func (w *Writer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if _, err := w.w.Write(w.enc.Content(nil, b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (w *Writer) Flush() {
	w.WriteHeader(http.StatusOK)
	if w.w.Flush() == nil {
		w.flush()
	}
}

// Abandon leaves the answer without an end.
func (w *Writer) Abandon() { w.cut = true }

func (w *Writer) finish() {
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
