// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// sameJSON compares two texts as values, numbers by their digits.
func sameJSON(t testing.TB, got, want string) bool {
	t.Helper()
	parse := func(text string) (v any) {
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil {
			t.Errorf("%v in %s", err, text)
		}
		return v
	}
	return reflect.DeepEqual(parse(got), parse(want))
}

const helloMessages = `"messages":[{"role":"user","content":"hi"}]`

func hello(change func(*ChatRequest)) *ChatRequest {
	r := &ChatRequest{Model: "m", Messages: []Message{UserMessage("hi")}}
	change(r)
	return r
}

func TestChatRequestJSON(t *testing.T) {
	for _, c := range []struct {
		change func(*ChatRequest)
		want   string // members beside model and messages
	}{
		{func(*ChatRequest) {}, ``},
		{func(r *ChatRequest) {
			r.Temperature, r.TopP = new(0.0), new(0.25)
		}, `"temperature":0,"top_p":0.25`},
		{func(r *ChatRequest) {
			r.MaxTokens, r.MaxCompletionTokens, r.N = 5, 6, 2
		}, `"max_tokens":5,"max_completion_tokens":6,"n":2`},
		{func(r *ChatRequest) {
			r.Seed, r.Stop = new(int64(math.MinInt64)), []string{"a", "<b>"}
		}, `"seed":-9223372036854775808,"stop":["a","<b>"]`},
		{func(r *ChatRequest) {
			r.ParallelToolCalls, r.ToolChoice = new(false), "auto"
		}, `"parallel_tool_calls":false,"tool_choice":"auto"`},
		{func(r *ChatRequest) {
			r.ToolChoice = ToolChoiceFunction("f")
		}, `"tool_choice":{"type":"function","function":{"name":"f"}}`},
		{func(r *ChatRequest) {
			r.Tools = []Tool{FunctionTool("f", "does",
				json.RawMessage(
					`{"type":"object","properties":{"n":{"const":12345678901234567890}}}`))}
			r.Tools[0].Function.Strict = new(true)
		},
			`"tools":[{"type":"function","function":{"name":"f","description":"does","parameters":{"type":"object","properties":{"n":{"const":12345678901234567890}}},"strict":true}}]`},
		{func(r *ChatRequest) {
			r.Tools = []Tool{{Type: "custom",
				Extra: map[string]json.RawMessage{"custom": []byte(`{"name":"c"}`)}}}
		}, `"tools":[{"type":"custom","custom":{"name":"c"}}]`},
		{func(r *ChatRequest) {
			r.ResponseFormat = &ResponseFormat{Type: "json_object"}
		}, `"response_format":{"type":"json_object"}`},
		{func(r *ChatRequest) {
			r.ResponseFormat = &ResponseFormat{Type: "json_schema",
				JSONSchema: map[string]any{"name": "n", "schema": map[string]any{"type": "object"},
					"strict": true}}
		},
			`"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"},"strict":true}}`},
		{func(r *ChatRequest) {
			r.ResponseFormat = &ResponseFormat{Type: "json_schema",
				JSONSchema: json.RawMessage(`{"name":"n","schema":{"const":12345678901234567890}}`)}
		},
			`"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"const":12345678901234567890}}}`},
		{func(r *ChatRequest) {
			r.Extra = map[string]any{"top_k": 40, "reasoning_effort": "low",
				"nested": map[string]any{"api_key": 1}, "raw": json.RawMessage(` [1e400, 1.0] `),
				"null": nil, "raw null": json.RawMessage(" null "), "Model": "another name",
				"with \"quotes\"": true, "stream": true}
		},
			`"top_k":40,"reasoning_effort":"low","nested":{"api_key":1},"raw":[1e400,1.0],"Model":"another name","with \"quotes\"":true,"stream":true`},
	} {
		body, err := hello(c.change).encode()
		want := `{"model":"m",` + helloMessages
		if c.want != "" {
			want += "," + c.want
		}
		want += "}"
		if err != nil || !sameJSON(t, string(body), want) {
			t.Errorf("got  %s, %v\nwant %s", body, err, want)
		}
		if err := chatjson.CheckRequest(body); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if viaJSON, err := json.Marshal(hello(c.change)); err != nil ||
			!sameJSON(t, string(viaJSON), want) {
			t.Errorf("json.Marshal: %s, %v", viaJSON, err)
		}
	}
}

// Extra follows the fields in the order of names, so that equal requests have equal bytes.
func TestChatRequestIsDeterministic(t *testing.T) {
	r := hello(func(r *ChatRequest) { r.Extra = map[string]any{"c": 1, "a": 2, "b": "<&>\u2028é"} })
	want := `{"model":"m",` + helloMessages + `,"a":2,"b":"<&>\u2028é","c":1}`
	for range 20 {
		if body, err := r.encode(); err != nil || string(body) != want {
			t.Fatalf("got %s, %v", body, err)
		}
	}
}

func TestNoHTMLEscapes(t *testing.T) {
	const text = "if a < b && c > d"
	r := hello(func(r *ChatRequest) {
		r.Messages = []Message{UserMessage(text), UserParts(TextPart(text)),
			{Role: "assistant", ToolCalls: []ToolCall{{ID: "1",
				Function: FunctionCall{Arguments: text}}}},
			{Role: "user", Extra: map[string]json.RawMessage{"x": []byte(`"` + text + `"`)}}}
		r.Tools = []Tool{FunctionTool("f", text, map[string]string{"x": text})}
		r.Stop, r.Extra = []string{text}, map[string]any{"x": text, "<&>": 1}
	})
	body, err := r.encode()
	if err != nil || strings.Contains(string(body), `\u00`) ||
		strings.Count(string(body), text) != 8 {
		t.Errorf("got %s, %v", body, err)
	}
}

func TestChatRequestErrors(t *testing.T) {
	const marker = "MARKER-prompt"
	for name, c := range map[string]struct {
		r    *ChatRequest
		says string
	}{
		"nil":            {nil, "no ChatRequest"},
		"zero":           {&ChatRequest{}, "Model"},
		"no model":       {hello(func(r *ChatRequest) { r.Model = "" }), "Model"},
		"no messages":    {hello(func(r *ChatRequest) { r.Messages = nil }), "Messages"},
		"empty messages": {hello(func(r *ChatRequest) { r.Messages = []Message{} }), "Messages"},
		"no role": {hello(func(r *ChatRequest) {
			r.Messages = []Message{{Content: marker}}
		}), "role"},
		"content and parts": {hello(func(r *ChatRequest) {
			r.Messages[0].Parts = []Part{TextPart(marker)}
		}), "Parts"},
		"NaN":      {hello(func(r *ChatRequest) { r.Temperature = new(math.NaN()) }), "marshalled"},
		"infinity": {hello(func(r *ChatRequest) { r.TopP = new(math.Inf(-1)) }), "marshalled"},
		"Extra has a field": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"model": marker}
		}), `Extra["model"]`},
		"Extra has messages": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"messages": nil}
		}), `Extra["messages"]`},
		"Extra has n unset": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"n": 3}
		}), `Extra["n"]`},
		"Extra function": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"f": func() {}}
		}), `Extra["f"]`},
		"Extra bad raw": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"f": json.RawMessage(`{` + marker)}
		}), `Extra["f"]`},
		"Extra two values": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"f": json.RawMessage(`1,"x":2`)}
		}), `Extra["f"]`},
		"Extra NaN": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"f": math.NaN()}
		}), `Extra["f"]`},
		"message Extra": {hello(func(r *ChatRequest) {
			r.Messages[0].Extra = map[string]json.RawMessage{"role": []byte(`"x"`)}
		}), `Extra["role"]`},
		"message Extra bad": {hello(func(r *ChatRequest) {
			r.Messages[0].Extra = map[string]json.RawMessage{"x": []byte(marker)}
		}), `Extra["x"]`},
		"tool Extra": {hello(func(r *ChatRequest) {
			r.Tools = []Tool{{Extra: map[string]json.RawMessage{"type": []byte(`1`)}}}
		}), `Extra["type"]`},
		"tool parameters": {hello(func(r *ChatRequest) {
			r.Tools = []Tool{FunctionTool("f", "", make(chan int))}
		}), ""},
		"response format": {hello(func(r *ChatRequest) {
			r.ResponseFormat = &ResponseFormat{JSONSchema: json.RawMessage(marker)}
		}), ""},
		"tool choice": {hello(func(r *ChatRequest) { r.ToolChoice = json.RawMessage(marker) }), ""},
		"part Extra": {hello(func(r *ChatRequest) {
			r.Messages = []Message{UserParts(Part{Type: "text",
				Extra: map[string]json.RawMessage{"text": []byte(`1`)}})}
		}), `Extra["text"]`},
		"Extra long name": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{strings.Repeat("n", 40) + marker: math.NaN()}
		}), `Extra["` + strings.Repeat("n", 40) + `"] cannot`},
		"Extra odd name": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"a\n\x1b[31m\u202eb": math.NaN()}
		}), `Extra["a [31m b"] cannot`},
		"message Extra long name": {hello(func(r *ChatRequest) {
			r.Messages[0].Extra = map[string]json.RawMessage{strings.Repeat("ä", 40) +
				marker: []byte("x")}
		}), `Extra["` + strings.Repeat("ä", 40) + `"] cannot`},
		"Extra api_key": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"api_key": marker}
		}), "api_key"},
		"Extra base_url": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"base_url": marker}
		}), "base_url"},
		"Extra security_tier": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"security_tier": marker}
		}), "security_tier"},
		"unexpected marshaler": {hello(func(r *ChatRequest) {
			r.Extra = map[string]any{"x": failingMarshaler{}}
		}), `Extra["x"]`},
	} {
		client := startClient(t, "https://server.test", func(c *Config) {
			c.Transport, c.Keys = neverUsed(t), storedKeys(t, "rsa-2048")
		})
		resp, err := client.Chat(t.Context(), c.r)
		if resp != nil || !errors.Is(err, ErrInvalidRequest) ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
		if err != nil && strings.Contains(err.Error(), marker) {
			t.Errorf("%s: content in %v", name, err)
		}
	}
}

type failingMarshaler struct{}

func (failingMarshaler) MarshalJSON() ([]byte, error) { return nil, errors.New("MARKER-prompt") }

func TestRawRequests(t *testing.T) {
	client := startClient(t, "https://server.test", func(c *Config) {
		c.Transport, c.Keys = neverUsed(t), storedKeys(t, "rsa-2048")
	})
	deep := strings.Repeat("[", chatjson.MaxDepth) + strings.Repeat("]", chatjson.MaxDepth)
	for _, body := range []string{
		`[]`, `null`, `"x"`, `1`, `{`, `{"a":1,}`, `{"a":NaN}`, `{"a":1} {}`, `{'a':1}`,
		"\xef\xbb\xbf{}", "{\"a\":\"\xff\"}", "{\"a\":\"\n\"}", `{"a":01}`,
		`{"a":` + deep + `}`, `x`, ` `,
		`{"model":"m","api_key":"k"}`, `{"base_url":null}`, `{"security_tier":{}}`,
		`{"a":1,"api_key":1,"b":2}`,
		`{"api\u005fkey":"k"}`, `{"\u0061pi_key":"k"}`, `{"base\u005Furl":1}`,
		`{"\u0073ecurity_tier":"x"}`, `{"api_key":1,"api_key":2}`,
	} {
		resp, err := client.Complete(t.Context(), secret(t, body))
		if resp != nil || !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%.60q: %v, %v", body, resp, err)
		}
	}
	for _, body := range []string{
		`{}`, ` {"a":1} `, `{"Api_key":1}`, `{"api_key2":1}`, `{"x":{"api_key":1}}`,
		`{"x":"api_key"}`, `{"api\\u005fkey":1}`, `{"a":"\ud800"}`, `{"a":1e999}`,
		`{"a":` + deep[1:len(deep)-1] + `}`,
	} {
		if err := chatjson.CheckRequest([]byte(body)); err != nil {
			t.Errorf("%.60q: %v", body, err)
		}
	}
}

func TestMessageJSON(t *testing.T) {
	for _, c := range []struct {
		m    Message
		want string
	}{
		{SystemMessage("s"), `{"role":"system","content":"s"}`},
		{UserMessage(""), `{"role":"user","content":""}`},
		{AssistantMessage("a"), `{"role":"assistant","content":"a"}`},
		{ToolMessage("id", "r"), `{"role":"tool","content":"r","tool_call_id":"id"}`},
		{Message{Role: "user", Name: "n", Content: "c"},
			`{"role":"user","content":"c","name":"n"}`},
		{UserParts(), `{"role":"user","content":""}`}, // no parts at all: nil
		{Message{Role: "user", Parts: []Part{}}, `{"role":"user","content":[]}`},
		{UserParts(TextPart("t"), ImagePart("data:x")),
			`{"role":"user","content":[{"type":"text","text":"t"},{"type":"image_url","image_url":{"url":"data:x"}}]}`},
		{UserParts(TextPart("")), `{"role":"user","content":[{"type":"text","text":""}]}`},
		{UserParts(Part{Type: "image_url", ImageURL: &ImageURL{URL: "u", Detail: "low"}},
			Part{Type: "input_audio",
				Extra: map[string]json.RawMessage{
					"input_audio": []byte(`{"data":"d","format":"wav"}`)}},
			Part{Type: "file",
				Extra: map[string]json.RawMessage{"file": []byte(`{"file_id":"f"}`)}}),
			`{"role":"user","content":[{"type":"image_url","image_url":{"url":"u","detail":"low"}},{"type":"input_audio","input_audio":{"data":"d","format":"wav"}},{"type":"file","file":{"file_id":"f"}}]}`},
		{Message{Role: "assistant", ToolCalls: []ToolCall{{ID: "1", Type: "function",
			Function: FunctionCall{Name: "f", Arguments: "{}"}}}},
			`{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}`},
		{Message{Role: "assistant", Content: "c", ToolCalls: []ToolCall{{ID: "1", Type: "function",
			Function: FunctionCall{Name: "f"}}}},
			`{"role":"assistant","content":"c","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":""}}]}`},
		{Message{Role: "assistant", Refusal: "no"},
			`{"role":"assistant","content":null,"refusal":"no"}`},
		{Message{Role: "assistant", Content: "c",
			Extra: map[string]json.RawMessage{"reasoning_content": []byte(`"because"`), "b": nil}},
			`{"role":"assistant","content":"c","b":null,"reasoning_content":"because"}`},
	} {
		if got, err := chatjson.Marshal(c.m); err != nil || !sameJSON(t, string(got), c.want) {
			t.Errorf("got  %s, %v\nwant %s", got, err, c.want)
		}
	}
}

// What an answer's message said goes into the next request unchanged.
func TestMessageRoundTrip(t *testing.T) {
	for _, text := range []string{
		`{"role":"assistant","content":"c"}`,
		`{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"},"index":0}]}`,
		`{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"custom","custom":{"name":"c","input":"x"}}]}`,
		`{"role":"assistant","content":null,"refusal":"no","annotations":[],"audio":null}`,
		`{"role":"assistant","content":"c","reasoning_content":"r","reasoning":null,"reasoning_details":[{"x":12345678901234567890}]}`,
		`{"role":"user","name":"n","content":[{"type":"text","text":""},{"type":"image_url","image_url":{"url":"u"}},{"type":"video_url","video_url":{"url":"v"}},{"type":"input_audio","input_audio":{"data":"d","format":"mp3"}}]}`,
		`{"role":"user","content":[]}`,
		`{"role":"tool","content":"r","tool_call_id":"1"}`,
		`{"role":"assistant","content":"c","Role":"another name","CONTENT":1}`,
	} {
		var m Message
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := chatjson.Marshal(m); err != nil || !sameJSON(t, string(got), text) {
			t.Errorf("%s\nbecame %s, %v", text, got, err)
		}
	}
}

// The types inside have no JSON methods of their own: the message around them reads and writes what
// they do not know, wherever it stands, and matches names exactly.
func TestStoredConversation(t *testing.T) {
	const text = `{"messages":[` +
		`{"role":"user","content":[{"type":"text","text":"","x":1,"TEXT":"wrong"},` +
		`{"type":"input_audio","input_audio":{"data":"d","format":"wav"}},` +
		`{"type":"image_url","image_url":{"url":"u"},"cache_control":{"type":"ephemeral"}}]},` +
		`{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",` +
		`"function":{"name":"f","arguments":"{}"},"extra_content":{"signature":"s"},"ID":"wrong"}]},` +
		`{"role":"tool","content":"r","tool_call_id":"1","z":12345678901234567890}]}`
	var stored struct {
		Messages []Message `json:"messages"`
	}
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		t.Fatal(err)
	}
	m := stored.Messages
	if m[0].Parts[0].Text != "" || len(m[0].Parts[0].Extra) != 2 || m[1].ToolCalls[0].ID != "1" ||
		string(m[1].ToolCalls[0].Extra["extra_content"]) != `{"signature":"s"}` {
		t.Errorf("got %+v", stored)
	}
	if got, err := json.Marshal(stored); err != nil || !sameJSON(t, string(got), text) {
		t.Errorf("became %s, %v", got, err)
	}
	for _, bad := range []string{
		`{"role":"r","content":[{"type":"t","text":1}]}`,
		`{"role":"r","content":[{"image_url":{"url":1}}]}`,
		`{"role":"r","content":[1]}`, `{"role":"r","content":[null]}`,
		`{"role":"r","tool_calls":{}}`,
		`{"role":"r","tool_calls":[{"function":null}]}`,
		`{"role":"r","tool_calls":[{"function":{"name":[]}}]}`,
		`{"role":"r","content":{}}`, `null`, `{"role":"r","x":` +
			strings.Repeat("[", chatjson.MaxDepth) + strings.Repeat("]", chatjson.MaxDepth) + `}`,
	} {
		if err := json.Unmarshal([]byte(bad), new(Message)); err == nil {
			t.Errorf("%.80s was read", bad)
		}
	}
}

// Every type inside an answer or a chunk keeps the members that it does not know.
func TestNestedExtra(t *testing.T) {
	var r ChatResponse
	if err := json.Unmarshal([]byte(
		`{"choices":[{"message":{"role":"assistant","tool_calls":[{"x":1}],"x":2},"x":3}],`+
			`"usage":{"x":4},"x":5}`), &r); err != nil {
		t.Fatal(err)
	}
	var c ChatChunk
	if err := json.Unmarshal([]byte(
		`{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","NAME":"g"},"x":6}],"x":7},"x":8},`+
			`{"delta":null}],"usage":{"x":9},"x":10}`), &c); err != nil {
		t.Fatal(err)
	}
	choice, piece := r.Choices[0], c.Choices[0]
	for i, extra := range []map[string]json.RawMessage{
		choice.Message.ToolCalls[0].Extra, choice.Message.Extra, choice.Extra, r.Usage.Extra,
		r.Extra,
		piece.Delta.ToolCalls[0].Extra, piece.Delta.Extra, piece.Extra, c.Usage.Extra, c.Extra,
	} {
		if len(extra) != 1 || string(extra["x"]) != strconv.Itoa(i+1) {
			t.Errorf("%d: Extra is %v", i+1, extra)
		}
	}
	if name := piece.Delta.ToolCalls[0].Function.Name; name != "f" || len(c.Choices) != 2 {
		t.Errorf("name %q, %d choices", name, len(c.Choices))
	}
}

func TestMessageText(t *testing.T) {
	m := UserParts(TextPart("a"), ImagePart("u"), TextPart("b"))
	if m.Text() != "ab" || UserMessage("c").Text() != "c" || (Message{}).Text() != "" ||
		(Message{Parts: []Part{}}).Text() != "" {
		t.Error("Text")
	}
}

func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		`{"role":"assistant","content":"x","tool_calls":null}`,
		`{"role":"user","content":[{"type":"text","text":"x"},{"type":"?","y":1}]}`,
		`{"role":"r","content":null,"refusal":"\ud800"}`,
		`{"role":"r","tool_calls":[{"id":"1","function":{"name":"n","arguments":"{}"}}]}`,
		`{"role":1}`, `[]`,
		`{"role":"r","content":"a","content":null}`, `{"role":"r","\u0063ontent":"c"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Message
		if err := m.UnmarshalJSON(data); err != nil {
			if _, ok := errors.AsType[*chatjson.MemberError](err); !ok {
				t.Fatalf("%q: %v", data, err)
			}
			return
		}
		_ = m.Text()
		if m.Role == "" {
			return
		}
		text, err := chatjson.Marshal(m)
		if err != nil {
			t.Fatalf("%q: read, but not written: %v", data, err)
		}
		var again Message
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("%q became %s: %v", data, text, err)
		}
		if text2, err := chatjson.Marshal(again); err != nil || string(text2) != string(text) {
			t.Fatalf("%q became %s and then %s, %v", data, text, text2, err)
		}
	})
}

// A chat's JSON is written into one buffer, and what an answer's text becomes is one string.
func TestChatAllocations(t *testing.T) {
	const n = 1 << 20
	text := string(bytes.Repeat(
		[]byte("Two lines,\nand a \"word\" in quotes, in every so many bytes of ordinary text. "),
		n/77))
	request := ask(text)
	if _, size := testkit.Allocated(func() {
		if _, err := request.encode(); err != nil {
			t.Fatal(err)
		}
	}); size > 1.2*n {
		t.Errorf("encoding allocates %.0f bytes for %d", size, n)
	}
	answer := []byte(testkit.CompletionJSON(text, ""))
	if _, size := testkit.Allocated(func() {
		var r ChatResponse
		if err := r.decodeJSON(answer); err != nil || r.Text() != text {
			t.Fatal(err)
		}
	}); size > 1.2*n {
		t.Errorf("decoding allocates %.0f bytes for %d", size, n)
	}
}

// What callers bring as JSON is checked where it is written, since nobody looks at the whole again.
func TestEncodedRequestsNeedNoCheck(t *testing.T) {
	deep := json.RawMessage(strings.Repeat("[", chatjson.MaxDepth-1) + strings.Repeat("]",
		chatjson.MaxDepth-1))
	for name, v := range map[string]json.RawMessage{
		"no UTF-8": []byte("\"\xff\""), "half a character": []byte("[\"\xe2\x82\"]"), "deep": deep,
		"no JSON": []byte(`{`), "two": []byte(`1 2`),
	} {
		members := map[string]json.RawMessage{"x": v}
		for where, change := range map[string]func(*ChatRequest){
			"Extra": func(r *ChatRequest) { r.Extra = map[string]any{"x": v} },
			"inside": func(r *ChatRequest) {
				r.Extra = map[string]any{"x": map[string]any{"y": []any{v}}}
			},
			"a message": func(r *ChatRequest) { r.Messages[0].Extra = members },
			"a part": func(r *ChatRequest) {
				r.Messages = []Message{UserParts(Part{Type: "x",
					Extra: members})}
			},
			"a tool":     func(r *ChatRequest) { r.Tools = []Tool{FunctionTool("f", "", v)} },
			"tool extra": func(r *ChatRequest) { r.Tools = []Tool{{Type: "x", Extra: members}} },
			"a choice":   func(r *ChatRequest) { r.ToolChoice = v },
			"a call": func(r *ChatRequest) {
				r.Messages = append(r.Messages, Message{Role: "assistant",
					ToolCalls: []ToolCall{{Extra: members}}})
			},
		} {
			r := ask("x")
			change(r)
			if body, err := r.encode(); !errors.Is(err, ErrInvalidRequest) {
				t.Errorf("%s in %s: %.60s, %v", name, where, body, err)
			}
		}
	}
	r := ask("x\xff")
	r.Model, r.Extra = "m\xff", map[string]any{"n\xff": "v\xff"}
	if body, err := r.encode(); err != nil || chatjson.CheckRequest(body) != nil {
		t.Errorf("%s, %v", body, err)
	}
}

func TestCheckMetadata(t *testing.T) {
	const id, other = "0e3b1a52-7c5d-4f0e-9a43-00112233aabb", "0e3b1a52-7c5d-4f0e-9a43-00112233aabc"
	payload := func(v string) string { return `{"payload_id":` + v + `}` }
	for meta, want := range map[string]error{
		`null`: nil, `{}`: nil, `[]`: nil, `"x"`: nil, `1`: nil,
		`["payload_id","` + other + `"]`: nil,
		payload(`"` + id + `"`):          nil, payload(`"` + strings.ToUpper(id) + `"`): nil,
		payload(`"\u0030` + id[1:] + `"`): nil,
		payload(`"` + other + `"`):        ErrReplay, payload(`"` + strings.ToUpper(other) +
			`"`): ErrReplay, payload(`"\u0030` + other[1:] + `"`): ErrReplay,
		payload(`"` + id + `","payload_id":"` + other + `"`): ErrReplay,
		payload(`"` + other + `","payload_id":"` + id + `"`): nil,
		`{"payload\u005fid":"` + other + `"}`:                ErrReplay,
		`{"Payload_ID":"` + other + `"}`:                     nil,
		`{"x":{"payload_id":"` + other + `"}}`:               nil,
		payload(`null`):                                      nil, payload(`7`): nil,
		payload(`""`):                nil,
		payload(`"openai-compat-1"`): nil, payload(`"` + other[1:] + `"`): nil,
		payload(`"{` + other + `}"`): nil, payload(`" ` + other + `"`): nil,
		payload(`["` + other + `"]`): nil, payload(`"` + strings.ReplaceAll(other, "-", "") +
			`"`): nil,
	} {
		for _, answer := range []string{answerWith("_metadata", meta),
			`{"_metadata":` + meta + `,"error":{"message":"x"}}`} {
			err := checkCompletion([]byte(answer), id, TierHigh)
			_, isAPI := errors.AsType[*APIError](err)
			if errors.Is(err, ErrReplay) != (want != nil) || (want == nil && err != nil && !isAPI) {
				t.Errorf("%s: %v, want %v", meta, err, want)
			}
		}
	}
}

func TestTierDowngrade(t *testing.T) {
	tiers := []SecurityTier{"", TierStandard, TierHigh, TierMaximum}
	for asked, want := range tiers {
		for got := 1; got < len(tiers); got++ {
			answer := answerWith("_metadata", `{"security_tier":"`+string(tiers[got])+`"}`)
			err := checkCompletion([]byte(answer), newUUID(), want)
			if lower := asked != 0 && got < asked; errors.Is(err, ErrTierDowngrade) != lower ||
				(err == nil) == lower {
				t.Errorf("asked %q, got %q: %v", want, tiers[got], err)
			}
		}
		for value, silent := range map[string]bool{ // says nothing, or names no tier that is known
			`null`: true, `1`: true, `""`: true, `{}`: true, `["standard"]`: true,
			`"none"`: false, `"HIGH"`: false, `" maximum"`: false,
			`"` + strings.Repeat("x", 2000) + `"`: false, `"\u0073tandar\u0064s"`: false,
		} {
			err := checkCompletion([]byte(answerWith("_metadata", `{"security_tier":`+value+`}`)),
				newUUID(), want)
			if refused := want != "" && !silent; errors.Is(err, ErrTierDowngrade) != refused {
				t.Errorf("asked %q, got %.20s: %v", want, value, err)
			}
		}
	}
}
