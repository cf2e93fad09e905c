// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// recorder is an upstream that keeps the last request.
type recorder struct {
	http.Handler
	mu   sync.Mutex
	body []byte
}

func (u *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	u.mu.Lock()
	u.body = body
	u.mu.Unlock()
	u.Handler.ServeHTTP(w, r)
}

func (u *recorder) last() []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.body
}

// Requests that the real clients sent, byte for byte, through a gateway with the key that they were
// sealed to.
func TestRequestVectors(t *testing.T) {
	t.Parallel()
	cases := testkit.Vectors(t, testkit.Request)
	upstream := &recorder{Handler: testkit.AnswerText("ключ \u2028 </script>")}
	keys := keysAround(t, parsePKCS8(t, cases[0].File("server_private_key")))
	gateway := startGateway(t, upstream, func(cfg *sealedchat.GatewayConfig) {
		cfg.Keys, cfg.Tier = keys, sealedchat.TierHigh
	})
	srv := httptest.NewServer(gateway)
	t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().String()
	clientKeys := parsedKeys{}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			key, err := keys.Public(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if status, pemText := sendRaw(t, addr, c.File("get_head")); status != 200 ||
				!bytes.Equal(pemText, key.PEM()) {
				t.Errorf("GET: status %d, %q", status, pemText)
			}
			status, sealed := sendRaw(t, addr, append(c.File("post_head"), c.File("post_body")...))
			if status != http.StatusOK {
				t.Fatalf("status %d: %s", status, sealed)
			}
			checkForwarded(t, c, upstream.last())
			var e struct {
				ProcessedAt int64 `json:"processed_at"`
			}
			if err := json.Unmarshal(sealed, &e); err != nil ||
				time.Since(time.Unix(e.ProcessedAt, 0)).Abs() > time.Minute {
				t.Errorf("processed_at %d, %v", e.ProcessedAt, err)
			}
			plaintext, appended := testkit.OpenPlainly(t, clientKeys.of(t, c), sealed)
			if appended != strings.HasPrefix(c.Name, "js-") {
				t.Errorf("the tag is appended: %v", appended)
			}
			checkGatewayAnswer(t, upstream, plaintext, payloadIDOf(t, c))
			if status, _ := sendRaw(t, addr, append(c.File("post_head"),
				c.File("post_body")...)); status != http.StatusConflict {
				t.Errorf("sent again: status %d", status)
			}
		})
	}
}

// parsedKeys are client keys by their PEM text: parsing one takes longer than using it.
type parsedKeys map[string]*rsa.PrivateKey

func (p parsedKeys) of(t *testing.T, c testkit.Case) *rsa.PrivateKey {
	t.Helper()
	text := c.File("client_private_key")
	if p[string(text)] == nil {
		p[string(text)] = parsePKCS8(t, text)
	}
	return p[string(text)]
}

// sendRaw sends a captured request as it is.
func sendRaw(t *testing.T, addr string, request []byte) (status int, body []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func payloadIDOf(t *testing.T, c testkit.Case) string {
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(c.File("post_head"))))
	if err != nil {
		t.Fatal(err)
	}
	return req.Header.Get("X-Payload-ID")
}

// checkForwarded demands that what reached the upstream is the vector's plaintext, less the members
// that end here.
func checkForwarded(t *testing.T, c testkit.Case, forwarded []byte) {
	t.Helper()
	if !c.Has("plaintext") {
		if sum := sha256.Sum256(
			forwarded); hex.EncodeToString(sum[:]) != c.Expected.PlaintextSHA256 ||
			len(forwarded) != c.Expected.PlaintextLen {
			t.Errorf("%d bytes were forwarded, want the plaintext's %d", len(forwarded),
				c.Expected.PlaintextLen)
		}
		return
	}
	var want, got map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(c.File("plaintext"), &want),
		json.Unmarshal(forwarded, &got)); err != nil {
		t.Fatal(err)
	}
	before := len(want)
	maps.DeleteFunc(want, func(name string, _ json.RawMessage) bool {
		return name == "stream" || name == "stream_options" || name == "security_tier"
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("forwarded %s, want %s", forwarded, c.File("plaintext"))
	}
	if len(want) == before && !bytes.Equal(forwarded, c.File("plaintext")) {
		t.Errorf("nothing had to be taken out, and forwarded was %s", forwarded)
	}
}

func checkGatewayAnswer(t *testing.T, upstream http.Handler, plaintext []byte, payloadID string) {
	t.Helper()
	rec := httptest.NewRecorder()
	upstream.(*recorder).Handler.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", nil))
	own := bytes.TrimSuffix(rec.Body.Bytes(), []byte("}"))
	if !bytes.HasPrefix(plaintext, own) {
		t.Fatalf("the answer is %s, want %s", plaintext, rec.Body)
	}
	var answer struct {
		Metadata struct {
			PayloadID string `json:"payload_id"`
			Encrypted bool   `json:"is_encrypted"`
			Algorithm string `json:"encryption_algorithm"`
			Tier      string `json:"security_tier"`
			At        int64  `json:"processed_at"`
		} `json:"_metadata"`
	}
	if err := json.Unmarshal(plaintext, &answer); err != nil {
		t.Fatal(err)
	}
	m := answer.Metadata
	if m.PayloadID != payloadID || !m.Encrypted || m.Algorithm != "hybrid-aes256-rsa4096" ||
		m.Tier != "high" || m.At == 0 {
		t.Errorf("_metadata %+v, want payload id %s", m, payloadID)
	}
}

// The answers that the real clients were given open to what they made of them.
func TestRequestVectorsAnswers(t *testing.T) {
	t.Parallel()
	keys := parsedKeys{}
	for _, c := range testkit.Vectors(t, testkit.Request) {
		key, err := hybrid.NewPrivateKey(keys.of(t, c))
		if err != nil {
			t.Fatal(err)
		}
		e, err := envelope.Parse(c.File("response_body"), 1<<22)
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		plaintext, err := key.Open(&e, nil)
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		var got, want map[string]any
		if err := errors.Join(json.Unmarshal(plaintext, &got),
			json.Unmarshal(c.File("returned"), &want)); err != nil {
			t.Fatal(err)
		}
		_, sealedMetadata := got["_metadata"]
		delete(got, "_metadata") // the clients rewrite it
		delete(want, "_metadata")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: opens to %s", c, plaintext)
		}
		if err := chatjson.CheckCompletion(plaintext,
			chatjson.Asked{PayloadID: payloadIDOf(t, c)}); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		if err := chatjson.CheckCompletion(plaintext,
			chatjson.Asked{PayloadID: testkit.UUID()}); sealedMetadata &&
			chatjson.IsUUID(payloadIDOf(t, c)) && !errors.Is(err, sealedchat.ErrReplay) {
			t.Errorf("%s: for another request: %v", c, err)
		}
	}
}
