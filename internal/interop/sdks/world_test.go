// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	prompt   = "PROMPT-MARKER-4c81e0"
	answer   = "ANSWER-MARKER-90d7a2"
	toolArgs = "ARGUMENT-MARKER-3b5f"
	toolSays = "RESULT-MARKER-e207c9"
	refused  = "REFUSAL-MARKER-71ad"
	goodKey  = "sk-good-key"
	wrongKey = "sk-wrong-key"
)

// All tests share a store, since making RSA keys takes a while. Clients may have it too.
var keys = sync.OnceValue(func() *sealedchat.KeyStore {
	store, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		panic(err)
	}
	return store
})

// world is a gateway in front of an upstream, a witness in front of it, and a client.
type world struct {
	witness *testkit.Witness
	client  *sealedchat.SecureCompletionClient
	pin     string
}

// settings change the configurations of a world.
type settings struct {
	gateway func(*sealedchat.GatewayConfig)
	client  func(*sealedchat.Config)
}

func newWorld(t *testing.T, protocol sealedchat.Protocol, upstream http.Handler,
	s settings) *world {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	secret := sealedchat.NewSecret([]byte(goodKey))
	defer secret.Destroy()
	authenticate, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	config := sealedchat.GatewayConfig{Upstream: up.URL + "/v1", Keys: keys(),
		Authenticate: authenticate}
	if s.gateway != nil {
		s.gateway(&config)
	}
	gateway, err := sealedchat.NewGateway(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gateway.Close() })
	server := httptest.NewServer(gateway)
	t.Cleanup(server.Close)
	w := &world{witness: testkit.NewWitness(t, server.Listener.Addr().String())}
	if w.pin, err = keys().Signer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if protocol == sealedchat.ProtocolEnvelope {
		list, err := gateway.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.pin = list[0].Fingerprint // the RSA key in use
	}
	of := sealedchat.Config{BaseURL: "http://" + w.witness.Addr(), InsecureAllowHTTP: true,
		Protocol: protocol, Trust: sealedchat.Pin(w.pin), MaxRetries: -1}
	if protocol == sealedchat.ProtocolEnvelope {
		of.Keys = keys()
	}
	if s.client != nil {
		s.client(&of)
	}
	if w.client, err = sealedchat.NewSecureCompletionClient(of); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.client.Close() })
	return w
}

func (w *world) base() string { return "http://" + w.witness.Addr() + "/v1" }

// open returns an SDK's way to the world.
func (w *world) open(t *testing.T, s sdk, key string) caller {
	t.Helper()
	call, err := s.open(w.base(), key, w.client.HTTPClient())
	if err != nil {
		t.Fatal(err)
	}
	return call
}

// each runs a test with every SDK over both protocols.
func each(t *testing.T, test func(t *testing.T, s sdk, protocol sealedchat.Protocol)) {
	for _, protocol := range protocols {
		for _, s := range sdks {
			t.Run(s.name+" "+string(protocol), func(t *testing.T) { test(t, s, protocol) })
		}
	}
}

var protocols = []sealedchat.Protocol{sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP}

// chat is an upstream of OpenAI's shape: it calls the tool that it is offered, and answers the last
// message otherwise.
func chat(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Stream   bool
		Tools    []any
		Messages []struct {
			Role    string
			Content any // a string, or parts
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.Messages) == 0 {
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	last := req.Messages[len(req.Messages)-1]
	said, _ := json.Marshal(last.Content)
	content, finish, calls := answer, "stop", []any(nil)
	for _, marker := range []string{prompt, toolSays} {
		if strings.Contains(string(said), marker) {
			content += " to " + marker
		}
	}
	if len(req.Tools) > 0 && last.Role != "tool" {
		content, finish = "", "tool_calls"
		calls = []any{map[string]any{"index": 0, "id": "call_1", "type": "function",
			"function": map[string]any{"name": "lookup",
				"arguments": `{"city":"` + toolArgs + `"}`}}}
	}
	if req.Stream {
		stream(w, content, finish, calls)
		return
	}
	complete(w, content, finish, calls)
}

// complete answers in one piece.
func complete(w http.ResponseWriter, content, finish string, calls []any) {
	message := map[string]any{"role": "assistant", "content": content}
	if calls != nil {
		message["tool_calls"] = calls
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1765250382, "model": "m",
		"choices": []any{map[string]any{"index": 0, "message": message, "finish_reason": finish}},
		"usage":   usage,
	})
}

var usage = map[string]int{"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}

// stream answers word by word; a tool call comes in two pieces.
func stream(w http.ResponseWriter, content, finish string, calls []any) {
	w.Header().Set("Content-Type", "text/event-stream")
	for word := range strings.SplitAfterSeq(content, " ") {
		event(w, map[string]any{"content": word}, nil, nil)
	}
	if calls != nil {
		call := calls[0].(map[string]any)
		function := call["function"].(map[string]any)
		arguments := function["arguments"].(string)
		function["arguments"] = arguments[:9]
		event(w, map[string]any{"tool_calls": calls}, nil, nil)
		event(w, map[string]any{"tool_calls": []any{map[string]any{"index": 0,
			"function": map[string]any{"arguments": arguments[9:]}}}}, nil, nil)
	}
	event(w, map[string]any{}, finish, usage)
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// event is one chunk of an upstream's stream.
func event(w http.ResponseWriter, delta map[string]any, finish, usage any) {
	text, _ := json.Marshal(map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1765250382, "model": "m",
		"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}},
		"usage":   usage,
	})
	fmt.Fprintf(w, "data: %s\n\n", text)
	w.(http.Flusher).Flush()
}
