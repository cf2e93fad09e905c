// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// rig is a server in a test's rig.
type rig struct {
	*fakes.Rig
	s *Server
}

// newRig makes a server with the stored key rsa-2048. change may be nil.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{Rig: &fakes.Rig{T: t}}
	c := Config{
		Upstream: "https://upstream.test/v1", UpstreamTransport: r.Rig, Logger: r.Logger(),
		Keys: storedKeys(t, "rsa-2048"),
	}
	r.s = newServer(t, c, change)
	r.Handler = r.s
	return r
}

// startGateway makes a server with the stored server key in front of upstream. change may be nil.
func startGateway(t testing.TB, upstream http.Handler, change func(*Config)) *Server {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	return newServer(t, Config{
		Upstream: up.URL + "/v1", Keys: storedKeys(t, "server-4096"),
	}, change)
}

// newServer makes a server of both protocols that serves everybody, unless change says otherwise.
func newServer(t testing.TB, c Config, change func(*Config)) *Server {
	t.Helper()
	c.AllowUnauthenticated, c.ServeV1, c.ServeOHTTP = true, true, true
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// storedKeys is a key store around a stored test key.
func storedKeys(t testing.TB, name string) *keystore.Store {
	t.Helper()
	s, err := keystore.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	der, err := x509.MarshalPKCS8PrivateKey(testkit.Key(t, name))
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if _, err := s.ImportPEM(t.Context(), text, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func publicOf(t testing.TB, name string) *hybrid.PublicKey {
	t.Helper()
	k, err := hybrid.ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// plainSecret is a secret in plain memory.
type plainSecret string

func secret(_ testing.TB, text string) plainSecret { return plainSecret(text) }

func (s plainSecret) Use(f func([]byte) error) error { return f([]byte(s)) }
func (s plainSecret) Len() int                       { return len(s) }

// allow is an Authenticate that lets in whom judge lets in, as nobody in particular.
func allow(judge func(*http.Request) error) Authenticate {
	return func(r *http.Request) (string, time.Duration, error) { return "", 0, judge(r) }
}

// onlyKey is an Authenticate that lets in who sends key as a bearer token.
func onlyKey(key string) Authenticate {
	return func(r *http.Request) (string, time.Duration, error) {
		if r.Header.Get("Authorization") != "Bearer "+key {
			return "", 0, fault.ErrAuthentication
		}
		return "the client", 0, nil
	}
}
