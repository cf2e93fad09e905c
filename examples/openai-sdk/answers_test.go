// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// reading is what a program gets of an answer through an SDK.
type reading struct {
	text   string
	calls  [][2]string
	tokens int64
	finish string
	err    error
}

// call adds a piece of a tool call, which SDKs join by index alone.
func (r *reading) call(index int, name, arguments string) {
	for len(r.calls) <= index {
		r.calls = append(r.calls, [2]string{})
	}
	if r.calls[index][0] == "" {
		r.calls[index][0] = name
	}
	r.calls[index][1] += arguments
}

func openAIWhole(ctx context.Context, client openai.Client) (r reading) {
	answer, err := client.Chat.Completions.New(ctx, openAIParams())
	if err != nil {
		return reading{err: err}
	}
	r.tokens = answer.Usage.TotalTokens
	for _, c := range answer.Choices {
		r.text, r.finish = c.Message.Content, c.FinishReason
		for i, call := range c.Message.ToolCalls {
			r.call(i, call.Function.Name, call.Function.Arguments)
		}
	}
	return r
}

func openAIStream(ctx context.Context, client openai.Client) (r reading) {
	stream := client.Chat.Completions.NewStreaming(ctx, openAIParams())
	defer stream.Close()
	for stream.Next() {
		chunk := stream.Current()
		r.tokens = max(r.tokens, chunk.Usage.TotalTokens)
		for _, c := range chunk.Choices {
			if c.Index != 0 {
				continue
			}
			r.text += c.Delta.Content
			r.finish += c.FinishReason
			for _, call := range c.Delta.ToolCalls {
				r.call(int(call.Index), call.Function.Name, call.Function.Arguments)
			}
		}
	}
	r.err = stream.Err()
	return r
}

func goOpenAIWhole(ctx context.Context, client *goopenai.Client) (r reading) {
	answer, err := client.CreateChatCompletion(ctx, goOpenAIRequest(false))
	if err != nil {
		return reading{err: err}
	}
	r.tokens = int64(answer.Usage.TotalTokens)
	for _, c := range answer.Choices {
		r.text, r.finish = c.Message.Content, string(c.FinishReason)
		for i, call := range c.Message.ToolCalls {
			r.call(i, call.Function.Name, call.Function.Arguments)
		}
	}
	return r
}

func goOpenAIStream(ctx context.Context, client *goopenai.Client) (r reading) {
	stream, err := client.CreateChatCompletionStream(ctx, goOpenAIRequest(false))
	if err != nil {
		return reading{err: err}
	}
	defer stream.Close()
	for {
		chunk, err := stream.Recv()
		if err == io.EOF {
			return r
		}
		if err != nil {
			r.err = err
			return r
		}
		if chunk.Usage != nil {
			r.tokens = int64(chunk.Usage.TotalTokens)
		}
		for _, c := range chunk.Choices {
			if c.Index != 0 {
				continue
			}
			r.text += c.Delta.Content
			r.finish += string(c.FinishReason)
			for i, call := range c.Delta.ToolCalls {
				if call.Index != nil {
					i = *call.Index
				}
				r.call(i, call.Function.Name, call.Function.Arguments)
			}
		}
	}
}

// Answers as real servers write them come out right through both SDKs, over both protocols.
func TestAnswersOfRealServers(t *testing.T) {
	var now http.Handler
	upstream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now.ServeHTTP(w, r)
	})
	t.Setenv("OPENAI_BASE_URL", "http://unused.test/v1")
	for protocol, client := range answerClients(t, upstream) {
		official := sealedOpenAI(goodKey, client)
		other := sealedGoOpenAI(goodKey, "http://unused.test/v1", client)
		for _, c := range testkit.AnswerCases(t) {
			if !c.Over(protocol) {
				continue
			}
			t.Run(protocol+"/"+c.Name, func(t *testing.T) {
				now = &c
				if c.Whole {
					openAIWhole(t.Context(), official).compare(t, "openai-go", &c)
					goOpenAIWhole(t.Context(), other).compare(t, "go-openai", &c)
				}
				if c.Stream {
					openAIStream(t.Context(), official).compare(t, "openai-go, stream", &c)
					goOpenAIStream(t.Context(), other).compare(t, "go-openai, stream", &c)
				}
			})
		}
	}
}

// answerClients are a client for each protocol, of one gateway in front of upstream.
func answerClients(
	t *testing.T, upstream http.Handler,
) map[string]*sealedchat.SecureCompletionClient {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	gatewayKeys, clientKeys := keys()
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: up.URL + "/v1", Keys: gatewayKeys, AllowUnauthenticated: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gateway.Close() })
	server := httptest.NewServer(gateway)
	t.Cleanup(server.Close)
	clients := make(map[string]*sealedchat.SecureCompletionClient)
	for name, protocol := range map[string]sealedchat.Protocol{
		"v1": sealedchat.ProtocolEnvelope, "ohttp": sealedchat.ProtocolOHTTP,
	} {
		config := sealedchat.Config{
			BaseURL: server.URL, InsecureAllowHTTP: true, Protocol: protocol, MaxRetries: -1,
			Trust: sealedchat.TrustHTTPS(),
		}
		if name == "v1" {
			config.Keys = clientKeys
		}
		client, err := sealedchat.NewSecureCompletionClient(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		clients[name] = client
	}
	return clients
}

// compare says what is not as the case wants it.
func (r reading) compare(t *testing.T, name string, c *testkit.AnswerCase) {
	t.Helper()
	switch {
	case (r.err == nil) != (c.Want.Error == ""):
		t.Errorf("%s: error %v, want %q", name, r.err, c.Want.Error)
	case c.Want.Error == "api" && !strings.Contains(r.err.Error(), c.Want.Words):
		t.Errorf("%s: error %v, want the words %q", name, r.err, c.Want.Words)
	case c.Want.Error == "truncated" && !errors.Is(r.err, sealedchat.ErrTruncated),
		c.Want.Error == "schema" && !errors.Is(r.err, sealedchat.ErrResponseSchema):
		t.Errorf("%s: error %v, want %s", name, r.err, c.Want.Error)
	}
	if r.text != c.Want.Text || fmt.Sprint(r.calls) != fmt.Sprint(c.Want.Calls) {
		t.Errorf("%s: text %q and calls %q, want %q and %q", name, r.text, r.calls, c.Want.Text,
			c.Want.Calls)
	}
	if c.Want.TotalTokens > 0 && r.tokens != c.Want.TotalTokens {
		t.Errorf("%s: %d tokens", name, r.tokens)
	}
	if c.Want.FinishNot != "" && r.finish == c.Want.FinishNot {
		t.Errorf("%s: finish_reason %q", name, r.finish)
	}
}
