// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// storedKey is a private copy of a stored test key, which closing a store may wipe.
func storedKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	return parsePKCS8(t, testkit.KeyPEM(t, name))
}

// storedKeys is a key store around a stored test key.
func storedKeys(t testing.TB, name string) *sealedchat.KeyStore {
	t.Helper()
	return keysAround(t, storedKey(t, name))
}

// keysAround is a key store around key, which it copies.
func keysAround(t testing.TB, key *rsa.PrivateKey) *sealedchat.KeyStore {
	t.Helper()
	s := memoryStore(t, nil)
	importKey(t, s, key)
	return s
}

// memoryStore is an ephemeral key store without a key. o may be nil.
func memoryStore(t testing.TB, o *sealedchat.KeyStoreOptions) *sealedchat.KeyStore {
	t.Helper()
	s, err := sealedchat.NewEphemeralKeyStore(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// importKey makes key the primary key of a store.
func importKey(t testing.TB, s *sealedchat.KeyStore, key *rsa.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if _, err := s.ImportPEM(context.Background(), text, nil); err != nil {
		t.Fatal(err)
	}
}

func publicOf(t testing.TB, name string) *sealedchat.PublicKey {
	t.Helper()
	k, err := sealedchat.ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealTo seals plaintext for k.
func sealTo(k *sealedchat.PublicKey, plaintext []byte) (*envelope.Envelope, error) {
	key, err := hybrid.ParsePublicKey(k.PEM())
	if err != nil {
		return nil, err
	}
	return fakes.Seal(key, plaintext)
}

func secret(t testing.TB, text string) *sealedchat.Secret {
	t.Helper()
	s := sealedchat.NewSecret([]byte(text))
	t.Cleanup(s.Destroy)
	return s
}

// startGateway runs a gateway with the stored server key in front of upstream. change may be nil.
func startGateway(
	t testing.TB, upstream http.Handler, change func(*sealedchat.GatewayConfig),
) *sealedchat.Gateway {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	c := sealedchat.GatewayConfig{Upstream: up.URL + "/v1", AllowUnauthenticated: true}
	if change != nil {
		change(&c)
	}
	if c.Keys == nil {
		c.Keys = storedKeys(t, "server-4096")
	}
	return newGateway(t, c)
}

// newGateway makes a gateway that is closed with the test.
func newGateway(t testing.TB, c sealedchat.GatewayConfig) *sealedchat.Gateway {
	t.Helper()
	g, err := sealedchat.NewGateway(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// startClient makes a client with the stored client key for the server at url, plain http allowed.
// change may be nil.
func startClient(
	t testing.TB, url string, change func(*sealedchat.Config),
) *sealedchat.SecureCompletionClient {
	t.Helper()
	c := sealedchat.Config{
		BaseURL: url, Trust: sealedchat.TrustHTTPS(), InsecureAllowHTTP: true,
		MaxRetries: -1, // tests of retries say so
	}
	if change != nil {
		change(&c)
	}
	// making a key would take seconds
	if c.Keys == nil && c.Protocol != sealedchat.ProtocolOHTTP {
		c.Keys = storedKeys(t, "client-4096")
	}
	client, err := sealedchat.NewSecureCompletionClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// ohttpClient is startClient for Oblivious HTTP.
func ohttpClient(
	t testing.TB, url string, change func(*sealedchat.Config),
) *sealedchat.SecureCompletionClient {
	t.Helper()
	return startClient(t, url, func(c *sealedchat.Config) {
		c.Protocol = sealedchat.ProtocolOHTTP
		if change != nil {
			change(c)
		}
	})
}

// sealedClient is a client of s over an https URL that trusts it. change may be nil.
func sealedClient(
	t testing.TB, s *fakes.Server, change func(*sealedchat.Config),
) *sealedchat.SecureCompletionClient {
	t.Helper()
	return startClient(t, "https://server.test", func(c *sealedchat.Config) {
		c.Transport, c.Keys = s, storedKeys(t, "rsa-3072")
		if change != nil {
			change(c)
		}
	})
}

func ask(text string) *sealedchat.ChatRequest {
	return &sealedchat.ChatRequest{
		Model: "test-model", Messages: []sealedchat.Message{sealedchat.UserMessage(text)},
	}
}
