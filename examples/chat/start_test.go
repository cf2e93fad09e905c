// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/demo"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	question = "What is the capital of France?"
	apiKey   = "an-api-key-of-the-test"
	failing  = "please fail" // a prompt for which the test server's model fails
)

// session is one run of the program, with its input.
type session struct {
	stdin    io.Reader
	terminal bool // stdin is one
	screen   bool // stdout is one
	env      map[string]string
}

type result struct {
	status         int
	stdout, stderr string
}

func (s session) run(ctx context.Context, args ...string) result {
	var stdout, stderr bytes.Buffer
	if s.stdin == nil {
		s.stdin = strings.NewReader("")
	}
	p := &chat{
		env: func(name string) string {
			return s.env[name]
		}, stdin: s.stdin, stdout: &stdout, stderr: &stderr,
		isTerminal: func(stream any) bool {
			return stream == s.stdin && s.terminal || stream == &stdout && s.screen
		},
		keyBits: 2048, maxRetries: -1, patience: time.Hour,
	}
	status := p.run(ctx, args)
	return result{status, stdout.String(), stderr.String()}
}

// remote is a gateway with the demo model, for -url.
type remote struct {
	url, pin, cacert string
	completions      atomic.Int32 // requests that reached the model
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	r := &remote{}
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	secret := sealedchat.NewSecret([]byte(apiKey))
	authenticate, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	model := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.completions.Add(1)
		body, _ := io.ReadAll(req.Body)
		if bytes.Contains(body, []byte(failing)) {
			http.Error(w, "it failed", http.StatusInternalServerError)
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		demo.Model(w, req)
	})
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: "https://model.invalid/v1", UpstreamTransport: demo.InMemory(model),
		Authenticate: authenticate, Keys: keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gateway.Close() })
	key, err := keys.Public(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	srv := testkit.TLSServer(t, gateway)
	r.url, r.pin, r.cacert = srv.URL, key.Fingerprint(), writeCert(t, srv)
	return r
}

func writeCert(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cert.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// args returns a command line for r, with more after it.
func (r *remote) args(more ...string) []string {
	return append([]string{"-url", r.url, "-cacert", r.cacert, "-model", "m"}, more...)
}

func withKey() map[string]string { return map[string]string{"NOMYO_API_KEY": apiKey} }
