// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Both ends of this package: everything that a client can ask, past a witness who sees nothing of
// it.
func TestOHTTPEndToEnd(t *testing.T) {
	testkit.NoLeaks(t)
	const (
		prompt, answer, model = "PROMPT-MARKER-7a10c3", "ANSWER-MARKER-e2d946",
			"MODEL-MARKER-03bb7f"
		input  = "INPUT-MARKER-9c61ee"
		apiKey = "sk-KEY-MARKER-48f0d2"
	)
	auth, err := sealedchat.AuthenticateKeys(secret(t, apiKey))
	if err != nil {
		t.Fatal(err)
	}
	gateway := startGateway(t, fakes.Everything(" "+answer), func(c *sealedchat.GatewayConfig) {
		c.Authenticate, c.AllowUnauthenticated, c.Tier = auth, false, sealedchat.TierHigh
	})
	srv := httptest.NewServer(gateway)
	defer srv.Close()
	witness := testkit.NewWitness(t, srv.Listener.Addr().String())
	configs := configsOf(t, gateway)
	if configs[0].Kind != "X-Wing" {
		t.Fatal(configs)
	}
	client := ohttpClient(t, "http://"+witness.Addr(), func(c *sealedchat.Config) {
		c.Trust, c.APIKey, c.Tier, c.OHTTP.Padding = sealedchat.Pin(configs[0].Fingerprint),
			secret(t, apiKey), sealedchat.TierHigh, 1024
	})
	request := &sealedchat.ChatRequest{Model: model,
		Messages: []sealedchat.Message{sealedchat.UserMessage(prompt)}}
	whole, err := client.Chat(t.Context(), request)
	if err != nil || whole.Text() != prompt+" "+answer {
		t.Fatalf("%v, %v", whole, err)
	}
	var streamed sealedchat.ChatAccumulator
	for chunk, err := range client.Stream(t.Context(), request) {
		if err != nil {
			t.Fatal(err)
		}
		streamed.Add(chunk)
	}
	if streamed.Response().Text() != whole.Text() {
		t.Errorf("streamed %q", streamed.Response().Text())
	}
	body := `{"model":"` + model + `","messages":[{"role":"user","content":"` + prompt + `"}]}`
	response, err := client.Complete(t.Context(), secret(t, body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Destroy()
	if err := response.Body.Use(func(b []byte) error {
		return json.Unmarshal(b, &whole)
	}); err != nil || !strings.Contains(whole.Text(), answer) {
		t.Errorf("%v, %v", whole, err)
	}
	for _, test := range []struct{ method, path, body, want string }{
		{"GET", "/v1/models", "", "MODEL-LISTED-55d0"},
		{"POST", "/v1/embeddings", `{"input":"` + input + `"}`, input},
		{"POST", "/v1/chat/completions", body, answer},
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
	if _, err := client.Chat(t.Context(), request,
		sealedchat.WithAPIKey(secret(t, "sk-another-key"))); !errors.Is(err,
		sealedchat.ErrAuthentication) {
		t.Errorf("another key: %v", err)
	}
	if _, err := client.Chat(t.Context(), request,
		sealedchat.WithTier(sealedchat.TierMaximum)); !errors.Is(err, sealedchat.ErrPermission) {
		t.Errorf("another tier: %v", err)
	}
	witness.MustSee("/.well-known/ohttp-gateway", ohttp.TypeRequest)
	witness.MustNotSee(prompt, answer, model, input, apiKey, "MODEL-LISTED-55d0",
		"chat/completions", "/v1/models", "embeddings",
		"application/json", "event-stream", "authorization", "Authorization", "security-tier",
		"Security-Tier", "chat.completion")
}

// With padding, the length of a request is that of its multiple, whatever is in it.
func TestOHTTPPadding(t *testing.T) {
	const multiple = 512
	lengths := make(map[int]bool)
	g := fakes.NewGateway(t, testkit.AnswerText("x"))
	g.Outer = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			sealed, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(sealed)))
			lengths[len(sealed)] = true
		}
		return false
	}
	client := directClient(t, g, func(c *sealedchat.Config) { c.OHTTP.Padding = multiple })
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

// configsOf are a gateway's key configurations.
func configsOf(t testing.TB, g *sealedchat.Gateway) []sealedchat.KeyInfo {
	t.Helper()
	keys, err := g.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(keys, func(k sealedchat.KeyInfo) bool {
		return k.Kind == "RSA" || k.Kind == "Ed25519"
	})
}
