// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

const (
	apiKey      = "first-api-key"
	upstreamKey = "key-for-the-upstream"
	prompt      = "A prompt that no log may hold"
)

// upstream is a stub of an OpenAI-compatible server. It waits for release, if that is set.
type upstream struct {
	*httptest.Server
	release chan struct{}
	began   chan struct{}

	mu            sync.Mutex
	authorization []string
}

func newUpstream(t *testing.T, release chan struct{}) *upstream {
	u := &upstream{release: release, began: make(chan struct{}, 8)}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request sealedchat.ChatRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil ||
			r.URL.Path != "/v1/chat/completions" {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		u.mu.Lock()
		u.authorization = append(u.authorization, r.Header.Get("Authorization"))
		u.mu.Unlock()
		u.began <- struct{}{}
		if u.release != nil {
			select {
			case <-u.release:
			case <-r.Context().Done():
				return
			}
		}
		fmt.Fprintf(w,
			`{"id":"1","object":"chat.completion","created":1,"model":%q,"choices":[{"index":0,`+
				`"message":{"role":"assistant","content":%q},"finish_reason":"stop"}]}`,
			request.Model, "echo of "+request.Messages[len(request.Messages)-1].Text())
	}))
	t.Cleanup(u.Close)
	return u
}

// running is a gateway that was started by run.
type running struct {
	url, pin, certificate, try string
	ohttpPin, ohttpTry         string
	metrics                    string
	hup                        chan os.Signal
	protocol                   sealedchat.Protocol     // that chat speaks
	tier                       sealedchat.SecurityTier // that chat asks for
	trust                      sealedchat.Trust        // of chat, in place of the pin; nil = the pin
	stop                       context.CancelFunc
	status                     chan int
	log                        safeBuffer
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith is start on a machine that may make evidence.
func startWith(t *testing.T, hardware func(o *options) (attester, error),
	args ...string) *running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &running{stop: stop, status: make(chan int, 1), hup: make(chan os.Signal, 1)}
	out, in := io.Pipe()
	p := &gatewayProgram{env: environment, stdout: in, stderr: &r.log, keyBits: 2048, hup: r.hup,
		attester: hardware}
	done := make(chan struct{})
	go func() {
		r.status <- p.run(ctx, append([]string{"-listen", "127.0.0.1:0"}, args...))
		in.Close()
		close(done)
	}()
	t.Cleanup(func() { stop(); <-done })
	lines := bufio.NewScanner(out)
	for r.url == "" && lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "listening":
			r.url = value
		case "pin (envelope)":
			r.pin = value
		case "certificate":
			r.certificate = value
		case "try (envelope)":
			r.try = value
		case "pin (ohttp)":
			r.ohttpPin = value
		case "try (ohttp)":
			r.ohttpTry = value
		case "metrics":
			r.metrics = value
		}
	}
	if r.url == "" {
		<-done
		t.Fatalf("the gateway did not start: %s", r.log.String())
	}
	go io.Copy(io.Discard, out)
	return r
}

// end asks the gateway to end and returns its exit status.
func (r *running) end(t *testing.T) int {
	t.Helper()
	r.stop()
	select {
	case status := <-r.status:
		return status
	case <-time.After(time.Minute):
		t.Fatal("the gateway does not end")
		return -1
	}
}

func environment(name string) string {
	return map[string]string{
		"NOMYO_UPSTREAM_KEY": upstreamKey, "NOMYO_KEY_PASSWORD": passphrase,
	}[name]
}

// keyFile writes a file of API keys and returns its name.
func keyFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.txt")
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil { // the umask may have changed it
		t.Fatal(err)
	}
	return name
}

// chat asks the gateway through the public package, with only the certificate in file trusted for
// TLS.
func chat(t *testing.T, r *running, certFile, key string) (string, error) {
	t.Helper()
	text, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	transport := sealedchat.DefaultTransport()
	transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
		t.Fatal("no certificate was written")
	}
	defer transport.CloseIdleConnections()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	config := sealedchat.Config{
		BaseURL: r.url, Trust: sealedchat.Pin(r.pin), Keys: keys, Transport: transport,
		Timeout: 20 * time.Second, MaxRetries: -1,
		Tier: r.tier, Protocol: r.protocol,
	}
	if r.protocol == sealedchat.ProtocolOHTTP {
		config.Trust = sealedchat.Pin(r.ohttpPin)
	}
	if r.trust != nil {
		config.Trust = r.trust
	}
	if key != "" {
		config.APIKey = sealedchat.NewSecret([]byte(key))
		defer config.APIKey.Destroy()
	}
	client, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	resp, err := client.Chat(t.Context(), &sealedchat.ChatRequest{
		Model: "stub", Messages: []sealedchat.Message{sealedchat.UserMessage(prompt)},
	})
	if err != nil {
		return "", err
	}
	return resp.Text(), nil
}
