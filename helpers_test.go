// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
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
	return fakes.Seal(k.rsa, plaintext)
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

// ohttpClient is startClient for Oblivious HTTP.
func ohttpClient(t testing.TB, url string, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return startClient(t, url, func(c *Config) {
		c.Protocol = ProtocolOHTTP
		if change != nil {
			change(c)
		}
	})
}

// directClient is a client of g's without a network between them.
func directClient(t testing.TB, g *fakes.Gateway, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return ohttpClient(t, "https://gateway.test", func(c *Config) {
		c.Transport = fakes.Direct(g)
		if change != nil {
			change(c)
		}
	})
}

// sealedClient is a client of s over an https URL that trusts it. change may be nil.
func sealedClient(t testing.TB, s *fakes.Server, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return startClient(t, "https://server.test", func(c *Config) {
		c.Transport, c.Keys = s, storedKeys(t, "rsa-3072")
		if change != nil {
			change(c)
		}
	})
}

// chatAgain asks, and once more if the server's key has changed, as a program would whose prompts
// may run twice.
func chatAgain(c *SecureCompletionClient) (*ChatResponse, error) {
	answer, err := c.Chat(context.Background(), ask("x"))
	if outer, ok := errors.AsType[*OuterError](err); ok && outer.KeyChanged {
		return c.Chat(context.Background(), ask("x"))
	}
	return answer, err
}

// callsOf are the ways to ask a client.
func callsOf(c *SecureCompletionClient) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Chat": func(ctx context.Context) error {
			_, err := c.Chat(ctx, ask("x"))
			return err
		},
		"Stream": func(ctx context.Context) error {
			for _, err := range c.Stream(ctx, ask("x")) {
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func isServerKeyError(err error) bool {
	_, ok := errors.AsType[*ServerKeyError](err)
	return ok
}

func ask(text string) *ChatRequest {
	return &ChatRequest{Model: "test-model", Messages: []Message{UserMessage(text)}}
}

// Names for testkit's that many tests use.
const (
	fineAnswer = testkit.FineAnswer
	leak       = testkit.Leak
)

type roundTripFunc = testkit.RoundTrip

func answerText(text string) http.HandlerFunc  { return testkit.AnswerText(text) }
func answerWith(replace ...string) string      { return testkit.AnswerWith(replace...) }
func neverUsed(t testing.TB) http.RoundTripper { return testkit.NeverUsed(t) }
func soon(t testing.TB) context.Context        { return testkit.Within(t, 0) }
func foreignAddress(t testing.TB) net.Listener { return testkit.ForeignAddress(t) }
func median(d []time.Duration) time.Duration   { return testkit.Median(d) }

func respond(status int, body string, header ...string) *http.Response {
	return testkit.Respond(status, body, header...)
}
