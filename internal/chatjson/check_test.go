// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const testID = "0e3b1a52-7c5d-4f0e-9a43-00112233aabb"

// asked wants a tier that no answer here states.
var asked = Asked{PayloadID: testID, TooLow: func(string) bool { return true }}

func TestBadAnswers(t *testing.T) {
	const m = `MARKER-answer`
	deep := strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)
	choice := func(s string) string {
		return testkit.AnswerWith("choices",
			`[{"message":{}},`+s+`]`)
	}
	for _, c := range []struct{ answer, path string }{
		{``, "the answer"}, {`null`, "the answer"}, {`[]`, "the answer"}, {`"` + m + `"`,
			"the answer"}, {m, "the answer"}, {`{"` + m, "the answer"},
		{"\xef\xbb\xbf" + testkit.FineAnswer, "the answer"}, {testkit.FineAnswer + "x",
			"the answer"}, {testkit.FineAnswer + testkit.FineAnswer, "the answer"},
		{strings.Replace(testkit.FineAnswer, `"t"`, "\"\xff\"", 1), "the answer"},
		{testkit.AnswerWith("x", "NaN"), "the answer"}, {testkit.AnswerWith("x", "Infinity"),
			"the answer"},
		{testkit.AnswerWith("x", "01"), "the answer"}, {testkit.AnswerWith("x", "\"\t\""),
			"the answer"}, {testkit.AnswerWith("x", deep), "the answer"},
		{`{}`, "choices"}, {testkit.AnswerWith("object", `"error"`), "object"},
		{testkit.AnswerWith("object", `"list"`), "object"},
		{testkit.AnswerWith("object", `"l\u0069st"`), "object"},
		{testkit.AnswerWith("object", `"chat.completion.chunk"`), "object"},
		{testkit.AnswerWith("object", `"response"`), "object"},
		{testkit.AnswerWith("object", `"chat.completion","object":"error"`), "object"},
		{testkit.AnswerWith("object", `"error"`, "choices", "-"), "object"},
		{choice(`{"message":{},"index":1e400}`), "choices[1].index"},
		{choice(`{"message":{"tool_calls":{}}}`), "choices[1].message.tool_calls"},
		{choice(`{"message":{"tool_calls":"` + m + `"}}`), "choices[1].message.tool_calls"},
		{choice(`{"message":{"tool_calls":[{},1]}}`), "choices[1].message.tool_calls"},
		{choice(`{"message":{"tool_calls":[{"function":"` + m + `"}]}}`),
			"choices[1].message.tool_calls.function"},
		{choice(`{"message":{"tool_calls":[{"function":{"name":["` + m + `"]}}]}}`),
			"choices[1].message.tool_calls.function.name"},
		{choice(`{"message":{"tool_calls":[{"function":{"arguments":1}}]}}`),
			"choices[1].message.tool_calls.function.arguments"},
		{choice(`{"message":{"tool_calls":[{"function":{"arguments":["` + m + `"]}}]}}`),
			"choices[1].message.tool_calls.function.arguments"},
		{choice(`{"message":{"content":[{"type":"text","text":1}]}}`),
			"choices[1].message.content"},
		{choice(`{"message":{"content":[{"type":"image_url","image_url":"` + m + `"}]}}`),
			"choices[1].message.content"},
		{testkit.AnswerWith("choices", "-"), "choices"}, {testkit.AnswerWith("choices", "null"),
			"choices"}, {testkit.AnswerWith("choices", "{}"), "choices"},
		{testkit.AnswerWith("choices", `"`+m+`"`), "choices"},
		{testkit.AnswerWith("choices", `[],"choices":{}`), "choices"},
		{testkit.AnswerWith("choices", "-", "Choices", "[]"), "choices"},
		{choice(`1`), "choices[1]"}, {choice(`null`), "choices[1]"}, {choice(`[]`), "choices[1]"},
		{choice(`"` + m + `"`), "choices[1]"},
		{choice(`{}`), "choices[1].message"}, {choice(`{"message":null}`), "choices[1].message"},
		{choice(`{"message":"` + m + `"}`), "choices[1].message"},
		{choice(`{"message":[{}]}`), "choices[1].message"}, {choice(`{"Message":{}}`),
			"choices[1].message"}, {choice(`{"message":{},"message":1}`), "choices[1].message"},
		{choice(`{"message":{"content":1}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":{"text":"` + m + `"}}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":false}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":["` + m + `"]}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":[{"text":"` + m + `"}]}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":[{"type":1}]}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":[null]}}`), "choices[1].message.content"},
		{choice(`{"message":{"content":[{"type":"text"},[]]}}`), "choices[1].message.content"},
		{testkit.AnswerWith("choices", "-", "error", "null"), "choices"},
	} {
		err := CheckCompletion([]byte(c.answer), asked)
		if !errors.Is(err, fault.ErrResponseSchema) || !strings.HasPrefix(err.Error(),
			fault.ErrResponseSchema.Error()+": "+c.path+": ") {
			t.Errorf("%.100s\nwant %s, got %v", c.answer, c.path, err)
		}
		if err != nil && strings.Contains(err.Error(), m) {
			t.Errorf("content in %v", err)
		}
	}
}

// Whatever stands beside the choices is taken where it has its type, and is no reason to refuse.
func TestBestEffortMembers(t *testing.T) {
	for _, name := range []string{"id", "model", "object", "created", "usage",
		"system_fingerprint", "service_tier"} {
		for _, value := range []string{"-", "null", "1", "-1e300", "1e400", "true", `"x"`, "[1]",
			"{}", `{"total_tokens":"x"}`} {
			answer := []byte(testkit.AnswerWith(name, value))
			if err := CheckCompletion(answer, Asked{PayloadID: testID}); err != nil {
				t.Errorf("%s: %v", answer, err)
			}
		}
	}
	for _, nothing := range []string{"null", "false", `""`, "{}", "{ }"} {
		answer := []byte(testkit.AnswerWith("error", nothing))
		if err := CheckCompletion(answer, Asked{}); err != nil {
			t.Errorf("%s: %v", answer, err)
		}
	}
	for _, failure := range []string{`"x"`, "1", "true", "[]", "0", `{"a":null}`, `" "`} {
		answer := []byte(testkit.AnswerWith("error", failure))
		_, failed := errors.AsType[*ErrorObject](CheckCompletion(answer, Asked{}))
		if !failed {
			t.Errorf("%s is no error", answer)
		}
	}
}

func TestIsUUID(t *testing.T) {
	const good = "0e3b1a52-7c5d-4f0e-9a43-00112233aabb"
	if !IsUUID(good) {
		t.Error(good)
	}
	for i := range good {
		for _, c := range []string{"g", "A", " ", "-", "0", "\x00", "é"} {
			bad := good[:i] + c + good[i+1:]
			if want := c == "0" && good[i] != '-' || c == "-" &&
				good[i] == '-'; IsUUID(bad) != want {
				t.Errorf("%q: %v", bad, !want)
			}
		}
	}
	for _, bad := range []string{"", good[1:], good + "0", strings.Repeat("0", 36)} {
		if IsUUID(bad) {
			t.Errorf("%q", bad)
		}
	}
}

// plainCheck is CheckCompletion without metadata, written over encoding/json alone.
func plainCheck(data []byte) bool {
	type object = map[string]json.RawMessage
	isObject := func(raw json.RawMessage) (o object, ok bool) {
		return o, len(raw) > 0 && json.Unmarshal(raw, &o) == nil && o != nil
	}
	kind := func(raw json.RawMessage) byte {
		if len(raw) == 0 {
			return 0
		}
		return raw[0]
	}
	o, ok := isObject(data)
	if !ok || !utf8.Valid(data) {
		return false
	}
	switch string(o["error"]) {
	case "", "null", "false", `""`:
	default:
		if e, ok := isObject(o["error"]); !ok || len(e) > 0 {
			return false
		}
	}
	var what string
	var choices []json.RawMessage
	_ = json.Unmarshal(o["object"], &what)
	if what == "error" || what == "list" || what == "response" || what == "chat.completion.chunk" ||
		kind(o["choices"]) != '[' || json.Unmarshal(o["choices"], &choices) != nil {
		return false
	}
	// optional tells absent values and those that begin like one of kinds.
	optional := func(raw json.RawMessage, kinds string) bool {
		k := kind(raw)
		return k == 0 || k == 'n' || strings.IndexByte(kinds, k) >= 0
	}
	image := func(raw json.RawMessage) bool {
		o, ok := isObject(raw)
		return !ok && optional(raw, "") ||
			ok && optional(o["url"], `"`) && optional(o["detail"], `"`)
	}
	call := func(raw json.RawMessage) bool {
		c, ok := isObject(raw)
		f, isFunction := isObject(c["function"])
		return ok && (len(c["function"]) == 0 || isFunction &&
			optional(f["name"], `"`) && optional(f["arguments"], `"{`))
	}
	for _, choice := range choices {
		c, ok := isObject(choice)
		if !ok {
			return false
		}
		m, ok := isObject(c["message"])
		if !ok {
			return false
		}
		if _, err := WholeNumber(c["index"]); err != nil && strings.IndexByte("-0123456789",
			kind(c["index"])) >= 0 {
			return false
		}
		if !optional(m["tool_calls"], "[") {
			return false
		}
		var calls []json.RawMessage
		_ = json.Unmarshal(m["tool_calls"], &calls)
		for _, raw := range calls {
			if !call(raw) {
				return false
			}
		}
		switch kind(m["content"]) {
		case 0, 'n', '"':
		case '[':
			var parts []json.RawMessage
			_ = json.Unmarshal(m["content"], &parts)
			for _, part := range parts {
				if p, ok := isObject(part); !ok || kind(p["type"]) != '"' ||
					!optional(p["text"], `"`) || !image(p["image_url"]) {
					return false
				}
			}
		default:
			return false
		}
	}
	return true
}

func FuzzCheckCompletion(f *testing.F) {
	for _, s := range []string{
		testkit.FineAnswer, testkit.AnswerWith(), testkit.AnswerWith("id", "null", "created",
			"-1.5e3"), testkit.AnswerWith("choices", `[{"message":{"content":[{"type":"text"}]}}]`),
		testkit.AnswerWith("object", `"chat\u002ecompletion"`), testkit.AnswerWith("_metadata",
			`{"security_tier":"high"}`), testkit.AnswerWith("choices", `[{}]`), `{"error":1}`,
		` ` + testkit.FineAnswer + "\n",
		testkit.AnswerWith("\\u0069d", "1"), `{"id":"\ud800"}`, testkit.AnswerWith("x", "[[[[]]]]"),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		err := CheckCompletion(data, Asked{PayloadID: testID})
		if !bytes.Equal(data, before) {
			t.Fatal("the answer was changed")
		}
		_, sealed := errors.AsType[*ErrorObject](err)
		if err != nil && !sealed && !errors.Is(err, fault.ErrResponseSchema) && !errors.Is(err,
			fault.ErrReplay) {
			t.Fatalf("%q: %v", data, err)
		}
		if errors.Is(err, fault.ErrReplay) {
			return
		}
		if want := plainCheck(data); (err == nil) != want {
			t.Fatalf("%q: %v, the plain check says %v", data, err, want)
		}
	})
}
