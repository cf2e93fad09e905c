// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/cloudwego/eino-ext/components/model/openai"
	"github.com/cloudwego/eino/components/model"
	"github.com/cloudwego/eino/schema"
	"github.com/tmc/langchaingo/llms"
	langchain "github.com/tmc/langchaingo/llms/openai"
)

// ask is one call of an SDK: the prompt, and behind it perhaps a tool call with its result.
type ask struct {
	text  string       // "" = the prompt
	tools bool         // offer the tool
	after *reply       // the call of the tool that is answered with toolSays
	word  func(string) // of a stream; nil = no stream
}

// reply is what an SDK made of an answer.
type reply struct {
	content, finish      string
	call, tool, toolArgs string
	calls, total         int // tool calls, tokens
}

// caller is an SDK with its address and key.
type caller func(ctx context.Context, a ask) (reply, error)

// sdk is one of the SDKs.
type sdk struct {
	name string
	open func(base, key string, client *http.Client) (caller, error)
}

var sdks = []sdk{{"langchaingo", openLangchain}, {"eino", openEino},
	{"openai-go", openOpenAI}, {"go-openai", openGoOpenAI}}

func (a *ask) prompt() string {
	if a.text != "" {
		return a.text
	}
	return prompt
}

func openLangchain(base, key string, client *http.Client) (caller, error) {
	llm, err := langchain.New(langchain.WithToken(key), langchain.WithBaseURL(base),
		langchain.WithModel("m"), langchain.WithHTTPClient(client))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, a ask) (reply, error) {
		messages := []llms.MessageContent{llms.TextParts(llms.ChatMessageTypeHuman, a.prompt())}
		if a.after != nil {
			messages = append(messages,
				llms.MessageContent{Role: llms.ChatMessageTypeAI, Parts: []llms.ContentPart{
					llms.ToolCall{ID: a.after.call, Type: "function", FunctionCall: &llms.FunctionCall{
						Name: a.after.tool, Arguments: a.after.toolArgs}}}},
				llms.MessageContent{Role: llms.ChatMessageTypeTool, Parts: []llms.ContentPart{
					llms.ToolCallResponse{ToolCallID: a.after.call, Name: a.after.tool,
						Content: toolSays}}})
		}
		var options []llms.CallOption
		if a.tools {
			options = append(options, llms.WithTools([]llms.Tool{{Type: "function",
				Function: &llms.FunctionDefinition{Name: "lookup", Parameters: map[string]any{
					"type":       "object",
					"properties": map[string]any{"city": map[string]any{"type": "string"}}}}}}))
		}
		if a.word != nil {
			options = append(options, llms.WithStreamingFunc(
				func(_ context.Context, chunk []byte) error {
					a.word(string(chunk))
					return nil
				}))
		}
		got, err := llm.GenerateContent(ctx, messages, options...)
		if err != nil {
			return reply{}, err
		}
		choice := got.Choices[0]
		r := reply{content: choice.Content, finish: choice.StopReason, calls: len(choice.ToolCalls)}
		r.total, _ = choice.GenerationInfo["TotalTokens"].(int)
		for _, call := range choice.ToolCalls {
			r.call, r.tool, r.toolArgs = call.ID, call.FunctionCall.Name, call.FunctionCall.Arguments
		}
		return r, nil
	}, nil
}

func openEino(base, key string, client *http.Client) (caller, error) {
	chat, err := openai.NewChatModel(context.Background(), &openai.ChatModelConfig{
		APIKey: key, BaseURL: base, Model: "m", HTTPClient: client})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, a ask) (reply, error) {
		messages := []*schema.Message{schema.UserMessage(a.prompt())}
		if a.after != nil {
			messages = append(messages, schema.AssistantMessage("", []schema.ToolCall{{
				ID: a.after.call, Type: "function",
				Function: schema.FunctionCall{Name: a.after.tool, Arguments: a.after.toolArgs}}}),
				schema.ToolMessage(toolSays, a.after.call))
		}
		var options []model.Option
		if a.tools {
			options = append(options, model.WithTools([]*schema.ToolInfo{{Name: "lookup",
				ParamsOneOf: schema.NewParamsOneOfByParams(map[string]*schema.ParameterInfo{
					"city": {Type: schema.String}})}}))
		}
		if a.word == nil {
			got, err := chat.Generate(ctx, messages, options...)
			return einoReply(got), err
		}
		stream, err := chat.Stream(ctx, messages, options...)
		if err != nil {
			return reply{}, err
		}
		defer stream.Close()
		var pieces []*schema.Message
		for {
			piece, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				whole, err := schema.ConcatMessages(pieces)
				return einoReply(whole), err
			case err != nil:
				return reply{}, err
			}
			pieces = append(pieces, piece)
			a.word(piece.Content)
		}
	}, nil
}

func einoReply(m *schema.Message) reply {
	if m == nil {
		return reply{}
	}
	r := reply{content: m.Content, calls: len(m.ToolCalls)}
	if m.ResponseMeta != nil {
		r.finish = m.ResponseMeta.FinishReason
		if m.ResponseMeta.Usage != nil {
			r.total = m.ResponseMeta.Usage.TotalTokens
		}
	}
	for _, call := range m.ToolCalls {
		r.call, r.tool, r.toolArgs = call.ID, call.Function.Name, call.Function.Arguments
	}
	return r
}
