// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// rig is a gateway without a network: requests go into ServeHTTP, and the upstream is a RoundTripper.
type rig struct {
	t      testing.TB
	g      *Gateway
	answer func(*http.Request, []byte) (*http.Response, error) // nil: a completion

	mu   sync.Mutex
	sent []upstreamRequest
	log  bytes.Buffer
}

type upstreamRequest struct {
	url, body string
	header    http.Header
}

func newRig(t testing.TB, change func(*GatewayConfig)) *rig {
	t.Helper()
	r := &rig{t: t}
	c := GatewayConfig{
		Upstream: "https://upstream.test/v1", UpstreamTransport: r, AllowUnauthenticated: true, Keys: storedKeys(t, "rsa-2048"),
		Logger: slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&c)
	}
	r.g = newGateway(t, c)
	return r
}

func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *rig) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *rig) forwarded() []upstreamRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]upstreamRequest(nil), r.sent...)
}

func (r *rig) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	r.sent = append(r.sent, upstreamRequest{req.URL.String(), string(body), req.Header.Clone()})
	r.mu.Unlock()
	if r.answer != nil {
		return r.answer(req, body)
	}
	return respond(200, fineAnswer, "Content-Type", "application/json"), nil
}

const fineRequest = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`

func sealedBody(t testing.TB, plaintext string, form envelope.TagForm) []byte {
	t.Helper()
	e, err := publicOf(t, "rsa-2048").seal([]byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	e.TagForm = form
	return envelope.Append(nil, e)
}

// post is a sealed request. Arguments after the plaintext are pairs of headers that replace others; "" takes one out.
func post(t testing.TB, plaintext string, header ...string) *http.Request {
	t.Helper()
	return postBody(t, bytes.NewReader(sealedBody(t, plaintext, envelope.Separate)), header...)
}

func postBody(t testing.TB, body io.Reader, header ...string) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/secure_completion", body)
	req.Header.Set("X-Payload-ID", "0e3b1a52-7c5d-4f0e-9a43-00112233aabb")
	req.Header.Set("X-Public-Key", url.PathEscape(string(testkit.PublicPEM(t, "rsa-3072"))))
	req.Header.Set("Content-Type", "application/octet-stream")
	if _, ok := body.(untouchable); ok {
		req.Header.Set("Expect", "100-continue") // the body has not been sent yet: there is nothing to clear away
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	return req
}

func (r *rig) do(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.g.ServeHTTP(w, req)
	return w
}

// refused demands an answer in the clear with this status, made of a detail alone.
func refused(t testing.TB, what string, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	var body map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body) != 1 || body["detail"] == "" {
		t.Errorf("%s: body %q", what, w.Body)
	}
	if w.Code != status {
		t.Errorf("%s: status %d %s, want %d", what, w.Code, w.Body, status)
	}
	if w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%s: headers %v", what, w.Header())
	}
}

// opened demands a sealed answer and opens it.
func openedAnswer(t testing.TB, what string, w *httptest.ResponseRecorder) (string, *envelope.Envelope) {
	t.Helper()
	if w.Code != 200 {
		t.Errorf("%s: status %d %s", what, w.Code, w.Body)
		return "", &envelope.Envelope{}
	}
	e, err := envelope.Parse(bytes.Clone(w.Body.Bytes()), maxBytes)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	key, _ := hybrid.NewPrivateKey(storedKey(t, "rsa-3072"))
	plaintext, err := key.Open(&e, nil)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return string(plaintext), &e
}

func TestGatewayConfigErrors(t *testing.T) {
	destroyed := secret(t, "x")
	destroyed.Destroy()
	for _, c := range []struct {
		field  string
		change func(*GatewayConfig)
	}{
		{"GatewayConfig.Authenticate", func(c *GatewayConfig) { c.AllowUnauthenticated = false }},
		{"GatewayConfig.Upstream", func(c *GatewayConfig) { c.Upstream = "" }},
		{"GatewayConfig.Upstream", func(c *GatewayConfig) { c.Upstream = "ftp://h/v1" }},
		{"GatewayConfig.Upstream", func(c *GatewayConfig) { c.Upstream = "https://u:marker@h/v1" }},
		{"GatewayConfig.Upstream", func(c *GatewayConfig) { c.Upstream = "https://h/v1?key=marker" }},
		{"GatewayConfig.UpstreamKey", func(c *GatewayConfig) { c.UpstreamKey = secret(t, "a\nmarker") }},
		{"GatewayConfig.UpstreamKey", func(c *GatewayConfig) { c.UpstreamKey = destroyed }},
		{"GatewayConfig.UpstreamTransport", func(c *GatewayConfig) { c.Upstream = "http://name/v1" }},
		{"GatewayConfig.Tier", func(c *GatewayConfig) { c.Tier = "ultra" }},
		{"GatewayConfig.MaxRequestBytes", func(c *GatewayConfig) { c.MaxRequestBytes = -1 }},
		{"GatewayConfig.MaxRequestBytes", func(c *GatewayConfig) { c.MaxRequestBytes = 1 << 40 }},
		{"GatewayConfig.MaxResponseBytes", func(c *GatewayConfig) { c.MaxResponseBytes = -1 }},
		{"GatewayConfig.MaxConcurrent", func(c *GatewayConfig) { c.MaxConcurrent = -1 }},
		{"GatewayConfig.ReplayWindow", func(c *GatewayConfig) { c.ReplayWindow = -1 }},
		{"GatewayConfig.Timeout", func(c *GatewayConfig) { c.Timeout = -1 }},
		{"GatewayConfig.BodyTimeout", func(c *GatewayConfig) { c.BodyTimeout = -1 }},
	} {
		config := GatewayConfig{Upstream: "https://upstream.test/v1", UpstreamTransport: neverUsed(t), AllowUnauthenticated: true}
		c.change(&config)
		g, err := NewGateway(config)
		e, ok := errors.AsType[*ConfigError](err)
		if g != nil || !ok || e.Field != c.field || strings.Contains(err.Error(), "marker") {
			t.Errorf("%s: got %v, %v", c.field, g, err)
		}
	}
	for name, keys := range map[string][]*Secret{"none": {}, "nil": {nil}, "empty": {secret(t, "")}, "space": {secret(t, "a b")}, "destroyed": {secret(t, "k"), destroyed}} {
		if _, err := AuthenticateKeys(keys...); err == nil {
			t.Errorf("AuthenticateKeys with %s", name)
		} else if _, ok := errors.AsType[*ConfigError](err); !ok {
			t.Errorf("AuthenticateKeys with %s: %v", name, err)
		}
	}
}

func TestGatewayEndpoints(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/healthz", 200, ""}, {"HEAD", "/healthz", 200, ""}, {"POST", "/healthz", 405, "GET, HEAD"},
		{"GET", "/pki/public_key", 200, ""}, {"HEAD", "/pki/public_key", 200, ""}, {"PUT", "/pki/public_key", 405, "GET, HEAD"},
		{"GET", "/v1/chat/secure_completion", 405, "POST"}, {"OPTIONS", "/v1/chat/secure_completion", 405, "POST"}, {"post", "/v1/chat/secure_completion", 405, "POST"},
		{"GET", "/", 404, ""}, {"POST", "/v1/chat/completions", 404, ""}, {"POST", "/v1/chat/secure_completion/", 404, ""}, {"GET", "/healthz/", 404, ""},
		{"GET", "/pki/../healthz", 404, ""}, {"GET", "//healthz", 404, ""}, {"GET", "/PKI/public_key", 404, ""},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		req.Method, req.URL.Path = c.method, c.path
		w := r.do(req)
		what := c.method + " " + c.path
		if c.status != 200 {
			refused(t, what, w, c.status)
		}
		if w.Code != c.status || w.Header().Get("Allow") != c.allow || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d, %v", what, w.Code, w.Header())
		}
		if c.method == "HEAD" && w.Body.Len() != 0 {
			t.Errorf("%s has a body", what)
		}
		if what == "GET /pki/public_key" && w.Body.String() != string(testkit.PublicPEM(t, "rsa-2048")) {
			t.Errorf("the key is %q", w.Body)
		}
	}
	if strings.Contains(r.logged(), "GET status=200 path=/healthz") || len(r.forwarded()) != 0 {
		t.Error("something was forwarded")
	}
}

// untouchable is a body that is not needed for the answer. postBody says that it has not been sent.
type untouchable struct{ t *testing.T }

func (u untouchable) Read([]byte) (int, error) {
	// What is dropped unseen, so that the client gets to look for its answer, does not count.
	if stack := make([]byte, 4096); !strings.Contains(string(stack[:runtime.Stack(stack, false)]), "(*gatewayRequest).drain") {
		u.t.Error("the body was read")
	}
	return 0, io.ErrUnexpectedEOF
}

func TestGatewayAuthenticatesFirst(t *testing.T) {
	auth, err := AuthenticateKeys(secret(t, "key-one"), secret(t, "key-two"), secret(t, "key-two"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *GatewayConfig) {
		c.Authenticate, c.AllowUnauthenticated = auth, true // the latter opens nothing
		c.Replay = failingReplay{t}
	})
	for _, header := range []string{
		"", "key-one", "Bearer", "Bearer ", "Bearer  key-on", "Bearer \tkey-one", "Bearer  key-one ", "Bearer  ", "Basic key-one", "Bearer key-on", "Bearer key-one ", "Bearer key-onee", "Bearer KEY-ONE", "Bearer key-one key-two",
		"Bearer key-one,key-two", "Bearer\tkey-one", " Bearer key-one", "Bearer " + strings.Repeat("k", 1<<20), "Bearer \x00", "Bearerkey-one", "Token key-one",
	} {
		w := r.do(postBody(t, untouchable{t}, "Authorization", header, "X-Payload-ID", "\x00bad", "X-Public-Key", "bad"))
		refused(t, fmt.Sprintf("%.30q", header), w, 401)
		if w.Header().Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%.30q: no WWW-Authenticate", header)
		}
	}
	r = newRig(t, func(c *GatewayConfig) { c.Authenticate = auth })
	for _, header := range []string{"Bearer key-one", "Bearer  key-one", "bearer   key-two", "Bearer key-two", "bearer key-one", "BEARER key-two"} {
		openedAnswer(t, header, r.do(post(t, fineRequest, "Authorization", header)))
	}
	if w := r.do(httptest.NewRequestWithContext(t.Context(), "GET", "/pki/public_key", nil)); w.Code != 200 {
		t.Error("the public key needs authentication")
	}
}

// failingReplay is a cache that must not be asked.
type failingReplay struct{ t *testing.T }

func (f failingReplay) Claim(context.Context, [32]byte, [32]byte, time.Time) (bool, error) {
	f.t.Error("the replay cache was asked")
	return false, ErrServer
}

func (f failingReplay) Release(context.Context, [32]byte) error { return nil }

// A client that sends its body without asking, and looks for an answer only then, gets its 401. What it sent is thrown
// away after the decision, and not without end.
func TestGatewayClearsAwayUnwantedBodies(t *testing.T) {
	judged := false
	var read int64
	r := newRig(t, func(c *GatewayConfig) {
		c.Authenticate = func(*http.Request) error { judged = true; return ErrAuthentication }
	})
	req := postBody(t, readerFunc(func(p []byte) (int, error) {
		if !judged {
			t.Error("the body was read before the client was known")
		}
		read += int64(len(p))
		return len(p), nil
	}))
	req.ContentLength = -1
	refused(t, "endless body", r.do(req), 401)
	if read > 17<<20 {
		t.Errorf("%d bytes were read", read)
	}
}

func TestGatewayAuthenticateErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		retry  string
	}{
		{ErrAuthentication, 401, ""}, {errors.New("MARKER"), 401, ""}, {fmt.Errorf("MARKER: %w", ErrPermission), 403, ""}, {ErrRateLimited, 429, ""},
		{&APIError{StatusCode: 429, Detail: "MARKER", RetryAfter: 1500 * time.Millisecond}, 429, "2"}, {fmt.Errorf("MARKER %w", ErrUnavailable), 503, ""}, {ErrServer, 401, ""},
	} {
		r := newRig(t, func(k *GatewayConfig) { k.Authenticate = func(*http.Request) error { return c.err } })
		w := r.do(postBody(t, untouchable{t}))
		refused(t, c.err.Error(), w, c.status)
		if w.Header().Get("Retry-After") != c.retry || strings.Contains(w.Body.String(), "MARKER") {
			t.Errorf("%v: %s, %v", c.err, w.Body, w.Header())
		}
	}
}

func TestGatewayHeaders(t *testing.T) {
	r := newRig(t, func(c *GatewayConfig) { c.Tier = TierHigh })
	pem := string(testkit.PublicPEM(t, "rsa-3072"))
	for _, c := range []struct {
		name, header, value string
		status              int
	}{
		{"no id", "X-Payload-ID", "", 400}, {"long id", "X-Payload-ID", strings.Repeat("a", 129), 400}, {"id with a space", "X-Payload-ID", "a b", 400},
		{"id with a quote", "X-Payload-ID", `a"b`, 400}, {"id with LF", "X-Payload-ID", "a\nb", 400}, {"id with é", "X-Payload-ID", "é", 400}, {"id with /", "X-Payload-ID", "a/b", 400},
		{"no key", "X-Public-Key", "", 400}, {"huge key", "X-Public-Key", strings.Repeat("A", hybrid.MaxKeyText+1), 400}, {"bad escape", "X-Public-Key", "%zz", 400},
		{"cut escape", "X-Public-Key", url.PathEscape(pem) + "%0", 400}, {"not PEM", "X-Public-Key", "hello", 400}, {"plus for space", "X-Public-Key", url.QueryEscape(pem), 400},
		{"escaped twice", "X-Public-Key", url.PathEscape(url.PathEscape(pem)), 400}, {"two keys", "X-Public-Key", url.PathEscape(pem + pem), 400},
		{"private key", "X-Public-Key", url.PathEscape(string(testkit.KeyPEM(t, "rsa-2048"))), 400}, {"small key", "X-Public-Key", url.PathEscape(smallKey), 400},
		{"unknown tier", "X-Security-Tier", "ultra", 400}, {"tier in capitals", "X-Security-Tier", "HIGH", 400}, {"tier list", "X-Security-Tier", "high, standard", 400},
		{"higher tier", "X-Security-Tier", "maximum", 403}, {"encoded", "Content-Encoding", "gzip", 415}, {"identity", "Content-Encoding", "identity", 415},
	} {
		w := r.do(postBody(t, untouchable{t}, c.header, c.value))
		refused(t, c.name, w, c.status)
		if len(c.value) > 5 && strings.Contains(w.Body.String(), c.value) {
			t.Errorf("%s: the answer repeats the header", c.name)
		}
	}
	for name, header := range map[string][2]string{
		"JavaScript id": {"X-Payload-ID", "openai-compat-1765250382-x_y.z:1"}, "one letter": {"X-Payload-ID", "a"}, "128": {"X-Payload-ID", strings.Repeat("a", 128)},
		"tier": {"X-Security-Tier", "standard"}, "the same tier": {"X-Security-Tier", "high"}, "type": {"Content-Type", "text/html"}, "no type": {"Content-Type", ""},
		"encodeURIComponent": {"X-Public-Key", hybrid.PercentEncode([]byte(pem))}, "quote": {"X-Public-Key", strings.ReplaceAll(hybrid.PercentEncode([]byte(pem)), "%2F", "/")},
		"no final newline": {"X-Public-Key", hybrid.PercentEncode([]byte(strings.TrimSpace(pem)))}, "lower-case hex": {"X-Public-Key", lowerEscapes(hybrid.PercentEncode([]byte(pem)))},
	} {
		openedAnswer(t, name, r.do(post(t, fineRequest, header[0], header[1])))
	}
	if strings.Contains(r.logged(), "ultra") || strings.Contains(r.logged(), "\nb") {
		t.Error("unchecked headers are in the log")
	}
}

// smallKey is an RSA key of 1024 bits.
const smallKey = `-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC+Z1Z/vvbrddFjnqwm8vP1jV+9
9sPObFeEzQbEzGnYDvuHMFm5wNIqQ9gzE9aBWYV+dQmS13z0f89CmuFSX2IBEgyv
0y7pD00g7V+GZKDAz6KRS6OnzvZJ6aVRO5z1R5KKGgNFZRsgS5OLaSIl33WT/GFr
HFs8PIcMTzQOHQhuVwIDAQAB
-----END PUBLIC KEY-----
`

func lowerEscapes(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

func FuzzValidPayloadID(f *testing.F) {
	for _, s := range []string{"", "a", "0e3b1a52-7c5d-4f0e-9a43-00112233aabb", "a b", "\x00", "é", strings.Repeat("x", 129)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if !validPayloadID(id) {
			return
		}
		quoted, err := json.Marshal(id) // it stands in a log line, a header and JSON as it is
		if err != nil || string(quoted) != `"`+id+`"` || id != fault.Sanitise(id, 128) || id == "" {
			t.Fatalf("%q", id)
		}
	})
}
