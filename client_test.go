// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// slowLimiter has state, so a nil one panics.
type slowLimiter struct{ wait time.Duration }

func (l *slowLimiter) Wait(ctx context.Context) error {
	_ = pause(ctx, l.wait)
	return ctx.Err()
}

func TestNilCallOptions(t *testing.T) {
	s := fakes.NewServer(t)
	if _, err := sealedClient(t, s, nil).Chat(t.Context(), ask("?"), nil, WithTier(TierHigh),
		nil); err != nil {
		t.Fatal(err)
	}
	if got := s.Last().Request.Header.Get(hybrid.HeaderTier); got != "high" {
		t.Errorf("asked for tier %q", got)
	}
	g := fakes.NewGateway(t, fakes.WordByWord(nil, "x"))
	for _, err := range directClient(t, g, nil).Stream(t.Context(), ask("?"), nil) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A client that NewSecureCompletionClient did not make is as good as closed.
func TestZeroClient(t *testing.T) {
	var c SecureCompletionClient
	_, chat := c.Chat(t.Context(), ask("?"))
	_, key := c.ServerKey(t.Context())
	_, complete := c.Complete(t.Context(), secret(t, `{}`))
	for name, err := range map[string]error{
		"Chat": chat, "ServerKey": key, "Complete": complete, "Warm": c.Warm(t.Context()),
		"AcceptServerKey": c.AcceptServerKey(strings.Repeat("0", 64)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrTooLarge) { // whose limit is 0
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

// A BaseURL ends before the paths that the client adds. An SDK's base URL has some of them, and
// without one a prompt would go to a server that nobody named.
func TestBaseURLEnd(t *testing.T) {
	for text, says := range map[string]string{
		"":                                              "without /v1",
		"https://h/v1":                                  `before "/v1"`,
		"https://h/v1/":                                 `before "/v1"`,
		"https://h//v1//":                               `before "/v1"`,
		"https://h/pre/v1":                              `before "/v1"`,
		"https://h/x/../v1":                             `before "/v1"`,
		"https://h/v1/chat":                             `before "/v1/chat"`,
		"https://h/v1/chat/completions":                 `before "/v1/chat/completions"`,
		"https://h/v1/chat/completions/":                `before "/v1/chat/completions"`,
		"https://h/openai/chat/completions":             `before "/chat/completions"`,
		"https://h/pre" + hybrid.PathCompletion:         `before "` + hybrid.PathCompletion + `"`,
		"https://h" + hybrid.PathPublicKey:              `before "` + hybrid.PathPublicKey + `"`,
		"https://h/v1" + ohttp.Path:                     `before "/v1` + ohttp.Path + `"`,
		"https://secret-name.test/secret-token/v1":      `before "/v1"`,
		"https://h/v1?":                                 "query",
		"https://secret-user:secret-password@h.test/v1": "user info",
	} {
		for _, p := range []Protocol{"", ProtocolOHTTP} {
			c, err := NewSecureCompletionClient(Config{BaseURL: text, Trust: TrustHTTPS(),
				Transport: neverUsed(t), Protocol: p})
			e, ok := errors.AsType[*ConfigError](err)
			if c != nil || !ok || e.Field != "Config.BaseURL" ||
				!strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret-") {
				t.Errorf("%q: got %v, %v, want %s", text, c, err, says)
			}
		}
	}
	for _, text := range []string{"https://h", "https://h/", "https://h/v1x", "https://h/xv1",
		"https://h/v2", "https://h/v1/pre",
		"https://h/pre%2Fv1", "https://v1", "https://h/completions", DefaultBaseURL} {
		c, err := NewSecureCompletionClient(Config{BaseURL: text, Trust: TrustHTTPS(),
			Transport: neverUsed(t)})
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		_ = c.Close()
	}
}

func TestMaxRequestBytes(t *testing.T) {
	s := fakes.NewServer(t)
	request := []byte(`{"model":"m","messages":[{"role":"user","content":"x"}]}`)
	for _, limit := range []int64{int64(len(request)) - 1, int64(len(request)),
		int64(len(request)) + 1} {
		c := sealedClient(t, s, func(c *Config) { c.MaxRequestBytes = limit })
		_, err := c.Complete(t.Context(), secret(t, string(request)))
		if tooLarge := limit < int64(len(request)); errors.Is(err, ErrTooLarge) != tooLarge ||
			(err == nil) == tooLarge {
			t.Errorf("limit %d, request %d: %v", limit, len(request), err)
		}
	}
	if gets, posts := s.Counts(); gets != 2 || posts != 2 {
		t.Errorf("%d key fetches and %d requests; too large a request must not cause any", gets,
			posts)
	}
}

func TestMaxResponseBytes(t *testing.T) {
	s := fakes.NewServer(t)
	var size int64
	s.Answer = func(q *fakes.Question) *http.Response {
		r := q.Seal(fakes.FineCompletion(strings.Repeat("x", 3000)))
		size = r.ContentLength
		return r
	}
	if _, err := sealedClient(t, s, nil).Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	for _, chunked := range []bool{false, true} {
		with := s.Answer
		s.Answer = func(q *fakes.Question) *http.Response {
			r := with(q)
			if chunked {
				r.ContentLength = -1
			}
			return r
		}
		for d, want := range map[int64]error{-1: ErrTooLarge, 0: nil, 1: nil} {
			c := sealedClient(t, s, func(c *Config) { c.MaxResponseBytes = size + d })
			if _, err := c.Chat(t.Context(), ask("x")); !errors.Is(err, want) {
				t.Errorf("limit is the answer's size %+d, chunked %v: %v", d, chunked, err)
			}
		}
		s.Answer = with
	}
}

func TestCallOptions(t *testing.T) {
	s := fakes.NewServer(t)
	own, other := secret(t, "config-key"), secret(t, "call-key")
	c := sealedClient(t, s, func(c *Config) { c.APIKey, c.Tier = own, TierStandard })
	for _, k := range []struct {
		opts       []CallOption
		auth, tier string
	}{
		{nil, "Bearer config-key", "standard"},
		{[]CallOption{WithAPIKey(other)}, "Bearer call-key", "standard"},
		{[]CallOption{WithTier(TierMaximum)}, "Bearer config-key", "maximum"},
		{[]CallOption{WithTier(TierHigh), WithTier(""), WithAPIKey(nil)}, "", ""},
		{nil, "Bearer config-key", "standard"}, // options last for one call
	} {
		if _, err := c.Chat(t.Context(), ask("x"), k.opts...); err != nil {
			t.Fatal(err)
		}
		h := s.Last().Request.Header
		if h.Get("Authorization") != k.auth || h.Get("X-Security-Tier") != k.tier ||
			len(h.Values("Authorization")) > 1 {
			t.Errorf("%d options: %q, tier %q", len(k.opts), h.Values("Authorization"),
				h.Get("X-Security-Tier"))
		}
	}
}

func TestBadCallOptions(t *testing.T) {
	c := startClient(t, "https://server.test", func(c *Config) { c.Transport = neverUsed(t) })
	destroyed := secret(t, "x")
	destroyed.Destroy()
	for name, k := range map[string]struct {
		opt  CallOption
		want error
	}{
		"tier":      {WithTier("ultra"), ErrInvalidRequest},
		"case":      {WithTier("HIGH"), ErrInvalidRequest},
		"LF":        {WithAPIKey(secret(t, "a\nb")), ErrInvalidRequest},
		"CR":        {WithAPIKey(secret(t, "a\rb")), ErrInvalidRequest},
		"NUL":       {WithAPIKey(secret(t, "a\x00b")), ErrInvalidRequest},
		"DEL":       {WithAPIKey(secret(t, "a\x7fb")), ErrInvalidRequest},
		"space":     {WithAPIKey(secret(t, "a b")), ErrInvalidRequest},
		"final LF":  {WithAPIKey(secret(t, "ab\n")), ErrInvalidRequest},
		"non-ASCII": {WithAPIKey(secret(t, "ké")), ErrInvalidRequest},
		"empty":     {WithAPIKey(secret(t, "")), ErrInvalidRequest},
		"destroyed": {WithAPIKey(destroyed), ErrClosed},
	} {
		_, chatErr := c.Chat(t.Context(), ask("x"), k.opt)
		_, completeErr := c.Complete(t.Context(), secret(t,
			`{"model":"m","messages":[{"role":"user","content":""}]}`), k.opt)
		if !errors.Is(chatErr, k.want) || !errors.Is(completeErr, k.want) {
			t.Errorf("%s: %v, %v", name, chatErr, completeErr)
		}
	}
}

func TestWarmAndServerKey(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if gets, posts := s.Counts(); gets != 1 || posts != 0 {
		t.Errorf("Warm: %d key fetches, %d requests", gets, posts)
	}
	key, err := c.ServerKey(t.Context())
	if err != nil || !key.Equal(publicOf(t, "rsa-2048")) {
		t.Errorf("ServerKey: %v, %v", key, err)
	}
	if _, err := c.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	if gets, posts := s.Counts(); gets != 1 || posts != 1 {
		t.Errorf("afterwards: %d key fetches, %d requests", gets, posts)
	}
	s.KeyPEM = func() *http.Response { return respond(503, `{"detail":"down"}`) }
	if err := sealedClient(t, s, nil).Warm(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Warm with the server down: %v", err)
	}
}

func TestKeyFetchErrors(t *testing.T) {
	pem := string(publicOf(t, "rsa-2048").PEM())
	for name, c := range map[string]struct {
		resp func() *http.Response
		want error
	}{
		"404": {func() *http.Response { return respond(404, "") }, ErrNotFound},
		"500": {func() *http.Response { return respond(500, "") }, ErrServer},
		"204": {func() *http.Response { return respond(204, "") }, ErrServer},
		"redirect": {func() *http.Response {
			return respond(302, "", "Location", "https://evil.test/")
		}, ErrServer},
		"empty":    {func() *http.Response { return respond(200, "") }, ErrPublicKey},
		"html":     {func() *http.Response { return respond(200, "<html>") }, ErrPublicKey},
		"two keys": {func() *http.Response { return respond(200, pem+pem) }, ErrPublicKey},
		"too large": {func() *http.Response {
			return respond(200, pem+strings.Repeat(" ", hybrid.MaxKeyText))
		}, ErrTooLarge},
		"bad encoding": {func() *http.Response {
			return respond(200, pem, "Content-Encoding", "br")
		}, ErrConnection},
	} {
		s := fakes.NewServer(t)
		s.KeyPEM = c.resp
		if _, err := sealedClient(t, s, nil).Chat(t.Context(), ask("x")); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, posts := s.Counts(); posts != 0 {
			t.Errorf("%s: something was sent", name)
		}
	}
}

func TestComplete(t *testing.T) {
	// Odd on purpose: spaces, order, repeated names, numbers out of range in members without a
	// type.
	raw := " { \"_metadata\":{\"x\":1e400}, " +
		"\"id\":null,\"model\":\"a\",\"model\":null,\t\"object\":\"chat.completion\",\"created\":1.5e0," +
		"\"choices\":[],\"lone\":\"\\ud800\",\"big\":123456789012345678901234567890 }\n"
	s := fakes.NewServer(t)
	s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(raw) }
	c := sealedClient(t, s, nil)
	request := `{"messages": [{"content":"<&>\u00e9","role":"user"}] , "model":"m","stream":true,"x":1e400}`
	body := secret(t, request)
	resp, err := c.Complete(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Last().Plaintext; string(got) != request {
		t.Errorf("sealed %s", got)
	}
	_ = resp.Body.Use(func(b []byte) error {
		if string(b) != raw {
			t.Errorf("got %q", b)
		}
		return nil
	})
	_ = body.Use(func(b []byte) error {
		if string(b) != request {
			t.Errorf("the request became %q", b)
		}
		return nil
	})
	if resp.PayloadID != s.Last().Request.Header.Get("X-Payload-ID") ||
		!chatjson.IsUUID(resp.PayloadID) || resp.PayloadID[14] != '4' {
		t.Errorf("PayloadID %q", resp.PayloadID)
	}
	for range 2 {
		if resp.Body.Destroy(); resp.Body.Len() != 0 {
			t.Errorf("%d bytes are left", resp.Body.Len())
		}
	}
}

// An answer that was opened before is refused, and so is one that belongs to another request.
func TestAnswersAreOpenedOnce(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	var kept string
	s.Answer = func(q *fakes.Question) *http.Response {
		if kept == "" {
			b, _ := io.ReadAll(q.Seal(fakes.FineCompletion("once")).Body)
			kept = string(b)
		}
		return respond(200, kept)
	}
	if _, err := c.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if resp, err := c.Chat(t.Context(), ask("x")); !errors.Is(err, ErrReplay) || resp != nil {
			t.Errorf("again: %v, %v", resp, err)
		}
	}
	first := s.Questions()[0].Request.Header.Get("X-Payload-ID")
	s.Answer = func(q *fakes.Question) *http.Response {
		return q.Seal(answerWith("_metadata", `{"payload_id":"`+first+`"}`))
	}
	if _, err := c.Chat(t.Context(), ask("x")); !errors.Is(err, ErrReplay) {
		t.Errorf("another request's answer: %v", err)
	}
}

func TestCompleteRefusals(t *testing.T) {
	c := startClient(t, "https://server.test", func(c *Config) { c.Transport = neverUsed(t) })
	destroyed := secret(t, "{}")
	destroyed.Destroy()
	if resp, err := c.Complete(t.Context(), destroyed); !errors.Is(err, ErrClosed) || resp != nil {
		t.Errorf("destroyed: %v, %v", resp, err)
	}
	for name, r := range map[string]*Secret{"nil": nil, "empty": secret(t, "")} {
		if resp, err := c.Complete(t.Context(), r); !errors.Is(err, ErrInvalidRequest) ||
			resp != nil {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
}

func TestClosedClient(t *testing.T) {
	c := sealedClient(t, fakes.NewServer(t), nil)
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	_, chatErr := c.Chat(t.Context(), ask("x"), WithTier(TierHigh))
	_, completeErr := c.Complete(t.Context(), secret(t, `{"model":"m"}`))
	_, keyErr := c.ServerKey(t.Context())
	for i, err := range []error{chatErr, completeErr, keyErr, c.Warm(t.Context())} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if _, err := c.cfg.Keys.Public(t.Context()); err != nil {
		t.Errorf("Close closed the caller's key store: %v", err)
	}
}

// Close ends calls wherever they wait.
func TestCloseEndsCalls(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		s := fakes.NewServer(t)
		waiting := make(chan struct{}, 8)
		stuck := roundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method != method {
				return s.RoundTrip(r)
			}
			waiting <- struct{}{}
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		c := sealedClient(t, s, func(c *Config) { c.Transport = stuck })
		errs := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := c.Chat(t.Context(), ask("x"))
				errs <- err
			}()
		}
		<-waiting
		_ = c.Close()
		for range 3 {
			select {
			case err := <-errs:
				if !errors.Is(err, ErrClosed) || errors.Is(err, ErrConnection) {
					t.Errorf("%s: %v", method, err)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s: a call did not end", method)
			}
		}
	}
}

func TestTimeoutsAndContexts(t *testing.T) {
	s := fakes.NewServer(t)
	stuck := roundTripFunc(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet {
			return s.RoundTrip(r)
		}
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	c := sealedClient(t, s, func(c *Config) { c.Transport, c.Timeout = stuck, 50*time.Millisecond })
	_, err := c.Chat(t.Context(), ask("x"))
	if !errors.Is(err, ErrConnection) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Config.Timeout: %v", err)
	}
	c = sealedClient(t, s, func(c *Config) { c.Transport = stuck })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Chat(ctx, ask("x")); errors.Is(err, ErrConnection) ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's deadline: %v", err)
	}
	cause := errors.New("the caller's cause")
	gone, leave := context.WithCancelCause(t.Context())
	leave(cause)
	if _, err := c.Chat(gone, ask("x")); !errors.Is(err, cause) ||
		!errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}

// Nothing that was sealed, and no word of the server's, may reach a log.
func TestClientLogsNoContent(t *testing.T) {
	const marker = "MARKER-content-4711"
	s := fakes.NewServer(t)
	var log bytes.Buffer
	c := sealedClient(t, s, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.APIKey = secret(t, "key-"+marker)
	})
	for name, answer := range map[string]func(q *fakes.Question) *http.Response{
		"fine": func(q *fakes.Question) *http.Response {
			return q.Seal(fakes.FineCompletion(marker))
		},
		"schema": func(q *fakes.Question) *http.Response {
			return q.Seal(`{"id":"` + marker + `","` + marker + `":1}`)
		},
		"not JSON": func(q *fakes.Question) *http.Response { return q.Seal(marker) },
		"sealed error": func(q *fakes.Question) *http.Response {
			return q.Seal(`{"error":{"message":"` + marker + `"}}`)
		},
		"unsealed": func(q *fakes.Question) *http.Response {
			return respond(200, `{"`+marker+`":1}`)
		},
		"encoding": func(q *fakes.Question) *http.Response {
			return respond(200, marker, "Content-Encoding", marker)
		},
		"status": func(q *fakes.Question) *http.Response {
			return respond(422, `{"detail":"`+marker+`"}`)
		},
	} {
		s.Answer = answer
		_, err := c.Chat(t.Context(), ask(marker))
		if (err == nil) != (name == "fine") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(log.String(), marker) {
			t.Errorf("%s: content in the log: %s", name, log.String())
		}
		if e, ok := errors.AsType[*APIError](err); err != nil && !ok &&
			strings.Contains(err.Error(), marker) {
			t.Errorf("%s: content in the error: %v %v", name, err, e)
		}
		log.Reset()
	}
}

func TestNewUUID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newUUID()
		if !chatjson.IsUUID(id) || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) ||
			seen[id] {
			t.Fatalf("got %q", id)
		}
		seen[id] = true
	}
}
