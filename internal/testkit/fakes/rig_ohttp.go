// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// Inner is a message before it is sealed; zero fields have defaults that the gateway takes.
type Inner struct {
	Method, Path, Body string
	Header             []bhttp.Field // replaces what is there by default, "" takes it out
	Trailer            []bhttp.Field
	Pad                int
}

// Encode is the message in binary HTTP.
func (m Inner) Encode(t testing.TB) []byte {
	t.Helper()
	q := &bhttp.Request{Method: m.Method, Scheme: "https", Authority: "gateway.test", Path: m.Path}
	if q.Method == "" {
		q.Method = http.MethodPost
	}
	if q.Path == "" {
		q.Path = "/v1/chat/completions"
	}
	if m.Body == "" && q.Method == http.MethodPost {
		m.Body = FineRequest
	}
	defaults := []bhttp.Field{
		{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
		{Name: "content-type", Value: "application/json"},
		{Name: "authorization", Value: "Bearer key-of-the-client"},
	}
	for _, d := range defaults {
		replaced := false
		for _, f := range m.Header {
			replaced = replaced || f.Name == d.Name
		}
		if !replaced {
			q.Header = append(q.Header, d)
		}
	}
	for _, f := range m.Header {
		if f.Value != "" {
			q.Header = append(q.Header, f)
		}
	}
	message, err := bhttp.AppendRequest(nil, q, []byte(m.Body), m.Trailer, m.Pad)
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// KeyConfig asks the gateway for its list.
func (r *Rig) KeyConfig() *ohttp.Config {
	r.T.Helper()
	w := r.Do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != ohttp.TypeKeys {
		r.T.Fatalf("the list: %d %v", w.Code, w.Header())
	}
	configs, err := ohttp.ParseConfigs(w.Body.Bytes())
	if err != nil {
		r.T.Fatal(err)
	}
	c, err := ohttp.Choose(configs)
	if err != nil {
		r.T.Fatal(err)
	}
	return c
}

// Sealed is a request that was sealed, and what opens its answer.
type Sealed struct {
	T    testing.TB
	Call *ohttp.Request
	Body []byte
}

// Seal seals m for the gateway.
func (r *Rig) Seal(m Inner) *Sealed {
	r.T.Helper()
	return SealFor(r.T, r.KeyConfig(), m.Encode(r.T))
}

// SealFor seals a message for a key configuration.
func SealFor(t testing.TB, c *ohttp.Config, message []byte) *Sealed {
	t.Helper()
	q, err := ohttp.NewRequest(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	s := &Sealed{T: t, Call: q}
	if s.Body, err = q.Seal(nil, message); err != nil {
		t.Fatal(err)
	}
	return s
}

// OHTTPPost is a request as the world outside sees it.
func OHTTPPost(t testing.TB, body io.Reader) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, ohttp.Path, body)
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	return req
}

// Send has the gateway serve s.
func (r *Rig) Send(s *Sealed) *httptest.ResponseRecorder {
	return r.Do(OHTTPPost(r.T, bytes.NewReader(s.Body)))
}

// InnerAnswer is an opened answer. err is what ended it, if it was not its final chunk.
type InnerAnswer struct {
	Status int
	Header http.Header
	Body   string
	Err    error
}

// Open opens what must be a sealed answer.
func (s *Sealed) Open(w *httptest.ResponseRecorder) InnerAnswer {
	s.T.Helper()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != ohttp.TypeResponse {
		s.T.Fatalf("outside: %d %v %s", w.Code, w.Header(), w.Body)
	}
	return s.Read(w.Body)
}

// Read opens a sealed answer as far as it goes.
func (s *Sealed) Read(body io.Reader) (a InnerAnswer) {
	s.T.Helper()
	reader, err := s.Call.Response(body, 0)
	if err != nil {
		s.T.Fatal(err)
	}
	defer reader.Close()
	head, content, err := bhttp.ReadResponse(reader, bhttp.Limits{})
	if err != nil {
		return InnerAnswer{Err: err}
	}
	a.Status, a.Header = head.Status, make(http.Header)
	for _, f := range head.Header {
		a.Header.Add(f.Name, f.Value)
	}
	var text strings.Builder
	_, a.Err = io.Copy(&text, content)
	a.Body = text.String()
	return a
}

// ProblemOf reads a refusal and checks its form.
func ProblemOf(t testing.TB, status int, header http.Header, body string) (kind, detail string) {
	t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
		Error               *struct{ Message, Type string }
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil ||
		header.Get("Content-Type") != ohttp.TypeProblem || p.Status != status ||
		p.Title != http.StatusText(status) || p.Type == "" ||
		p.Error == nil ||
		p.Error.Message != p.Detail {
		t.Errorf("not a problem document of status %d: %v, %s, %v", status, header, body, err)
	}
	return p.Type, p.Detail
}

// SealChunks seals a message in the given pieces, without the final chunk if finish is false.
func SealChunks(t testing.TB, c *ohttp.Config, finish bool, pieces ...[]byte) *Sealed {
	t.Helper()
	q, err := ohttp.NewRequest(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	var body bytes.Buffer
	w, err := q.Writer(&body)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, p := range pieces {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if finish {
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
	}
	return &Sealed{T: t, Call: q, Body: body.Bytes()}
}
