// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

var protocols = []sealedchat.Protocol{sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP}

// The cache behaves like that of the package, and several gateways share it.
func TestReplays(t *testing.T) {
	server := startRedis(t)
	client, err := connect(server.url(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	other, err := connect(server.url(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	a := &replays{redis: client, prefix: "t:"}
	b := &replays{redis: other, prefix: "t:"}
	until := time.Now().Add(time.Minute)
	claim := func(c *replays, id, who byte, until time.Time, want bool) {
		t.Helper()
		if got, err := c.Claim(t.Context(), [32]byte{id}, [32]byte{who}, until); got != want ||
			err != nil {
			t.Errorf("Claim(%d, %d): %v, %v", id, who, got, err)
		}
	}
	release := func(c *replays, id byte) {
		t.Helper()
		if err := c.Release(t.Context(), [32]byte{id}); err != nil {
			t.Error(err)
		}
	}
	claim(a, 1, 1, until, true)
	claim(a, 1, 1, until, false)
	claim(b, 1, 1, until, false)
	release(b, 1)
	release(b, 1)
	claim(b, 1, 2, until, false) // another client
	claim(a, 1, 1, until, true)
	claim(b, 1, 1, until, false)
	release(a, 99) // never claimed
	claim(a, 99, 1, until, true)
	claim(a, 2, 0, until, true) // a request of the second protocol
	claim(b, 2, 0, until, false)
	claim(a, '-', '-', until, true) // bytes that look like a state
	claim(a, '-', '-', until, false)
	claim(a, 3, 1, time.Now().Add(-time.Hour), true)
	time.Sleep(20 * time.Millisecond)
	claim(b, 3, 1, until, true) // its time was over
	a.margin = time.Minute
	claim(a, 4, 1, time.Now().Add(-time.Second), true)
	time.Sleep(20 * time.Millisecond)
	claim(b, 4, 1, until, false) // kept for the margin
	if life := client.PTTL(t.Context(), a.key([32]byte{1})[0]).Val(); life <= 50*time.Second ||
		life > time.Minute {
		t.Errorf("after a release and a claim an id lives for %v", life)
	}
	other.FlushAll(t.Context())
	var told atomic.Int64
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			c := []*replays{a, b}[i%2]
			if ok, err := c.Claim(t.Context(), [32]byte{5}, [32]byte{}, until); err != nil {
				t.Error(err)
			} else if ok {
				told.Add(1)
			}
		})
	}
	all.Wait()
	if told.Load() != 1 {
		t.Errorf("%d of those who came at once were told true", told.Load())
	}
	server.kill()
	start := time.Now()
	if ok, err := a.Claim(t.Context(), [32]byte{6}, [32]byte{}, until); ok || err == nil {
		t.Errorf("without a server: %v, %v", ok, err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("giving up took %v", took)
	}
}

// Both protocols work through the proxy with all replicas. A request that one replica has served is
// refused by each of them.
func TestReplayToAnotherReplica(t *testing.T) {
	w := newWorld(t)
	for _, p := range protocols {
		c := w.client(p)
		for range 6 {
			if err := ask(t, c); err != nil {
				t.Fatalf("%v: %v", p, err)
			}
		}
	}
	w.mu.Lock()
	if len(w.took) != 3 {
		t.Errorf("requests by replica: %v", w.took)
	}
	w.mu.Unlock()

	if err := ask(t, w.client(sealedchat.ProtocolEnvelope)); err != nil {
		t.Fatal(err)
	}
	sent, _ := w.captured()
	served := w.model.served.Load()
	for i, r := range w.replicas {
		if resp, body := w.replay(sent, r); resp.StatusCode != http.StatusConflict {
			t.Errorf("envelope, replica %d: %d %s", i, resp.StatusCode, body)
		}
	}
	sent, open := w.sealed(apiKey)
	if resp, body := w.replay(sent, w.replicas[0]); resp.StatusCode != 200 || open(body) != 200 {
		t.Fatalf("ohttp: %d", resp.StatusCode)
	}
	for i, r := range w.replicas {
		sentAgain, openAgain := w.sealed(apiKey)
		if i > 0 {
			_, _ = w.replay(sentAgain, r)
			if _, body := w.replay(sentAgain,
				w.replicas[i-1]); openAgain(body) != http.StatusConflict {
				t.Errorf("ohttp, replica %d: served again", i)
			}
		}
		if resp, _ := w.replay(sent, r); resp.StatusCode != 200 ||
			resp.Header.Get("Content-Type") != ohttp.TypeResponse {
			t.Errorf("ohttp, replica %d: the refusal is not sealed: %d", i, resp.StatusCode)
		}
	}
	if n := w.model.served.Load() - served; n != 3 {
		t.Errorf("%d requests went upstream, want 3", n)
	}
	// The gateways remember no request of a client that they do not know.
	sent, open = w.sealed("somebody else's")
	if _, body := w.replay(sent, w.replicas[0]); open(body) != http.StatusUnauthorized {
		t.Error("a wrong key is served")
	}
}

// sealed makes a request of the second protocol, and a function that opens one answer to it.
func (w *world) sealed(key string) (captured, func([]byte) int) {
	w.t.Helper()
	q, err := ohttp.NewRequest(w.config(w.replicas[0]))
	if err != nil {
		w.t.Fatal(err)
	}
	content := []byte(`{"model":"m","messages":[{"role":"user","content":"how are you?"}]}`)
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{
		Method: http.MethodPost, Scheme: "https", Authority: "a.test", Path: "/v1/chat/completions",
		Header: []bhttp.Field{
			{Name: "content-type", Value: "application/json"},
			{Name: "authorization", Value: "Bearer " + key},
			{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
		},
	}, content, nil, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := q.Seal(nil, message)
	if err != nil {
		w.t.Fatal(err)
	}
	c := captured{"/.well-known/ohttp-gateway", http.Header{"Content-Type": {ohttp.TypeRequest}},
		body}
	return c, func(answer []byte) int {
		w.t.Helper()
		r, err := q.Response(bytes.NewReader(answer), 0)
		if err != nil {
			w.t.Fatal(err)
		}
		defer r.Close()
		head, content, err := bhttp.ReadResponse(r, bhttp.Limits{})
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := content.ReadAll(); err != nil {
			w.t.Fatal(err)
		}
		return head.Status
	}
}

// config returns the configuration that a replica lists.
func (w *world) config(r *replica) *ohttp.Config {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet,
		r.url+"/.well-known/ohttp-gateway", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var list bytes.Buffer
	if _, err := list.ReadFrom(resp.Body); err != nil {
		w.t.Fatal(err)
	}
	configs, err := ohttp.ParseConfigs(list.Bytes())
	if err != nil {
		w.t.Fatalf("%d: %v", resp.StatusCode, err)
	}
	c, err := ohttp.Choose(configs)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// A rotation by any process reaches all replicas: they list the new keys, open requests for the new
// keys, and still open requests for the old ones. The signer stays.
func TestRotationReachesAll(t *testing.T) {
	w := newWorld(t)
	for _, r := range w.replicas[1:] {
		for name, pin := range w.replicas[0].pins {
			if name != "listening" && r.pins[name] != pin {
				t.Errorf("%s: %s and %s", name, pin, r.pins[name])
			}
		}
	}
	old := make([]*sealedchat.SecureCompletionClient, len(protocols))
	for i, p := range protocols {
		old[i] = w.client(p)
		if err := ask(t, old[i]); err != nil {
			t.Fatal(err)
		}
	}
	before := w.config(w.replicas[0])
	sentBefore, openBefore := w.sealed(apiKey)

	keys, err := sealedchat.OpenKeyStore(t.Context(), w.dir, newSecret(t, passphrase),
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if err := keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	rsa, err := keys.Public(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	var now *ohttp.Config
	for i, r := range w.replicas {
		for now = w.config(r); now.Equal(before); now = w.config(r) {
			if time.Now().After(deadline) {
				t.Fatalf("replica %d lists the old keys", i)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if first := w.config(w.replicas[0]); !first.Equal(now) {
		t.Error("the replicas list different keys")
	}
	for i, p := range protocols {
		fresh := w.client(p)
		for range 6 { // two for each replica
			if err := ask(t, fresh); err != nil {
				t.Errorf("%v, a client with the new key: %v", p, err)
			}
			if err := ask(t, old[i]); err != nil {
				t.Errorf("%v, a client with the old key: %v", p, err)
			}
		}
	}
	if _, body := w.replay(sentBefore, w.replicas[2]); openBefore(body) != 200 {
		t.Error("what was sealed before the rotation does not open")
	}
	for i := range w.replicas {
		for {
			// through the proxy: one replica after the other
			key, err := w.client(sealedchat.ProtocolEnvelope).ServerKey(t.Context())
			if err == nil && key.Fingerprint() == rsa.Fingerprint() {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d: the old RSA key: %v", i, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// When one replica is killed, its stream ends in an error, and all other clients are served.
func TestReplicaKilled(t *testing.T) {
	w := newWorld(t)
	streaming := w.client(sealedchat.ProtocolOHTTP)
	var words []string
	var streamErr error
	go func() { w.model.words <- "one" }()
	for chunk, err := range streaming.Stream(t.Context(), question()) {
		if err != nil {
			streamErr = err
			break
		}
		words = append(words, chunk.Text())
		_, r := w.captured()
		r.kill()
	}
	if streamErr == nil || len(words) != 1 {
		t.Errorf("the stream: %q, %v", words, streamErr)
	}
	if !errors.Is(streamErr, sealedchat.ErrTruncated) &&
		!errors.Is(streamErr, sealedchat.ErrConnection) {
		t.Errorf("the stream ended with %v", streamErr)
	}
	for _, p := range protocols {
		c := w.client(p)
		for range 6 {
			if err := ask(t, c); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
	}
}

// Without Redis, requests are refused before they go upstream, with an error that says so; requests
// that are running continue. When Redis is back, requests are served.
func TestRedisDown(t *testing.T) {
	w := newWorld(t)
	clients := make([]*sealedchat.SecureCompletionClient, len(protocols))
	for i, p := range protocols {
		clients[i] = w.client(p)
		if err := ask(t, clients[i]); err != nil {
			t.Fatal(err)
		}
	}
	var words []string
	down := false
	go func() { w.model.words <- "one" }()
	for chunk, err := range clients[1].Stream(t.Context(), question()) {
		if err != nil {
			t.Fatalf("the stream in flight: %v", err)
		}
		words = append(words, chunk.Text())
		if down {
			continue
		}
		w.redis.kill()
		down = true
		served := w.model.served.Load()
		for i, p := range protocols {
			for range 3 {
				if err := ask(t, clients[i]); !errors.Is(err, sealedchat.ErrUnavailable) {
					t.Errorf("%v without Redis: %v", p, err)
				}
			}
		}
		if w.model.served.Load() != served {
			t.Error("a request went upstream")
		}
		go func() {
			w.model.words <- "two"
			w.model.words <- ""
		}()
	}
	if strings.Join(words, " ") != "one two" {
		t.Errorf("the stream in flight: %q", words)
	}
	w.redis.start()
	for i, p := range protocols {
		for range 6 {
			if err := ask(t, clients[i]); err != nil {
				t.Errorf("%v, Redis is back: %v", p, err)
			}
		}
	}
}

// With the settings that -replay-durable wants, what was served before kill -9 of Redis is refused
// after it, by every replica; without them it would be served once more.
func TestReplayAfterRedisKill(t *testing.T) {
	for _, durable := range []bool{true, false} {
		args, flags := []string(nil), []string{"-upstream", "", "-allow-unauthenticated"}
		if durable {
			args = []string{"--appendonly", "yes", "--appendfsync", "always"}
			flags = append(flags, "-replay-durable")
		}
		w := &world{t: t, redis: startRedis(t, args...), model: startModel(t),
			dir: filepath.Join(t.TempDir(), "keys"), took: make(map[string]int)}
		flags[1] = w.model.URL + "/v1"
		for range 2 {
			w.replicas = append(w.replicas, startReplica(t, append(flags, "-keys", w.dir,
				"-create-keys", "-replay", w.redis.url())...))
		}
		sent, open := w.sealed("nobody's")
		if _, body := w.replay(sent, w.replicas[0]); open(body) != http.StatusOK {
			t.Fatal("not served")
		}
		w.redis.kill()
		w.redis.start()
		for _, r := range w.replicas {
			until(t, "ready", func() bool {
				status, _ := get(t, r.url+"/readyz")
				return status == http.StatusOK
			})
		}
		served := w.model.served.Load()
		for range 2 {
			for _, r := range w.replicas {
				_, _ = w.replay(sent, r)
			}
		}
		if n := w.model.served.Load() - served; durable && n != 0 || !durable && n != 1 {
			t.Errorf("durable: %v; served %d times after the kill", durable, n)
		}
	}
}

// A server that forgets when it is full is refused at the start.
func TestEvictionIsRefused(t *testing.T) {
	server := startRedis(t, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
	client, err := connect(server.url(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := checkEviction(t.Context(), client); err == nil ||
		!strings.Contains(err.Error(), "noeviction") {
		t.Errorf("%v", err)
	}
	client.ConfigSet(t.Context(), "maxmemory-policy", "noeviction")
	if err := checkEviction(t.Context(), client); err != nil {
		t.Error(err)
	}
	// A full server refuses the claim.
	client.ConfigSet(t.Context(), "maxmemory", "1")
	c := &replays{redis: client, prefix: "t:", margin: time.Minute}
	if ok, err := c.Claim(t.Context(), [32]byte{1}, [32]byte{}, time.Now()); ok || err == nil {
		t.Errorf("full: %v, %v", ok, err)
	}
	server.kill()
	if err := checkEviction(t.Context(), client); err == nil {
		t.Error("no server is fine")
	}
}
