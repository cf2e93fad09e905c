// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// These are requests of a client of Oblivious HTTP that does what the real one would not.

// sealedRequest is a request that was sealed, and what opens its answer.
type sealedRequest struct {
	q    *ohttp.Request
	body []byte
}

// sealRequest seals a chat request for g.
func sealRequest(t testing.TB, g http.Handler, body string) *sealedRequest {
	t.Helper()
	q, err := ohttp.NewRequest(keyConfig(t, g))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	s := &sealedRequest{q: q}
	if s.body, err = q.Seal(nil, innerRequest(t, body)); err != nil {
		t.Fatal(err)
	}
	return s
}

// post is the request, which may be sent more than once.
func (s *sealedRequest) post(t testing.TB) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, ohttp.Path,
		bytes.NewReader(s.body))
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	return req
}

// open opens an answer. err is what ended it, if it was not its final chunk.
func (s *sealedRequest) open(t testing.TB, w *httptest.ResponseRecorder) (status int, body string,
	err error) {
	t.Helper()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != ohttp.TypeResponse {
		t.Fatalf("outside: %d %v %s", w.Code, w.Header(), w.Body)
	}
	reader, err := s.q.Response(w.Body, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	head, content, err := bhttp.ReadResponse(reader, bhttp.Limits{})
	if err != nil {
		return 0, "", err
	}
	text, err := io.ReadAll(content)
	return head.Status, string(text), err
}

// keyConfig asks the gateway for its list.
func keyConfig(t testing.TB, g http.Handler) *ohttp.Config {
	t.Helper()
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, ohttp.Path, nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != ohttp.TypeKeys {
		t.Fatalf("the list: %d %v", w.Code, w.Header())
	}
	configs, err := ohttp.ParseConfigs(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ohttp.Choose(configs)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// innerRequest is a chat request before it is sealed.
func innerRequest(t testing.TB, body string) []byte {
	t.Helper()
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{
		Method: http.MethodPost, Scheme: "https", Authority: "gateway.test",
		Path: "/v1/chat/completions",
		Header: []bhttp.Field{
			{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
			{Name: "content-type", Value: "application/json"},
			{Name: "authorization", Value: "Bearer key-of-the-client"},
		},
	}, []byte(body), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return message
}
