// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	goopenai "github.com/sashabaranov/go-openai"
)

var lookupParameters = map[string]any{"type": "object",
	"properties": map[string]any{"city": map[string]any{"type": "string"}}}

func openOpenAI(base, key string, client *http.Client) (caller, error) {
	sdk := openai.NewClient(option.WithAPIKey(key), option.WithBaseURL(base),
		option.WithHTTPClient(client), option.WithMaxRetries(0))
	return func(ctx context.Context, a ask) (reply, error) {
		params := openai.ChatCompletionNewParams{Model: "m",
			Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(a.prompt())}}
		if a.after != nil {
			call := openai.ChatCompletionMessageFunctionToolCallParam{ID: a.after.call,
				Function: openai.ChatCompletionMessageFunctionToolCallFunctionParam{
					Name: a.after.tool, Arguments: a.after.toolArgs}}
			params.Messages = append(params.Messages, openai.ChatCompletionMessageParamUnion{
				OfAssistant: &openai.ChatCompletionAssistantMessageParam{
					ToolCalls: []openai.ChatCompletionMessageToolCallUnionParam{
						{OfFunction: &call}}}},
				openai.ToolMessage(toolSays, a.after.call))
		}
		if a.tools {
			params.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(
				openai.FunctionDefinitionParam{Name: "lookup", Parameters: lookupParameters})}
		}
		if a.word == nil {
			got, err := sdk.Chat.Completions.New(ctx, params)
			if err != nil {
				return reply{}, err
			}
			return openAIReply(*got), nil
		}
		params.StreamOptions.IncludeUsage = openai.Bool(true)
		stream := sdk.Chat.Completions.NewStreaming(ctx, params)
		defer stream.Close()
		var whole openai.ChatCompletionAccumulator
		for stream.Next() {
			chunk := stream.Current()
			if !whole.AddChunk(chunk) {
				return reply{}, errors.New("the chunk does not fit")
			}
			for _, choice := range chunk.Choices {
				a.word(choice.Delta.Content)
			}
		}
		if err := stream.Err(); err != nil {
			return reply{}, err
		}
		return openAIReply(whole.ChatCompletion), nil
	}, nil
}

func openAIReply(got openai.ChatCompletion) reply {
	choice := got.Choices[0]
	r := reply{content: choice.Message.Content, finish: choice.FinishReason,
		calls: len(choice.Message.ToolCalls), total: int(got.Usage.TotalTokens)}
	for _, call := range choice.Message.ToolCalls {
		r.call, r.tool, r.toolArgs = call.ID, call.Function.Name, call.Function.Arguments
	}
	return r
}

func openGoOpenAI(base, key string, client *http.Client) (caller, error) {
	config := goopenai.DefaultConfig(key)
	config.BaseURL, config.HTTPClient = base, client
	sdk := goopenai.NewClientWithConfig(config)
	return func(ctx context.Context, a ask) (reply, error) {
		req := goopenai.ChatCompletionRequest{Model: "m", Messages: []goopenai.ChatCompletionMessage{
			{Role: "user", Content: a.prompt()}}}
		if a.after != nil {
			req.Messages = append(req.Messages, goopenai.ChatCompletionMessage{Role: "assistant",
				ToolCalls: []goopenai.ToolCall{{ID: a.after.call, Type: "function",
					Function: goopenai.FunctionCall{Name: a.after.tool,
						Arguments: a.after.toolArgs}}}},
				goopenai.ChatCompletionMessage{Role: "tool", Content: toolSays,
					ToolCallID: a.after.call})
		}
		if a.tools {
			req.Tools = []goopenai.Tool{{Type: "function", Function: &goopenai.FunctionDefinition{
				Name: "lookup", Parameters: lookupParameters}}}
		}
		if a.word == nil {
			got, err := sdk.CreateChatCompletion(ctx, req)
			if err != nil {
				return reply{}, err
			}
			r := reply{content: got.Choices[0].Message.Content, total: got.Usage.TotalTokens,
				finish: string(got.Choices[0].FinishReason)}
			r.addCalls(got.Choices[0].Message.ToolCalls)
			return r, nil
		}
		req.StreamOptions = &goopenai.StreamOptions{IncludeUsage: true}
		stream, err := sdk.CreateChatCompletionStream(ctx, req)
		if err != nil {
			return reply{}, err
		}
		defer stream.Close()
		var r reply
		for {
			chunk, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return r, nil
			case err != nil:
				return reply{}, err
			}
			if chunk.Usage != nil {
				r.total = chunk.Usage.TotalTokens
			}
			for _, choice := range chunk.Choices {
				r.content += choice.Delta.Content
				r.finish += string(choice.FinishReason)
				r.addCalls(choice.Delta.ToolCalls)
				a.word(choice.Delta.Content)
			}
		}
	}, nil
}

// addCalls adds go-openai's calls, or the pieces of one.
func (r *reply) addCalls(calls []goopenai.ToolCall) {
	for _, call := range calls {
		if call.ID != "" {
			r.calls++
		}
		r.call += call.ID
		r.tool += call.Function.Name
		r.toolArgs += call.Function.Arguments
	}
}
