// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakes holds servers that stand in for a gateway of either protocol. They open what a
// client sends with the rooms below internal/, answer as a test says, and know no name of the
// public package, so that its own tests use them, too.
package fakes

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Server is a server of the v1 protocol without a network: the RoundTripper of an https client. It
// opens what it gets and seals what Answer returns.
type Server struct {
	Answer func(q *Question) *http.Response // nil: a completion
	KeyPEM func() *http.Response            // nil: the public half of the key that it presents

	t     testing.TB
	mu    sync.Mutex
	key   string // stored key that it presents and opens with
	gets  int
	posts []*Question
}

// Question is what a client sent to a [Server].
type Question struct {
	Request   *http.Request
	Body      []byte
	Plaintext []byte // nil when it was sealed to another key
	Client    *hybrid.PublicKey

	t testing.TB
}

// NewServer makes a server with the stored key "rsa-2048".
func NewServer(t testing.TB) *Server { return &Server{t: t, key: "rsa-2048"} }

// Present has the server present another stored key from now on, and open with it.
func (s *Server) Present(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
}

// Counts tells how many keys were fetched and how many requests came.
func (s *Server) Counts() (gets, posts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets, len(s.posts)
}

// Questions are the requests that came so far.
func (s *Server) Questions() []*Question {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.posts)
}

// Last is the last request.
func (s *Server) Last() *Question {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.posts) == 0 {
		s.t.Fatal("nothing was sent")
	}
	return s.posts[len(s.posts)-1]
}

// RoundTrip implements [http.RoundTripper].
func (s *Server) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	key := s.key
	if req.Method == http.MethodGet && req.URL.Path == ohttp.Path { // it speaks version 1 alone
		s.mu.Unlock()
		return testkit.Respond(404, ""), nil
	}
	if req.Method == http.MethodGet {
		s.gets++
		s.mu.Unlock()
		if s.KeyPEM != nil {
			return s.KeyPEM(), nil
		}
		return testkit.Respond(200, string(testkit.PublicPEM(s.t, key))), nil
	}
	s.mu.Unlock()
	q := &Question{Request: req, t: s.t}
	q.Body, _ = io.ReadAll(req.Body)
	text, _ := url.PathUnescape(req.Header.Get(hybrid.HeaderPublicKey))
	var err error
	if q.Client, err = hybrid.ParsePublicKey([]byte(text)); err != nil {
		s.t.Errorf("X-Public-Key: %v", err)
	}
	e, err := envelope.Parse(q.Body, 1<<30)
	if err != nil {
		s.t.Errorf("envelope: %v", err)
		return testkit.Respond(400, ""), nil
	}
	k, _ := hybrid.NewPrivateKey(ownKey(s.t, key))
	q.Plaintext, _ = k.Open(&e, nil)
	s.mu.Lock()
	s.posts = append(s.posts, q)
	s.mu.Unlock()
	if q.Plaintext == nil {
		return testkit.Respond(400, `{"detail":"cannot be decrypted"}`), nil
	}
	if s.Answer != nil {
		return s.Answer(q), nil
	}
	return q.Seal(FineCompletion("fine")), nil
}

// ServeHTTP serves what s answers over a real connection.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resp, err := s.RoundTrip(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	body, _ := httpx.ReadAll(resp.Body, resp.ContentLength)
	_, _ = w.Write(body)
}

// Seal is a 200 with plaintext sealed for the client.
func (q *Question) Seal(plaintext string) *http.Response {
	e, err := Seal(q.Client, []byte(plaintext))
	if err != nil {
		q.t.Fatal(err)
	}
	return testkit.Respond(200, string(envelope.Append(nil, e)))
}

// Seal seals plaintext for k, for tests that change something about the envelope.
func Seal(k *hybrid.PublicKey, plaintext []byte) (*envelope.Envelope, error) {
	e := &envelope.Envelope{}
	_, err := k.Seal(nil, e, plaintext)
	e.Sealed = bytes.Clone(e.Sealed)
	return e, err
}

// FineCompletion is a chat.completion that says text.
func FineCompletion(text string) string {
	quoted, _ := json.Marshal(text)
	return `{"id":"x","object":"chat.completion","created":1,"model":"m",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":` + string(quoted) +
		`},"finish_reason":"stop"}]}`
}

// ownKey is a private copy of a stored test key.
func ownKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(testkit.KeyPEM(t, name))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}
