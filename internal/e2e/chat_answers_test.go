// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Chat, Complete, Stream and HTTPClient come to one verdict about an answer that is none.
func TestBadTypedMembers(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	message := func(text string) string {
		return testkit.AnswerWith("choices", `[{"message":{`+text+`}}]`)
	}
	for _, k := range []struct{ answer, path string }{
		{testkit.AnswerWith("choices", `[{"message":{},"index":1e400}]`), "choices[0].index"},
		{testkit.AnswerWith("choices", `[{"message":{},"index":-1e300}]`), "choices[0].index"},
		{message(`"tool_calls":"MARKER"`), "choices[0].message.tool_calls"},
		{message(`"tool_calls":[1]`), "choices[0].message.tool_calls"},
		{message(`"tool_calls":[{"function":["MARKER"]}]`),
			"choices[0].message.tool_calls.function"},
		{message(`"tool_calls":[{"function":{"name":{"MARKER":1}}}]`),
			"choices[0].message.tool_calls.function.name"},
		{message(`"tool_calls":[{"function":{"arguments":["MARKER"]}}]`),
			"choices[0].message.tool_calls.function.arguments"},
		{message(`"tool_calls":[{"function":{"arguments":7}}]`),
			"choices[0].message.tool_calls.function.arguments"},
		{message(`"content":{"MARKER":1}`), "choices[0].message.content"},
		{message(`"content":7`), "choices[0].message.content"},
		{message(`"content":["MARKER"]`), "choices[0].message.content"},
		{message(`"content":[{"type":"text","text":1}]`), "choices[0].message.content"},
		{message(`"content":[{"type":"image_url","image_url":1}]`), "choices[0].message.content"},
	} {
		s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(k.answer) }
		for name, ask := range everyWay {
			err := ask(t.Context(), c, &sealedchat.ChatRequest{Model: "m",
				Messages: []sealedchat.Message{sealedchat.UserMessage("x")}}).err
			if !errors.Is(err, sealedchat.ErrResponseSchema) ||
				!strings.Contains(err.Error(), ": "+k.path) ||
				strings.Contains(err.Error(), "MARKER") {
				t.Errorf("%s of %s\nwant %s, got %v", name, k.answer, k.path, err)
			}
		}
	}
}

// What stands beside the answer is zero where it has not its type, and no reason to refuse.
func TestBestEffortMembers(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	choices := func(choice string) []string {
		return []string{"choices", `[{"message":{"content":"hi"` + choice + `}]`}
	}
	for _, members := range [][]string{
		{"created", "1e400"}, {"created", "9223372036854775808"}, {"created", "-1e300"},
		{"created", `"1765250382"`}, {"created", "null"}, {"created", "-"},
		{"id", "7"}, {"id", "{}"}, {"id", "-"}, {"model", "[]"}, {"model", "-"},
		{"object", "1"}, {"object", "-"}, {"object", `"x"`}, {"object", "null"},
		{"usage", `"none"`}, {"usage", "[]"}, {"usage", `{"prompt_tokens":"x"}`},
		{"usage", `{"total_tokens":1e400}`}, {"system_fingerprint", "1"},
		{"service_tier", `["x"]`},
		choices(`},"index":"x"`), choices(`},"finish_reason":1`), choices(`,"role":1}`),
		choices(`,"tool_calls":null}`), choices(`,"refusal":{"x":1}}`), choices(`,"name":7}`),
	} {
		if members[0] != "choices" {
			members = append(members, "choices", `[{"message":{"content":"hi"}}]`)
		}
		answer := testkit.AnswerWith(members...)
		s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(answer) }
		for name, ask := range everyWay {
			g := ask(t.Context(), c, &sealedchat.ChatRequest{Model: "m",
				Messages: []sealedchat.Message{sealedchat.UserMessage("x")}})
			if g.err != nil || g.text != "hi" || g.finish != "" {
				t.Errorf("%s of %s: %+v", name, answer, g)
			}
		}
	}
}

func TestSealedError(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	for answer, want := range map[string]struct{ code, detail string }{
		`{"error":{"message":"no such model","type":"t","code":"model_not_found"}}`: {
			"model_not_found", "no such model"},
		`{"error":"words"}`:                            {detail: "words"},
		`{"error":{"a":1}}`:                            {},
		testkit.AnswerWith("error", `{"message":"m"}`): {detail: "m"}, // also beside choices
		testkit.AnswerWith("choices", "null", "error", `{"message":"m"}`): {detail: "m"},
	} {
		s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(answer) }
		_, err := c.Chat(t.Context(), ask("x"))
		e, ok := errors.AsType[*sealedchat.APIError](err)
		if !ok || e.StatusCode != 200 || e.Code != "" || e.Detail != "" || e.RetryAfter != 0 ||
			!errors.Is(err, sealedchat.ErrServer) {
			t.Errorf("%s: %v", answer, err)
			continue
		}
		if code, detail := e.Sealed(); code != want.code || detail != want.detail {
			t.Errorf("%s: %q, %q", answer, code, detail)
		}
	}
	for _, nothing := range []string{`{}`, `""`, "null", "false"} {
		s.Answer = func(q *fakes.Question) *http.Response {
			return q.Seal(testkit.AnswerWith("error", nothing))
		}
		if resp, err := c.Chat(t.Context(), ask("x")); err != nil ||
			string(resp.Extra["error"]) != nothing {
			t.Errorf("error %s beside choices: %v", nothing, err)
		}
		s.Answer = func(q *fakes.Question) *http.Response {
			return q.Seal(`{"error":` + nothing + `}`)
		}
		if _, err := c.Chat(t.Context(), ask("x")); !errors.Is(err, sealedchat.ErrResponseSchema) {
			t.Errorf("error %s alone: %v", nothing, err)
		}
	}
}

func TestResponseDecode(t *testing.T) {
	const text = ` {"ID":"wrong","id":"first","id":"i","object":"chat.completion","created":17652503.75e2,"model":null,"Model":"wrong","usage":{"prompt_tokens":1.0,` +
		`"completion_tokens":2,"total_tokens":3e0,"Total_tokens":9,"details":{"x":1}},"choices":[{"index":1.5,"Index":7,"message":{"role":"assistant",` +
		`"content":"lone \ud800 end","Content":"wrong","reasoning":"r"},"finish_reason":null,"logprobs":null}],"system_fingerprint":null,"service_tier":"s",` +
		`"big":123456789012345678901234567890,"huge":1e400,"\u0065scaped":"e","_metadata":{"payload_id":"p"},"_metadata":{"a": 1e400,"b":[1 ,2]}} `
	var r sealedchat.ChatResponse
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	c := r.Choices[0]
	if r.ID != "i" || r.Created != 1765250375 || r.Model != "" || r.SystemFingerprint != "" ||
		r.ServiceTier != "s" || len(r.Choices) != 1 {
		t.Errorf("got %+v", r)
	}
	if c.Index != 1 || c.FinishReason != "" || c.Message.Content != "lone \ufffd end" ||
		c.Message.Role != "assistant" || r.Text() != c.Message.Content {
		t.Errorf("choice %+v", c)
	}
	if u := r.Usage; u == nil || u.PromptTokens != 1 || u.CompletionTokens != 2 ||
		u.TotalTokens != 3 || string(u.Extra["details"]) != `{"x":1}` ||
		string(u.Extra["Total_tokens"]) != "9" {
		t.Errorf("usage %+v", u)
	}
	for name, want := range map[string]string{"ID": `"wrong"`, "Model": `"wrong"`,
		"big": "123456789012345678901234567890", "huge": "1e400", "escaped": `"e"`} {
		if string(r.Extra[name]) != want {
			t.Errorf("Extra[%q] = %s", name, r.Extra[name])
		}
	}
	if len(r.Extra) != 5 || len(r.Metadata) != 2 || string(r.Metadata["a"]) != "1e400" ||
		string(r.Metadata["b"]) != "[1 ,2]" {
		t.Errorf("Extra %v, Metadata %v", r.Extra, r.Metadata)
	}
	if string(c.Message.Extra["Content"]) != `"wrong"` ||
		string(c.Message.Extra["reasoning"]) != `"r"` || string(c.Extra["Index"]) != "7" ||
		string(c.Extra["logprobs"]) != "null" {
		t.Errorf("Extra %v, %v", c.Message.Extra, c.Extra)
	}
	if want := strings.TrimSpace(text); string(r.Raw) != want {
		t.Errorf("Raw %s", r.Raw)
	}
}

func TestResponseMembers(t *testing.T) {
	for _, c := range []struct {
		answer string
		check  func(*sealedchat.ChatResponse) bool
	}{
		{testkit.AnswerWith("_metadata", `null`), func(r *sealedchat.ChatResponse) bool {
			return r.Metadata == nil
		}},
		{testkit.AnswerWith("_metadata", `[1]`), func(r *sealedchat.ChatResponse) bool {
			return r.Metadata == nil
		}},
		{testkit.AnswerWith("usage", `null`), func(r *sealedchat.ChatResponse) bool {
			return r.Usage == nil
		}},
		{testkit.AnswerWith("id", `null`), func(r *sealedchat.ChatResponse) bool {
			return r.ID == "" && r.Text() == "" && r.Choices != nil
		}},
		{testkit.AnswerWith("created", `-0.9`), func(r *sealedchat.ChatResponse) bool {
			return r.Created == 0
		}},
		{testkit.AnswerWith("created", `9223372036854775807`),
			func(r *sealedchat.ChatResponse) bool {
				return r.Created == math.MaxInt64
			}},
		{testkit.AnswerWith("created", `-9223372036854775808`),
			func(r *sealedchat.ChatResponse) bool {
				return r.Created == math.MinInt64
			}},
		{testkit.AnswerWith("choices",
			`[{"message":{"content":[{"type":"text","text":"a"},{"type":"x","text":"b"}]}}]`),
			func(r *sealedchat.ChatResponse) bool {
				return r.Text() == "ab"
			}},
		{testkit.AnswerWith("choices", `[{"message":{"content":null}}]`),
			func(r *sealedchat.ChatResponse) bool {
				return r.Text() == ""
			}},
		{testkit.AnswerWith("choices",
			`[{"message":{"content":[{"type":"image_url","image_url":{"url":"right","URL":"wrong"}}]}}]`),
			func(r *sealedchat.ChatResponse) bool {
				return r.Choices[0].Message.Parts[0].ImageURL.URL == "right"
			}},
		{testkit.AnswerWith("choices",
			`[{"message":{"content":[{"type":"input_audio","input_audio":{"data":"d"},"IMAGE_URL":{"url":"wrong"}}]}}]`),
			func(r *sealedchat.ChatResponse) bool {
				p := r.Choices[0].Message.Parts[0]
				return p.ImageURL == nil && len(p.Extra) == 2 &&
					string(p.Extra["input_audio"]) == `{"data":"d"}`
			}},
		{testkit.AnswerWith("choices",
			`[{"message":{"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{","NAME":"wrong"}}]}}]`),
			func(r *sealedchat.ChatResponse) bool {
				return r.Choices[0].Message.ToolCalls[0].Function == sealedchat.FunctionCall{
					Name: "f", Arguments: "{"}
			}},
	} {
		var r sealedchat.ChatResponse
		if err := json.Unmarshal([]byte(c.answer), &r); err != nil || !c.check(&r) {
			t.Errorf("%s: %s, %v", c.answer, r.Raw, err)
		}
	}
	if (&sealedchat.ChatResponse{}).Text() != "" {
		t.Error("Text of nothing")
	}
}

func FuzzChatResponse(f *testing.F) {
	for _, s := range []string{testkit.FineAnswer,
		testkit.AnswerWith("usage", `{"total_tokens":1.5}`), testkit.AnswerWith("created", "1e400"),
		testkit.AnswerWith("_metadata", `{"a":1}`), testkit.AnswerWith("choices", "null"), `[]`,
		``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r sealedchat.ChatResponse
		err := r.UnmarshalJSON(data)
		if err != nil {
			if _, ok := errors.AsType[*chatjson.MemberError](err); !ok {
				t.Fatalf("%q: %v", data, err)
			}
			if calls, _, ok := plainAnswer(data); ok && calls == 0 {
				t.Fatalf("%q: %v, but encoding/json takes it", data, err)
			}
			return
		}
		if _, text, ok := plainAnswer(data); !ok || text != r.Text() {
			t.Fatalf("%q: text %q, encoding/json says %q, %v", data, r.Text(), text, ok)
		}
		if !bytes.Equal(r.Raw, data) {
			t.Fatalf("Raw is %q", r.Raw)
		}
		var plain map[string]json.RawMessage
		if err := json.Unmarshal(data, &plain); err != nil {
			t.Fatalf("%q: encoding/json refuses: %v", data, err)
		}
		for _, name := range []string{"id", "object", "created", "model", "choices", "usage",
			"system_fingerprint", "service_tier", "_metadata"} {
			delete(plain, name)
		}
		if len(plain) != len(r.Extra) {
			t.Fatalf("%q: Extra %v, want %v", data, r.Extra, plain)
		}
		for name, value := range plain {
			if !bytes.Equal(r.Extra[name], value) {
				t.Fatalf("%q: Extra[%q] is %s", data, name, r.Extra[name])
			}
		}
	})
}

// plainAnswer reads with encoding/json, by exact names, what ChatResponse reads. calls counts the
// tool calls, which it does not look into.
func plainAnswer(data []byte) (calls int, text string, ok bool) {
	var doc map[string]any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if !utf8.Valid(data) || !json.Valid(data) || decoder.Decode(&doc) != nil || doc == nil {
		return 0, "", false
	}
	ok = true
	str := func(v any) string {
		s, is := v.(string)
		ok = ok && (is || v == nil)
		return s
	}
	object := func(v any) map[string]any {
		o, is := v.(map[string]any)
		ok = ok && is
		return o
	}
	list := func(v any) []any {
		l, is := v.([]any)
		ok = ok && (is || v == nil)
		return l
	}
	for i, v := range list(doc["choices"]) {
		choice := object(v)
		v, has := choice["message"]
		if !has {
			continue
		}
		message, said := object(v), ""
		calls += len(list(message["tool_calls"]))
		if parts, is := message["content"].([]any); is {
			for _, v := range parts {
				part := object(v)
				said += str(part["text"])
				for name, members := range map[string][]string{"image_url": {"url", "detail"}} {
					if part[name] != nil {
						inner := object(part[name])
						str(inner[members[0]])
						str(inner[members[1]])
					}
				}
			}
		} else {
			said = str(message["content"])
		}
		if i == 0 {
			text = said
		}
	}
	return calls, text, ok
}
