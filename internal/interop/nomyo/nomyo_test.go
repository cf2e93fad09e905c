// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// say returns a request with one message, and more members in pairs of name and value.
func say(text string, more ...any) map[string]any {
	request := map[string]any{"model": "test-model",
		"messages": []any{map[string]any{"role": "user", "content": text}}}
	for i := 0; i < len(more); i += 2 {
		request[more[i].(string)] = more[i+1]
	}
	return request
}

// completion has the members of a response that the tests look at.
type completion struct {
	ID, Object, Model string
	Choices           []struct {
		Message struct {
			Content   *string
			ToolCalls []struct {
				ID       string
				Function struct{ Name, Arguments string }
			} `json:"tool_calls"`
		}
		FinishReason string `json:"finish_reason"`
	}
	Usage    map[string]int
	Metadata struct {
		PayloadID   string `json:"payload_id"`
		ProcessedAt int64  `json:"processed_at"`
		IsEncrypted bool   `json:"is_encrypted"`
		Algorithm   string `json:"encryption_algorithm"`
		Status      string `json:"response_status"`
		Tier        string `json:"security_tier"`
	} `json:"_metadata"`
}

func (c *completion) text() string {
	if len(c.Choices) == 0 || c.Choices[0].Message.Content == nil {
		return ""
	}
	return *c.Choices[0].Message.Content
}

// served fails the test if the outcome is no response.
func served(t *testing.T, o outcome) *completion {
	t.Helper()
	if o.Error != "" {
		t.Fatalf("raised %v", o)
	}
	c := new(completion)
	if err := json.Unmarshal(o.Response, c); err != nil {
		t.Fatalf("%v in %v", err, o)
	}
	if c.Object != "chat.completion" || len(c.Choices) != 1 {
		t.Fatalf("no completion: %v", o)
	}
	return c
}

// raised fails the test if the outcome is not an exception of this class with this status and
// message.
func raised(t *testing.T, o outcome, class string, status int, message string) {
	t.Helper()
	if o.Error != class || o.Status != status || o.Message != message {
		t.Errorf("got %v\nwant %s(%d): %s", o, class, status, message)
	}
}

const unicodeText = "Grüße, мир, 世界, 👩🏽‍🚀, \u0000\u001f\u007f\u2028\u2029, \"quotes\\ and " +
	"</script>\", e\u0301, \U0010FFFF, \ufeff."

func TestNomyoChat(t *testing.T) {
	needPython(t)
	certs := newCertificates(t)
	mebibyte := strings.Repeat("0123456789abcde\n", 1<<16)
	s := newSite(t, certs, &upstream{}, nil, nil)
	outcomes := runNomyo(t, certs.authority, job{BaseURL: s.url, Requests: []map[string]any{
		say("What is the capital of France?", "temperature", 0.7, "seed", 1<<53-1, "stop",
			[]string{"\n", "é"}),
		say(unicodeText),
		say(mebibyte),
		say("stream please", "stream", true, "stream_options",
			map[string]any{"include_usage": true}),
	}})[0]

	posts, gets := s.wire.arrivals(http.MethodPost), s.wire.arrivals(http.MethodGet)
	if len(posts) != 4 || len(gets) != 4 {
		t.Fatalf("%d POSTs and %d GETs, want 4 and 4: the server's key is fetched for every chat",
			len(posts), len(gets))
	}
	for i, text := range []string{"What is the capital of France?", unicodeText, mebibyte,
		"stream please"} {
		c := served(t, outcomes[i])
		if c.text() != text || c.ID != "chatcmpl-1" || c.Usage["total_tokens"] != 30 {
			t.Errorf("answer %d is not what the upstream said: %.200s", i, outcomes[i].Response)
		}
		m := c.Metadata
		if m.PayloadID != posts[i].header.Get("X-Payload-ID") || m.ProcessedAt == 0 ||
			!m.IsEncrypted ||
			m.Algorithm != "hybrid-aes256-rsa4096" || m.Status != "success" ||
			m.Tier != "standard" {
			t.Errorf("answer %d: _metadata is %+v", i, m)
		}
		checkWire(t, posts[i], "%0A")
	}
	for i, want := range []string{
		`"temperature": 0.7`, `"seed": 9007199254740991`, `"stop": ["\n", "\u00e9"]`,
		`"messages": [{"`,
	} {
		if !bytes.Contains(s.upstream.requests()[0], []byte(want)) {
			t.Errorf("%d: the upstream did not get %s as it was sealed: %s", i, want,
				s.upstream.requests()[0])
		}
	}
	if last := s.upstream.requests()[3]; bytes.Contains(last, []byte(`"stream":`)) ||
		bytes.Contains(last, []byte(`"stream_options":`)) {
		t.Errorf("the upstream was asked to stream: %s", last)
	}
}

// checkWire checks a sealed request of nomyo, whose X-Public-Key ends with end.
func checkWire(t *testing.T, a arrival, end string) {
	t.Helper()
	h := a.header
	if a.path != "/v1/chat/secure_completion" ||
		h.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("POST %s with Content-Type %q", a.path, h.Get("Content-Type"))
	}
	key := h.Get("X-Public-Key")
	if !strings.HasSuffix(key, "-----END%20PUBLIC%20KEY-----"+end) ||
		strings.Contains(key, "%2F") || !strings.Contains(key, "/") {
		t.Errorf("X-Public-Key is written differently: %s", key)
	}
	text, err := url.PathUnescape(key)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := sealedchat.ParsePublicKey([]byte(text)); err != nil || k.Bits() != 4096 {
		t.Errorf("X-Public-Key: %v, %v", k, err)
	}
	var e map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &e); err != nil {
		t.Fatal(err)
	}
	if len(e) != 6 || !bytes.HasPrefix(a.body,
		[]byte(`{"version": "1.0", "algorithm": "hybrid-aes256-rsa4096", `+
			`"encrypted_payload": {"ciphertext": "`)) {
		t.Errorf("the envelope is written differently: %.200s", a.body)
	}
}

// Over plain http, so that the bytes on the wire can be searched.
func TestNomyoOnTheWire(t *testing.T) {
	needPython(t)
	const prompt, reply, header = "the prompt is nobody's business", "nor is the answer to it",
		"X-Payload-Id"
	s := newSite(t, nil, &upstream{answer: func(string) any { return reply }}, nil, nil)
	witness := testkit.NewWitness(t, strings.TrimPrefix(s.url, "http://"))
	dir := keyDir(t, "client-4096")
	o := runNomyo(t, "", job{BaseURL: "http://" + witness.Addr(), KeyDir: dir,
		Requests: []map[string]any{say(prompt)}})[0][0]
	if got := served(t, o).text(); got != reply {
		t.Errorf("answer %q", got)
	}
	posts := s.wire.arrivals(http.MethodPost)
	if len(posts) != 1 {
		t.Fatalf("%d POSTs", len(posts))
	}
	checkWire(t, posts[0], "") // a key that was loaded from a file has lost its final line break
	witness.MustNotSee(prompt, reply)
	witness.MustSee(posts[0].header.Get(header))
}

func TestNomyoTools(t *testing.T) {
	needPython(t)
	certs := newCertificates(t)
	tools := []any{map[string]any{"type": "function", "function": map[string]any{
		"name": "get_weather", "description": "The weather in a city",
		"parameters": map[string]any{"type": "object",
			"properties": map[string]any{"city": map[string]any{"type": "string"}}},
	}}}
	question := map[string]any{"role": "user", "content": "What is the weather in Zürich?"}
	result := map[string]any{"role": "tool", "tool_call_id": "call_1",
		"content": `{"celsius": -3, "sky": "☁️"}`}
	s := newSite(t, certs, &upstream{}, nil, nil)
	o := runNomyo(t, certs.authority, job{BaseURL: s.url, KeyDir: keyDir(t, "client-4096"),
		Requests: []map[string]any{
			{"model": "test-model", "messages": []any{question}, "tools": tools,
				"tool_choice": "auto"},
			{"model": "test-model", "messages": []any{question, nil, result}, "tools": tools},
		}})[0]

	choice := served(t, o[0]).Choices[0]
	if choice.Message.Content != nil || choice.FinishReason != "tool_calls" ||
		len(choice.Message.ToolCalls) != 1 {
		t.Fatalf("no tool call: %v", o[0])
	}
	call := choice.Message.ToolCalls[0]
	if call.ID != "call_1" || call.Function.Name != "get_weather" ||
		call.Function.Arguments != `{"city": "Zürich"}` {
		t.Errorf("tool call %+v", call)
	}
	if got := served(t, o[1]).text(); got != result["content"] {
		t.Errorf("the answer to the result is %q", got)
	}
	var second struct {
		Messages []struct {
			Role      string
			ToolCalls []struct{ ID string } `json:"tool_calls"`
		}
	}
	if err := json.Unmarshal(s.upstream.requests()[1], &second); err != nil {
		t.Fatal(err)
	}
	if m := second.Messages; len(m) != 3 || m[1].Role != "assistant" || len(m[1].ToolCalls) != 1 ||
		m[1].ToolCalls[0].ID != "call_1" {
		t.Errorf("the conversation came as %+v", m)
	}
}

// The largest request that nomyo sends is the largest that the gateway accepts.
func TestNomyoLargest(t *testing.T) {
	needPython(t)
	certs := newCertificates(t)
	digest := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	s := newSite(t, certs, &upstream{answer: func(text string) any {
		return digest(text)
	}}, nil, nil)
	const around = `{"model": "test-model", "messages": [{"role": "user", "content": ""}]}`
	largest := strings.Repeat("0123456789abcdef", 10<<16)[:10<<20-len(around)]
	// nomyo writes members in the order in which create has them; Go's JSON sorts the message's.
	ask := func(text string) map[string]any {
		return map[string]any{"model": "test-model", "messages": []any{struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		}{"user", text}}}
	}
	o := runNomyo(t, certs.authority, job{BaseURL: s.url, KeyDir: keyDir(t, "rsa-2048"),
		Requests: []map[string]any{ask(largest), ask(largest + "x")}})[0]
	if got := served(t, o[0]).text(); got != digest(largest) {
		t.Errorf("10 MiB came as something else: %s", got)
	}
	raised(t, o[1], "ValueError", 0, "Payload too large: 10485761 bytes (max: 10485760)")
	if n := len(s.wire.arrivals(http.MethodPost)); n != 1 {
		t.Errorf("%d POSTs", n)
	}
	if n := len(s.upstream.requests()[0]); n != 10<<20 {
		t.Errorf("the upstream got %d bytes", n)
	}
}

func TestNomyoTiersAndKeys(t *testing.T) {
	needPython(t)
	certs, dir := newCertificates(t), keyDir(t, "rsa-2048")
	secret := sealedchat.NewSecret([]byte("the-right-key"))
	defer secret.Destroy()
	auth, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	protected := func(c *sealedchat.GatewayConfig) {
		c.Authenticate, c.AllowUnauthenticated = auth, false
	}
	maximum := func(c *sealedchat.GatewayConfig) { c.Tier = sealedchat.TierMaximum }
	const noTier = "Forbidden: this security tier is not available here"

	cases := []struct {
		name    string
		change  func(*sealedchat.GatewayConfig)
		apiKey  string
		request map[string]any
		class   string // "" = served
		status  int
		message string
		tier    string // of the answer
		posts   int
		header  [2]string // a header that the POST must have
	}{
		{"right key", protected, "the-right-key", say("a"), "", 0, "", "standard", 1,
			[2]string{"Authorization", "Bearer the-right-key"}},
		{"key of the call", protected, "the-wrong-key", say("a", "api_key", "the-right-key"), "", 0,
			"", "standard", 1, [2]string{"Authorization", "Bearer the-right-key"}},
		{"wrong key", protected, "the-wrong-key", say("a"), "AuthenticationError", 401,
			"invalid API key", "", 1, [2]string{"Authorization", "Bearer the-wrong-key"}},
		{"no key", protected, "", say("a"), "AuthenticationError", 401, "invalid API key", "", 1,
			[2]string{"Authorization", ""}},
		{"no tier", maximum, "", say("a"), "", 0, "", "maximum", 1,
			[2]string{"X-Security-Tier", ""}},
		{"standard", maximum, "", say("a", "security_tier", "standard"), "", 0, "", "maximum", 1,
			[2]string{"X-Security-Tier", "standard"}},
		{"high", maximum, "", say("a", "security_tier", "high"), "", 0, "", "maximum", 1,
			[2]string{"X-Security-Tier", "high"}},
		{"maximum", maximum, "", say("a", "security_tier", "maximum"), "", 0, "", "maximum", 1,
			[2]string{"X-Security-Tier", "maximum"}},
		{"high is not there", nil, "", say("a", "security_tier", "high"), "ForbiddenError", 403,
			noTier, "", 1, [2]string{"X-Security-Tier", "high"}},
		{"unknown tier", nil, "", say("a", "security_tier", "ultra"), "ValueError", 0,
			"Invalid security_tier: 'ultra'. Must be one of: standard, high, maximum", "", 0,
			[2]string{}},
		{"no messages", nil, "", map[string]any{"model": "m", "messages": []any{}},
			"InvalidRequestError", 400,
			"Bad request: messages must be a list of objects with a role, and not empty", "", 1,
			[2]string{}},
		{"no model", nil, "", map[string]any{"model": "", "messages": []any{}},
			"InvalidRequestError", 400,
			"Bad request: the request names no model", "", 1, [2]string{}},
	}
	var sites []*site
	var jobs []job
	for _, c := range cases {
		s := newSite(t, certs, &upstream{}, c.change, nil)
		sites = append(sites, s)
		jobs = append(jobs, job{BaseURL: s.url, KeyDir: dir, APIKey: c.apiKey,
			Requests: []map[string]any{c.request}})
	}
	for i, o := range runNomyo(t, certs.authority, jobs...) {
		c, s := cases[i], sites[i]
		t.Run(c.name, func(t *testing.T) {
			if c.class != "" {
				raised(t, o[0], c.class, c.status, c.message)
				if n := len(s.upstream.requests()); n != 0 {
					t.Errorf("the upstream got %d requests", n)
				}
			} else if got := served(t, o[0]); got.text() != "a" || got.Metadata.Tier != c.tier {
				t.Errorf("served %+v", got)
			}
			posts := s.wire.arrivals(http.MethodPost)
			if len(posts) != c.posts {
				t.Fatalf("%d POSTs, want %d", len(posts), c.posts)
			}
			if c.header[0] != "" && posts[0].header.Get(c.header[0]) != c.header[1] {
				t.Errorf("%s is %q", c.header[0], posts[0].header.Get(c.header[0]))
			}
			for _, body := range s.upstream.requests() {
				for _, name := range []string{"api_key", "security_tier", "the-right-key"} {
					if bytes.Contains(body, []byte(name)) {
						t.Errorf("the upstream got %s", body)
					}
				}
			}
		})
	}
}

// Without the authority nomyo seals nothing: the other tests passed because of the right
// certificate.
func TestNomyoDistrustsCertificate(t *testing.T) {
	needPython(t)
	s := newSite(t, newCertificates(t), &upstream{}, nil, nil)
	o := runNomyo(t, newCertificates(t).authority,
		job{BaseURL: s.url, KeyDir: keyDir(t, "rsa-2048"),
			Requests: []map[string]any{say("a")}})[0][0]
	raised(t, o, "SecurityError", 0, "Encryption operation failed")
	if n := len(s.wire.arrivals(http.MethodGet)) + len(s.wire.arrivals(http.MethodPost)); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// nomyo refuses a key that it cannot accept, and does not try again.
func TestNomyoKeyFetch(t *testing.T) {
	needPython(t)
	dir := keyDir(t, "rsa-2048")
	answer := func(status int, header, value, body string) func(http.Handler) http.Handler {
		return func(gateway http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/pki/public_key" {
					gateway.ServeHTTP(w, r)
					return
				}
				w.Header().Set(header, value)
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			})
		}
	}
	const failed = "Failed to fetch server's public key"
	cases := []struct {
		name           string
		front          func(http.Handler) http.Handler
		class, message string
	}{
		{"503", answer(503, "Retry-After", "1", `{"detail":"x"}`), "ValueError",
			failed + ": HTTP 503"},
		{"redirect", answer(307, "Location", "/elsewhere", ""), "ValueError",
			failed + ": HTTP 307"},
		{"no key", answer(200, "Content-Type", "text/plain", "no key"), "ValueError",
			"Server returned invalid public key format"},
		{"cut", func(http.Handler) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				panic(http.ErrAbortHandler)
			})
		}, "ValueError", failed},
		{"nobody listens", nil, "SecurityError", "Encryption operation failed"},
	}
	var jobs []job
	var sites []*site
	for _, c := range cases {
		s := newSite(t, nil, &upstream{}, nil, c.front)
		base := s.url
		if c.front == nil {
			gone := listen(t, http.NotFoundHandler(), nil)
			base = gone.URL
			gone.Close()
		}
		sites = append(sites, s)
		jobs = append(jobs, job{BaseURL: base, KeyDir: dir, Requests: []map[string]any{say("a")}})
	}
	for i, o := range runNomyo(t, "", jobs...) {
		raised(t, o[0], cases[i].class, 0, cases[i].message)
		gets, posts := len(sites[i].wire.arrivals(http.MethodGet)),
			len(sites[i].wire.arrivals(http.MethodPost))
		if gets > 1 || posts != 0 {
			t.Errorf("%s: %d GETs and %d POSTs", cases[i].name, gets, posts)
		}
	}
}

// A request is refused before its body is read. The refusal must arrive all the same.
func TestNomyoEarlyRefusal(t *testing.T) {
	needPython(t)
	certs, dir := newCertificates(t), keyDir(t, "rsa-2048")
	var jobs []job
	var asked []*atomic.Int32
	for _, c := range []*certificates{nil, certs} {
		for _, size := range []int{1 << 10, 1 << 20, 8 << 20} {
			n := new(atomic.Int32)
			gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
				Upstream: "http://127.0.0.1:1", Keys: gatewayKeys,
				Authenticate: func(*http.Request) (string, error) {
					n.Add(1)
					return "", sealedchat.ErrAuthentication
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = gateway.Close() })
			asked = append(asked, n)
			// No recorder here, which would read the body.
			jobs = append(jobs, job{BaseURL: listen(t, gateway, c).URL, KeyDir: dir,
				Requests: []map[string]any{say(strings.Repeat("x", size))}})
		}
	}
	for i, o := range runNomyo(t, certs.authority, jobs...) {
		raised(t, o[0], "AuthenticationError", 401, "invalid API key")
		if n := asked[i].Load(); n != 1 {
			t.Errorf("%d attempts", n)
		}
	}
}
