// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func parsePKCS8(t testing.TB, text []byte) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// What becomes of the response vectors that are not plainly good, by the name without "sep-" or
// "app-", or by the whole name where the two tag forms differ. SPEC.md's table decides the cases in
// which the clients differ; nil is accept.
var responseVerdicts = verdicts(map[error]string{
	nil: `processed-at-1e400 http-gzip
		plain-dup-id plain-1e400 plain-string-created plain-big-int plain-float-created plain-float-tokens plain-null-id-model
		plain-lone-surrogate plain-content-parts plain-deep-900
		plain-metadata-null plain-metadata-string plain-metadata-list plain-metadata-number plain-metadata-false`,

	sealedchat.ErrEnvelope: `missing-version version-null version-empty version-number version-other
		missing-algorithm algorithm-null algorithm-empty algorithm-number algorithm-other
		key-algorithm-other payload-algorithm-other
		encrypted-payload-missing encrypted-payload-string encrypted-payload-null encrypted-payload-list
		encrypted-payload-empty-object encrypted-payload-number
		encrypted-aes-key-missing encrypted-aes-key-null encrypted-aes-key-empty encrypted-aes-key-number
		ciphertext-missing ciphertext-null ciphertext-empty ciphertext-number
		app-ciphertext-cut-to-15 app-ciphertext-only-tag-of-empty plain-empty
		nonce-missing nonce-null nonce-empty nonce-number
		nonce-0-bytes nonce-1-bytes nonce-7-bytes nonce-8-bytes nonce-11-bytes nonce-13-bytes nonce-16-bytes
		nonce-128-bytes nonce-129-bytes
		tag-empty tag-null tag-number tag-0-bytes tag-4-bytes tag-8-bytes sep-tag-12-bytes sep-tag-15-bytes tag-17-bytes
		wrapped-key-short wrapped-key-leading-zero
		b64-newlines b64-crlf b64-spaces b64-formfeed b64-vtab b64-nbsp b64-urlsafe b64-urlsafe-nopad b64-nopad
		b64-extra-pad b64-junk b64-nonascii b64-noncanonical-bits b64-data-after-pad
		processed-at-nan
		outer-trailing-garbage outer-two-objects outer-bom outer-invalid-utf8 outer-utf16 outer-array outer-string
		outer-null outer-number outer-true outer-empty-object outer-empty-body outer-html outer-plain-completion
		outer-error-object outer-sse outer-single-quotes outer-truncated-json outer-deep-900 outer-deep-100000
		dup-payload-last-good dup-payload-first-good dup-payload-split dup-version case-wrong-names`,

	sealedchat.ErrDecryption: `tag-missing tag-flipped app-tag-garbage app-tag-12-bytes app-tag-15-bytes
		both-baseline ciphertext-flipped nonce-flipped aes-key-flipped aad-used other-recipient
		oaep-sha1 oaep-sha256-mgf1-sha1 oaep-sha512 oaep-label pkcs1v15
		aes-128 aes-192 aes-key-0-bytes aes-key-31-bytes aes-key-33-bytes aes-key-64-bytes`,

	sealedchat.ErrResponseSchema: `plain-missing-choices plain-null-choices plain-choices-object plain-empty-object plain-array plain-empty-array
		plain-string plain-number plain-true plain-null plain-invalid-utf8 plain-invalid-utf8-surrogate
		plain-bom plain-trailing-garbage plain-not-json plain-truncated-json plain-python-repr plain-nan
		plain-raw-control-char plain-content-number plain-deep-100000`,

	sealedchat.ErrServer: `plain-error-object http-status-201 http-status-202 http-status-500-good-body
		http-redirect-307 http-redirect-302`,

	sealedchat.ErrConnection: `http-truncated-body http-reset`,
})

func verdicts(by map[error]string) map[string]error {
	all := make(map[string]error)
	for err, names := range by {
		for _, name := range strings.Fields(names) {
			if _, twice := all[name]; twice {
				panic("two verdicts for " + name)
			}
			all[name] = err
		}
	}
	return all
}

// responseVerdict is what has to come of a response vector. One that nobody decided about fails the
// test.
func responseVerdict(t *testing.T, c testkit.Case) error {
	t.Helper()
	_, short, _ := strings.Cut(c.Name, "-")
	want, decided := responseVerdicts[c.Name]
	if !decided {
		want, decided = responseVerdicts[short]
	}
	switch c.Expected.Suggested {
	case testkit.Accept:
		if decided {
			t.Fatal("a good vector has a verdict")
		}
		return nil
	case testkit.Reject:
		if !decided || want == nil {
			t.Fatal("no reason to refuse this vector is known: add it to responseVerdicts")
		}
	case testkit.Policy:
		if !decided {
			t.Fatal("nobody decided about this vector: add it to responseVerdicts")
		}
	default:
		t.Fatalf("unknown suggestion %q", c.Expected.Suggested)
	}
	return want
}

func TestResponseVectors(t *testing.T) {
	t.Parallel()
	cases := testkit.Vectors(t, testkit.Response)
	shared := keysAround(t, parsePKCS8(t, cases[0].File("private_key")))
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			keys := shared
			// has another vector's wrapped key: opened before
			if strings.HasSuffix(c.Name, "-case-extra-Encrypted_AES_Key") {
				keys = keysAround(t, parsePKCS8(t, c.File("private_key")))
			}
			if !bytes.Equal(c.File("private_key"), cases[0].File("private_key")) {
				t.Fatal("this vector has a client key of its own")
			}
			want := responseVerdict(t, c)
			stub := testkit.Stub(t, c, nil)
			client := startClient(t, stub.URL, func(cfg *sealedchat.Config) {
				cfg.Keys, cfg.Trust = keys, sealedchat.Pin(publicOf(t, "server-4096").Fingerprint())
			})
			resp, err := client.Chat(testkit.Within(t, 20*time.Second),
				ask("What is the capital of France?"))
			checkVerdict(t, c, resp, err, want)
			for _, r := range stub.Requests() {
				if strings.HasPrefix(r.Path, "/c/") {
					t.Error("a redirect was followed")
				}
			}
		})
	}
}

func checkVerdict(t *testing.T, c testkit.Case, resp *sealedchat.ChatResponse, err, want error) {
	t.Helper()
	if want != nil {
		if !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
		if resp != nil {
			t.Error("an answer came with the error")
		}
		if err != nil && strings.Contains(err.Error(), "Paris") {
			t.Errorf("the error quotes the answer: %v", err)
		}
		api, ok := errors.AsType[*sealedchat.APIError](err)
		if ok != (want == sealedchat.ErrServer) || ok && api.StatusCode != c.HTTP.Status {
			t.Errorf("APIError %+v", api)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	plaintext := c.File("plaintext")
	if !bytes.Equal(resp.Raw, plaintext) {
		t.Errorf("Raw is %.100q, want %.100q", resp.Raw, plaintext)
	}
	var loose struct {
		ID      *string
		Choices []struct{ Message struct{ Content any } }
	}
	if err := json.Unmarshal(plaintext, &loose); err != nil {
		t.Fatal(err)
	}
	if loose.ID != nil && resp.ID != *loose.ID || len(resp.Choices) != len(loose.Choices) {
		t.Errorf("ID %q, %d choices", resp.ID, len(resp.Choices))
	}
	if len(loose.Choices) > 0 {
		if text, ok := loose.Choices[0].Message.Content.(string); ok && resp.Text() != text {
			t.Errorf("Text() = %q, want %q", resp.Text(), text)
		}
	}
	if _, ok := responseDetails[c.Name[4:]]; ok {
		if got, want := responseDetails[c.Name[4:]](resp), ""; got != want {
			t.Error(got)
		}
	}
}

// responseDetails looks closer at some accepted answers, and says what is wrong.
var responseDetails = map[string]func(*sealedchat.ChatResponse) string{
	"plain-dup-id": func(r *sealedchat.ChatResponse) string { return differs(r.ID, "second") },
	"plain-big-int": func(r *sealedchat.ChatResponse) string {
		return differs(string(r.Extra["x"]), "12345678901234567890123")
	},
	"plain-1e400": func(r *sealedchat.ChatResponse) string {
		return differs(string(r.Extra["x"]), "1e400")
	},
	"plain-string-created": func(r *sealedchat.ChatResponse) string {
		return differs(r.Created, int64(0))
	},
	"plain-float-created": func(r *sealedchat.ChatResponse) string {
		return differs(r.Created, int64(1765250382))
	},
	"plain-float-tokens": func(r *sealedchat.ChatResponse) string {
		return differs(r.Usage.TotalTokens, int64(30))
	},
	"plain-null-usage": func(r *sealedchat.ChatResponse) string {
		return differs(r.Usage, (*sealedchat.Usage)(nil))
	},
	"plain-null-id-model": func(r *sealedchat.ChatResponse) string {
		return differs(r.ID+r.Model, "")
	},
	"plain-content-parts": func(r *sealedchat.ChatResponse) string {
		return differs(r.Text(), "hi")
	},
	"plain-lone-surrogate": func(r *sealedchat.ChatResponse) string {
		return differs(r.Choices[0].Message.Role, "assi\uFFFDtant")
	},
	"plain-metadata-object": func(r *sealedchat.ChatResponse) string {
		return differs(string(r.Metadata["payload_id"]), `"from-server"`)
	},
	"plain-metadata-list": func(r *sealedchat.ChatResponse) string {
		return differs(len(r.Metadata)+len(r.Extra), 0)
	},
}

func differs[T comparable](got, want T) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("got %v, want %v", got, want)
}

// The same vectors through the codec and the key alone.
func TestResponseVectorsWithoutHTTP(t *testing.T) {
	t.Parallel()
	cases := testkit.Vectors(t, testkit.Response)
	key, err := hybrid.NewPrivateKey(parsePKCS8(t, cases[0].File("private_key")))
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for _, c := range cases {
		if c.HTTP.Status != http.StatusOK || c.HTTP.Mode != "" {
			continue
		}
		want := responseVerdict(t, c)
		var plaintext []byte
		e, err := envelope.Parse(c.File("body"), 1<<20)
		if err != nil {
			err = hybrid.EnvelopeError(err)
		} else if plaintext, err = key.Open(&e, nil); err == nil {
			opened++
			if !bytes.Equal(plaintext, fileOr(c, "plaintext", nil)) {
				t.Errorf("%s: opens to %.80q", c, plaintext)
			}
			if form := strings.HasPrefix(c.Name, "app-"); form != (e.TagForm == envelope.Appended) {
				t.Errorf("%s: tag form %v", c, e.TagForm)
			}
			err = chatjson.CheckCompletion(plaintext, chatjson.Asked{PayloadID: testkit.UUID()})
			if _, failed := errors.AsType[*chatjson.ErrorObject](err); failed {
				err = sealedchat.ErrServer
			}
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", c, err, want)
		}
		// the one value, not an error around it
		if want == sealedchat.ErrDecryption && (err != sealedchat.ErrDecryption ||
			plaintext != nil) {
			t.Errorf("%s: error %#v, %d bytes", c, err, len(plaintext))
		}
	}
	if opened < 100 {
		t.Errorf("only %d vectors opened", opened)
	}
}

func fileOr(c testkit.Case, role string, other []byte) []byte {
	if !c.Has(role) {
		return other
	}
	return c.File(role)
}
