// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"maps"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// ChatChunk is one piece of a streamed answer: an OpenAI chat.completion.chunk. [ChatAccumulator]
// puts them together.
type ChatChunk struct {
	ID     string `json:"id" read:"lax"`
	Object string `json:"object" read:"lax"`
	// Unix seconds; a fraction is cut off
	Created int64         `json:"created" read:"lax"`
	Model   string        `json:"model" read:"lax"`
	Choices []ChunkChoice `json:"choices"` // empty in the chunk that has Usage
	// nil in all chunks except one near the end
	Usage             *Usage `json:"usage" read:"lax"`
	SystemFingerprint string `json:"system_fingerprint" read:"lax"`
	ServiceTier       string `json:"service_tier" read:"lax"`

	// Extra holds the members that this package does not know. It may be made of slices of Raw.
	Extra map[string]json.RawMessage `json:"-"`
	// Raw is the chunk as it came. The fields may say more: a character that came in two chunks is
	// whole in the second, and content in parts is their text.
	Raw json.RawMessage `json:"-"`
	// PayloadID is the request's id, as in [ChatResponse].
	PayloadID string `json:"-"`
}

// ChunkChoice is what a chunk adds to one of the answers.
type ChunkChoice struct {
	Index int64 `json:"index" read:"lax"`
	Delta Delta `json:"delta"`
	// FinishReason is "" until the last chunk of the choice.
	FinishReason string                     `json:"finish_reason" read:"lax"`
	Extra        map[string]json.RawMessage `json:"-"`
}

// Delta is a piece of a message: texts are what is to be added to those that came before.
type Delta struct {
	Role      string                     `json:"role" read:"lax"`
	Content   string                     `json:"content"`
	Refusal   string                     `json:"refusal" read:"lax"`
	ToolCalls []ToolCallDelta            `json:"tool_calls"`
	Extra     map[string]json.RawMessage `json:"-"` // "reasoning_content" and others
}

// ToolCallDelta is a piece of a tool call. Pieces with the same Index belong together, and their
// arguments are joined. Stream gives each call an Index of its own, also where the server gave
// none, or one to several calls; Raw has the server's.
type ToolCallDelta struct {
	Index    int64                      `json:"index" read:"lax"`
	ID       string                     `json:"id" read:"lax"`
	Type     string                     `json:"type" read:"lax"`
	Function FunctionCall               `json:"function" read:"lax"`
	Extra    map[string]json.RawMessage `json:"-"`
}

// Text is what the chunk adds to the text of the first choice.
func (c *ChatChunk) Text() string {
	var b strings.Builder
	for _, choice := range c.Choices {
		if choice.Index == 0 {
			b.WriteString(choice.Delta.Content)
		}
	}
	return b.String()
}

// UnmarshalJSON reads a chunk by exact names. Raw becomes a copy of data.
func (c *ChatChunk) UnmarshalJSON(data []byte) error { return unmarshal(bytes.Clone(data), c) }

func (c *ChatChunk) decodeJSON(valid []byte) error {
	type plain ChatChunk
	var v plain
	err := codec.DecodeObject(valid, &v)
	v.Raw = valid
	*c = ChatChunk(v)
	return err
}

// decodeJSON takes null for no delta, as some servers have it in their last chunk.
func (d *Delta) decodeJSON(valid []byte) error {
	if jsonspan.KindOf(valid) == jsonspan.Null {
		*d = Delta{}
		return nil
	}
	type plain Delta
	var v plain
	err := codec.DecodeObject(valid, &v)
	*d = Delta(v)
	return err
}

// Stream is Chat for an answer that comes in pieces:
//
//	for chunk, err := range client.Stream(ctx, request) {
//		if err != nil {
//			return err
//		}
//		fmt.Print(chunk.Text())
//	}
//
// With [ProtocolOHTTP] each piece is handed out as it comes, once it is authenticated. Protocol
// version 1 has no streams: there all pieces are made from the complete answer, once that has come.
//
// An error comes last, alone, and with a nil chunk; errors are those of Chat. A stream that is cut,
// wherever and by whomever, is [ErrTruncated]: without an error, it was complete. One that the
// caller's own limits end is not called cut: the end of ctx comes as itself, that of Config.Timeout
// as [ErrConnection] and [context.DeadlineExceeded], also after chunks came, and a stream that
// stands still for Config.IdleTimeout is [ErrConnection]. An error that the server sends within the
// stream is an [*APIError] with status 200. Leaving the loop early ends the request. Nothing is
// sent before the loop, and each loop over the result sends the request anew. Chunks are the
// caller's, who may keep them; [ChatAccumulator] puts them together.
//
// The request is r with stream set, and, unless r.Extra has stream_options, with usage asked for:
// the last chunk then has no choices, and Usage. Config.Timeout bounds the whole stream. Prompt and
// answer are ordinary memory, as in Chat.
func (c *SecureCompletionClient) Stream(ctx context.Context, r *ChatRequest,
	opts ...CallOption) iter.Seq2[*ChatChunk, error] {
	return func(yield func(*ChatChunk, error) bool) {
		if err := c.streamChat(ctx, r, opts, func(chunk *ChatChunk) bool {
			return yield(chunk,
				nil)
		}); err != nil {
			yield(nil, err)
		}
	}
}

// streamChat gives each chunk to yield. It returns nil at the end, and after yield returned false.
func (c *SecureCompletionClient) streamChat(ctx context.Context, r *ChatRequest, opts []CallOption,
	yield func(*ChatChunk) bool) error {
	if !c.wire.streams() {
		usage, err := r.wantsUsage()
		if err != nil {
			return err
		}
		body, err := r.encode("stream", "stream_options")
		if err != nil {
			return err
		}
		defer clear(body)
		result, err := c.do(ctx, chatRequest(body, true), opts)
		if err != nil {
			return err
		}
		answer, err := c.madeAnswer(ctx, result, usage)
		if err != nil {
			return err
		}
		return answer.each(yield)
	}
	body, err := r.streaming().encode()
	if err != nil {
		return err
	}
	defer clear(body)
	resp, err := c.stream(ctx, chatRequest(body, false), opts)
	if err != nil {
		return err
	}
	defer resp.body.Close()
	return c.answerOf(ctx, resp, chatjson.CallOf(body)).each(yield)
}

// streaming is the request with what asks for a stream.
func (r *ChatRequest) streaming() *ChatRequest {
	if r == nil {
		return nil
	}
	s := *r
	s.Extra = make(map[string]any, len(r.Extra)+2)
	s.Extra["stream_options"] = map[string]bool{"include_usage": true}
	maps.Copy(s.Extra, r.Extra)
	s.Extra["stream"] = true
	return &s
}

// wantsUsage reports whether a stream is to end with the usage.
func (r *ChatRequest) wantsUsage() (bool, error) {
	if r == nil {
		return false, nil // which is no request
	}
	options, set := r.Extra["stream_options"]
	if !set {
		return true, nil
	}
	text, err := chatjson.Marshal(options)
	if err != nil {
		return false, err
	}
	return chatjson.IncludesUsage(text), nil
}

// readWhole reads the answer of a server that took no notice of stream. An answer that is refused
// becomes an event here; for one that did not come as a whole, its body has told the Auditor.
func (c *SecureCompletionClient) readWhole(ctx context.Context, resp *openedResponse) (*completion,
	error) {
	defer resp.body.Close()
	plaintext, err := httpx.ReadAll(resp.content(), resp.length())
	if err == nil {
		if err = checkCompletion(plaintext, resp.payloadID, ""); err != nil {
			err = c.tellRefused(ctx, resp.payloadID, err, "")
		}
	}
	if err != nil {
		clear(plaintext)
		return nil, err
	}
	return &completion{opened: opened{plaintext: plaintext}, payloadID: resp.payloadID}, nil
}

// tellSchema tells of an answer that opened and is not what it should be. Of an answer that did not
// open, its body has told.
func (c *SecureCompletionClient) tellSchema(ctx context.Context, id string, err error) error {
	if !errors.Is(err, ErrResponseSchema) {
		return err
	}
	return c.tellRefused(ctx, id, err, "")
}

// parseChunk checks and decodes the data of an event, of which it makes a copy.
func parseChunk(e sse.Event) (*ChatChunk, error) {
	chunk, err := chatjson.CheckChunk(e)
	if err != nil {
		return nil, answerError(err)
	}
	if !chunk {
		return nil, chatjson.SchemaError("a chunk", "an event that holds none")
	}
	return decodeChunk(e.Data)
}

// decodeChunk decodes a chunk that was checked before, of which it makes a copy.
func decodeChunk(valid []byte) (*ChatChunk, error) {
	chunk := &ChatChunk{}
	if err := chunk.decodeJSON(bytes.Clone(valid)); err != nil {
		return nil, decodeError(err)
	}
	return chunk, nil
}
