// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// storedKey is a private copy of a stored test key, which closing a store may wipe.
func storedKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(testkit.KeyPEM(t, name))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// storedKeys is a key store around a stored test key.
func storedKeys(t testing.TB, name string) *KeyStore {
	t.Helper()
	s, err := NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.adopt(storedKey(t, name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// adopt makes key the primary key of a store.
func (s *KeyStore) adopt(key *rsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	_, err = s.ImportPEM(context.Background(), text, nil)
	return err
}

func publicOf(t testing.TB, name string) *PublicKey {
	t.Helper()
	k, err := ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// seal seals plaintext for k, for tests that change something about the envelope.
func (k *PublicKey) seal(plaintext []byte) (*envelope.Envelope, error) {
	return sealEnvelope(k.rsa, plaintext)
}

func sealEnvelope(k *hybrid.PublicKey, plaintext []byte) (*envelope.Envelope, error) {
	e := &envelope.Envelope{}
	_, err := k.Seal(nil, e, plaintext)
	e.Sealed = bytes.Clone(e.Sealed)
	return e, err
}

// rsaOf is the key in the standard library's terms.
func rsaOf(t testing.TB, k *PublicKey) *rsa.PublicKey {
	t.Helper()
	key, err := x509.ParsePKIXPublicKey(k.der)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PublicKey)
}

func secret(t testing.TB, text string) *Secret {
	t.Helper()
	s, err := NewSecret([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Destroy)
	return s
}

// answerText is an upstream that answers every chat with text.
func answerText(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		body, _ := chatjson.Marshal(map[string]any{
			"id": "chatcmpl-1", "object": "chat.completion", "created": 1765250382, "model": "test-model",
			"choices": []any{map[string]any{
				"index": 0, "message": map[string]any{"role": "assistant", "content": text}, "finish_reason": "stop",
			}},
			"usage": map[string]int{"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
		})
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}
}

// startGateway runs a gateway with the stored server key in front of upstream. change may be nil.
func startGateway(t testing.TB, upstream http.Handler, change func(*GatewayConfig)) *Gateway {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	c := GatewayConfig{Upstream: up.URL + "/v1", AllowUnauthenticated: true}
	if change != nil {
		change(&c)
	}
	if c.Keys == nil {
		c.Keys = storedKeys(t, "server-4096")
	}
	return newGateway(t, c)
}

// newGateway makes a gateway that is closed with the test.
func newGateway(t testing.TB, c GatewayConfig) *Gateway {
	t.Helper()
	g, err := NewGateway(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// startClient makes a client with the stored client key for the server at url, plain http allowed. change may be nil.
func startClient(t testing.TB, url string, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	c := Config{
		BaseURL: url, Trust: TrustHTTPS(), InsecureAllowHTTP: true,
		MaxRetries: -1, // tests of retries say so
	}
	if change != nil {
		change(&c)
	}
	if c.Keys == nil && c.Protocol != ProtocolOHTTP { // making a key would take seconds
		c.Keys = storedKeys(t, "client-4096")
	}
	client, err := NewSecureCompletionClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func ask(text string) *ChatRequest {
	return &ChatRequest{Model: "test-model", Messages: []Message{UserMessage(text)}}
}

// What tests of rooms have as well.
const fineAnswer = testkit.FineAnswer

func answerWith(replace ...string) string { return testkit.AnswerWith(replace...) }
