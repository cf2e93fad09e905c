// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// counter counts what reaches a server.
type counter struct {
	http.Handler
	mu         sync.Mutex
	keys       int // GET /pki/public_key
	posts      int
	protocols  map[string]int
	conns      map[string]bool // by the client's address
	publicKeys map[string]bool // X-Public-Key
}

func count(h http.Handler) *counter {
	return &counter{Handler: h, protocols: map[string]int{}, conns: map[string]bool{},
		publicKeys: map[string]bool{}}
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	switch r.URL.Path {
	case hybrid.PathPublicKey:
		c.keys++
	case hybrid.PathCompletion:
		c.posts++
		c.publicKeys[r.Header.Get(hybrid.HeaderPublicKey)] = true
	}
	c.protocols[r.Proto]++
	c.conns[r.RemoteAddr] = true
	c.mu.Unlock()
	c.Handler.ServeHTTP(w, r)
}

func (c *counter) counts() (keys, posts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys, c.posts
}

// parrot is an upstream that repeats the last message, asks for a tool call if it is offered a
// tool, and fails on demand. suffix ends each answer.
func parrot(suffix string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			Messages []sealedchat.Message
			Tools    []json.RawMessage
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.Messages) == 0 {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		last := req.Messages[len(req.Messages)-1]
		if strings.HasPrefix(last.Text(), "fail: ") {
			http.Error(w, `{"error":{"message":"cannot do `+last.Text()+`"}}`,
				http.StatusInternalServerError)
			return
		}
		message := map[string]any{"role": "assistant", "content": last.Text() + suffix}
		if len(req.Tools) > 0 && last.Role == "user" {
			message = map[string]any{"role": "assistant", "content": nil,
				"tool_calls": []any{map[string]any{
					"id": "call_1", "type": "function",
					"function": map[string]any{"name": "weather",
						"arguments": `{"city":"` + last.Text() + suffix + `"}`},
				}}}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
			"choices": []any{map[string]any{"index": 0, "message": message,
				"finish_reason": "stop"}},
		})
	}
}

// Nothing of a chat crosses the wire in any form, and what does cross it would have been seen.
func TestNothingReadableOnTheWire(t *testing.T) {
	const (
		prompt, answer, system = "Marker-prompt-Ω3f91", "Marker-answer-ß77c2",
			"Marker-system-\"51e0\""
		schema, argument, result = "Marker-schema-9d2b", "Marker-argument/8a64",
			"Marker-result-\U0001F511c3"
		image, extra, raw = "Marker-image-4e4e", "Marker-extra-0b1c", "Marker-raw-json-6f6f"
		failing, planted  = "Marker-failing-2a2a", "Marker-planted-1d1d"
	)
	secretKey := secret(t, "sk-not-sealed-5150")
	srv := httptest.NewServer(startGateway(t, parrot(answer), nil))
	t.Cleanup(srv.Close)
	witness := testkit.NewWitness(t, srv.Listener.Addr().String())
	client := startClient(t, "http://"+witness.Addr(), func(c *sealedchat.Config) {
		c.APIKey, c.Tier = secretKey, sealedchat.TierStandard
	})
	ctx := testkit.Within(t, 60*time.Second)

	chat := func(r *sealedchat.ChatRequest) *sealedchat.ChatResponse {
		t.Helper()
		resp, err := client.Chat(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if got := chat(ask(prompt)).Text(); got != prompt+answer {
		t.Errorf("answer %q", got)
	}
	conversation := []sealedchat.Message{sealedchat.SystemMessage(system),
		sealedchat.UserMessage(argument)}
	tools := []sealedchat.Tool{sealedchat.FunctionTool("weather", schema,
		json.RawMessage(`{"type":"object","description":"`+schema+`"}`))}
	first := chat(&sealedchat.ChatRequest{Model: "m", Messages: conversation, Tools: tools,
		Extra: map[string]any{"user": extra}})
	calls := first.Choices[0].Message.ToolCalls
	if len(calls) != 1 || calls[0].Function.Arguments != `{"city":"`+argument+answer+`"}` {
		t.Fatalf("tool calls %+v", calls)
	}
	conversation = append(conversation, first.Choices[0].Message,
		sealedchat.ToolMessage(calls[0].ID, result))
	if got := chat(&sealedchat.ChatRequest{Model: "m", Messages: conversation,
		Tools: tools}).Text(); got != result+answer {
		t.Errorf("answer to the tool's result: %q", got)
	}
	parts := sealedchat.UserParts(sealedchat.TextPart(prompt),
		sealedchat.ImagePart("data:image/png;base64,"+image))
	if got := chat(&sealedchat.ChatRequest{Model: "m",
		Messages: []sealedchat.Message{parts}}).Text(); got != prompt+answer {
		t.Errorf("answer to parts: %q", got)
	}
	resp, err := client.Complete(ctx,
		secret(t, `{"model":"m","messages":[{"role":"user","content":"`+raw+`"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Destroy()
	if err := resp.Body.Use(func(b []byte) error {
		if !bytes.Contains(b, []byte(raw+answer)) {
			t.Errorf("raw answer %s", b)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := client.Chat(ctx, ask("fail: "+failing)); !errors.Is(err, sealedchat.ErrServer) ||
		strings.Contains(err.Error(), failing) {
		t.Errorf("failing upstream: %v", err)
	}

	witness.MustNotSee(prompt, answer, system, schema, argument, result, image, extra, raw, failing)
	// the protocol leaves the API key to TLS: this is how sharp the witness's eyes are
	witness.MustSee("sk-not-sealed-5150")
	body := strings.NewReader(`{"messages":[{"role":"user","content":"` + planted + `"}]}`)
	plain, err := http.Post("http://"+witness.Addr()+hybrid.PathCompletion, "application/json",
		body)
	if err != nil {
		t.Fatal(err)
	}
	_ = plain.Body.Close()
	witness.MustSee(planted)
}

// A prompt and an answer of 256 KiB, which take many reads and writes; of 1 MiB with
// SEALEDCHAT_LONG=1, since the witness looks for them in every encoding.
func TestLargeChat(t *testing.T) {
	t.Parallel()
	size := 1 << 18
	if testkit.Long() {
		size = 1 << 20
	}
	const prompt, answer = "Marker-prompt-Ω3f91", "Marker-answer-ß77c2"
	filling := strings.Repeat("lorem ipsum ключ \n", size/len("lorem ipsum ключ \n"))
	srv := httptest.NewServer(startGateway(t, parrot(answer), nil))
	t.Cleanup(srv.Close)
	witness := testkit.NewWitness(t, srv.Listener.Addr().String())
	client := startClient(t, "http://"+witness.Addr(), nil)
	resp, err := client.Chat(testkit.Within(t, 60*time.Second), ask(filling+prompt))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Text() != filling+prompt+answer {
		t.Errorf("%d characters came back", len(resp.Text()))
	}
	witness.MustNotSee(prompt, answer)
}

// Over TLS the protocol is HTTP/2 on one connection, and the server's key is fetched once.
func TestHTTP2(t *testing.T) {
	testkit.NoLeaks(t)
	counted := count(startGateway(t, parrot("!"), nil))
	srv := testkit.TLSServer(t, counted)
	transport := testkit.ClientTransport(srv)
	t.Cleanup(transport.CloseIdleConnections)
	client := startClient(t, srv.URL, func(c *sealedchat.Config) {
		c.Transport, c.InsecureAllowHTTP = transport, false
	})
	if err := client.Warm(testkit.Within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		text := fmt.Sprint("chat ", i)
		resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask(text))
		if err != nil || resp.Text() != text+"!" {
			t.Fatalf("%v", err)
		}
	}
	if keys, posts := counted.counts(); keys != 1 || posts != 5 ||
		counted.protocols["HTTP/2.0"] != 6 || len(counted.conns) != 1 {
		t.Errorf("%d key fetches, %d requests, protocols %v, connections %v", keys, posts,
			counted.protocols, counted.conns)
	}
}

// Many goroutines, one client that has nothing yet: one key, one fetch, one connection, and every
// answer is the right one.
func TestManyGoroutines(t *testing.T) {
	testkit.NoLeaks(t)
	const callers = 100
	counted := count(startGateway(t, parrot("!"), func(c *sealedchat.GatewayConfig) {
		c.MaxConcurrent = callers
	}))
	srv := testkit.TLSServer(t, counted)
	transport := testkit.ClientTransport(srv)
	t.Cleanup(transport.CloseIdleConnections)
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	notified := 0
	client := startClient(t, srv.URL, func(c *sealedchat.Config) {
		c.Transport, c.Keys = transport, keys
		c.OnServerKey = func(_, _ *sealedchat.PublicKey) error { notified++; return nil }
	})
	ctx := testkit.Within(t, 60*time.Second)
	var start, all sync.WaitGroup
	start.Add(1)
	for i := range callers {
		all.Go(func() {
			start.Wait()
			text := fmt.Sprint("caller ", i)
			resp, err := client.Chat(ctx, ask(text))
			if err != nil {
				t.Error(err)
			} else if resp.Text() != text+"!" {
				t.Errorf("%q was answered %q", text, resp.Text())
			}
		})
	}
	start.Done()
	all.Wait()
	fetched, posts := counted.counts()
	if fetched != 1 || posts != callers || notified != 1 {
		t.Errorf("%d key fetches, %d requests, OnServerKey called %d times", fetched, posts,
			notified)
	}
	if len(counted.publicKeys) != 1 {
		t.Errorf("%d client keys were generated", len(counted.publicKeys))
	}
	if len(counted.conns) != 1 {
		t.Errorf("%d connections for HTTP/2", len(counted.conns))
	}
}

// switched hands requests to whichever handler is in place.
type switched struct{ atomic.Pointer[http.Handler] }

func (s *switched) to(h http.Handler) { s.Store(&h) }

func (s *switched) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*s.Load()).ServeHTTP(w, r) }

// twoKeys is a server whose gateway can be replaced by one with another key.
func twoKeys(t *testing.T) (url string, counted *counter, rotate func(), before,
	after *sealedchat.PublicKey) {
	t.Helper()
	front := &switched{}
	front.to(startGateway(t, parrot("!"), nil))
	second := startGateway(t, parrot("?"), func(c *sealedchat.GatewayConfig) {
		c.Keys = storedKeys(t, "rsa-3072")
	})
	counted = count(front)
	srv := httptest.NewServer(counted)
	t.Cleanup(srv.Close)
	return srv.URL, counted, func() {
		front.to(second)
	}, publicOf(t, "server-4096"), publicOf(t, "rsa-3072")
}

func mustAnswer(t *testing.T, client *sealedchat.SecureCompletionClient, want string) {
	t.Helper()
	resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Text() != want {
		t.Fatalf("answer %q, want %q", resp.Text(), want)
	}
}

func TestServerKeyRotates(t *testing.T) {
	url, counted, rotate, before, after := twoKeys(t)
	var seen []string
	client := startClient(t, url, func(c *sealedchat.Config) {
		c.OnServerKey = func(old, new *sealedchat.PublicKey) error {
			if old != nil {
				seen = append(seen, old.Fingerprint())
			}
			seen = append(seen, new.Fingerprint())
			return nil
		}
	})
	mustAnswer(t, client, "hello!")
	rotate()
	mustAnswer(t, client, "hello?")
	mustAnswer(t, client, "hello?")
	if keys, posts := counted.counts(); keys != 2 || posts != 4 {
		t.Errorf("%d key fetches, %d requests, want one refresh and one more request", keys, posts)
	}
	if want := []string{before.Fingerprint(), before.Fingerprint(),
		after.Fingerprint()}; !slices.Equal(seen, want) {
		t.Errorf("OnServerKey saw %v", seen)
	}
}

func TestServerKeyRotatesUnderPin(t *testing.T) {
	url, counted, rotate, before, after := twoKeys(t)
	client := startClient(t, url, func(c *sealedchat.Config) {
		c.Trust = sealedchat.Pin(strings.ToUpper(before.Fingerprint()))
	})
	mustAnswer(t, client, "hello!")
	rotate()
	resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hello"))
	refused, ok := errors.AsType[*sealedchat.ServerKeyError](err)
	if !ok || resp != nil || refused.Got != after.Fingerprint() ||
		!slices.Equal(refused.Want, []string{before.Fingerprint()}) {
		t.Fatalf("error %v", err)
	}
	if keys, posts := counted.counts(); keys != 2 || posts != 2 {
		t.Errorf("%d key fetches, %d requests: something was sealed to the key that is not pinned",
			keys, posts)
	}
	if err := client.AcceptServerKey(refused.Got); err != nil {
		t.Fatal(err)
	}
	mustAnswer(t, client, "hello?")
}

func TestWrongPinSendsNothing(t *testing.T) {
	url, counted, _, _, after := twoKeys(t)
	client := startClient(t, url, func(c *sealedchat.Config) {
		c.Trust = sealedchat.Pin(after.Fingerprint())
	})
	for range 3 {
		_, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hello"))
		if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok {
			t.Errorf("error %v", err)
		}
	}
	if _, posts := counted.counts(); posts != 0 {
		t.Errorf("%d requests in spite of the pin", posts)
	}
}

func TestOnServerKeyRefusesTheNewKey(t *testing.T) {
	url, counted, rotate, before, after := twoKeys(t)
	change := errors.New("call the operator")
	client := startClient(t, url, func(c *sealedchat.Config) {
		c.OnServerKey = func(old, _ *sealedchat.PublicKey) error {
			if old != nil {
				return change
			}
			return nil
		}
	})
	mustAnswer(t, client, "hello!")
	rotate()
	for range 2 {
		_, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hello"))
		refused, ok := errors.AsType[*sealedchat.ServerKeyError](err)
		if !ok || !errors.Is(err, change) || refused.Got != after.Fingerprint() ||
			!slices.Equal(refused.Want, []string{before.Fingerprint()}) {
			t.Errorf("error %v", err)
		}
	}
	// Each call was sealed to the key in use, which the server no longer has, and to nothing else.
	if _, posts := counted.counts(); posts != 3 {
		t.Errorf("%d requests", posts)
	}
}

// A server that refuses everything is not asked for its key each time.
func TestNoKeyFetchStorm(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc(hybrid.PathPublicKey, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(testkit.PublicPEM(t, "rsa-2048"))
	})
	mux.HandleFunc(hybrid.PathCompletion, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		http.Error(w, `{"detail":"no"}`, http.StatusBadRequest)
	})
	counted := count(mux)
	srv := httptest.NewServer(counted)
	t.Cleanup(srv.Close)
	client := startClient(t, srv.URL, nil)
	ctx := testkit.Within(t, 30*time.Second)
	refused := func() {
		if _, err := client.Chat(ctx, ask("hello")); !errors.Is(err, sealedchat.ErrInvalidRequest) {
			t.Errorf("error %v", err)
		}
	}
	for range 10 {
		refused()
	}
	if keys, posts := counted.counts(); keys != 2 || posts != 10 {
		t.Errorf("%d key fetches for %d refused requests, want 2 for 10", keys, posts)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(refused)
	}
	all.Wait()
	if keys, posts := counted.counts(); keys != 2 || posts != 30 {
		t.Errorf("%d key fetches for %d refused requests, want 2 for 30", keys, posts)
	}
}

// The client keeps nothing between calls that would mix them up: an answer for one request is
// refused for the next.
func TestReplayedAnswer(t *testing.T) {
	gateway := startGateway(t, parrot("!"), nil)
	var first []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != hybrid.PathCompletion || first == nil {
			rec := httptest.NewRecorder()
			gateway.ServeHTTP(rec, r)
			if r.URL.Path == hybrid.PathCompletion {
				first = rec.Body.Bytes()
			}
			_, _ = w.Write(rec.Body.Bytes())
			return
		}
		_, _ = w.Write(first)
	}))
	t.Cleanup(srv.Close)
	keys := storedKeys(t, "client-4096")
	client := startClient(t, srv.URL, func(c *sealedchat.Config) { c.Keys = keys })
	mustAnswer(t, client, "hello!")
	// Its store has the key, but has not seen the envelope: the payload id tells.
	fresh := startClient(t, srv.URL, func(c *sealedchat.Config) {
		c.Keys = storedKeys(t, "client-4096")
	})
	for name, client := range map[string]*sealedchat.SecureCompletionClient{
		"the same client": client, "another one": fresh} {
		resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask("something else"))
		if !errors.Is(err, sealedchat.ErrReplay) || resp != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEndedContextSendsNothing(t *testing.T) {
	counted := count(startGateway(t, parrot("!"), nil))
	srv := httptest.NewServer(counted)
	t.Cleanup(srv.Close)
	client := startClient(t, srv.URL, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	body := secret(t, `{"model":"m","messages":[]}`)
	for name, call := range map[string]func() error{
		"Chat":      func() error { _, err := client.Chat(ctx, ask("hello")); return err },
		"Complete":  func() error { _, err := client.Complete(ctx, body); return err },
		"Warm":      func() error { return client.Warm(ctx) },
		"ServerKey": func() error { _, err := client.ServerKey(ctx); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) ||
			errors.Is(err, sealedchat.ErrConnection) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if keys, posts := counted.counts(); keys+posts != 0 {
		t.Errorf("%d key fetches, %d requests", keys, posts)
	}
	mustAnswer(t, client, "hello!") // none of it did any harm
}

// One caller who leaves does not end what others wait for.
func TestCancelledCallerLeavesOthersAlone(t *testing.T) {
	testkit.NoLeaks(t)
	gateway := startGateway(t, parrot("!"), nil)
	asked, release := make(chan struct{}, 10), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == hybrid.PathPublicKey {
			asked <- struct{}{}
			<-release
		}
		gateway.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	client := startClient(t, srv.URL, nil)
	leaving, cancel := context.WithCancel(testkit.Within(t, 30*time.Second))
	gone, stays := make(chan error, 1), make(chan error, 1)
	go func() { _, err := client.ServerKey(leaving); gone <- err }()
	<-asked
	go func() {
		_, err := client.Chat(testkit.Within(t, 30*time.Second), ask("hello"))
		stays <- err
	}()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the one who left: %v", err)
	}
	close(release)
	if err := <-stays; err != nil {
		t.Errorf("the one who stayed: %v", err)
	}
}
