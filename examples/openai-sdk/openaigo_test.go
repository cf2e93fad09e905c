// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/seed-017344ad/sealedchat"
)

// bothOpenAI runs a test twice with openai-go: once it talks to the upstream directly, and once
// sealed to the gateway.
func bothOpenAI(t *testing.T, key string, test func(t *testing.T, w *world, client openai.Client,
	sealed bool)) {
	t.Run("plain", func(t *testing.T) {
		w := newWorld(t, false)
		t.Setenv("OPENAI_BASE_URL", w.plainURL())
		test(t, w, plainOpenAI(key), false)
	})
	t.Run("sealed", func(t *testing.T) {
		w := newWorld(t, false)
		t.Setenv("OPENAI_BASE_URL", w.url()+"/v1")
		test(t, w, sealedOpenAI(key, w.client(t, w.pin(t))), true)
	})
	t.Run("sealed over TLS", func(t *testing.T) {
		w := newWorld(t, true)
		t.Setenv("OPENAI_BASE_URL", w.url()+"/v1")
		test(t, w, sealedOpenAI(key, w.client(t, w.pin(t))), true)
	})
}

func openAIParams() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "m",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)}}
}

var lookup = openai.FunctionDefinitionParam{
	Name: "lookup",
	Parameters: openai.FunctionParameters{"type": "object",
		"properties": map[string]any{"city": map[string]string{"type": "string"}}},
}

func TestOpenAIChat(t *testing.T) {
	bothOpenAI(t, goodKey, func(t *testing.T, w *world, client openai.Client, sealed bool) {
		got, err := client.Chat.Completions.New(t.Context(), openAIParams())
		if err != nil {
			t.Fatal(err)
		}
		if got.Choices[0].Message.Content != answer+" to "+prompt ||
			got.Choices[0].FinishReason != "stop" || got.Usage.TotalTokens != 30 ||
			got.ID != "chatcmpl-1" {
			t.Errorf("%+v", got)
		}
		w.check(t, sealed)
	})
}

func TestOpenAIToolCall(t *testing.T) {
	bothOpenAI(t, goodKey, func(t *testing.T, w *world, client openai.Client, sealed bool) {
		params := openAIParams()
		params.Tools = []openai.ChatCompletionToolUnionParam{
			openai.ChatCompletionFunctionTool(lookup)}
		first, err := client.Chat.Completions.New(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		message := first.Choices[0].Message
		if len(message.ToolCalls) != 1 || message.ToolCalls[0].Function.Name != "lookup" ||
			!strings.Contains(message.ToolCalls[0].Function.Arguments, toolArgs) {
			t.Fatalf("%+v", message)
		}
		params.Messages = append(params.Messages, message.ToParam(),
			openai.ToolMessage(toolSays, message.ToolCalls[0].ID))
		second, err := client.Chat.Completions.New(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		if second.Choices[0].Message.Content != answer+" to "+toolSays {
			t.Errorf("%+v", second)
		}
		w.check(t, sealed, toolArgs, toolSays)
	})
}

func TestOpenAIStream(t *testing.T) {
	bothOpenAI(t, goodKey, func(t *testing.T, w *world, client openai.Client, sealed bool) {
		for _, tools := range []bool{false, true} {
			params := openAIParams()
			params.StreamOptions.IncludeUsage = openai.Bool(true)
			if tools {
				params.Tools = []openai.ChatCompletionToolUnionParam{
					openai.ChatCompletionFunctionTool(lookup)}
			}
			stream := client.Chat.Completions.NewStreaming(t.Context(), params)
			var whole openai.ChatCompletionAccumulator
			chunks := 0
			for stream.Next() {
				if chunks++; !whole.AddChunk(stream.Current()) {
					t.Fatalf("the chunk does not fit: %+v", stream.Current())
				}
			}
			if err := stream.Err(); err != nil {
				t.Fatal(err)
			}
			stream.Close()
			got := whole.Choices[0]
			if chunks < 3 || whole.Usage.TotalTokens != 30 || whole.ID != "chatcmpl-1" ||
				got.Message.Role != "assistant" {
				t.Errorf("%d chunks: %+v", chunks, whole)
			}
			if !tools && (got.Message.Content != answer+" to "+prompt ||
				got.FinishReason != "stop") {
				t.Errorf("%+v", got)
			}
			if tools && (len(got.Message.ToolCalls) != 1 ||
				!strings.Contains(got.Message.ToolCalls[0].Function.Arguments, toolArgs) ||
				got.FinishReason != "tool_calls") {
				t.Errorf("%+v", got)
			}
		}
		w.check(t, sealed, toolArgs)
	})
}

func TestOpenAIErrors(t *testing.T) {
	bothOpenAI(t, wrongKey, func(t *testing.T, _ *world, client openai.Client, _ bool) {
		_, err := client.Chat.Completions.New(t.Context(), openAIParams())
		if refusal, ok := errors.AsType[*openai.Error](err); !ok || refusal.StatusCode != 401 ||
			refusal.Message == "" || refusal.Type == "" {
			t.Errorf("%v", err)
		}
		stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams())
		for stream.Next() {
			t.Errorf("%+v", stream.Current())
		}
		if refusal, ok := errors.AsType[*openai.Error](stream.Err()); !ok ||
			refusal.StatusCode != 401 {
			t.Errorf("%v", stream.Err())
		}
	})
}

// The package retries, so the SDK does not.
func TestOpenAIErrorIsNotMultiplied(t *testing.T) {
	w := newWorld(t, false)
	w.status = 500
	t.Setenv("OPENAI_BASE_URL", w.url()+"/v1")
	client := sealedOpenAI(goodKey, w.client(t, w.pin(t)))
	_, err := client.Chat.Completions.New(t.Context(), openAIParams(), option.WithMaxRetries(5))
	if refusal, ok := errors.AsType[*openai.Error](err); !ok || refusal.StatusCode != 502 {
		t.Errorf("%v", err)
	}
	if _, sealed := w.counts(); sealed != 1 {
		t.Errorf("%d requests", sealed)
	}
}

// A program finds a wrong pin through the error of the SDK. The SDK repeats the call, because it
// takes the error for a broken connection; nothing is sent.
func TestOpenAIWrongPin(t *testing.T) {
	w := newWorld(t, false)
	t.Setenv("OPENAI_BASE_URL", w.url()+"/v1")
	client := sealedOpenAI(goodKey, w.client(t, otherPin(w.pin(t))))
	trips := 0
	count := func(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		trips++
		return next(req)
	}
	_, err := client.Chat.Completions.New(t.Context(), openAIParams(), option.WithMaxRetries(1),
		option.WithMiddleware(count))
	if wrong, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok || wrong.Got != w.pin(t) {
		t.Errorf("%v", err)
	}
	if fetches, sealed := w.counts(); fetches != 1 || sealed != 0 || trips != 2 {
		t.Errorf("%d key fetches, %d requests, %d attempts of the SDK's", fetches, sealed, trips)
	}
	w.check(t, true)
}

// An SDK takes its key from the environment. The client must not send it to a server that it is not
// for.
func TestOpenAIKeyStaysHome(t *testing.T) {
	w := newWorld(t, false)
	client := sealedOpenAI(goodKey, w.client(t, w.pin(t))) // its base URL is api.openai.com
	_, err := client.Chat.Completions.New(t.Context(), openAIParams())
	if refusal, ok := errors.AsType[*openai.Error](err); !ok || refusal.StatusCode != 401 {
		t.Errorf("%v", err)
	}
	w.witness.MustNotSee(goodKey, "api.openai.com", "OpenAI/Go", "Stainless", prompt)
}

// A request that cannot be sealed is not sent.
func TestOpenAIOtherEndpoints(t *testing.T) {
	w := newWorld(t, false)
	t.Setenv("OPENAI_BASE_URL", w.url()+"/v1")
	client := sealedOpenAI(goodKey, w.client(t, w.pin(t)))
	_, listErr := client.Models.List(t.Context())
	_, embedErr := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
		Model: "m", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String(prompt)},
	})
	for _, err := range []error{listErr, embedErr} {
		if refusal, ok := errors.AsType[*openai.Error](err); !ok || refusal.StatusCode != 404 ||
			refusal.Code != "unsupported_endpoint" {
			t.Errorf("%v", err)
		}
	}
	if fetches, sealed := w.counts(); fetches+sealed != 0 {
		t.Errorf("%d key fetches, %d requests", fetches, sealed)
	}
}
