// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestGatewayEndpoints(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/healthz", 200, ""}, {"HEAD", "/healthz", 200, ""},
		{"POST", "/healthz", 405, "GET, HEAD"},
		{"GET", "/pki/public_key", 200, ""}, {"HEAD", "/pki/public_key", 200, ""},
		{"PUT", "/pki/public_key", 405, "GET, HEAD"},
		{"GET", "/v1/chat/secure_completion", 405, "POST"},
		{"OPTIONS", "/v1/chat/secure_completion", 405, "POST"},
		{"post", "/v1/chat/secure_completion", 405, "POST"},
		{"GET", "/", 404, ""}, {"POST", "/v1/chat/completion", 404, ""},
		{"POST", "/v1/chat/secure_completion/", 404, ""}, {"GET", "/healthz/", 404, ""},
		{"GET", "/pki/../healthz", 404, ""}, {"GET", "//healthz", 404, ""},
		{"GET", "/PKI/public_key", 404, ""},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		req.Method, req.URL.Path = c.method, c.path
		w := r.Do(req)
		what := c.method + " " + c.path
		if c.status != 200 {
			fakes.Refused(t, what, w, c.status)
		}
		if w.Code != c.status || w.Header().Get("Allow") != c.allow ||
			w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d, %v", what, w.Code, w.Header())
		}
		if c.method == "HEAD" && w.Body.Len() != 0 {
			t.Errorf("%s has a body", what)
		}
		if what == "GET /pki/public_key" && w.Body.String() != string(testkit.PublicPEM(t, "rsa-2048")) {
			t.Errorf("the key is %q", w.Body)
		}
	}
	if strings.Contains(r.Logged(), "GET status=200 path=/healthz") || len(r.Forwarded()) != 0 {
		t.Error("something was forwarded")
	}
}

// What asks for an endpoint of OpenAI's in the clear is told in OpenAI's form what this server is.
func TestGatewayTellsSDKs(t *testing.T) {
	r := newRig(t, nil)
	for _, path := range []string{
		"/v1/chat/completions", "/chat/completions", "/v1/models", "/v1/embeddings", "/v1/responses",
		"/prefix/v1/completions",
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path,
			strings.NewReader(fakes.FineRequest))
		w := r.Do(req)
		var body struct {
			Error struct{ Message, Type, Code string }
		}
		err := json.Unmarshal(w.Body.Bytes(), &body)
		if err != nil || w.Code != http.StatusNotFound || body.Error.Type != "not_found_error" ||
			body.Error.Code != "sealed_requests_only" ||
			!strings.Contains(body.Error.Message, "HTTPClient()") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if len(r.Forwarded()) != 0 || !strings.Contains(r.Logged(), "no such endpoint") {
		t.Errorf("%d were forwarded; the log has %s", len(r.Forwarded()), r.Logged())
	}
}

// A client that sends its body without asking, and looks for an answer only then, gets its 401.
// What it sent is thrown away after the decision, and not without end.
func TestGatewayClearsAwayUnwantedBodies(t *testing.T) {
	judged := false
	var read int64
	r := newRig(t, func(c *Config) {
		c.Authenticate = func(*http.Request) (string, time.Duration, error) {
			judged = true
			return "", 0, fault.ErrAuthentication
		}
	})
	req := fakes.PostBody(t, readerFunc(func(p []byte) (int, error) {
		if !judged {
			t.Error("the body was read before the client was known")
		}
		read += int64(len(p))
		return len(p), nil
	}))
	req.ContentLength = -1
	fakes.Refused(t, "endless body", r.Do(req), 401)
	if read > 17<<20 {
		t.Errorf("%d bytes were read", read)
	}
}

func TestGatewayHeaders(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Tier = hybrid.TierHigh })
	pem := string(testkit.PublicPEM(t, "rsa-3072"))
	for _, c := range []struct {
		name, header, value string
		status              int
	}{
		{"no id", "X-Payload-ID", "", 400}, {"long id", "X-Payload-ID", strings.Repeat("a", 129), 400},
		{"id with a space", "X-Payload-ID", "a b", 400},
		{"id with a quote", "X-Payload-ID", `a"b`, 400}, {"id with LF", "X-Payload-ID", "a\nb", 400},
		{"id with é", "X-Payload-ID", "é", 400}, {"id with /", "X-Payload-ID", "a/b", 400},
		{"no key", "X-Public-Key", "", 400},
		{"huge key", "X-Public-Key", strings.Repeat("A", hybrid.MaxKeyText+1), 400},
		{"bad escape", "X-Public-Key", "%zz", 400},
		{"cut escape", "X-Public-Key", url.PathEscape(pem) + "%0", 400},
		{"not PEM", "X-Public-Key", "hello", 400},
		{"plus for space", "X-Public-Key", url.QueryEscape(pem), 400},
		{"escaped twice", "X-Public-Key", url.PathEscape(url.PathEscape(pem)), 400},
		{"two keys", "X-Public-Key", url.PathEscape(pem + pem), 400},
		{"private key", "X-Public-Key", url.PathEscape(string(testkit.KeyPEM(t, "rsa-2048"))), 400},
		{"small key", "X-Public-Key", url.PathEscape(smallKey), 400},
		{"unknown tier", "X-Security-Tier", "ultra", 400},
		{"tier in capitals", "X-Security-Tier", "HIGH", 400},
		{"tier list", "X-Security-Tier", "high, standard", 400},
		{"higher tier", "X-Security-Tier", "maximum", 403}, {"encoded", "Content-Encoding", "gzip", 415},
		{"identity", "Content-Encoding", "identity", 415},
	} {
		w := r.Do(fakes.PostBody(t, fakes.Untouchable{T: t}, c.header, c.value))
		fakes.Refused(t, c.name, w, c.status)
		if len(c.value) > 5 && strings.Contains(w.Body.String(), c.value) {
			t.Errorf("%s: the answer repeats the header", c.name)
		}
	}
	for name, header := range map[string][2]string{
		"JavaScript id": {"X-Payload-ID", "openai-compat-1765250382-x_y.z:1"},
		"one letter":    {"X-Payload-ID", "a"}, "128": {"X-Payload-ID", strings.Repeat("a", 128)},
		"tier": {"X-Security-Tier", "standard"}, "the same tier": {"X-Security-Tier", "high"},
		"type": {"Content-Type", "text/html"}, "no type": {"Content-Type", ""},
		"encodeURIComponent": {"X-Public-Key", hybrid.PercentEncode([]byte(pem))},
		"quote": {
			"X-Public-Key", strings.ReplaceAll(hybrid.PercentEncode([]byte(pem)), "%2F", "/"),
		},
		"no final newline": {"X-Public-Key", hybrid.PercentEncode([]byte(strings.TrimSpace(pem)))},
		"lower-case hex":   {"X-Public-Key", lowerEscapes(hybrid.PercentEncode([]byte(pem)))},
	} {
		fakes.OpenedAnswer(t, name, r.Do(fakes.Post(t, fakes.FineRequest, header[0], header[1])))
	}
	if strings.Contains(r.Logged(), "ultra") || strings.Contains(r.Logged(), "\nb") {
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
	for _, s := range []string{
		"", "a", "0e3b1a52-7c5d-4f0e-9a43-00112233aabb", "a b", "\x00", "é", strings.Repeat("x", 129),
	} {
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
