// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// pythonServer is a running testdata/server.py.
type pythonServer struct {
	url         string
	fingerprint string
	pool        *certificates // nil over http
	form        string

	stdin io.Writer
	lines <-chan []byte
}

// startPython starts a server, and stops it when the test ends. Output of the server on stderr
// fails the test.
func startPython(t *testing.T, form, bits string, certs *certificates) *pythonServer {
	t.Helper()
	args := []string{filepath.Join("testdata", "server.py"), "--form", form, "--bits", bits}
	scheme := "http"
	if certs != nil {
		scheme, args = "https", append(args, "--chain", certs.chain, "--key", certs.key)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*scriptDeadline)
	cmd := exec.CommandContext(ctx, python, args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = environment()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan []byte, 16)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines <- bytes.Clone(s.Bytes())
		}
	}()
	t.Cleanup(func() {
		defer cancel()
		_ = stdin.Close() // it ends by itself
		stop := time.AfterFunc(10*time.Second, cancel)
		defer stop.Stop()
		for range lines {
		}
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("server.py: %v\n%s", err, stderr.Bytes())
		}
	})
	s := &pythonServer{pool: certs, form: form, stdin: stdin, lines: lines}
	var hello struct{ Port int }
	if err := json.Unmarshal(s.line(t), &hello); err != nil {
		t.Fatal(err)
	}
	s.url = scheme + "://127.0.0.1:" + strconv.Itoa(hello.Port)
	return s
}

// line returns the next line that the server prints, and keeps the fingerprint in it.
func (s *pythonServer) line(t *testing.T) []byte {
	t.Helper()
	select {
	case line := <-s.lines:
		var said struct{ Fingerprint string }
		if err := json.Unmarshal(line, &said); err != nil || len(said.Fingerprint) != 64 {
			t.Fatalf("server.py said %q: %v", line, err)
		}
		s.fingerprint = said.Fingerprint
		return line
	case <-time.After(scriptDeadline):
		t.Fatal("server.py says nothing")
		return nil
	}
}

// rotate gives the server another key.
func (s *pythonServer) rotate(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(s.stdin, "rotate\n"); err != nil {
		t.Fatal(err)
	}
	s.line(t)
}

// client makes a client of the server that pins its key and does not retry, unless change says
// otherwise.
func (s *pythonServer) client(t *testing.T,
	change func(*sealedchat.Config)) *sealedchat.SecureCompletionClient {
	t.Helper()
	c := sealedchat.Config{
		BaseURL: s.url, Trust: sealedchat.Pin(s.fingerprint), Keys: clientKeys,
		Timeout: scriptDeadline, MaxRetries: -1, InsecureAllowHTTP: s.pool == nil,
	}
	if s.pool != nil {
		transport := sealedchat.DefaultTransport()
		transport.TLSClientConfig.RootCAs = s.pool.pool
		transport.Proxy = nil
		t.Cleanup(transport.CloseIdleConnections)
		c.Transport = transport
	}
	if change != nil {
		change(&c)
	}
	client, err := sealedchat.NewSecureCompletionClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestServer runs each test against two servers: each form of the tag, both schemes, two sizes of
// keys.
func TestServer(t *testing.T) {
	needPython(t)
	for _, s := range []*pythonServer{
		startPython(t, "separate", "4096", newCertificates(t)),
		startPython(t, "appended", "2048", nil),
	} {
		t.Run(s.form, func(t *testing.T) {
			t.Run("chat", s.testChat)
			t.Run("tools", s.testTools)
			t.Run("complete", s.testComplete)
			t.Run("HTTPClient", s.testHTTPClient)
			t.Run("refusals", s.testRefusals)
			t.Run("retries", s.testRetries)
			t.Run("key changes", s.testKeyChanges) // last: it changes the key
		})
	}
}

func ask(model, text string) *sealedchat.ChatRequest {
	return &sealedchat.ChatRequest{Model: model,
		Messages: []sealedchat.Message{sealedchat.UserMessage(text)}}
}

func (s *pythonServer) testChat(t *testing.T) {
	client := s.client(t, nil)
	for name, c := range map[string]struct{ model, text string }{
		"plain":       {"echo", "What is the capital of France?"},
		"unicode":     {"echo", unicodeText},
		"escaped":     {"ascii", unicodeText},
		"1 MiB":       {"echo", strings.Repeat("0123456789abcde\n", 1<<16)},
		"largest":     {"echo", strings.Repeat("0123456789abcdef", 10<<16)[:10<<20-70]},
		"gzip":        {"gzip", "compressed"},
		"no metadata": {"no metadata", "of an older server"},
		"foreign id":  {"foreign id", "whose payload id is no UUID"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := client.Chat(t.Context(), ask(c.model, c.text))
			if err != nil {
				t.Fatal(err)
			}
			if r.Text() != c.text || r.Object != "chat.completion" || r.Usage == nil ||
				r.Usage.TotalTokens != 3 || r.Choices[0].FinishReason != "stop" {
				t.Errorf("answer %.200q", r.Text())
			}
			if id := string(r.Metadata["payload_id"]); c.model == "echo" &&
				id != strconv.Quote(r.PayloadID) {
				t.Errorf("payload id %s, want %s", id, r.PayloadID)
			}
		})
	}
}

func (s *pythonServer) testTools(t *testing.T) {
	client := s.client(t, nil)
	r := ask("tools", "What is the weather in Zürich?")
	r.Tools = []sealedchat.Tool{sealedchat.FunctionTool("get_weather", "The weather in a city",
		json.RawMessage(`{"type":"object"}`))}
	answer, err := client.Chat(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	m := answer.Choices[0].Message
	if answer.Choices[0].FinishReason != "tool_calls" || len(m.ToolCalls) != 1 ||
		m.ToolCalls[0].ID != "call_1" ||
		m.ToolCalls[0].Function.Name != "get_weather" ||
		m.ToolCalls[0].Function.Arguments != `{"city": "Zürich"}` {
		t.Fatalf("answer %s", answer.Raw)
	}
	r.Messages = append(r.Messages, m, sealedchat.ToolMessage("call_1", `{"celsius": -3}`))
	if answer, err = client.Chat(t.Context(), r); err != nil || answer.Text() != `{"celsius": -3}` {
		t.Errorf("%v, %v", answer, err)
	}
}

func (s *pythonServer) testComplete(t *testing.T) {
	client := s.client(t, nil)
	body := sealedchat.NewSecret(
		[]byte(`{"model":"echo","messages":[{"role":"user","content":"raw \u00fc"}],"x":1e400}`))
	defer body.Destroy()
	r, err := client.Complete(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Destroy()
	err = r.Body.Use(func(b []byte) error {
		// The bytes as server.py sealed them: compact, raw UTF-8.
		if !bytes.HasPrefix(b,
			[]byte(`{"id":"chatcmpl-1","object":"chat.completion","created":`)) ||
			!bytes.Contains(b, []byte(`"content":"raw ü"`)) {
			t.Errorf("answer %s", b)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func (s *pythonServer) testHTTPClient(t *testing.T) {
	sdk := s.client(t, nil).HTTPClient()
	post := func(body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			"https://api.openai.com/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		// 418 if this or the next one leaves
		req.Header.Set("Authorization", "Bearer not-for-this-server")
		req.Header.Set("X-Stainless-Lang", "go")
		resp, err := sdk.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(got)
	}
	const messages = `"messages":[{"role":"user","content":"an SDK's words"}]`
	resp, body := post(`{"model":"echo",` + messages + `}`)
	if resp.StatusCode != 200 || !strings.Contains(body, `"content":"an SDK's words"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	resp, body = post(`{"model":"echo",` + messages +
		`,"stream":true,"stream_options":{"include_usage":true}}`)
	if got := streamed(t, body); got != "an SDK's words" ||
		!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		t.Errorf("stream of %q as %s", got, resp.Header.Get("Content-Type"))
	}
	resp, body = post(`{"model":"status:429",` + messages + `}`)
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" ||
		resp.Header.Get("X-Should-Retry") != "false" ||
		!strings.Contains(body, `"type":"rate_limit_error"`) {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
}

// streamed puts the text of an event stream together, which has to end with the usage and [DONE].
func streamed(t *testing.T, events string) string {
	t.Helper()
	var text strings.Builder
	total := 0
	rest, done := strings.CutSuffix(events, "data: [DONE]\n\n")
	if !done {
		t.Fatalf("no end: %s", events)
	}
	for event := range strings.SplitSeq(strings.TrimSuffix(rest, "\n\n"), "\n\n") {
		var chunk struct {
			Object  string
			Choices []struct{ Delta struct{ Content string } }
			Usage   struct {
				TotalTokens int `json:"total_tokens"`
			}
		}
		data, ok := strings.CutPrefix(event, "data: ")
		if err := json.Unmarshal([]byte(data), &chunk); !ok || err != nil ||
			chunk.Object != "chat.completion.chunk" {
			t.Fatalf("event %q: %v", event, err)
		}
		for _, c := range chunk.Choices {
			text.WriteString(c.Delta.Content)
		}
		total += chunk.Usage.TotalTokens
	}
	if total != 3 {
		t.Errorf("usage of %d", total)
	}
	return text.String()
}

func (s *pythonServer) testRefusals(t *testing.T) {
	wrong := sealedchat.NewSecret([]byte("wrong"))
	defer wrong.Destroy()
	client := s.client(t, nil)
	if _, err := client.Chat(t.Context(), ask("echo", "before")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		model string
		want  error
		opts  []sealedchat.CallOption
	}{
		{"status:400", sealedchat.ErrInvalidRequest, nil},
		{"status:401", sealedchat.ErrAuthentication, nil},
		{"status:403", sealedchat.ErrPermission, nil},
		{"status:404", sealedchat.ErrNotFound, nil},
		{"status:413", sealedchat.ErrInvalidRequest, nil},
		{"status:429", sealedchat.ErrRateLimited, nil},
		{"status:500", sealedchat.ErrServer, nil},
		{"status:502", sealedchat.ErrServer, nil},
		{"status:503", sealedchat.ErrUnavailable, nil},
		{"status:504", sealedchat.ErrServer, nil},
		{"echo", sealedchat.ErrAuthentication,
			[]sealedchat.CallOption{sealedchat.WithAPIKey(wrong)}},
		{"redirect", sealedchat.ErrServer, nil},
		{"error", sealedchat.ErrServer, nil},

		{"damage:tag", sealedchat.ErrDecryption, nil},
		{"damage:text", sealedchat.ErrDecryption, nil},
		{"damage:wrapping", sealedchat.ErrDecryption, nil},
		{"damage:key", sealedchat.ErrDecryption, nil},
		{"damage:version", sealedchat.ErrEnvelope, nil},
		{"cut", sealedchat.ErrEnvelope, nil},
		{"plain", sealedchat.ErrEnvelope, nil},
		{"no choices", sealedchat.ErrResponseSchema, nil},
		{"other request", sealedchat.ErrReplay, nil},
		{"tier:standard", sealedchat.ErrTierDowngrade,
			[]sealedchat.CallOption{sealedchat.WithTier(sealedchat.TierHigh)}},
		{"tier:homespun", sealedchat.ErrTierDowngrade,
			[]sealedchat.CallOption{sealedchat.WithTier(sealedchat.TierStandard)}},
	} {
		t.Run(c.model, func(t *testing.T) {
			r, err := client.Chat(t.Context(), ask(c.model, "x"), c.opts...)
			if r != nil || !errors.Is(err, c.want) {
				t.Fatalf("got %v, %v, want %v", r, err, c.want)
			}
			answer, ok := errors.AsType[*sealedchat.APIError](err)
			if status, _ := strconv.Atoi(strings.TrimPrefix(c.model, "status:")); status != 0 {
				if !ok || answer.StatusCode != status || answer.Detail != "words of the server" {
					t.Errorf("error %v", err)
				}
				if wait := (status == 429 || status == 503); ok &&
					wait != (answer.RetryAfter == 7*time.Second) {
					t.Errorf("Retry-After %v", answer.RetryAfter)
				}
			}
			if c.model == "error" {
				if !ok || answer.StatusCode != 200 {
					t.Fatalf("error %v", err)
				}
				if code, detail := answer.Sealed(); code != "busy" ||
					detail != "words of the model" {
					t.Errorf("sealed were %q, %q", code, detail)
				}
			}
		})
	}
	// The same answer twice, without _metadata: only the envelope shows that the second is old.
	t.Run("opened before", func(t *testing.T) {
		if _, err := client.Chat(t.Context(), ask("no metadata", "x")); err != nil {
			t.Fatal(err)
		}
		if r, err := client.Chat(t.Context(), ask("last", "x")); r != nil ||
			!errors.Is(err, sealedchat.ErrReplay) {
			t.Errorf("got %v, %v", r, err)
		}
	})
	// An answer to another request that no client has opened yet: only its payload id shows that.
	t.Run("withheld", func(t *testing.T) {
		if _, err := client.Chat(t.Context(), ask("withheld", "x")); !errors.Is(err,
			sealedchat.ErrServer) {
			t.Fatal(err)
		}
		if r, err := client.Chat(t.Context(), ask("last", "x")); r != nil ||
			!errors.Is(err, sealedchat.ErrReplay) {
			t.Errorf("got %v, %v", r, err)
		}
	})
	for _, tier := range []sealedchat.SecurityTier{"", sealedchat.TierStandard, sealedchat.TierHigh,
		sealedchat.TierMaximum} {
		if _, err := client.Chat(t.Context(), ask("echo", "x"),
			sealedchat.WithTier(tier)); err != nil {
			t.Errorf("tier %q: %v", tier, err)
		}
	}
}

// server.py refuses a wrapped key, a nonce or a payload id that it has seen before: each attempt
// must have its own.
func (s *pythonServer) testRetries(t *testing.T) {
	r, err := s.client(t, func(c *sealedchat.Config) {
		c.MaxRetries = 2
	}).Chat(t.Context(), ask("flaky", "x"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(r.Extra["attempts"]); got != "3" || r.Text() != "x" {
		t.Errorf("answer %q after %s attempts", r.Text(), got)
	}
}

func (s *pythonServer) testKeyChanges(t *testing.T) {
	old := s.fingerprint
	pinned := s.client(t, nil)
	var changes []string
	trusting := s.client(t, func(c *sealedchat.Config) {
		c.Trust = sealedchat.TrustHTTPS()
		c.OnServerKey = func(_, key *sealedchat.PublicKey) error {
			changes = append(changes, key.Fingerprint())
			return nil
		}
	})
	for _, client := range []*sealedchat.SecureCompletionClient{pinned, trusting} {
		key, err := client.ServerKey(t.Context())
		if err != nil || key.Fingerprint() != old {
			t.Fatalf("%v, %v", key, err)
		}
		if _, err := client.Chat(t.Context(), ask("echo", "x")); err != nil {
			t.Fatal(err)
		}
	}
	s.rotate(t)
	if r, err := trusting.Chat(t.Context(), ask("echo", "after the change")); err != nil ||
		r.Text() != "after the change" {
		t.Errorf("%v, %v", r, err)
	}
	if len(changes) != 2 || changes[0] != old || changes[1] != s.fingerprint {
		t.Errorf("OnServerKey was told of %v", changes)
	}
	_, err := pinned.Chat(t.Context(), ask("echo", "x"))
	refused, ok := errors.AsType[*sealedchat.ServerKeyError](err)
	if !ok || refused.Got != s.fingerprint || len(refused.Want) != 1 || refused.Want[0] != old {
		t.Fatalf("got %v", err)
	}
	if err := pinned.AcceptServerKey(refused.Got); err != nil {
		t.Fatal(err)
	}
	if r, err := pinned.Chat(t.Context(), ask("echo", "accepted")); err != nil ||
		r.Text() != "accepted" {
		t.Errorf("%v, %v", r, err)
	}
	// A pin that is wrong from the start.
	other := s.client(t, func(c *sealedchat.Config) { c.Trust = sealedchat.Pin(old) })
	if _, err := other.Chat(t.Context(), ask("echo", "x")); err == nil {
		t.Error("the wrong pin was served")
	} else if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok {
		t.Errorf("got %v", err)
	}
}
