// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// everything is an upstream with several endpoints.
func everything(suffix string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var req struct {
			Stream   bool
			Messages []Message
		}
		if err := json.Unmarshal(body, &req); err != nil || len(req.Messages) == 0 {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		text := req.Messages[len(req.Messages)-1].Content + suffix
		if req.Stream {
			wordByWord(nil, strings.SplitAfter(text, " ")...)(w, r)
			return
		}
		answerText(text)(w, r)
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"MODEL-LISTED-55d0"}]}`)
	})
	mux.HandleFunc("POST /v1/embeddings", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(slices.Concat([]byte(`{"object":"list","data":[`), body, []byte(`]}`)))
	})
	return mux
}

// Both ends of this package: everything that a client can ask, past a witness who sees nothing of it.
func TestOHTTPEndToEnd(t *testing.T) {
	testkit.NoLeaks(t)
	const (
		prompt, answer, model = "PROMPT-MARKER-7a10c3", "ANSWER-MARKER-e2d946", "MODEL-MARKER-03bb7f"
		input                 = "INPUT-MARKER-9c61ee"
		apiKey                = "sk-KEY-MARKER-48f0d2"
	)
	auth, err := AuthenticateKeys(secret(t, apiKey))
	if err != nil {
		t.Fatal(err)
	}
	gateway := startGateway(t, everything(" "+answer), func(c *GatewayConfig) {
		c.Authenticate, c.AllowUnauthenticated, c.Tier = auth, false, TierHigh
	})
	srv := httptest.NewServer(gateway)
	defer srv.Close()
	witness := testkit.NewWitness(t, srv.Listener.Addr().String())
	configs := configsOf(t, gateway)
	if configs[0].Kind != "X-Wing" {
		t.Fatal(configs)
	}
	client := ohttpClient(t, "http://"+witness.Addr(), func(c *Config) {
		c.Trust, c.APIKey, c.Tier, c.OHTTP.Padding = Pin(configs[0].Fingerprint), secret(t, apiKey), TierHigh, 1024
	})
	request := &ChatRequest{Model: model, Messages: []Message{UserMessage(prompt)}}
	whole, err := client.Chat(t.Context(), request)
	if err != nil || whole.Text() != prompt+" "+answer {
		t.Fatalf("%v, %v", whole, err)
	}
	var streamed ChatAccumulator
	for chunk, err := range client.Stream(t.Context(), request) {
		if err != nil {
			t.Fatal(err)
		}
		streamed.Add(chunk)
	}
	if streamed.Response().Text() != whole.Text() {
		t.Errorf("streamed %q", streamed.Response().Text())
	}
	body, _ := request.encode()
	response, err := client.Complete(t.Context(), secret(t, string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Destroy()
	if err := response.Body.Use(func(b []byte) error { return json.Unmarshal(b, &whole) }); err != nil || !strings.Contains(whole.Text(), answer) {
		t.Errorf("%v, %v", whole, err)
	}
	for _, test := range []struct{ method, path, body, want string }{
		{"GET", "/v1/models", "", "MODEL-LISTED-55d0"},
		{"POST", "/v1/embeddings", `{"input":"` + input + `"}`, input},
		{"POST", "/v1/chat/completions", string(body), answer},
	} {
		req, _ := http.NewRequest(test.method, srv.URL+test.path, strings.NewReader(test.body))
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.HTTPClient().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(content), test.want) {
			t.Errorf("%s: %d %q, %v", test.path, resp.StatusCode, content, err)
		}
		resp.Body.Close()
	}
	req, _ := http.NewRequest("GET", srv.URL+"/v1/files", nil)
	resp, err := client.HTTPClient().Do(req)
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	if _, err := client.Chat(t.Context(), request, WithAPIKey(secret(t, "sk-another-key"))); !errors.Is(err, ErrAuthentication) {
		t.Errorf("another key: %v", err)
	}
	if _, err := client.Chat(t.Context(), request, WithTier(TierMaximum)); !errors.Is(err, ErrPermission) {
		t.Errorf("another tier: %v", err)
	}
	witness.MustSee("/.well-known/ohttp-gateway", ohttp.TypeRequest)
	witness.MustNotSee(prompt, answer, model, input, apiKey, "MODEL-LISTED-55d0", "chat/completions", "/v1/models", "embeddings",
		"application/json", "event-stream", "authorization", "Authorization", "security-tier", "Security-Tier", "chat.completion")
}

// A gateway that replaces its keys every day is followed by whoever remembers who signs for it.
func TestOHTTPRotationEndToEnd(t *testing.T) {
	keys, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1}})
	gateway := startGateway(t, everything("!"), func(c *GatewayConfig) { c.Keys = keys })
	srv := httptest.NewServer(gateway)
	defer srv.Close()
	signer := signerOf(t, gateway)
	store := memoryStore(t)
	first := configsOf(t, gateway)
	remembering := ohttpClient(t, srv.URL, func(c *Config) { c.Trust = FirstUse(store) })
	pinned := ohttpClient(t, srv.URL, func(c *Config) { c.Trust = Pin(signer) })
	strict := ohttpClient(t, srv.URL, func(c *Config) { c.Trust = Pin(first[0].Fingerprint) })
	for range 2 {
		for _, c := range []*SecureCompletionClient{remembering, pinned, strict} {
			if _, err := c.Chat(t.Context(), ask("x")); err != nil { // the replaced keys still open requests
				t.Fatal(err)
			}
		}
		if err := keys.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*SecureCompletionClient{remembering, pinned, strict} {
		c.server.mu.Lock()
		c.server.fetched = time.Time{} // as if an hour had passed
		c.server.mu.Unlock()
	}
	for _, c := range []*SecureCompletionClient{remembering, pinned} {
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Error(err)
		}
		key, err := c.ServerKey(t.Context())
		if err != nil || key.Fingerprint() == first[0].Fingerprint || key.Signer() != signer {
			t.Errorf("%v, %v", key, err)
		}
	}
	if _, err := strict.Chat(t.Context(), ask("x")); err == nil {
		t.Error("a key that was not pinned was used")
	}
}

// With padding, the length of a request is that of its multiple, whatever is in it.
func TestOHTTPPadding(t *testing.T) {
	const multiple = 512
	lengths := make(map[int]bool)
	g := newTiny(t, answerText("x"))
	g.outer = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			sealed, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(sealed)))
			lengths[len(sealed)] = true
		}
		return false
	}
	client := directClient(t, g, func(c *Config) { c.OHTTP.Padding = multiple })
	for n := range 2 * multiple {
		if _, err := client.Chat(t.Context(), ask(strings.Repeat("x", n))); err != nil {
			t.Fatal(err)
		}
	}
	for n := range lengths {
		const overhead = 7 + 1120 + 1 + 16 // header, enc, the final chunk's length and tag
		if (n-overhead)%multiple != 0 {
			t.Errorf("a request of %d bytes", n)
		}
	}
	if len(lengths) != 3 {
		t.Errorf("%d lengths: %v", len(lengths), lengths)
	}
}
