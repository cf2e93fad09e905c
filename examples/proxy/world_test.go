// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
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
	"github.com/seed-017344ad/sealedchat/examples/internal/demo"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	question = `{"model":"demo","messages":[{"role":"user","content":"Capital of France?"}]}`
	streamed = `{"model":"demo","stream":true,` +
		`"messages":[{"role":"user","content":"Capital of France?"}]}`
	serverKey = "the-api-key-of-the-server"
)

// safeBuffer is what a running proxy writes.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// running is a proxy that runs.
type running struct {
	t      *testing.T
	url    string // "http://127.0.0.1:PORT"
	client *http.Client
	stderr safeBuffer
	status chan int
	end    context.CancelFunc
	ended  sync.Once
}

// start starts a proxy on a port of its own, unless args say where.
func start(t *testing.T, env map[string]string, args ...string) *running {
	t.Helper()
	return startWith(t, func(*proxy) {}, env, args...)
}

// startWith is start with a program that change has changed.
func startWith(t *testing.T, change func(*proxy), env map[string]string,
	args ...string) *running {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	r := &running{t: t, status: make(chan int, 1), end: end, client: &http.Client{
		Transport: &http.Transport{DisableCompression: true}}}
	out, in := io.Pipe()
	p := &proxy{env: func(name string) string { return env[name] }, stdout: in, stderr: &r.stderr,
		keyBits: 2048, maxRetries: -1, grace: 10 * time.Second, bodyTime: time.Minute,
		wipeAfter: time.Hour, wipe: func() {}}
	change(p)
	go func() {
		r.status <- p.run(ctx, append([]string{"-listen", "127.0.0.1:0"}, args...))
		_ = in.Close()
	}()
	t.Cleanup(func() { r.stop() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if name == "listening" {
			r.url = value
		}
		if name == "server" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return r
		}
	}
	t.Fatalf("the proxy did not start: %s", r.stderr.String())
	return nil
}

// stop ends the proxy and returns its exit status.
func (r *running) stop() (status int) {
	r.ended.Do(func() {
		r.client.CloseIdleConnections()
		r.end()
		select {
		case status = <-r.status:
		case <-time.After(time.Minute):
			r.t.Error("the proxy does not end")
		}
	})
	return status
}

// request makes a request as curl would. Names and values of headers come in pairs. The name Host
// sets that.
func (r *running) request(method, path, body string, headers ...string) *http.Request {
	r.t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, content)
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		switch {
		case headers[i] == "Host":
			req.Host = headers[i+1]
		case headers[i+1] == "":
			req.Header.Del(headers[i])
		default:
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	return req
}

// answer is a whole answer.
type answer struct {
	*http.Response
	text string
	err  error // of reading the text
}

func (r *running) do(method, path, body string, headers ...string) answer {
	r.t.Helper()
	resp, err := r.client.Do(r.request(method, path, body, headers...))
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp, string(text), err}
}

// wantError fails the test unless the answer is an error in OpenAI's shape.
func (a answer) wantError(t *testing.T, what string, status int, code string) {
	t.Helper()
	var e struct {
		Error *struct {
			Message, Type string
			Code          any
		}
	}
	if err := json.Unmarshal([]byte(a.text), &e); err != nil || e.Error == nil ||
		a.StatusCode != status || e.Error.Code != code || e.Error.Message == "" ||
		e.Error.Type == "" || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: %d %s, want %d %s", what, a.StatusCode, a.text, status, code)
	}
}

// status asks the proxy how it is.
func (r *running) sealed() (s status) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.do("GET", "/sealed", "").text), &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// remote is a gateway in front of a model, for -url.
type remote struct {
	url, pin, cacert string
	mu               sync.Mutex
	keys             []string // the API keys that came
}

func newRemote(t *testing.T, protocol sealedchat.Protocol, model http.HandlerFunc) *remote {
	t.Helper()
	return newRemoteAt(t, protocol, model, nil)
}

// newRemoteAt is newRemote on hardware that makes evidence, unless attester is nil.
func newRemoteAt(t *testing.T, protocol sealedchat.Protocol, model http.HandlerFunc,
	attester attester) *remote {
	t.Helper()
	r := &remote{}
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if model == nil {
		model = demo.Model
	}
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: "https://model.invalid/v1", UpstreamTransport: demo.InMemory(model), Keys: keys,
		Protocols: []sealedchat.Protocol{protocol}, Attester: attester,
		Authenticate: func(req *http.Request) (string, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.keys = append(r.keys, req.Header.Get("Authorization"))
			return "anybody", nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gateway.Close() })
	list, err := gateway.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	srv := testkit.TLSServer(t, gateway)
	r.url, r.pin = srv.URL, program.Pins(list)[protocol]
	r.cacert = writeCert(t, srv)
	return r
}

func writeCert(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	return writePrivate(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: srv.Certificate().Raw})))
}

// args is a command line for r, with more behind it.
func (r *remote) args(more ...string) []string {
	return append([]string{"-url", r.url, "-cacert", r.cacert, "-pin", r.pin}, more...)
}

// lastKey is the API key that came last.
func (r *remote) lastKey() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.keys) == 0 {
		return ""
	}
	return r.keys[len(r.keys)-1]
}

func writePrivate(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
