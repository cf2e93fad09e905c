// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// FineRequest is a chat request.
const FineRequest = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`

// SealedBody is an envelope with plaintext for the stored key rsa-2048.
func SealedBody(t testing.TB, plaintext string, form envelope.TagForm) []byte {
	t.Helper()
	key, err := hybrid.ParsePublicKey(testkit.PublicPEM(t, "rsa-2048"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := Seal(key, []byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	e.TagForm = form
	return envelope.Append(nil, e)
}

// Post is a sealed request. Arguments after the plaintext are pairs of headers that replace others;
// "" takes one out.
func Post(t testing.TB, plaintext string, header ...string) *http.Request {
	t.Helper()
	return PostBody(t, bytes.NewReader(SealedBody(t, plaintext, envelope.Separate)), header...)
}

// PostBody is Post with a body that may be anything.
func PostBody(t testing.TB, body io.Reader, header ...string) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(
		t.Context(),
		http.MethodPost,
		"/v1/chat/secure_completion",
		body,
	)
	req.Header.Set("X-Payload-ID", "0e3b1a52-7c5d-4f0e-9a43-00112233aabb")
	req.Header.Set("X-Public-Key", url.PathEscape(string(testkit.PublicPEM(t, "rsa-3072"))))
	req.Header.Set("Content-Type", "application/octet-stream")
	if _, ok := body.(Untouchable); ok {
		// the body has not been sent yet: there is nothing to clear away
		req.Header.Set("Expect", "100-continue")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	return req
}

// Refused demands an answer in the clear with this status, made of a detail alone.
func Refused(t testing.TB, what string, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	var body map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body) != 1 ||
		body["detail"] == "" {
		t.Errorf("%s: body %q", what, w.Body)
	}
	if w.Code != status {
		t.Errorf("%s: status %d %s, want %d", what, w.Code, w.Body, status)
	}
	if w.Header().Get("Content-Type") != "application/json" ||
		w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%s: headers %v", what, w.Header())
	}
}

// OpenedAnswer demands a sealed answer and opens it.
func OpenedAnswer(
	t testing.TB,
	what string,
	w *httptest.ResponseRecorder,
) (string, *envelope.Envelope) {
	t.Helper()
	if w.Code != 200 {
		t.Errorf("%s: status %d %s", what, w.Code, w.Body)
		return "", &envelope.Envelope{}
	}
	e, err := envelope.Parse(bytes.Clone(w.Body.Bytes()), (1 << 30))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	key, _ := hybrid.NewPrivateKey(ownKey(t, "rsa-3072"))
	plaintext, err := key.Open(&e, nil)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return string(plaintext), &e
}

// Untouchable is a body that must not be read.
type Untouchable struct{ T testing.TB }

// Read fails the test.
func (u Untouchable) Read([]byte) (int, error) {
	// What is dropped unseen, so that the client gets to look for its answer, does not count.
	if stack := make([]byte, 4096); !strings.Contains(
		string(stack[:runtime.Stack(stack, false)]),
		"(*gatewayRequest).drain",
	) {
		u.T.Error("the body was read")
	}
	return 0, io.ErrUnexpectedEOF
}

// SealedPost is a request over a network that a gateway with the stored server key takes.
func SealedPost(t testing.TB, url string) *http.Request {
	t.Helper()
	key, err := hybrid.ParsePublicKey(testkit.PublicPEM(t, "server-4096"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := Seal(key, []byte(FineRequest))
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.NewReader(envelope.Append(nil, e))
	req, err := http.NewRequest(http.MethodPost, url+hybrid.PathCompletion, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(hybrid.HeaderPayloadID, testkit.UUID())
	req.Header.Set(hybrid.HeaderPublicKey, hybrid.PercentEncode(testkit.PublicPEM(t, "rsa-2048")))
	return req
}
