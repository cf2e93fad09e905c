// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// errorDetails is the Detail that the body of an http_error vector gives, by the name without
// "err-" and the status.
var errorDetails = map[string]string{
	"detail": "the detail text", "openai": "the detail text", "both": "the detail text",
	"message":       "the detail text",
	"openai-string": "the detail text", "detail-object": "the detail text",
	"retry-after": "the detail text", "bom": "the detail text",
	"fastapi-list": "Field required",
	"html":         "", "empty": "", "detail-null": "", "detail-empty": "", "json-null": "",
	"plain-text":    "upstream connect error or disconnect/reset before headers",
	"detail-number": "5", "json-number": "5", "json-list": "x", "json-string": "boom",
	"invalid-utf8": "a\uFFFD\uFFFDb", "latin1": "ung\uFFFDltig", "unicode": "ключ 🔑 abgelaufen",
	"huge":          "", // longer than what is read of an error
	"control-chars": "line1 line2 [31mred [0m",
}

func TestHTTPErrorVectors(t *testing.T) {
	t.Parallel()
	keys := storedKeys(t, "client-4096")
	sentinels := map[int]error{400: sealedchat.ErrInvalidRequest, 401: sealedchat.ErrAuthentication,
		403: sealedchat.ErrPermission, 404: sealedchat.ErrNotFound,
		429: sealedchat.ErrRateLimited, 503: sealedchat.ErrUnavailable}
	all := []error{sealedchat.ErrInvalidRequest, sealedchat.ErrAuthentication,
		sealedchat.ErrPermission, sealedchat.ErrNotFound, sealedchat.ErrRateLimited,
		sealedchat.ErrServer, sealedchat.ErrUnavailable,
		sealedchat.ErrConnection, sealedchat.ErrEnvelope, sealedchat.ErrDecryption,
		sealedchat.ErrResponseSchema, sealedchat.ErrReplay}
	for _, c := range testkit.Vectors(t, testkit.HTTPError) {
		t.Run(c.Name, func(t *testing.T) {
			_, short, _ := strings.Cut(strings.TrimPrefix(c.Name, "err-"), "-")
			detail, decided := errorDetails[short]
			if !decided {
				t.Fatal("nobody decided about this vector: add it to errorDetails")
			}
			if c.Expected.Detail != nil && fault.Sanitise(*c.Expected.Detail, 100) != detail {
				t.Errorf("the vector's own detail is %q", *c.Expected.Detail)
			}
			client := startClient(t, testkit.Stub(t, c, nil).URL, func(cfg *sealedchat.Config) {
				cfg.Keys = keys
			})
			resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hello"))
			if resp != nil {
				t.Error("an answer came with the error")
			}
			api, ok := errors.AsType[*sealedchat.APIError](err)
			if !ok {
				t.Fatalf("not an APIError: %v", err)
			}
			if api.StatusCode != c.Expected.Status || api.Detail != detail {
				t.Errorf("status %d, detail %q, want %d, %q", api.StatusCode, api.Detail,
					c.Expected.Status, detail)
			}
			if want := map[bool]string{true: "x_code"}[short == "openai"]; api.Code != want {
				t.Errorf("code %q, want %q", api.Code, want)
			}
			if want := map[bool]time.Duration{
				true: 7 * time.Second}[short == "retry-after"]; api.RetryAfter != want {
				t.Errorf("RetryAfter %v, want %v", api.RetryAfter, want)
			}
			want := sentinels[c.Expected.Status]
			switch {
			case want == nil && c.Expected.Status/100 == 4:
				want = sealedchat.ErrInvalidRequest
			case want == nil:
				want = sealedchat.ErrServer
			}
			for _, sentinel := range all {
				if errors.Is(err, sentinel) != (sentinel == want) {
					t.Errorf("errors.Is(%v) is %v", sentinel, errors.Is(err, sentinel))
				}
			}
			if n := utf8.RuneCountInString(api.Detail); n > 100 ||
				strings.ContainsFunc(err.Error(), unprintable) {
				t.Errorf("detail of %d characters in %q", n, err)
			}
		})
	}
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// keyVerdicts is what becomes of the server_key vectors: nil accepts. A word in keyHints has to be
// in the error.
var keyVerdicts = verdicts(map[error]string{
	nil: `ok no-final-newline crlf blank-around one-line ct-json gzip chunked rsa2048`,
	sealedchat.ErrPublicKey: `leading-text bom no-lines-at-all json-string json-object pkcs1-public rsa1024 ec ed25519 certificate
		private-key two-keys two-keys-other-first truncated empty html der`,
	sealedchat.ErrNotFound: `status-404`, sealedchat.ErrUnavailable: `status-503`,
	sealedchat.ErrServer:     `status-500 status-201 redirect-302`,
	sealedchat.ErrConnection: `reset`,
})

var keyHints = map[string]string{
	"json-string": "JSON", "json-object": "JSON", "certificate": "certificate",
	"pkcs1-public": "PKCS#1",
	"private-key":  "PRIVATE", "html": "HTML", "empty": "empty", "rsa1024": "1024", "ec": "RSA",
}

func TestServerKeyVectors(t *testing.T) {
	t.Parallel()
	keys := storedKeys(t, "rsa-2048")
	for _, c := range testkit.Vectors(t, testkit.ServerKey) {
		t.Run(c.Name, func(t *testing.T) {
			short := strings.TrimPrefix(c.Name, "key-")
			want, decided := keyVerdicts[short]
			if !decided || c.Expected.Suggested == testkit.Reject && want == nil ||
				c.Expected.Suggested == testkit.Accept && want != nil {
				t.Fatalf("verdict %v, known: %v; the vector suggests %s", want, decided,
					c.Expected.Suggested)
			}
			stub := testkit.Stub(t, c, nil)
			client := startClient(t, stub.URL, func(cfg *sealedchat.Config) { cfg.Keys = keys })
			_, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hello"))
			posts := 0
			for _, r := range stub.Requests() {
				if r.Method == http.MethodPost {
					posts++
				}
			}
			if want != nil {
				if !errors.Is(err, want) || !strings.Contains(err.Error(), keyHints[short]) {
					t.Errorf("error %v, want %v with %q", err, want, keyHints[short])
				}
				if posts != 0 {
					t.Errorf("%d requests were sealed to a refused key", posts)
				}
				return
			}
			if !errors.Is(err, sealedchat.ErrUnavailable) || posts != 1 { // what the stub answers
				t.Errorf("error %v, %d requests", err, posts)
			}
			key, err := client.ServerKey(testkit.Within(t, 20*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(c.File("body"))
			if sum := sha256.Sum256(block.Bytes); key.Fingerprint() != hex.EncodeToString(sum[:]) {
				t.Errorf("fingerprint %s", key.Fingerprint())
			}
		})
	}
}
