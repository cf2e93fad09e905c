// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	prompt   = "PROMPT-MARKER-0d3f77"
	answer   = "ANSWER-MARKER-b8c214"
	toolArgs = "ARGUMENT-MARKER-66e1"
	toolSays = "RESULT-MARKER-1f90ab"
	goodKey  = "sk-good-key"
	wrongKey = "sk-wrong-key"
)

// upstream is an OpenAI-compatible server: it calls tools first, and their results lead to the
// answer.
type upstream struct {
	mu     sync.Mutex
	posts  int
	status int // to answer with instead; 0 = none
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.posts++
	status := u.status
	u.mu.Unlock()
	if r.Header.Get("Authorization") == "Bearer "+wrongKey {
		status = 401
	}
	var req struct {
		Stream        bool
		StreamOptions struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
		Tools    []any
		Messages []struct {
			Role, Content string
			ToolCallID    string `json:"tool_call_id"`
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.Messages) == 0 {
		status = 400
	}
	w.Header().Set("Content-Type", "application/json")
	if status != 0 {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"message":"no","type":"t","param":null,"code":"c"}}`)
		return
	}
	last := req.Messages[len(req.Messages)-1]
	message, finish := map[string]any{"role": "assistant",
		"content": answer + " to " + last.Content}, "stop"
	if len(req.Tools) > 0 && last.Role != "tool" {
		function := map[string]any{"name": "lookup", "arguments": `{"city":"` + toolArgs + `"}`}
		message, finish = map[string]any{
			"role": "assistant", "content": nil, "tool_calls": []any{map[string]any{"id": "call_1",
				"type": "function", "function": function}},
		}, "tool_calls"
	}
	if req.Stream {
		stream(w, message, finish, req.StreamOptions.IncludeUsage)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1765250382, "model": "m",
		"choices": []any{map[string]any{"index": 0, "message": message, "finish_reason": finish}},
		"usage":   usage,
	})
}

var usage = map[string]int{"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}

// stream answers as OpenAI does, word by word.
func stream(w http.ResponseWriter, message map[string]any, finish string, withUsage bool) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(choices []any, usage any) {
		text, _ := json.Marshal(map[string]any{
			"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1765250382,
			"model": "m", "choices": choices, "usage": usage,
		})
		fmt.Fprintf(w, "data: %s\n\n", text)
	}
	delta := func(d map[string]any, finish any) {
		send([]any{map[string]any{"index": 0, "delta": d, "finish_reason": finish}}, nil)
	}
	delta(map[string]any{"role": "assistant", "content": ""}, nil)
	content, _ := message["content"].(string)
	for word := range strings.SplitAfterSeq(content, " ") {
		delta(map[string]any{"content": word}, nil)
	}
	if calls, ok := message["tool_calls"].([]any); ok {
		calls[0].(map[string]any)["index"] = 0
		delta(map[string]any{"tool_calls": calls}, nil)
	}
	delta(map[string]any{}, finish)
	if withUsage {
		send([]any{}, usage)
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// All tests share keys, since making them takes a while.
var keys = sync.OnceValues(func() (gateway, client *sealedchat.KeyStore) {
	var stores [2]*sealedchat.KeyStore
	for i := range stores {
		var err error
		if stores[i], err = sealedchat.NewEphemeralKeyStore(
			&sealedchat.KeyStoreOptions{Bits: 2048}); err != nil {
			panic(err)
		}
		if _, err = stores[i].Public(context.Background()); err != nil {
			panic(err)
		}
	}
	return stores[0], stores[1]
})

// world is an upstream with a gateway in front of it, and the witnesses between them and the SDKs.
type world struct {
	*upstream
	gateway *sealedchat.Gateway
	server  *httptest.Server // the gateway's
	witness *testkit.Witness // in front of the gateway; nil over TLS
	plain   *testkit.Witness // in front of the upstream
	fetches int              // of the gateway's key
	sealed  int              // requests to the gateway
	peers   map[string]bool  // client addresses that the gateway saw: one for each connection
}

func newWorld(t *testing.T, tls bool) *world {
	t.Helper()
	w := &world{upstream: &upstream{}, peers: make(map[string]bool)}
	up := httptest.NewServer(w.upstream)
	t.Cleanup(up.Close)
	w.plain = testkit.NewWitness(t, up.Listener.Addr().String())
	gatewayKeys, _ := keys()
	secret := sealedchat.NewSecret([]byte(goodKey))
	defer secret.Destroy()
	authenticate, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	w.gateway, err = sealedchat.NewGateway(sealedchat.GatewayConfig{Upstream: up.URL + "/v1",
		Keys: gatewayKeys, Authenticate: authenticate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.gateway.Close() })
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.peers[r.RemoteAddr] = true
		switch {
		case r.Method != http.MethodGet:
			w.sealed++
		case r.URL.Path == "/pki/public_key": // without the look at the other protocol's
			w.fetches++
		}
		w.mu.Unlock()
		w.gateway.ServeHTTP(rw, r)
	})
	if tls {
		w.server = testkit.TLSServer(t, handler)
		return w
	}
	w.server = httptest.NewServer(handler)
	t.Cleanup(w.server.Close)
	w.witness = testkit.NewWitness(t, w.server.Listener.Addr().String())
	return w
}

// url returns the address of the gateway, or of the witness if there is one.
func (w *world) url() string {
	if w.witness != nil {
		return "http://" + w.witness.Addr()
	}
	return w.server.URL
}

func (w *world) plainURL() string { return "http://" + w.plain.Addr() + "/v1" }

func (w *world) pin(t *testing.T) string {
	t.Helper()
	keys, err := w.gateway.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return keys[0].Fingerprint // the RSA key in use
}

// configOf is the fingerprint of a gateway's preferred key configuration.
func configOf(t *testing.T, gateway *sealedchat.Gateway) string {
	t.Helper()
	keys, err := gateway.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return keys[slices.IndexFunc(keys, func(k sealedchat.KeyInfo) bool {
		return k.Kind == "X-Wing"
	})].Fingerprint
}

// client returns a sealed client of the gateway that trusts pin.
func (w *world) client(t *testing.T, pin string) *sealedchat.SecureCompletionClient {
	t.Helper()
	_, clientKeys := keys()
	config := sealedchat.Config{
		BaseURL: w.url(), InsecureAllowHTTP: w.witness != nil, Keys: clientKeys,
		Trust: sealedchat.Pin(pin), MaxRetries: -1,
	}
	if w.witness == nil {
		transport := testkit.ClientTransport(w.server)
		t.Cleanup(transport.CloseIdleConnections)
		config.Transport = transport
	}
	client, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// counts returns the key fetches and sealed requests so far.
func (w *world) counts() (fetches, sealed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetches, w.sealed
}

func (w *world) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.peers)
}

// check asks the witnesses. Sealed tests must show no marker. Plain tests must show all of them;
// otherwise the markers prove nothing.
func (w *world) check(t *testing.T, sealed bool, markers ...string) {
	t.Helper()
	markers = append(markers, prompt, answer)
	switch {
	case !sealed:
		w.plain.MustSee(markers...)
	case w.witness != nil:
		w.witness.MustNotSee(markers...)
	}
}

// otherPin returns the fingerprint of a key that the gateway does not have.
func otherPin(pin string) string {
	return strings.Map(func(r rune) rune {
		if r == '0' {
			return '1'
		}
		return '0'
	}, pin)
}
