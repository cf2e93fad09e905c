// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// eventStream is the whole event stream of a completion, read in small pieces.
func eventStream(completion []byte, includeUsage bool) ([]byte, error) {
	text, err := NewEventText(bytes.Clone(completion), includeUsage)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	return io.ReadAll(text)
}

// completionJSON is a chat.completion; more is put behind its members.
func completionJSON(text, more string) string {
	content, _ := json.Marshal(text)
	return `{"id":"chatcmpl-1","object":"chat.completion","created":1765250382,"model":"test-model","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":` + string(content) +
		`},"finish_reason":"stop"}]` + more + `}`
}

// sameMessage compares what came out of a stream with the message that went in. Streams cannot tell
// null from nothing.
func sameMessage(t testing.TB, got, want map[string]any) {
	t.Helper()
	if want["content"] == nil {
		want["content"] = ""
	}
	if want["role"] == nil {
		want["role"] = "assistant"
	}
	if calls, _ := want["tool_calls"].([]any); len(calls) == 0 {
		delete(want, "tool_calls")
	} else {
		for _, call := range calls {
			delete(call.(map[string]any), "index")
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("put together:\n%.2000v\noriginal:\n%.2000v", got, want)
	}
}

func decodeNumbers(t testing.TB, data []byte) (doc map[string]any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestEventStreamIsAsOpenAIWritesIt(t *testing.T) {
	completion := `{"id":"chatcmpl-1","object":"chat.completion","created":1765250382,"model":"m",` +
		`"system_fingerprint":"fp","service_tier":null,"choices":[{"index":0,"message":{"role":"assistant","content":"<Héllo> \u2028\n",` +
		`"refusal":null},"logprobs":null,"finish_reason":"length"}],"usage":{"total_tokens":3},"_metadata":{"x":1}}`
	head := `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1765250382,"model":"m","system_fingerprint":"fp","service_tier":null,`
	for _, usage := range []bool{false, true} {
		tail, last := "}\n\n", ""
		if usage {
			tail, last = `,"usage":null}`+"\n\n",
				head+`"choices":[],"usage":{"total_tokens":3}}`+"\n\n"
		}
		got, err := eventStream([]byte(completion), usage)
		if err != nil {
			t.Fatal(err)
		}
		chunks := testkit.StreamEvents(t, got)
		for i, want := range []string{
			`{"role":"assistant","content":""}`, "{\"content\":\"<Héllo> \u2028\\n\"}",
			`{"refusal":null}`, `{}`,
		} {
			text, _ := json.Marshal(chunks[i]["choices"].([]any)[0].(map[string]any)["delta"])
			var a, b any
			_, _ = json.Unmarshal(text, &a), json.Unmarshal([]byte(want), &b)
			if !reflect.DeepEqual(a, b) {
				t.Errorf("delta %d: %s, want %s", i, text, want)
			}
		}
		if !strings.HasPrefix(string(got), head) || !strings.HasSuffix(string(got),
			last+"data: [DONE]\n\n") ||
			strings.Count(string(got), tail) != 4 {
			t.Errorf("usage %v:\n%s", usage, got)
		}
		if strings.Contains(string(got), "_metadata") || !usage && strings.Contains(string(got),
			"usage") {
			t.Errorf("usage %v, more than a stream has:\n%s", usage, got)
		}
	}
}

func TestEventStreamToolCalls(t *testing.T) {
	completion := `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",` +
		`"content":null,"tool_calls":[{"id":"call_a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},` +
		`{"index":7,"id":"call_b","type":"function","function":{"name":"g","arguments":""},"extra":{"k":[null]}}]},"finish_reason":"tool_calls"}]}`
	stream, err := eventStream([]byte(completion), false)
	if err != nil {
		t.Fatal(err)
	}
	choice := testkit.Reassemble(t, testkit.StreamEvents(t, stream))["0"]
	want := decodeNumbers(t, []byte(completion))["choices"].([]any)[0].(map[string]any)
	sameMessage(t, choice.Message, want["message"].(map[string]any))
	if choice.Finish != "tool_calls" || len(choice.Message["tool_calls"].([]any)) != 2 {
		t.Errorf("%+v", choice)
	}
}

// What servers leave out or write as null must not make a stream that SDKs misread. A
// finish_reason that the server did not give is none of ours to give.
func TestEventStreamOfSparseChoices(t *testing.T) {
	for choices, want := range map[string][]string{ // index:role:content:finish
		`[]`:               nil,
		`[{"message":{}}]`: {"0:assistant::<nil>"},
		`[{"index":0,"message":{"role":null,"content":null},"finish_reason":null,"logprobs":null}]`:     {"0:assistant::<nil>"},
		`[{"message":{"content":"a"}},{"message":{"content":"b"}}]`:                                     {"0:assistant:a:<nil>", "1:assistant:b:<nil>"},
		`[{"index":null,"message":{"content":"a"}},{"index":null,"message":{"content":"b"}}]`:           {"0:assistant:a:<nil>", "1:assistant:b:<nil>"},
		`[{"index":1,"message":{"content":"b"}},{"index":0,"message":{"content":"a"}}]`:                 {"0:assistant:a:<nil>", "1:assistant:b:<nil>"},
		`[{"index":0,"message":{"role":"assistant","content":"","tool_calls":null}}]`:                   {"0:assistant::<nil>"},
		`[{"index":0,"message":{"role":"assistant","content":"","tool_calls":[]},"logprobs":null}]`:     {"0:assistant::<nil>"},
		`[{"index":0,"message":{"role":"assistant","content":null},"logprobs":{"content":[]}}]`:         {"0:assistant::<nil>"},
		`[{"index":0,"message":{"content":"x","content":"y"},"finish_reason":"a","finish_reason":"b"}]`: {"0:assistant:y:b"},
	} {
		stream, err := eventStream(
			[]byte(`{"id":null,"object":"chat.completion","created":1,"model":null,"choices":`+choices+`}`), false)
		if err != nil {
			t.Fatalf("%s: %v", choices, err)
		}
		var got []string
		for id, c := range testkit.Reassemble(t, testkit.StreamEvents(t, stream)) {
			got = append(got, fmt.Sprintf("%s:%v:%v:%v", id, c.Message["role"],
				c.Message["content"], c.Finish))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s became %v, want %v\n%s", choices, got, want, stream)
		}
	}
}

func TestEventStreamRefusals(t *testing.T) {
	for _, calls := range []string{`{}`, `"x"`, `1`, `[1]`, `[{},[]]`, `[null]`} {
		completion := `{"id":null,"object":"chat.completion","created":1,"model":null,"choices":[{"message":{"tool_calls":` + calls + `}}]}`
		if err := CheckCompletion([]byte(completion), Asked{}); !errors.Is(err,
			fault.ErrResponseSchema) {
			t.Errorf("a whole answer: %v", err)
		}
		if stream, err := eventStream([]byte(completion), true); !errors.Is(err,
			fault.ErrResponseSchema) || stream != nil {
			t.Errorf("%s: %v, %s", completion, err, stream)
		}
	}
}

// Long content travels in pieces that end between characters, in lines that a bufio.Scanner takes
// by default.
func TestEventStreamSplitsLongContent(t *testing.T) {
	for name, text := range map[string]string{
		"ASCII":       strings.Repeat("abcdefg ", 10_000),
		"two bytes":   strings.Repeat("é", 40_000),
		"three bytes": "x" + strings.Repeat("€", 30_000),
		"four bytes":  "xyz" + strings.Repeat("😀", 20_000),
		"mixed":       strings.Repeat("aé€😀\u2028", 10_000),
		"controls":    strings.Repeat("\x00\x1f\x7f", 20_000),
		"quotes":      strings.Repeat(`\"`, 30_000),
		"one piece":   strings.Repeat("a", eventPiece-2),
		"just two":    strings.Repeat("a", eventPiece+1),
		"at a border": strings.Repeat("a", eventPiece-1) + "€" + strings.Repeat("b",
			eventPiece-1) + "😀",
		"replacements": strings.Repeat("\ufffd", 20_000),
	} {
		stream, err := eventStream([]byte(completionJSON(text, "")), false)
		if err != nil {
			t.Fatal(err)
		}
		chunks := testkit.StreamEvents(t, stream)
		if got := testkit.Reassemble(t, chunks)["0"].Message["content"]; got != text {
			t.Errorf("%s: %d bytes came of %d", name, len(got.(string)), len(text))
		}
		if want := (len(text) + eventPiece - 1) / eventPiece; len(chunks) < want+2 {
			t.Errorf("%s: %d chunks for %d bytes", name, len(chunks), len(text))
		}
		for line := range bytes.Lines(stream) {
			if !utf8.Valid(line) {
				t.Errorf("%s: a character was cut", name)
			}
			if len(line) > bufio.MaxScanTokenSize {
				t.Errorf("%s: a line of %d bytes", name, len(line))
				break
			}
		}
	}
}

// randomCompletion is a chat.completion as a server could write it, with unknown members, escapes
// and white space.
func randomCompletion(r *rand.Rand) []byte {
	text := func(most int) string {
		letters := []rune("ab \n\t\"\\/<>&\x00\x1féñ€\u2028\u2029\ufffd😀👩‍👩‍👧漢")
		s := make([]rune, r.IntN(most+1))
		for i := range s {
			s[i] = letters[r.IntN(len(letters))]
		}
		return string(s)
	}
	some := func(v ...any) any { return v[r.IntN(len(v))] }
	choices := []any{}
	for i := range r.IntN(4) {
		message := map[string]any{"role": some("assistant", "tool", "assistant")}
		if r.IntN(5) > 0 {
			message["content"] = some(nil, "", text(20), text(300), text(30_000))
		}
		for _, extra := range []string{"refusal", "reasoning_content", "annotations",
			"function_call", "Content", "rôle", "audio"} {
			if r.IntN(4) == 0 {
				message[extra] = some(nil, text(10), []any{}, []any{text(5), 1.5e300},
					map[string]any{text(4): nil}, true, 12)
			}
		}
		if r.IntN(2) == 0 {
			calls := []any{}
			for range r.IntN(4) {
				call := map[string]any{"id": text(8), "type": "function",
					"function": map[string]any{"name": text(9), "arguments": text(2000)}}
				if r.IntN(3) == 0 {
					call["index"] = some(nil, 0, 5, "x")
				}
				calls = append(calls, call)
			}
			message["tool_calls"] = some(calls, calls, nil)
		}
		choice := map[string]any{"index": i, "message": message, "finish_reason": some("stop",
			"tool_calls", "length", nil)}
		if r.IntN(2) == 0 {
			choice["logprobs"] = some(nil, map[string]any{"content": []any{text(3)}})
		}
		choices = append(choices, choice)
	}
	doc := map[string]any{
		"id": some(nil, text(12)), "object": "chat.completion", "created": some(1, 1.5, 1765250382),
		"model": some(nil, text(9)), "choices": choices,
		"usage": some(nil, map[string]any{"total_tokens": r.IntN(100)}), "_metadata": some(nil,
			map[string]any{"payload_id": "p"}),
	}
	var data []byte
	switch r.IntN(3) {
	case 0:
		data, _ = json.Marshal(doc)
	case 1:
		data, _ = json.MarshalIndent(doc, "", "\t")
	default:
		data, _ = Marshal(doc)
		data = bytes.ReplaceAll(data, []byte("a"), []byte("\\u0061")) // in names too
		data = bytes.ReplaceAll(data, []byte("f\\u0061lse"), []byte("false"))
	}
	return data
}

func TestEventStreamEqualsTheCompletion(t *testing.T) {
	seed := testkit.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 150 {
		completion := randomCompletion(r)
		if err := CheckCompletion(completion, Asked{PayloadID: "p"}); err != nil {
			t.Fatalf("the generator is wrong: %v in %.500s", err, completion)
		}
		if as := Repaired(completion); as != nil {
			completion = as // members of another type are null
		}
		usage := r.IntN(2) == 0
		stream, err := eventStream(bytes.Clone(completion), usage)
		if err != nil {
			t.Fatalf("%v in %.500s", err, completion)
		}
		want := decodeNumbers(t, completion)
		chunks := testkit.StreamEvents(t, stream)
		for _, chunk := range chunks {
			for _, name := range []string{"id", "created", "model"} {
				if !reflect.DeepEqual(chunk[name], want[name]) {
					t.Fatalf("%s %v, want %v", name, chunk[name], want[name])
				}
			}
		}
		if usage && !reflect.DeepEqual(chunks[len(chunks)-1]["usage"], want["usage"]) {
			t.Fatalf("usage %v", chunks[len(chunks)-1])
		}
		got, choices := testkit.Reassemble(t, chunks), want["choices"].([]any)
		if len(got) != len(choices) {
			t.Fatalf("%d choices of %d", len(got), len(choices))
		}
		for _, item := range choices {
			choice := item.(map[string]any)
			c := got[fmt.Sprint(choice["index"])]
			sameMessage(t, c.Message, choice["message"].(map[string]any))
			if c.Finish != choice["finish_reason"] {
				t.Fatalf("finish_reason %v, want %v", c.Finish, choice["finish_reason"])
			}
			if p := choice["logprobs"]; p != nil && !reflect.DeepEqual(c.LogProbs, []any{p}) ||
				p == nil && c.LogProbs != nil {
				t.Fatalf("logprobs %v, want %v once", c.LogProbs, p)
			}
		}
	}
}

func FuzzEventStream(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := 0; n < 20; {
		if c := randomCompletion(r); len(c) < 1000 { // long ones are slow to make smaller
			f.Add(c, r.IntN(2) == 0)
			n++
		}
	}
	f.Add([]byte(completionJSON("\ufffd",
		`,"choices":[{"message":{"content":[{"type":"text"}],"tool_calls":[{}]}}]`)), true)
	f.Add([]byte(`{"id":null,"object":"chat.completion","created":1,"model":null,"choices":[{"index":{},"message":{},"logprobs":"\ud800"}]}`), false)
	f.Fuzz(func(t *testing.T, completion []byte, usage bool) {
		if CheckCompletion(completion, Asked{}) != nil {
			return
		}
		stream, err := eventStream(bytes.Clone(completion), usage)
		if err != nil {
			if !errors.Is(err, fault.ErrResponseSchema) || stream != nil {
				t.Errorf("error %v", err)
			}
			return
		}
		for _, chunk := range testkit.StreamEvents(t, stream) {
			for _, item := range chunk["choices"].([]any) {
				if _, ok := item.(map[string]any)["delta"].(map[string]any); !ok {
					t.Errorf("no delta in %v", item)
				}
			}
		}
	})
}
