// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// The tests of the gateway's end of the second protocol bring a client of their own, which does what the real one would not.

// innerRequest is a message before it is sealed; zero fields have defaults that the gateway takes.
type innerRequest struct {
	method, path, body string
	header             []bhttp.Field // replaces what is there by default, "" takes it out
	trailer            []bhttp.Field
	pad                int
}

func (m innerRequest) encode(t testing.TB) []byte {
	t.Helper()
	q := &bhttp.Request{Method: m.method, Scheme: "https", Authority: "gateway.test", Path: m.path}
	if q.Method == "" {
		q.Method = http.MethodPost
	}
	if q.Path == "" {
		q.Path = "/v1/chat/completions"
	}
	if m.body == "" && q.Method == http.MethodPost {
		m.body = fineRequest
	}
	defaults := []bhttp.Field{
		{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
		{Name: "content-type", Value: "application/json"},
		{Name: "authorization", Value: "Bearer key-of-the-client"},
	}
	for _, d := range defaults {
		replaced := false
		for _, f := range m.header {
			replaced = replaced || f.Name == d.Name
		}
		if !replaced {
			q.Header = append(q.Header, d)
		}
	}
	for _, f := range m.header {
		if f.Value != "" {
			q.Header = append(q.Header, f)
		}
	}
	message, err := bhttp.AppendRequest(nil, q, []byte(m.body), m.trailer, m.pad)
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// keyConfig asks the gateway for its list.
func (r *rig) keyConfig() *ohttp.Config {
	r.t.Helper()
	w := r.do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != ohttp.TypeKeys {
		r.t.Fatalf("the list: %d %v", w.Code, w.Header())
	}
	configs, err := ohttp.ParseConfigs(w.Body.Bytes())
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := ohttp.Choose(configs)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// sealed is a request that was sealed, and what opens its answer.
type sealedTest struct {
	t    testing.TB
	q    *ohttp.Request
	body []byte
}

func (r *rig) seal(m innerRequest) *sealedTest {
	r.t.Helper()
	return sealFor(r.t, r.keyConfig(), m.encode(r.t))
}

func sealFor(t testing.TB, c *ohttp.Config, message []byte) *sealedTest {
	t.Helper()
	q, err := ohttp.NewRequest(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	s := &sealedTest{t: t, q: q}
	if s.body, err = q.Seal(nil, message); err != nil {
		t.Fatal(err)
	}
	return s
}

func obliviousPost(t testing.TB, body io.Reader) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, ohttp.Path, body)
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	return req
}

func (r *rig) send(s *sealedTest) *httptest.ResponseRecorder {
	return r.do(obliviousPost(r.t, bytes.NewReader(s.body)))
}

// innerAnswer is an opened answer. err is what ended it, if it was not its final chunk.
type innerAnswer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (s *sealedTest) open(w *httptest.ResponseRecorder) innerAnswer {
	s.t.Helper()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != ohttp.TypeResponse {
		s.t.Fatalf("outside: %d %v %s", w.Code, w.Header(), w.Body)
	}
	return s.read(w.Body)
}

func (s *sealedTest) read(body io.Reader) (a innerAnswer) {
	s.t.Helper()
	reader, err := s.q.Response(body, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reader.Close()
	head, content, err := bhttp.ReadResponse(reader, bhttp.Limits{})
	if err != nil {
		return innerAnswer{err: err}
	}
	a.status, a.header = head.Status, make(http.Header)
	for _, f := range head.Header {
		a.header.Add(f.Name, f.Value)
	}
	var text strings.Builder
	_, a.err = io.Copy(&text, content)
	a.body = text.String()
	return a
}

func TestOblivious(t *testing.T) {
	r := newRig(t, func(c *GatewayConfig) { c.UpstreamKey = secret(t, "upstream-key") })
	s := r.seal(innerRequest{})
	w := r.send(s)
	a := s.open(w)
	if a.err != nil || a.status != 200 || a.body != fineAnswer || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v", a)
	}
	sent := r.forwarded()
	if len(sent) != 1 || sent[0].url != "https://upstream.test/v1/chat/completions" || sent[0].body != fineRequest ||
		sent[0].header.Get("Authorization") != "Bearer upstream-key" {
		t.Errorf("upstream got %+v", sent)
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Incremental") != "?1" || w.Header().Get("X-Accel-Buffering") != "no" {
		t.Errorf("outer header: %v", w.Header())
	}
}
