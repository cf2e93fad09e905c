// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// get asks a gateway, over TLS with any certificate, on a connection of its own.
func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	status, body, err := tryGet(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func tryGet(ctx context.Context, url string) (status int, body string, err error) {
	transport := &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// until waits for something that happens elsewhere.
func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not come: " + what)
		}
	}
}

// clientOf is a client of a gateway that listens without TLS.
func clientOf(t *testing.T, url, key string,
	p sealedchat.Protocol) *sealedchat.SecureCompletionClient {
	t.Helper()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	c, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: p, APIKey: newSecret(t, key), Trust: sealedchat.TrustHTTPS(),
		Keys: keys, InsecureAllowHTTP: true, MaxRetries: -1, Timeout: 30 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// stream reads a stream word by word, and asks between after each.
func stream(t *testing.T, c *sealedchat.SecureCompletionClient,
	between func(word string)) (text string, err error) {
	t.Helper()
	for chunk, err := range c.Stream(t.Context(), question()) {
		if err != nil {
			return text, err
		}
		if word := chunk.Text(); word != "" {
			text += word + " "
			between(word)
		}
	}
	return text, nil
}

// SIGHUP takes keys away and brings others, with their names, and cuts no stream; a file that is
// wrong changes nothing.
func TestReloadAPIKeys(t *testing.T) {
	m := startModel(t)
	file := keyFile(t, "team-a key-a\nteam-b key-b\n", 0o600)
	r := start(t, "-upstream", m.URL+"/v1", "-api-keys", file, "-plain-http", "-metrics",
		"127.0.0.1:0")
	for _, key := range []string{"key-a", "key-b"} {
		if err := ask(t, clientOf(t, r.url, key, sealedchat.ProtocolOHTTP)); err != nil {
			t.Fatal(err)
		}
	}
	reload := func(content, logged string) {
		t.Helper()
		before := strings.Count(r.log.String(), logged)
		write(t, file, []byte(content))
		r.hup <- syscall.SIGHUP
		until(t, logged, func() bool { return strings.Count(r.log.String(), logged) > before })
	}
	go func() { m.words <- "one" }()
	user := clientOf(t, r.url, "key-a", sealedchat.ProtocolOHTTP)
	text, err := stream(t, user, func(word string) {
		if word != "one" {
			return
		}
		reload("team-b key-b\nteam-c key-c\n", "the API keys were read again")
		go func() {
			m.words <- "two"
			m.words <- ""
		}()
	})
	if text != "one two " || err != nil {
		t.Errorf("a stream over the reload: %q, %v", text, err)
	}
	for _, p := range protocols {
		if err := ask(t, clientOf(t, r.url, "key-c", p)); err != nil {
			t.Errorf("%v, a new key: %v", p, err)
		}
		err := ask(t, clientOf(t, r.url, "key-a", p))
		if !errors.Is(err, sealedchat.ErrAuthentication) {
			t.Errorf("%v, a key that is gone: %v", p, err)
		}
	}
	if !strings.Contains(r.log.String(), "account=team-c") {
		t.Errorf("the log does not name the account: %s", r.log.String())
	}
	_, shown := get(t, r.metrics)
	if strings.Contains(shown, `account="team-a"`) || !strings.Contains(shown, `account="other"`) {
		t.Errorf("accounts that are gone: %s", shown)
	}
	for _, wrong := range []string{"", "# nobody\n", "a b c\n", "team-d key-d\nb/d key\n"} {
		reload(wrong, "the API keys stay as they were")
		if err := ask(t, clientOf(t, r.url, "key-c", sealedchat.ProtocolOHTTP)); err != nil {
			t.Errorf("after %q: %v", wrong, err)
		}
		err := ask(t, clientOf(t, r.url, "key-d", sealedchat.ProtocolOHTTP))
		if !errors.Is(err, sealedchat.ErrAuthentication) {
			t.Errorf("after %q, a key of that file: %v", wrong, err)
		}
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	reload("team-d key-d\n", "the API keys stay as they were")
	if status := r.end(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// SIGHUP takes up a new certificate; one that does not fit its key changes nothing.
func TestReloadCertificate(t *testing.T) {
	u := newUpstream(t, nil)
	dir := t.TempDir()
	certFile, keyName := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	renew := func(withKey bool) {
		t.Helper()
		c, err := program.SelfSigned("x", "127.0.0.1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		write(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: c.Certificate[0]}))
		if withKey {
			write(t, keyName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
		}
	}
	renew(true)
	r := start(t, "-upstream", u.URL+"/v1", "-allow-unauthenticated", "-tls-cert", certFile,
		"-tls-key", keyName)
	first, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	renew(true)
	if _, err := chat(t, r, certFile, ""); err == nil {
		t.Error("the new certificate is there before SIGHUP")
	}
	r.hup <- syscall.SIGHUP
	until(t, "the reload", func() bool {
		return strings.Contains(r.log.String(), "the certificate was read again")
	})
	if text, err := chat(t, r, certFile, ""); err != nil || text != "echo of "+prompt {
		t.Errorf("%q, %v", text, err)
	}
	good := certFile + ".good"
	content, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, good, content)
	renew(false)
	r.hup <- syscall.SIGHUP
	until(t, "the error", func() bool {
		return strings.Contains(r.log.String(), "the certificate stays as it was")
	})
	if _, err := chat(t, r, good, ""); err != nil {
		t.Errorf("the certificate before: %v", err)
	}
	write(t, good, first)
	if _, err := chat(t, r, good, ""); err == nil {
		t.Error("the first certificate is still shown")
	}
}

// A real SIGHUP does not kill the program, also when there is nothing to read.
func TestHangup(t *testing.T) {
	m := startModel(t)
	r := startReplica(t, "-upstream", m.URL+"/v1", "-allow-unauthenticated")
	for range 5 {
		if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	if status, _ := get(t, r.url+"/readyz"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// While it drains, the gateway is not ready and serves; then it closes its listener, and a running
// stream gets its end.
func TestDrain(t *testing.T) {
	testkit.NoLeaks(t)
	m := startModel(t)
	r := start(t, "-upstream", m.URL+"/v1", "-allow-unauthenticated", "-plain-http", "-drain",
		"700ms", "-metrics", "127.0.0.1:0")
	watched := strings.TrimSuffix(r.metrics, "/metrics")
	for _, url := range []string{r.url, watched} {
		if status, body := get(t, url+"/readyz"); status != http.StatusOK ||
			!strings.Contains(body, `"ready"`) {
			t.Errorf("before: %d %s", status, body)
		}
	}
	go func() { m.words <- "one" }()
	client := clientOf(t, r.url, "x", sealedchat.ProtocolOHTTP)
	text, err := stream(t, client, func(word string) {
		if word != "one" {
			return
		}
		r.stop()
		until(t, "not ready", func() bool {
			status, _ := get(t, watched+"/readyz")
			return status == http.StatusServiceUnavailable
		})
		if status, body := get(t, r.url+"/readyz"); status != http.StatusServiceUnavailable ||
			!strings.Contains(body, "draining") {
			t.Errorf("draining: %d %s", status, body)
		}
		if status, _ := get(t, r.url+"/healthz"); status != http.StatusOK {
			t.Errorf("alive: %d", status)
		}
		err := ask(t, clientOf(t, r.url, "x", sealedchat.ProtocolOHTTP))
		if err != nil {
			t.Errorf("draining, and a new client: %v", err)
		}
		until(t, "the listener closes", func() bool { return refuses(r.url) })
		if status, _ := get(t, watched+"/readyz"); status != http.StatusServiceUnavailable {
			t.Errorf("ending: %d", status)
		}
		go func() {
			m.words <- "two"
			m.words <- ""
		}()
	})
	if text != "one two " || err != nil {
		t.Errorf("the stream: %q, %v", text, err)
	}
	if status := r.end(t); status != 0 {
		t.Errorf("exit status %d: %s", status, r.log.String())
	}
}

// Other methods, and a path that looks like it, are not /readyz.
func TestReadyEndpoint(t *testing.T) {
	u := newUpstream(t, nil)
	r := start(t, "-upstream", u.URL+"/v1", "-allow-unauthenticated")
	for path, want := range map[string]int{"/readyz": 200, "/readyz/": 404, "/Readyz": 404,
		"/metrics": 404, "/healthz": 200} {
		if status, _ := get(t, r.url+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") == "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// An account has the places that -account-places gives it; another one has its own.
func TestAccountPlaces(t *testing.T) {
	u := newUpstream(t, make(chan struct{}))
	file := keyFile(t, "team-a key-a1\nteam-a key-a2\nteam-b key-b\n", 0o600)
	r := start(t, "-upstream", u.URL+"/v1", "-api-keys", file, "-plain-http", "-account-places",
		"1", "-places", "3")
	send := func(key string) error {
		_, err := clientOf(t, r.url, key, sealedchat.ProtocolOHTTP).Chat(t.Context(), question())
		return err
	}
	var all sync.WaitGroup
	for _, key := range []string{"key-a1", "key-b"} {
		all.Go(func() {
			if err := send(key); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		})
		<-u.began
	}
	for _, key := range []string{"key-a1", "key-a2", "key-b"} {
		if err := send(key); !errors.Is(err, sealedchat.ErrRateLimited) {
			t.Errorf("%s, a second request: %v", key, err)
		}
	}
	close(u.release)
	all.Wait()
	if err := send("key-a2"); err != nil {
		t.Error(err)
	}
}

// The audit log names the account; -allow and -trace-upstream do what they say.
func TestAuditAllowTrace(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	var mu sync.Mutex
	var traces []string
	u := newUpstream(t, nil)
	inner := u.Config.Handler
	u.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		traces = append(traces, r.URL.Path+" "+r.Header.Get("Traceparent"))
		mu.Unlock()
		inner.ServeHTTP(w, r)
	})
	dir := filepath.Join(t.TempDir(), "keys")
	audit := filepath.Join(t.TempDir(), "log", "audit.log")
	r := start(t, "-upstream", u.URL+"/v1", "-api-keys", keyFile(t, "team-a key-a\n", 0o600),
		"-plain-http", "-keys", dir, "-create-keys", "-audit", audit, "-trace-upstream", "-allow",
		"POST /v1/chat/completions, GET /health")
	client := clientOf(t, r.url, "key-a", sealedchat.ProtocolOHTTP)
	body, err := json.Marshal(question())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/v1/chat/completions": 200, "/health": 400,
		"/v1/models": 404} {
		method, content := http.MethodGet, io.Reader(nil)
		if strings.Contains(path, "chat") {
			method, content = http.MethodPost, strings.NewReader(string(body))
		}
		req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, content)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", trace)
		resp, err := client.HTTPClient().Do(req)
		if err != nil {
			t.Fatal(path, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	mu.Lock()
	if len(traces) != 2 {
		t.Errorf("%q", traces)
	}
	for _, line := range traces {
		if !strings.HasSuffix(line, " "+trace) {
			t.Errorf("upstream: %q", line)
		}
	}
	mu.Unlock()
	if status := r.end(t); status != 0 {
		t.Fatalf("exit status %d: %s", status, r.log.String())
	}
	told, err := os.ReadFile(audit)
	if err != nil || strings.Count(string(told), `"team-a"`) < 2 ||
		strings.Contains(string(told), "how are you") || strings.Contains(string(told), "key-a\"") {
		t.Errorf("%v, %s", err, told)
	}
	// the store is there, and the pins are the same
	again := start(t, "-upstream", u.URL+"/v1", "-allow-unauthenticated", "-plain-http", "-keys",
		dir)
	if again.ohttpPin != r.ohttpPin || again.pin != r.pin || r.pin == "" {
		t.Errorf("%q and %q after a restart", r.pin, again.pin)
	}
}

// A store that is not there, or has another passphrase, is an error that says what to do.
func TestWrongKeys(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "keys")
	args := []string{"-upstream", "https://a.invalid", "-allow-unauthenticated", "-keys", missing}
	if status, _, stderr := once(t, args...); status != 1 || !strings.Contains(stderr,
		"no key store in "+missing+"; -create-keys makes one\n") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("status %d, %q", status, stderr)
	}
	for env, want := range map[string]string{"": "set NOMYO_KEY_PASSWORD", "short": "8"} {
		var stderr safeBuffer
		p := &gatewayProgram{env: func(string) string { return env }, stdout: io.Discard,
			stderr: &stderr, keyBits: 2048}
		if env != "" {
			p.env = func(name string) string {
				return map[string]string{"NOMYO_KEY_PASSWORD": env}[name]
			}
		}
		status := p.run(t.Context(), append(args, "-create-keys"))
		if status == 0 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: status %d, %q", env, status, stderr.String())
		}
	}
	store, err := sealedchat.CreateKeyStore(t.Context(), missing,
		sealedchat.NewSecret([]byte("the right passphrase")),
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	store.Close()
	var stderr safeBuffer
	p := &gatewayProgram{env: func(name string) string {
		return map[string]string{"NOMYO_KEY_PASSWORD": "the wrong passphrase"}[name]
	}, stdout: io.Discard, stderr: &stderr, keyBits: 2048}
	if status := p.run(t.Context(), args); status != 1 ||
		!strings.HasSuffix(stderr.String(), "; look at NOMYO_KEY_PASSWORD, or "+
			"NOMYO_KEY_PASSWORD_FILE\n") || strings.Contains(stderr.String(), "the wrong") {
		t.Errorf("wrong passphrase: status %d, %q", status, stderr.String())
	}
}
