// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestServe(t *testing.T) {
	testkit.NoLeaks(t)
	u := newUpstream(t, nil)
	cert := filepath.Join(t.TempDir(), "gateway.pem")
	keys := keyFile(t, "# the keys\n\n"+apiKey+"\n  second-api-key\r\n", 0o600)
	r := start(t, "-grace", "1s", "-upstream", u.URL+"/v1", "-api-keys", keys, "-write-cert", cert,
		"-tier", "high")

	r.tier = sealedchat.TierMaximum
	if _, err := chat(t, r, cert, apiKey); !errors.Is(err, sealedchat.ErrPermission) {
		t.Errorf("a tier above the gateway's: %v, want ErrPermission", err)
	}
	r.tier = sealedchat.TierHigh
	for _, key := range []string{apiKey, "second-api-key"} {
		if text, err := chat(t, r, cert, key); err != nil || text != "echo of "+prompt {
			t.Errorf("with %s: %q, %v", key, text, err)
		}
	}
	for _, key := range []string{"", "#", "wrong", apiKey + "x"} {
		if _, err := chat(t, r, cert, key); !errors.Is(err, sealedchat.ErrAuthentication) {
			t.Errorf("with the key %q: %v, want ErrAuthentication", key, err)
		}
	}
	for _, a := range u.authorization {
		if a != "Bearer "+upstreamKey {
			t.Errorf("Authorization upstream: %q", a)
		}
	}
	if len(u.authorization) != 2 {
		t.Errorf("%d requests upstream, want 2", len(u.authorization))
	}
	for _, want := range []string{"-url " + r.url, "-pin " + r.pin, "-cacert " + cert,
		"NOMYO_API_KEY="} {
		if !strings.Contains(r.try, want) {
			t.Errorf("the command line %q lacks %q", r.try, want)
		}
	}
	if !strings.HasPrefix(r.certificate, "sha256 "+fingerprintOf(t, cert)) {
		t.Errorf("certificate: %s, want the fingerprint of the written one", r.certificate)
	}
	if status := r.end(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
	for _, secret := range []string{prompt, "echo of", apiKey, "second-api-key", upstreamKey} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("the log holds %q:\n%s", secret, r.log.String())
		}
	}
	if n := strings.Count(r.log.String(), "status=200"); n < 2 {
		t.Errorf("the log tells of %d good requests:\n%s", n, r.log.String())
	}
}

func fingerprintOf(t *testing.T, certFile string) string {
	t.Helper()
	text, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	id := identity{}
	id.now.Store(&tls.Certificate{Certificate: [][]byte{block.Bytes}})
	return id.fingerprint()
}

// The command line that the gateway prints for users works.
func TestExampleChat(t *testing.T) {
	if testing.Short() {
		t.Skip("builds examples/chat")
	}
	binary := filepath.Join(t.TempDir(), "chat")
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary,
		"../chat").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	u := newUpstream(t, nil)
	cert := filepath.Join(t.TempDir(), "gateway.pem")
	r := start(t, "-grace", "1s", "-upstream", u.URL+"/v1", "-api-keys", keyFile(t, apiKey, 0o600),
		"-write-cert", cert)

	cmd := exec.CommandContext(t.Context(), binary, "-url", r.url, "-cacert", cert, "-pin", r.pin,
		"-model", "stub", prompt)
	cmd.Env = append(os.Environ(), "NOMYO_API_KEY="+apiKey)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stdout.String() != "echo of "+prompt+"\n" {
		t.Errorf("%v, stdout %q, stderr %q", err, stdout.String(), stderr.String())
	}
}

func TestOwnCertificate(t *testing.T) {
	certificate, err := program.SelfSigned("x", "127.0.0.1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyName := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: certificate.Certificate[0]}))
	write(t, keyName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	u := newUpstream(t, nil)
	r := start(t, "-grace", "1s", "-upstream", u.URL+"/v1", "-allow-unauthenticated", "-tls-cert",
		certFile, "-tls-key", keyName)
	if text, err := chat(t, r, certFile, ""); err != nil || text != "echo of "+prompt {
		t.Errorf("%q, %v", text, err)
	}
	if r.certificate != "sha256 "+fingerprintOf(t, certFile) {
		t.Errorf("certificate: %s", r.certificate)
	}
	if strings.Contains(r.try, "-cacert") || strings.Contains(r.try, "NOMYO_API_KEY") {
		t.Errorf("the command line %q asks for too much", r.try)
	}
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestShutdown(t *testing.T) {
	for name, c := range map[string]struct {
		grace   string
		release bool // while the gateway is ending
		fails   bool
	}{
		"waits for running requests": {grace: "20s", release: true},
		"cuts off what stays":        {grace: "10ms", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NoLeaks(t)
			u := newUpstream(t, make(chan struct{}))
			cert := filepath.Join(t.TempDir(), "gateway.pem")
			r := start(t, "-grace", c.grace, "-upstream", u.URL+"/v1", "-allow-unauthenticated",
				"-write-cert", cert)
			var text string
			var err error
			var client sync.WaitGroup
			client.Go(func() { text, err = chat(t, r, cert, "") })
			<-u.began
			r.stop()
			if c.release {
				for !refuses(r.url) { // the listener is closed first
					runtime.Gosched()
				}
				close(u.release)
			}
			if status := r.end(t); status != 0 {
				t.Errorf("exit status %d", status)
			}
			client.Wait()
			if c.fails && !errors.Is(err, sealedchat.ErrConnection) &&
				!errors.Is(err, sealedchat.ErrUnavailable) {
				t.Errorf("%q, %v, want an error", text, err)
			}
			if !c.fails && (err != nil || text != "echo of "+prompt) {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
}

// refuses reports whether nothing listens at url any more.
func refuses(url string) bool {
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get(url)
	if err == nil {
		resp.Body.Close()
		return false
	}
	return strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "reset")
}
