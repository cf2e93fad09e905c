// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

const (
	passphrase = "the store's passphrase"
	asChild    = "GATEWAY_TEST_CHILD"
)

// TestMain runs the program if the test's own binary is started as a replica.
func TestMain(m *testing.M) {
	switch os.Getenv(asChild) {
	case "":
	case "model":
		serveEchoes()
	default:
		main() // it does not return
	}
	os.Exit(m.Run())
}

// redisServer is a real Redis server, which can be killed and started again on the same port.
type redisServer struct {
	t    *testing.T
	path string
	port string
	dir  string // what it keeps is there when it starts again
	args []string
	cmd  *exec.Cmd
}

// startRedis skips the test if there is no redis-server, unless SEALEDCHAT_REDIS is "required".
func startRedis(t *testing.T, args ...string) *redisServer {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("SEALEDCHAT_REDIS") == "required" {
			t.Fatal(err)
		}
		t.Skip("no redis-server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	r := &redisServer{t: t, path: path, port: port, dir: t.TempDir(), args: args}
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *redisServer) url() string { return "redis://127.0.0.1:" + r.port + "/0" }

func (r *redisServer) start() {
	r.t.Helper()
	args := append([]string{"--port", r.port, "--bind", "127.0.0.1", "--save", "", "--appendonly",
		"no", "--dir", r.dir}, r.args...)
	r.cmd = exec.Command(r.path, args...)
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+r.port)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("redis-server does not start")
		}
	}
}

func (r *redisServer) kill() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

// model is the upstream. It counts requests. It streams on request, one word for each receive from
// words.
type model struct {
	*httptest.Server
	served atomic.Int64
	words  chan string
}

func startModel(t *testing.T) *model {
	t.Helper()
	m := &model{words: make(chan string)}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.served.Add(1)
		body, _ := io.ReadAll(r.Body)
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			_, _ = io.WriteString(w,
				`{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[`+
					`{"index":0,"message":{"role":"assistant","content":"fine"},`+
					`"finish_reason":"stop"}]}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case word := <-m.words:
				if word == "" {
					_, _ = io.WriteString(w, "data: [DONE]\n\n")
					return
				}
				event, _ := json.Marshal(map[string]any{
					"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
					"choices": []any{map[string]any{"index": 0,
						"delta": map[string]string{"content": word}}},
				})
				_, _ = fmt.Fprintf(w, "data: %s\n\n", event)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	t.Cleanup(m.Close)
	return m
}

// replica is one gateway process.
type replica struct {
	url  string
	pins map[string]string // by the text before the colon
	args []string
	cmd  *exec.Cmd
	log  safeBuffer
}

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

func gatewayCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{"-listen", "127.0.0.1:0", "-plain-http"},
		args...)...)
	cmd.Env = append(os.Environ(), asChild+"=1", "NOMYO_KEY_PASSWORD="+passphrase)
	return cmd
}

func startReplica(t *testing.T, args ...string) *replica {
	t.Helper()
	r := &replica{args: args}
	t.Cleanup(r.kill)
	r.start(t)
	return r
}

// start starts it, at its address if it had one before.
func (r *replica) start(t *testing.T) {
	t.Helper()
	args := r.args
	if r.url != "" {
		args = append(slices.Clone(args), "-listen", strings.TrimPrefix(r.url, "http://"))
	}
	r.pins, r.cmd = make(map[string]string), gatewayCommand(args...)
	r.cmd.Stderr = &r.log
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		r.pins[name] = value
		if name == "listening" {
			if r.url == "" { // it is read meanwhile
				r.url = value
			}
			return
		}
	}
	_ = r.cmd.Wait()
	t.Fatalf("the gateway did not start: %s", r.log.String())
}

func (r *replica) kill() {
	if r.cmd == nil || r.cmd.Process == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// world is three gateways that share a key store and a Redis server, behind a round-robin proxy.
type world struct {
	t        *testing.T
	redis    *redisServer
	model    *model
	replicas []*replica
	dir      string // of the key store
	proxy    *httptest.Server

	next  atomic.Int64
	mu    sync.Mutex
	took  map[string]int // requests by replica
	last  captured       // POST
	lastR *replica       // that took it
}

type captured struct {
	path   string
	header http.Header
	body   []byte
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, redis: startRedis(t), model: startModel(t),
		dir: filepath.Join(t.TempDir(), "keys"), took: make(map[string]int)}
	secret := newSecret(t, passphrase)
	keys, err := sealedchat.CreateKeyStore(t.Context(), w.dir, secret,
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	keys.Close()
	file := filepath.Join(t.TempDir(), "api-keys")
	if err := os.WriteFile(file, []byte("team "+apiKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.replicas = append(w.replicas, startReplica(t, "-upstream", w.model.URL+"/v1", "-keys",
			w.dir, "-replay", w.redis.url(), "-api-keys", file))
	}
	w.startProxy()
	return w
}

// startProxy starts the proxy in front of the replicas.
func (w *world) startProxy() {
	w.proxy = httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(*httputil.ProxyRequest) {}, Transport: w, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	})
	w.t.Cleanup(w.proxy.Close)
}

// RoundTrip sends a request to the next replica, or to the one after it if that one does not accept
// the connection.
func (w *world) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
	}
	for tries := 0; ; tries++ {
		r := w.replicas[int(w.next.Add(1))%len(w.replicas)]
		target, _ := url.Parse(r.url)
		again := req.Clone(req.Context())
		again.URL.Scheme, again.URL.Host, again.Body = target.Scheme, target.Host,
			io.NopCloser(bytes.NewReader(body))
		resp, err := http.DefaultTransport.RoundTrip(again)
		if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" &&
			tries < len(w.replicas) {
			continue
		}
		w.mu.Lock()
		w.took[r.url]++
		if req.Method == http.MethodPost {
			w.last, w.lastR = captured{req.URL.Path, req.Header.Clone(), body}, r
		}
		w.mu.Unlock()
		return resp, err
	}
}

// replay sends the captured request to a replica, past the proxy.
func (w *world) replay(c captured, r *replica) (*http.Response, []byte) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, r.url+c.path,
		bytes.NewReader(c.body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = c.header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, body
}

func (w *world) captured() (captured, *replica) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.lastR
}

func newSecret(t *testing.T, text string) *sealedchat.Secret {
	t.Helper()
	s := sealedchat.NewSecret([]byte(text))
	t.Cleanup(s.Destroy)
	return s
}

func (w *world) client(p sealedchat.Protocol) *sealedchat.SecureCompletionClient {
	w.t.Helper()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { keys.Close() })
	c, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: w.proxy.URL, Protocol: p, APIKey: newSecret(w.t, apiKey),
		Trust: sealedchat.TrustHTTPS(), Keys: keys,
		InsecureAllowHTTP: true, MaxRetries: -1, Timeout: 20 * time.Second,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func ask(t *testing.T, c *sealedchat.SecureCompletionClient) error {
	t.Helper()
	answer, err := c.Chat(t.Context(), question())
	if err == nil && answer.Text() != "fine" {
		return fmt.Errorf("answer %q", answer.Text())
	}
	return err
}

func question() *sealedchat.ChatRequest {
	return &sealedchat.ChatRequest{Model: "m",
		Messages: []sealedchat.Message{sealedchat.UserMessage("how are you?")}}
}
