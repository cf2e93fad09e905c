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
		{`{}`, "id"}, {testkit.AnswerWith("id", "-"), "id"}, {testkit.AnswerWith("id", "1"), "id"},
		{testkit.AnswerWith("id", `["`+m+`"]`), "id"}, {testkit.AnswerWith("id", "-", "ID",
			`"x"`), "id"},
		{testkit.AnswerWith("model", "-"), "model"}, {testkit.AnswerWith("model", "{}"), "model"},
		{testkit.AnswerWith("model", "true"), "model"},
		{testkit.AnswerWith("object", "-"), "object"}, {testkit.AnswerWith("object", `"`+m+`"`),
			"object"}, {testkit.AnswerWith("object", `"chat.completion.chunk"`), "object"},
		{testkit.AnswerWith("object", `"Chat.Completion"`), "object"}, {testkit.AnswerWith("object",
			"null"), "object"}, {testkit.AnswerWith("object", "1"), "object"},
		{testkit.AnswerWith("object", "-", "Object", `"chat.completion"`), "object"},
		{testkit.AnswerWith("object", `"chat.completion","object":"x"`), "object"},
		{testkit.AnswerWith("created", "-"), "created"}, {testkit.AnswerWith("created", "null"),
			"created"}, {testkit.AnswerWith("created", `"`+m+`"`), "created"},
		{testkit.AnswerWith("created", "[1]"), "created"},
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
	for _, name := range []string{"id", "model"} {
		if k := kind(o[name]); k != '"' && k != 'n' {
			return false
		}
	}
	var what *string
	var choices []json.RawMessage
	if json.Unmarshal(o["object"], &what) != nil || what == nil || *what != "chat.completion" ||
		!strings.ContainsRune("-0123456789", rune(kind(o["created"]))) ||
		kind(o["choices"]) != '[' || json.Unmarshal(o["choices"], &choices) != nil {
		return false
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
		switch kind(m["content"]) {
		case 0, 'n', '"':
		case '[':
			var parts []json.RawMessage
			_ = json.Unmarshal(m["content"], &parts)
			for _, part := range parts {
				if p, ok := isObject(part); !ok || kind(p["type"]) != '"' {
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
