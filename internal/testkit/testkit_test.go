// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestDir(t *testing.T) {
	dir := Dir(t)
	if _, err := os.Stat(filepath.Join(dir, "internal", "testkit", "testkit.go")); err != nil {
		t.Error(err)
	}
	// A module inside the repository is not its root, even if its path begins like that of the
	// root.
	inner := filepath.Join(t.TempDir(), "inner")
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, module := range map[string]string{
		filepath.Join(inner, "go.mod"): moduleLine + "/inner\n",
		filepath.Join(filepath.Dir(inner), "go.mod"): "// root\n" + moduleLine +
			"\n\ngo 1.26\n",
		filepath.Join(filepath.Dir(inner), "go.mod.bak"): "",
	} {
		if err := os.WriteFile(file, []byte(module), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := rootOf(inner); err != nil || got != filepath.Dir(inner) {
		t.Errorf("rootOf = %q, %v, want %q", got, err, filepath.Dir(inner))
	}
	if got, err := rootOf(t.TempDir()); err == nil {
		t.Errorf("rootOf outside the repository = %q, want an error", got)
	}
}

func TestKeys(t *testing.T) {
	for name, bits := range map[string]int{
		"server-4096": 4096, "client-4096": 4096, "other-4096": 4096, "rsa-3072": 3072,
		"rsa-2048": 2048,
	} {
		key := Key(t, name)
		if key.N.BitLen() != bits || key.E != 65537 || len(key.Primes) != 2 ||
			key.Validate() != nil {
			t.Errorf("%s: %d bits, exponent %d, %d primes, %v", name, key.N.BitLen(), key.E,
				len(key.Primes), key.Validate())
		}
		if Key(t, name) != key {
			t.Errorf("%s was parsed twice", name)
		}
		block, _ := pem.Decode(PublicPEM(t, name))
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil || !key.PublicKey.Equal(public) {
			t.Errorf("%s: PublicPEM is not its public key: %v", name, err)
		}
	}
	mustFail(t, "key none", func(tb testing.TB) { Key(tb, "none") })
	mustFail(t, "key none", func(tb testing.TB) { KeyPEM(tb, "none") })
	// The two keys that the vectors need are the vectors' own.
	for name, vector := range map[string]string{"server-4096": "server", "client-4096": "client"} {
		block, _ := pem.Decode(PublicPEM(t, name))
		sum := sha256.Sum256(block.Bytes)
		if want := Vector(t, PrivateKey,
			vector).Expected.SPKISHA256; hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s has the fingerprint %x, the vectors' is %s", name, sum, want)
		}
	}
}

func TestReadKeyRefuses(t *testing.T) {
	good := string(KeyPEM(t, "rsa-2048"))
	for name, text := range map[string]string{
		"empty":      "",
		"public":     string(PublicPEM(t, "rsa-2048")),
		"two blocks": good + good,
		"garbage":    "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
	} {
		file := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readKey(file); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTLSServer(t *testing.T) {
	NoLeaks(t)
	srv := TLSServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	get := func(rt http.RoundTripper) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			return "", err
		}
		res, err := rt.RoundTrip(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return string(body), err
	}
	if proto, err := get(ClientTransport(srv)); err != nil || proto != "HTTP/2.0" {
		t.Errorf("answer %q, %v, want HTTP/2.0", proto, err)
	}
	if _, err := get(&http.Transport{}); err == nil {
		t.Error("a transport that does not know the server trusted it")
	}
}

func TestNoLeaks(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	mustFail(t, "TestNoLeaks", func(tb testing.TB) {
		noLeaks(tb, 20*time.Millisecond)
		go func() { <-stop }()
	})
	// A goroutine that ends a little after the test, or with a later cleanup, is no leak; nor is
	// one that began before the test.
	mustPass(t, func(tb testing.TB) {
		NoLeaks(tb)
		late, cleaned := make(chan struct{}), make(chan struct{})
		time.AfterFunc(20*time.Millisecond, func() { close(late) })
		go func() { <-late }()
		go func() { <-cleaned }()
		tb.Cleanup(func() { close(cleaned) })
	})
}
