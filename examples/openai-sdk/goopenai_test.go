// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
)

// bothGoOpenAI runs a test twice with go-openai: once it talks to the upstream directly, and once
// sealed to the gateway.
func bothGoOpenAI(t *testing.T, key string, test func(t *testing.T, w *world,
	client *goopenai.Client, sealed bool)) {
	t.Run("plain", func(t *testing.T) {
		w := newWorld(t, false)
		test(t, w, plainGoOpenAI(key, w.plainURL()), false)
	})
	t.Run("sealed", func(t *testing.T) {
		w := newWorld(t, false)
		test(t, w, sealedGoOpenAI(key, w.url()+"/v1", w.client(t, w.pin(t))), true)
	})
	t.Run("sealed over TLS", func(t *testing.T) {
		w := newWorld(t, true)
		test(t, w, sealedGoOpenAI(key, w.url()+"/v1", w.client(t, w.pin(t))), true)
	})
}

func goOpenAIRequest(tools bool) goopenai.ChatCompletionRequest {
	req := goopenai.ChatCompletionRequest{Model: "m",
		Messages: []goopenai.ChatCompletionMessage{{Role: goopenai.ChatMessageRoleUser,
			Content: prompt}}}
	if tools {
		req.Tools = []goopenai.Tool{{Type: goopenai.ToolTypeFunction,
			Function: &goopenai.FunctionDefinition{Name: "lookup", Parameters: lookup.Parameters}}}
	}
	return req
}

func TestGoOpenAIChat(t *testing.T) {
	bothGoOpenAI(t, goodKey, func(t *testing.T, w *world, client *goopenai.Client, sealed bool) {
		got, err := client.CreateChatCompletion(t.Context(), goOpenAIRequest(false))
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

func TestGoOpenAIToolCall(t *testing.T) {
	bothGoOpenAI(t, goodKey, func(t *testing.T, w *world, client *goopenai.Client, sealed bool) {
		req := goOpenAIRequest(true)
		first, err := client.CreateChatCompletion(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		message := first.Choices[0].Message
		if len(message.ToolCalls) != 1 || message.ToolCalls[0].Function.Name != "lookup" ||
			!strings.Contains(message.ToolCalls[0].Function.Arguments, toolArgs) {
			t.Fatalf("%+v", message)
		}
		req.Messages = append(req.Messages, message, goopenai.ChatCompletionMessage{
			Role: goopenai.ChatMessageRoleTool, Content: toolSays,
			ToolCallID: message.ToolCalls[0].ID,
		})
		second, err := client.CreateChatCompletion(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if second.Choices[0].Message.Content != answer+" to "+toolSays {
			t.Errorf("%+v", second)
		}
		w.check(t, sealed, toolArgs, toolSays)
	})
}

func TestGoOpenAIStream(t *testing.T) {
	bothGoOpenAI(t, goodKey, func(t *testing.T, w *world, client *goopenai.Client, sealed bool) {
		for _, tools := range []bool{false, true} {
			req := goOpenAIRequest(tools)
			req.StreamOptions = &goopenai.StreamOptions{IncludeUsage: true}
			stream, err := client.CreateChatCompletionStream(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			var content, role, arguments, finish string
			var usage *goopenai.Usage
			for {
				chunk, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if chunk.Usage != nil {
					usage = chunk.Usage
				}
				for _, choice := range chunk.Choices {
					role += choice.Delta.Role
					content += choice.Delta.Content
					finish += string(choice.FinishReason)
					for _, call := range choice.Delta.ToolCalls {
						if call.Index == nil || *call.Index != 0 {
							t.Errorf("index of %+v", call)
						}
						arguments += call.Function.Arguments
					}
				}
			}
			stream.Close()
			if role != "assistant" || usage == nil || usage.TotalTokens != 30 {
				t.Errorf("role %q, usage %v", role, usage)
			}
			if !tools && (content != answer+" to "+prompt || finish != "stop") ||
				tools && (!strings.Contains(arguments, toolArgs) || finish != "tool_calls") {
				t.Errorf("content %q, arguments %q, finish_reason %q", content, arguments, finish)
			}
		}
		w.check(t, sealed, toolArgs)
	})
}

func TestGoOpenAIErrors(t *testing.T) {
	bothGoOpenAI(t, wrongKey, func(t *testing.T, _ *world, client *goopenai.Client, _ bool) {
		_, err := client.CreateChatCompletion(t.Context(), goOpenAIRequest(false))
		if refusal, ok := errors.AsType[*goopenai.APIError](err); !ok ||
			refusal.HTTPStatusCode != 401 || refusal.Message == "" {
			t.Errorf("%v", err)
		}
		_, err = client.CreateChatCompletionStream(t.Context(), goOpenAIRequest(false))
		if refusal, ok := errors.AsType[*goopenai.APIError](err); !ok ||
			refusal.HTTPStatusCode != 401 {
			t.Errorf("%v", err)
		}
	})
}

func TestGoOpenAIWrongPin(t *testing.T) {
	w := newWorld(t, false)
	client := sealedGoOpenAI(goodKey, w.url()+"/v1", w.client(t, otherPin(w.pin(t))))
	_, err := client.CreateChatCompletion(t.Context(), goOpenAIRequest(false))
	if wrong, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok || wrong.Got != w.pin(t) {
		t.Errorf("%v", err)
	}
	_, err = client.CreateChatCompletionStream(t.Context(), goOpenAIRequest(true))
	if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok {
		t.Errorf("%v", err)
	}
	if fetches, sealed := w.counts(); fetches != 2 || sealed != 0 {
		t.Errorf("%d key fetches for two calls, %d requests", fetches, sealed)
	}
	w.check(t, true)
}

func TestGoOpenAIOtherEndpoints(t *testing.T) {
	w := newWorld(t, false)
	client := sealedGoOpenAI(goodKey, w.url()+"/v1", w.client(t, w.pin(t)))
	_, err := client.ListModels(t.Context())
	if refusal, ok := errors.AsType[*goopenai.APIError](err); !ok ||
		refusal.HTTPStatusCode != 404 || refusal.Code != "unsupported_endpoint" {
		t.Errorf("%v", err)
	}
	if fetches, sealed := w.counts(); fetches+sealed != 0 {
		t.Errorf("%d key fetches, %d requests", fetches, sealed)
	}
}
