// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// got is what a caller got of an answer.
type got struct {
	text    string
	calls   [][2]string
	tokens  int64
	finish  string
	extra   map[string]json.RawMessage
	message *sealedchat.Message // that can be sent back
	words   string              // of an error
	err     error
}

func ofResponse(r *sealedchat.ChatResponse) (g got) {
	g.text = r.Text()
	if r.Usage != nil {
		g.tokens = r.Usage.TotalTokens
	}
	if len(r.Choices) > 0 {
		c := r.Choices[0]
		g.finish, g.message, g.extra = c.FinishReason, &c.Message, c.Message.Extra
		for _, call := range c.Message.ToolCalls {
			g.calls = append(g.calls, [2]string{call.Function.Name, call.Function.Arguments})
		}
	}
	return g
}

// failed adds an error, and the words of an *APIError.
func (g got) failed(err error) got {
	g.err = err
	if api, ok := errors.AsType[*sealedchat.APIError](err); ok {
		_, g.words = api.Sealed()
	}
	return g
}

func byChat(
	ctx context.Context, c *sealedchat.SecureCompletionClient, r *sealedchat.ChatRequest,
) got {
	resp, err := c.Chat(ctx, r)
	if err != nil {
		return got{}.failed(err)
	}
	return ofResponse(resp)
}

func byStream(
	ctx context.Context, c *sealedchat.SecureCompletionClient, r *sealedchat.ChatRequest,
) got {
	var a sealedchat.ChatAccumulator
	for chunk, err := range c.Stream(ctx, r) {
		if err != nil {
			return ofResponse(a.Response()).failed(err)
		}
		a.Add(chunk)
	}
	return ofResponse(a.Response())
}

// byComplete reads the bytes as Chat would.
func byComplete(
	ctx context.Context, c *sealedchat.SecureCompletionClient, r *sealedchat.ChatRequest,
) got {
	text, err := json.Marshal(r)
	if err != nil {
		return got{err: err}
	}
	body := sealedchat.NewSecret(text)
	defer body.Destroy()
	resp, err := c.Complete(ctx, body)
	if err != nil {
		return got{}.failed(err)
	}
	defer resp.Body.Destroy()
	var answer sealedchat.ChatResponse
	if err := resp.Body.Use(answer.UnmarshalJSON); err != nil {
		return got{err: err}
	}
	return ofResponse(&answer)
}

// sdkReading is how an SDK declares a completion, or a chunk: encoding/json refuses other types.
type sdkReading struct {
	ID, Object, Model string
	Created           int64
	Choices           []struct {
		Index          int
		Message, Delta struct {
			Role, Content, Refusal string
			Reasoning              string `json:"reasoning_content"`
			ToolCalls              []struct {
				Index    *int
				ID, Type string
				Function struct{ Name, Arguments string }
			} `json:"tool_calls"`
		}
		FinishReason string `json:"finish_reason"`
	}
	Usage *struct {
		TotalTokens int64 `json:"total_tokens"`
	}
	Error *struct{ Message string }
}

// add joins what came, as SDKs do: by index alone.
func (g *got) add(text []byte, stream bool) error {
	var a sdkReading
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("an SDK cannot read %s: %w", text, err)
	}
	if a.Error != nil {
		g.words = a.Error.Message
		return errSDK
	}
	if a.Usage != nil {
		g.tokens = a.Usage.TotalTokens
	}
	for _, c := range a.Choices {
		if c.Index != 0 {
			continue
		}
		m := c.Message
		if stream {
			m = c.Delta
		}
		g.text += m.Content
		if m.Reasoning != "" {
			var before string
			_ = json.Unmarshal(g.extra["reasoning_content"], &before)
			joined, _ := json.Marshal(before + m.Reasoning)
			g.extra = map[string]json.RawMessage{"reasoning_content": joined}
		}
		if c.FinishReason != "" {
			g.finish = c.FinishReason
		}
		for i, call := range m.ToolCalls {
			if call.Index != nil {
				i = *call.Index
			}
			for len(g.calls) <= i {
				g.calls = append(g.calls, [2]string{})
			}
			if g.calls[i][0] == "" {
				g.calls[i][0] = call.Function.Name
			}
			g.calls[i][1] += call.Function.Arguments
		}
	}
	return nil
}

var errSDK = errors.New("an error object")

// bySDK asks through HTTPClient, and reads as SDKs do.
func bySDK(stream bool) way {
	return func(ctx context.Context, c *sealedchat.SecureCompletionClient,
		r *sealedchat.ChatRequest) (g got) {
		again := *r
		again.Extra = map[string]any{"stream": stream}
		text, err := json.Marshal(again)
		if err != nil {
			return got{err: err}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost,
			"http://sdk.test/v1/chat/completions", bytes.NewReader(text))
		if err != nil {
			return got{err: err}
		}
		resp, err := c.HTTPClient().Do(req)
		if err != nil {
			return got{}.failed(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 && resp.StatusCode != 201 || !stream {
			text, err := io.ReadAll(resp.Body)
			if err == nil {
				err = g.add(text, false)
			}
			g.err = err
			return g
		}
		g.err = g.readStream(resp)
		return g
	}
}

// readStream reads lines as SDKs do, which know neither CR nor a byte order mark.
func (g *got) readStream(resp *http.Response) error {
	if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		return fmt.Errorf("a stream of %s", kind)
	}
	lines, done := bufio.NewScanner(resp.Body), false
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case lines.Text() == "":
			continue
		case !ok || done:
			return fmt.Errorf("the line %q", lines.Text())
		case data == "[DONE]":
			done = true
			continue
		}
		if err := g.add([]byte(data), true); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if !done {
		return errors.New("no [DONE], and no error")
	}
	return nil
}

type way func(context.Context, *sealedchat.SecureCompletionClient, *sealedchat.ChatRequest) got

// everyWay is every way to ask for an answer. It is never changed.
var everyWay = map[string]way{
	"Chat": byChat, "Complete": byComplete, "Stream": byStream, "HTTPClient": bySDK(false),
	"HTTPClient, stream": bySDK(true),
}

// waysOf are the ways to ask that a case is for.
func waysOf(c *testkit.AnswerCase) map[string]way {
	ways := make(map[string]way)
	if c.Stream {
		ways["Stream"], ways["HTTPClient, stream"] = byStream, bySDK(true)
	}
	if c.Whole {
		ways["Chat"], ways["Complete"], ways["HTTPClient"] = byChat, byComplete, bySDK(false)
	}
	return ways
}

// answerWorld is a gateway whose upstream answers as the present case says, and clients of it.
type answerWorld struct {
	now     http.Handler
	clients map[string]*sealedchat.SecureCompletionClient
}

func newAnswerWorld(t *testing.T) *answerWorld {
	w := &answerWorld{}
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.now.ServeHTTP(rw, r)
	})
	gateway := startGateway(t, upstream, nil)
	server := httptest.NewServer(gateway)
	t.Cleanup(server.Close)
	w.clients = map[string]*sealedchat.SecureCompletionClient{
		"v1": startClient(t, server.URL, nil), "ohttp": ohttpClient(t, server.URL, nil),
	}
	return w
}

// check asks for the case in every way.
func (w *answerWorld) check(t *testing.T, c *testkit.AnswerCase) {
	w.now = c
	for protocol, client := range w.clients {
		if !c.Over(protocol) {
			continue
		}
		for name, ask := range waysOf(c) {
			start := time.Now()
			g := ask(t.Context(), client, &sealedchat.ChatRequest{Model: "m",
				Messages: []sealedchat.Message{sealedchat.UserMessage("?")}})
			took := time.Since(start)
			for _, wrong := range complaints(c, g) {
				t.Errorf("%s, %s: %s", protocol, name, wrong)
			}
			if most := time.Duration(c.Want.WithinMS) * time.Millisecond; most > 0 && took > most {
				t.Errorf("%s, %s: took %v", protocol, name, took)
			}
		}
	}
}

// complaints says what is not as the case wants it.
func complaints(c *testkit.AnswerCase, g got) (all []string) {
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch sdk := errors.Is(g.err, errSDK); {
	case c.Want.Error == "" && g.err != nil:
		say("%v", g.err)
	case c.Want.Error == "truncated" && !errors.Is(g.err, sealedchat.ErrTruncated),
		c.Want.Error == "schema" && !errors.Is(g.err, sealedchat.ErrResponseSchema),
		c.Want.Error == "api" && !sdk && !errors.Is(g.err, sealedchat.ErrServer):
		say("error %v, want %s", g.err, c.Want.Error)
	case c.Want.Error == "api" && !strings.Contains(g.words, c.Want.Words):
		say("the words %q, want %q", g.words, c.Want.Words)
	}
	if g.text != c.Want.Text {
		say("text %q, want %q", g.text, c.Want.Text)
	}
	if fmt.Sprint(g.calls) != fmt.Sprint(c.Want.Calls) {
		say("calls %q, want %q", g.calls, c.Want.Calls)
	}
	if c.Want.TotalTokens > 0 && g.tokens != c.Want.TotalTokens {
		say("%d tokens", g.tokens)
	}
	if c.Want.FinishNot != "" && g.finish == c.Want.FinishNot {
		say("finish_reason %q", g.finish)
	}
	for name, want := range c.Want.Extra {
		if string(g.extra[name]) != strconv.Quote(want) {
			say("%s is %s, want %q", name, g.extra[name], want)
		}
	}
	if c.Want.SentBackHasNo != "" && g.message != nil {
		if back, err := json.Marshal(g.message); err != nil ||
			strings.Contains(string(back), c.Want.SentBackHasNo) {
			say("sent back %s, %v", back, err)
		}
	}
	return all
}

// Answers as real servers write them come out right, whichever way they are asked for.
func TestAnswersOfRealServers(t *testing.T) {
	w := newAnswerWorld(t)
	for _, c := range testkit.AnswerCases(t) {
		t.Run(c.Name, func(t *testing.T) { w.check(t, &c) })
	}
}
