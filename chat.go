// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// ChatRequest is an OpenAI chat completion request. Zero fields are left out, except Model and
// Messages, which are required; pointers are for parameters of which zero means something:
// new(0.0). Parameters without a field go through Extra. Strings are UTF-8; encoding/json replaces
// other bytes. A call only reads the request, and keeps nothing of it.
type ChatRequest struct {
	Model    string    `json:"model"`
	Messages []Message `json:"messages"`

	Tools []Tool `json:"tools,omitempty"`
	// ToolChoice is "auto", "none", "required", or ToolChoiceFunction(name).
	ToolChoice        any             `json:"tool_choice,omitempty"`
	ParallelToolCalls *bool           `json:"parallel_tool_calls,omitempty"`
	ResponseFormat    *ResponseFormat `json:"response_format,omitempty"`

	Temperature         *float64 `json:"temperature,omitempty"`
	TopP                *float64 `json:"top_p,omitempty"`
	MaxTokens           int      `json:"max_tokens,omitempty"`
	MaxCompletionTokens int      `json:"max_completion_tokens,omitempty"`
	N                   int      `json:"n,omitempty"`
	Seed                *int64   `json:"seed,omitempty"`
	Stop                []string `json:"stop,omitempty"`

	// Extra holds every other parameter by its name: {"top_k": 40, "reasoning_effort": "low"}.
	// Values are anything that encoding/json marshals; a member that would be null is left out,
	// such as "stream_options" for servers that refuse it. A name with a field of its own, or one
	// that is not part of a request (api_key, base_url, security_tier), is ErrInvalidRequest.
	// Chat's answer comes whole, also with stream set: see Stream.
	Extra map[string]any `json:"-"`
}

// MarshalJSON writes the fields and Extra as one object.
func (r ChatRequest) MarshalJSON() ([]byte, error) { return r.appendJSON(nil) }

func (r ChatRequest) appendJSON(dst []byte) ([]byte, error) {
	type plain ChatRequest
	return chatjson.AppendObject(codec, dst, plain(r), r.Extra)
}

// Message is one message of a conversation, in requests and in answers. An answer's message can be
// appended to the next request as it is; its Extra goes along, so clear it for servers that refuse
// members they do not know. encoding/json writes and reads a message with everything in it, so a
// conversation can be stored.
type Message struct {
	Role       string     // "system", "user", "assistant", "tool", "developer"
	Content    string     // the text, if there are no Parts
	Parts      []Part     // multimodal content, in place of Content; not both
	Name       string     // of the participant; optional
	ToolCalls  []ToolCall // what the assistant wants called
	ToolCallID string     // in a "tool" message: the call that it answers
	Refusal    string     // why the assistant declined

	Extra map[string]json.RawMessage // members that this package does not know

	noContent noContent // how it came without a text
}

// noContent says how a message without a text stands in JSON, so that what goes back is what came.
type noContent uint8

const (
	byRule     noContent = iota // null beside tool calls or a refusal, otherwise ""
	emptyText                   // ""
	nullText                    // null
	absentText                  // not at all
)

// rule is the form that is not remembered.
func (m *Message) rule() noContent {
	if len(m.ToolCalls) == 0 && m.Refusal == "" {
		return emptyText
	}
	return nullText
}

// SystemMessage is a message with the role "system".
func SystemMessage(text string) Message { return Message{Role: "system", Content: text} }

// UserMessage is a message with the role "user".
func UserMessage(text string) Message { return Message{Role: "user", Content: text} }

// UserParts is a multimodal message with the role "user".
func UserParts(parts ...Part) Message { return Message{Role: "user", Parts: parts} }

// AssistantMessage is a message with the role "assistant".
func AssistantMessage(text string) Message { return Message{Role: "assistant", Content: text} }

// ToolMessage is the result of the tool call with this id.
func ToolMessage(callID, result string) Message {
	return Message{Role: "tool", ToolCallID: callID, Content: result}
}

// Text is Content, or the text parts one after the other.
func (m Message) Text() string {
	if m.Parts == nil {
		return m.Content
	}
	var b strings.Builder
	for _, p := range m.Parts {
		b.WriteString(p.Text)
	}
	return b.String()
}

// wireMessage is how a Message stands in JSON.
type wireMessage[Content any] struct {
	Role       string     `json:"role" read:"lax"`
	Content    Content    `json:"content,omitempty"`
	Name       string     `json:"name,omitempty" read:"lax"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty" read:"lax"`
	Refusal    string     `json:"refusal,omitempty" read:"lax"`

	Extra map[string]json.RawMessage `json:"-"`
}

// MarshalJSON writes content as a string, as parts, or as null when an assistant's message has only
// tool calls or a refusal. A message without a role, or with both Content and Parts, is
// ErrInvalidRequest.
func (m Message) MarshalJSON() ([]byte, error) { return m.appendJSON(nil) }

func (m Message) appendJSON(dst []byte) ([]byte, error) {
	w := wireMessage[any]{Role: m.Role, Name: m.Name, ToolCalls: m.ToolCalls,
		ToolCallID: m.ToolCallID, Refusal: m.Refusal}
	switch {
	case m.Role == "":
		return nil, fmt.Errorf("%w: a message has no role", ErrInvalidRequest)
	case m.Parts != nil && m.Content != "":
		return nil, fmt.Errorf("%w: a message has both Content and Parts", ErrInvalidRequest)
	case m.Parts != nil:
		w.Content = m.Parts
	case m.Content != "":
		w.Content = m.Content
	default:
		form := m.noContent
		if form == byRule {
			form = m.rule()
		}
		switch form {
		case emptyText:
			w.Content = ""
		case nullText:
			w.Content = json.RawMessage("null")
		}
	}
	return chatjson.AppendObject(codec, dst, w, m.Extra)
}

// UnmarshalJSON reads a message by exact names and keeps what it does not know in Extra. Extra
// aliases data.
func (m *Message) UnmarshalJSON(data []byte) error { return unmarshal(data, m) }

func (m *Message) decodeJSON(valid []byte) error {
	var w wireMessage[json.RawMessage]
	if err := codec.DecodeObject(valid, &w); err != nil {
		return err
	}
	*m = Message{Role: w.Role, Name: w.Name, ToolCalls: w.ToolCalls, ToolCallID: w.ToolCallID,
		Refusal: w.Refusal, Extra: w.Extra}
	into := reflect.ValueOf(&m.Content)
	if jsonspan.KindOf(w.Content) == jsonspan.Array {
		into = reflect.ValueOf(&m.Parts)
	}
	if w.Content != nil {
		if err := codec.DecodeField(w.Content, into.Elem()); err != nil {
			return chatjson.PrefixPath("content", err)
		}
	}
	if m.Content != "" || m.Parts != nil {
		return nil
	}
	form := emptyText
	switch {
	case w.Content == nil:
		form = absentText
	case jsonspan.KindOf(w.Content) == jsonspan.Null:
		form = nullText
	}
	if form != m.rule() {
		m.noContent = form
	}
	return nil
}

// Part is one piece of multimodal content. Kinds without a field of their own go through Extra,
// such as sound: {"input_audio": {"data": "…base64…", "format": "wav"}}. Only a [Message] reads and
// writes Extra: encoding/json of a Part alone leaves it out.
type Part struct {
	// Type is "text", "image_url", "input_audio", "file", or another.
	Type     string                     `json:"type" read:"lax"`
	Text     string                     `json:"text,omitempty"`
	ImageURL *ImageURL                  `json:"image_url,omitempty"`
	Extra    map[string]json.RawMessage `json:"-"`
}

// ImageURL is an image by its URL, which may be a data: URL. Only a data: URL keeps the image
// inside the envelope.
type ImageURL struct {
	URL    string `json:"url"`
	Detail string `json:"detail,omitempty"` // "auto", "low", "high"
}

// TextPart is a part with text.
func TextPart(text string) Part { return Part{Type: "text", Text: text} }

// ImagePart is a part with an image, see [ImageURL].
func ImagePart(url string) Part { return Part{Type: "image_url", ImageURL: &ImageURL{URL: url}} }

func (p Part) appendJSON(dst []byte) ([]byte, error) {
	type plain Part
	if p.Type == "text" && p.Text == "" { // the text of a text part is required
		return chatjson.AppendObject(codec, dst, struct {
			Type string `json:"type"`
			Text string `json:"text"`
		}{Type: p.Type}, p.Extra)
	}
	return chatjson.AppendObject(codec, dst, plain(p), p.Extra)
}

// Tool is something that the model may ask to have called.
type Tool struct {
	Type     string                     `json:"type"` // "function"
	Function *Function                  `json:"function,omitempty"`
	Extra    map[string]json.RawMessage `json:"-"`
}

// Function describes a function that the model may call.
type Function struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Parameters is a JSON Schema: json.RawMessage, a map, or a struct.
	Parameters any   `json:"parameters,omitempty"`
	Strict     *bool `json:"strict,omitempty"`
}

// FunctionTool is a tool that is a function. parameters is its JSON Schema: json.RawMessage, a map,
// or a struct.
func FunctionTool(name, description string, parameters any) Tool {
	return Tool{Type: "function", Function: &Function{
		Name: name, Description: description, Parameters: parameters,
	}}
}

// MarshalJSON writes the fields and Extra as one object.
func (t Tool) MarshalJSON() ([]byte, error) { return t.appendJSON(nil) }

func (t Tool) appendJSON(dst []byte) ([]byte, error) {
	type plain Tool
	return chatjson.AppendObject(codec, dst, plain(t), t.Extra)
}

// ToolChoiceFunction is a [ChatRequest].ToolChoice that makes the model call the function of that
// name.
func ToolChoiceFunction(name string) any {
	return map[string]any{"type": "function", "function": map[string]string{"name": name}}
}

// ToolCall is a call that the assistant asks for. Answer it with ToolMessage(call.ID, …). In an
// answer each call has an ID: "call_0" and so on where the server gave none. Only a
// [Message] reads and writes Extra: encoding/json of a ToolCall alone leaves it out.
type ToolCall struct {
	ID       string                     `json:"id,omitempty" read:"lax"`
	Type     string                     `json:"type,omitempty" read:"lax"` // "function"
	Function FunctionCall               `json:"function,omitzero"`
	Extra    map[string]json.RawMessage `json:"-"`

	bare bool // function came without arguments
}

// FunctionCall names a function and its arguments: JSON text that the model wrote, and that nothing
// has checked. Arguments that came as an object are that object's text.
type FunctionCall struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments" read:"text"`
}

func (c ToolCall) appendJSON(dst []byte) ([]byte, error) {
	type plain ToolCall
	if c.bare && c.Function.Arguments == "" {
		type function struct {
			Name string `json:"name,omitempty"`
		}
		return chatjson.AppendObject(codec, dst, struct {
			ID       string   `json:"id,omitempty"`
			Type     string   `json:"type,omitempty"`
			Function function `json:"function"`
		}{c.ID, c.Type, function{c.Function.Name}}, c.Extra)
	}
	return chatjson.AppendObject(codec, dst, plain(c), c.Extra)
}

func (c *ToolCall) decodeJSON(valid []byte) error {
	type plain ToolCall
	var v plain
	err := codec.DecodeObject(valid, &v)
	function := chatjson.Last(valid, "function")
	v.bare = function != nil && chatjson.Last(function, "arguments") == nil
	*c = ToolCall(v)
	return err
}

// ResponseFormat asks for text, for any JSON object, or for JSON after a schema.
type ResponseFormat struct {
	Type string `json:"type"` // "text", "json_object", "json_schema"
	// JSONSchema is the object {"name": …, "schema": …, "strict": …} as json.RawMessage, a map, or
	// a struct.
	JSONSchema any `json:"json_schema,omitempty"`
}

// ChatResponse is an OpenAI chat.completion object. Its choices were checked before it was
// returned; what stands beside them is best effort, and zero where the server gave none or gave it
// another type. Raw has it all. It is the caller's, in ordinary memory.
type ChatResponse struct {
	ID                string   `json:"id" read:"lax"` // "" when the server sent null
	Object            string   `json:"object" read:"lax"`
	Created           int64    `json:"created" read:"lax"` // Unix seconds; a fraction is cut off
	Model             string   `json:"model" read:"lax"`
	Choices           []Choice `json:"choices"`          // may be empty
	Usage             *Usage   `json:"usage" read:"lax"` // nil when the server sent none
	SystemFingerprint string   `json:"system_fingerprint" read:"lax"`
	ServiceTier       string   `json:"service_tier" read:"lax"`

	// Metadata is what the server sealed with the answer (_metadata), by name; nil when it is not
	// an object.
	Metadata map[string]json.RawMessage `json:"-"`
	// Extra holds the members that this package does not know.
	Extra map[string]json.RawMessage `json:"-"`
	// Raw is the answer as it was sealed. Extra and Metadata are slices of it.
	Raw json.RawMessage `json:"-"`
	// PayloadID is the request's id, the same on both ends and in their logs; of a request that was
	// repeated, that of the last attempt.
	PayloadID string `json:"-"`
}

// Choice is one of the answers that were asked for with N.
type Choice struct {
	Index   int64   `json:"index" read:"lax"`
	Message Message `json:"message"`
	// FinishReason is "stop", "length", "tool_calls" or "content_filter"; "" for null.
	FinishReason string                     `json:"finish_reason" read:"lax"`
	Extra        map[string]json.RawMessage `json:"-"`
}

// complete gives the n'th choice of an answer, which text is, what it lacks for being worked with.
func (c *Choice) complete(n int, text []byte) {
	if jsonspan.KindOf(chatjson.Last(text, "index")) != jsonspan.Number {
		c.Index = int64(n)
	}
	c.Message.complete()
}

// complete gives an answer's message a role, and its calls ids, by which tools answer them.
func (m *Message) complete() {
	if m.Role == "" {
		m.Role = "assistant"
	}
	for i := range m.ToolCalls {
		if m.ToolCalls[i].ID == "" {
			m.ToolCalls[i].ID = "call_" + strconv.Itoa(i)
		}
	}
}

// Usage counts tokens.
type Usage struct {
	PromptTokens     int64                      `json:"prompt_tokens" read:"lax"`
	CompletionTokens int64                      `json:"completion_tokens" read:"lax"`
	TotalTokens      int64                      `json:"total_tokens" read:"lax"`
	Extra            map[string]json.RawMessage `json:"-"`
}

// Text is the text of the first choice, "" when there is none.
func (r *ChatResponse) Text() string {
	if len(r.Choices) == 0 {
		return ""
	}
	return r.Choices[0].Message.Text()
}

// UnmarshalJSON reads a response by exact names. Raw becomes a copy of data.
func (r *ChatResponse) UnmarshalJSON(data []byte) error { return unmarshal(bytes.Clone(data), r) }

func (r *ChatResponse) decodeJSON(data []byte) error {
	type plain ChatResponse
	var v plain
	if err := codec.DecodeObject(data, &v); err != nil {
		return err
	}
	const metadata = "_metadata"
	var inner struct{ Extra map[string]json.RawMessage }
	if err := codec.DecodeObject(v.Extra[metadata], &inner); err == nil {
		v.Metadata = inner.Extra
	}
	delete(v.Extra, metadata)
	n := 0
	for text := range jsonspan.ElementsOf(chatjson.Last(data, "choices")) {
		v.Choices[n].complete(n, text)
		n++
	}
	v.Raw = data
	*r = ChatResponse(v)
	return nil
}

// encode writes the request as JSON that is fit to be sealed: it needs no further check. Members of
// Extra whose names are in without are left out.
func (r *ChatRequest) encode(without ...string) ([]byte, error) {
	switch {
	case r == nil:
		return nil, fmt.Errorf("%w: no ChatRequest", ErrInvalidRequest)
	case r.Model == "":
		return nil, fmt.Errorf("%w: ChatRequest.Model is empty", ErrInvalidRequest)
	case len(r.Messages) == 0:
		return nil, fmt.Errorf("%w: ChatRequest.Messages is empty", ErrInvalidRequest)
	}
	for name := range r.Extra {
		if err := chatjson.CheckName(name); err != nil {
			return nil, err
		}
	}
	clean := *r
	for _, name := range without {
		if _, set := clean.Extra[name]; set {
			clean.Extra = maps.Clone(clean.Extra)
			delete(clean.Extra, name)
		}
	}
	return clean.appendJSON(make([]byte, 0, r.sizeHint()))
}
