// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// front is nginx with the file of examples/deploy, in front of two replicas of the gateway that
// share a key store and Redis.
type front struct {
	*world
	url   string
	roots *x509.CertPool
}

func startFront(t *testing.T, args ...string) *front {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		if os.Getenv("SEALEDCHAT_NGINX") == "required" {
			t.Fatal(err)
		}
		t.Skip("no nginx")
	}
	w := &world{t: t, redis: startRedis(t), model: startModel(t),
		dir: filepath.Join(t.TempDir(), "keys"), took: make(map[string]int)}
	for range 2 {
		w.replicas = append(w.replicas, startReplica(t, append([]string{"-upstream",
			w.model.URL + "/v1", "-keys", w.dir, "-create-keys", "-replay", w.redis.url(),
			"-address-header", "X-Forwarded-For"}, args...)...))
	}
	dir := t.TempDir()
	c, err := program.SelfSigned("x", "127.0.0.1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: c.Certificate[0]}))
	write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY",
		Bytes: key}))
	address := freeAddress(t)
	f := &front{world: w, url: "https://" + address, roots: x509.NewCertPool()}
	f.roots.AddCert(c.Leaf)
	f.startNginx(path, dir, address)
	return f
}

// startNginx runs nginx with the block as it stands, except for addresses and files.
func (f *front) startNginx(path, dir, address string) {
	t := f.t
	t.Helper()
	block, err := os.ReadFile("../deploy/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	text := string(block)
	for _, change := range [][2]string{
		{"server 127.0.0.1:8441 ", "server " + strings.TrimPrefix(f.replicas[0].url, "http://") +
			" "},
		{"server 127.0.0.1:8442 ", "server " + strings.TrimPrefix(f.replicas[1].url, "http://") +
			" "},
		{"listen 443 ", "listen " + address + " "},
		{"/etc/nginx/sealedchat.pem", filepath.Join(dir, "cert.pem")},
		{"/etc/nginx/sealedchat-key.pem", filepath.Join(dir, "key.pem")},
	} {
		if strings.Count(text, change[0]) != 1 {
			t.Fatalf("nginx.conf has %q not once", change[0])
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	paths := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths += fmt.Sprintf("\t%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	config := filepath.Join(dir, "nginx.conf")
	write(t, config, []byte(fmt.Sprintf("daemon off;\npid %s;\nerror_log %s;\n%s"+
		"events { worker_connections 512; }\nhttp {\n\taccess_log off;\n%s%s}\n",
		filepath.Join(dir, "pid"), filepath.Join(dir, "errors"), userOfNginx(), paths, text)))
	cmd := exec.Command(path, "-p", dir, "-c", config, "-e", filepath.Join(dir, "errors"))
	var says safeBuffer
	cmd.Stdout, cmd.Stderr = &says, &says
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			errs, _ := os.ReadFile(filepath.Join(dir, "errors"))
			t.Logf("nginx: %s%s", says.String(), errs)
		}
	})
	until(t, "nginx", func() bool { return !refuses(f.url) })
}

func userOfNginx() string {
	if os.Geteuid() == 0 { // its workers could not use the test's folder
		return "user root;\n"
	}
	return ""
}

// client is a client of nginx.
func (f *front) client(p sealedchat.Protocol) *sealedchat.SecureCompletionClient {
	f.t.Helper()
	transport := sealedchat.DefaultTransport()
	transport.TLSClientConfig.RootCAs = f.roots
	f.t.Cleanup(transport.CloseIdleConnections)
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(keys.Close)
	name := "pin (" + string(p) + ")"
	c, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: f.url, Protocol: p, Trust: sealedchat.Pin(f.replicas[0].pins[name]), Keys: keys,
		Transport: transport, MaxRetries: -1, Timeout: 30 * time.Second,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Bodies over 1 MiB pass, of both protocols; streams come piece by piece; a replica that is gone
// costs no request; and /readyz is not for the world.
func TestNginx(t *testing.T) {
	f := startFront(t, "-allow-unauthenticated")
	for _, p := range protocols {
		c := f.client(p)
		large := question()
		large.Messages[0] = sealedchat.UserMessage(strings.Repeat("long ", 9<<20/5))
		if _, err := c.Chat(t.Context(), large); err != nil {
			t.Errorf("%v, 9 MiB: %v", p, err)
		}
	}
	go func() { f.model.words <- "one" }()
	text, err := stream(t, f.client(sealedchat.ProtocolOHTTP), func(word string) {
		next := map[string]string{"one": "two", "two": "three", "three": ""}[word]
		go func() { f.model.words <- next }() // the next one comes when this one has arrived
	})
	if text != "one two three " || err != nil {
		t.Errorf("streamed %q, %v", text, err)
	}
	if status, _ := get(t, f.url+"/readyz"); status != http.StatusNotFound {
		t.Errorf("/readyz from outside: %d", status)
	}
	f.replicas[0].kill()
	for _, p := range protocols {
		c := f.client(p)
		for range 6 {
			if err := ask(t, c); err != nil {
				t.Errorf("%v, one replica is gone: %v", p, err)
			}
		}
	}
}

// What nginx says of a client's address is what counts, not what the client says: strangers are
// limited by it.
func TestNginxAddresses(t *testing.T) {
	f := startFront(t, "-allow-unauthenticated")
	transport := &http.Transport{TLSClientConfig: sealedchat.DefaultTransport().TLSClientConfig}
	transport.TLSClientConfig.RootCAs = f.roots
	defer transport.CloseIdleConnections()
	send := func(url, says string) (int, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			url+"/.well-known/ohttp-gateway", bytes.NewReader([]byte("nonsense")))
		if err != nil {
			return 0, err
		}
		req.Header.Set("Content-Type", ohttp.TypeRequest)
		req.Header.Set("X-Forwarded-For", says)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return 0, err
		}
		_ = resp.Body.Close()
		return resp.StatusCode, nil
	}
	// Each claims to be somebody else; nginx knows better.
	var sent atomic.Int64
	limited := make(chan struct{})
	failed := make(chan error, 16)
	for range 16 {
		go func() {
			for !closed(limited) {
				n := sent.Add(1)
				status, err := send(f.url, fmt.Sprintf("192.0.2.%d", n%250))
				if err == nil && n > 100_000 {
					err = errors.New("no limit")
				}
				if err != nil || status == http.StatusTooManyRequests {
					failed <- err
					return
				}
			}
		}()
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	close(limited)
	// Another address, as another nginx would name it.
	if status, err := send(f.replicas[0].url, "192.0.2.1"); err != nil ||
		status == http.StatusTooManyRequests {
		t.Errorf("another address: %d, %v", status, err)
	}
}
