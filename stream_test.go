// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

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
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// eventStream is the whole event stream of a completion, read in small pieces.
func eventStream(completion []byte, includeUsage bool) ([]byte, error) {
	text, err := chatjson.NewEventText(bytes.Clone(completion), includeUsage)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	return io.ReadAll(text)
}

const eventPiece = 8 << 10 // text in one event

// streamEvents demands a well-formed event stream and returns its chunks without the [DONE].
func streamEvents(t testing.TB, stream []byte) []map[string]any {
	t.Helper()
	const done = "data: [DONE]\n\n"
	rest, ok := strings.CutSuffix(string(stream), done)
	if !ok || strings.Contains(rest, done) {
		t.Fatalf("the stream does not end with one [DONE]: %.300q", stream)
	}
	var chunks []map[string]any
	for event := range strings.SplitAfterSeq(rest, "\n\n") {
		if event == "" {
			continue
		}
		text, ok := strings.CutPrefix(strings.TrimSuffix(event, "\n\n"), "data: ")
		if !ok || strings.ContainsAny(text, "\r\n") {
			t.Fatalf("not one data line: %.300q", event)
		}
		var chunk map[string]any
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if err := dec.Decode(&chunk); err != nil {
			t.Fatalf("%v in %.300q", err, text)
		}
		if chunk["object"] != "chat.completion.chunk" {
			t.Fatalf("object %v", chunk["object"])
		}
		if _, ok := chunk["choices"].([]any); !ok {
			t.Fatalf("choices in %.300q", text)
		}
		chunks = append(chunks, chunk)
	}
	return chunks
}

// streamChoice is one choice put together again by the rules that SDKs follow.
type streamChoice struct {
	message  map[string]any // with content "" where there was none
	finish   any
	logprobs []any
}

func reassemble(t testing.TB, chunks []map[string]any) map[string]*streamChoice {
	t.Helper()
	choices := make(map[string]*streamChoice)
	for _, chunk := range chunks {
		for _, item := range chunk["choices"].([]any) {
			c := item.(map[string]any)
			delta, ok := c["delta"].(map[string]any)
			if !ok {
				t.Fatalf("the delta is no object in %v", c)
			}
			id := fmt.Sprint(c["index"])
			known := choices[id]
			if known == nil {
				if _, ok := delta["role"].(string); !ok {
					t.Fatalf("the first delta has no role: %v", delta)
				}
				known = &streamChoice{message: map[string]any{"content": "", "role": delta["role"]}}
				choices[id] = known
			} else if _, again := delta["role"]; again || known.finish != nil {
				t.Fatalf("a second role, or something after finish_reason: %v", c)
			}
			known.add(t, delta)
			if finish, ok := c["finish_reason"]; !ok {
				t.Fatalf("no finish_reason in %v", c)
			} else if finish != nil {
				known.finish = finish
			}
			if c["logprobs"] != nil {
				known.logprobs = append(known.logprobs, c["logprobs"])
			}
		}
	}
	for id, c := range choices {
		if c.finish == nil {
			t.Fatalf("choice %s has no finish_reason", id)
		}
	}
	return choices
}

func (c *streamChoice) add(t testing.TB, delta map[string]any) {
	for name, v := range delta {
		text, isText := v.(string)
		switch {
		case name == "role":
		case name == "content" && isText:
			c.message["content"] = c.message["content"].(string) + text
		case name == "tool_calls":
			calls, _ := c.message[name].([]any)
			for _, item := range v.([]any) {
				call := item.(map[string]any)
				if fmt.Sprint(call["index"]) != strconv.Itoa(len(calls)) {
					t.Fatalf("index %v of tool call %d", call["index"], len(calls))
				}
				delete(call, "index")
				calls = append(calls, call)
			}
			c.message[name] = calls
		default:
			if _, twice := c.message[name]; twice && name != "content" {
				t.Fatalf("%s comes twice", name)
			}
			c.message[name] = v
		}
	}
}

// sameMessage compares what came out of a stream with the message that went in. Streams cannot tell null from nothing.
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
			tail, last = `,"usage":null}`+"\n\n", head+`"choices":[],"usage":{"total_tokens":3}}`+"\n\n"
		}
		got, err := eventStream([]byte(completion), usage)
		if err != nil {
			t.Fatal(err)
		}
		chunks := streamEvents(t, got)
		for i, want := range []string{
			`{"role":"assistant","content":""}`, "{\"content\":\"<Héllo> \u2028\\n\"}", `{"refusal":null}`, `{}`,
		} {
			text, _ := json.Marshal(chunks[i]["choices"].([]any)[0].(map[string]any)["delta"])
			var a, b any
			_, _ = json.Unmarshal(text, &a), json.Unmarshal([]byte(want), &b)
			if !reflect.DeepEqual(a, b) {
				t.Errorf("delta %d: %s, want %s", i, text, want)
			}
		}
		if !strings.HasPrefix(string(got), head) || !strings.HasSuffix(string(got), last+"data: [DONE]\n\n") ||
			strings.Count(string(got), tail) != 4 {
			t.Errorf("usage %v:\n%s", usage, got)
		}
		if strings.Contains(string(got), "_metadata") || !usage && strings.Contains(string(got), "usage") {
			t.Errorf("usage %v, more than a stream has:\n%s", usage, got)
		}
	}
}

func TestHTTPClientStreams(t *testing.T) {
	for options, usage := range map[string]bool{
		``: false,
		`,"stream_options":{"include_usage":true}`:                   true,
		`,"stream_options":{"include_usage":false}`:                  false,
		`,"stream_options":{"include_usage":"true"}`:                 false,
		`,"stream_options":{}`:                                       false,
		`,"stream_options":null`:                                     false,
		`,"stream_options":true`:                                     false,
		`,"stream_options":{ "x":[] , "include_us\u0061ge" : true }`: true,
	} {
		p := newPeer(t)
		req, _ := sdkRequest(t, sdkBody(`,"stream": true `+options))
		resp, body, err := sdkTrip(t, peerClient(t, p, nil).HTTPClient().Transport, req)
		if err != nil {
			t.Fatal(err)
		}
		if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream; charset=utf-8" {
			t.Errorf("status %d, Content-Type %q", resp.StatusCode, ct)
		}
		chunks := streamEvents(t, []byte(body))
		choice := reassemble(t, chunks)["0"]
		if choice.message["content"] != sdkAnswer || choice.finish != "stop" {
			t.Errorf("put together: %v", choice)
		}
		last := chunks[len(chunks)-1]
		if got := last["usage"] != nil; got != usage || usage && len(last["choices"].([]any)) != 0 {
			t.Errorf("%s: last chunk %v", options, last)
		}
		for _, chunk := range chunks[:len(chunks)-1] {
			if v, ok := chunk["usage"]; ok != usage || v != nil {
				t.Errorf("%s: usage %v in %v", options, v, chunk)
			}
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
	choice := reassemble(t, streamEvents(t, stream))["0"]
	want := decodeNumbers(t, []byte(completion))["choices"].([]any)[0].(map[string]any)
	sameMessage(t, choice.message, want["message"].(map[string]any))
	if choice.finish != "tool_calls" || len(choice.message["tool_calls"].([]any)) != 2 {
		t.Errorf("%+v", choice)
	}
}

// What servers leave out or write as null must not make a stream that SDKs misread.
func TestEventStreamOfSparseChoices(t *testing.T) {
	for choices, want := range map[string][]string{ // index:role:content:finish
		`[]`:               nil,
		`[{"message":{}}]`: {"0:assistant::stop"},
		`[{"index":0,"message":{"role":null,"content":null},"finish_reason":null,"logprobs":null}]`:     {"0:assistant::stop"},
		`[{"message":{"content":"a"}},{"message":{"content":"b"}}]`:                                     {"0:assistant:a:stop", "1:assistant:b:stop"},
		`[{"index":null,"message":{"content":"a"}},{"index":null,"message":{"content":"b"}}]`:           {"0:assistant:a:stop", "1:assistant:b:stop"},
		`[{"index":1,"message":{"content":"b"}},{"index":0,"message":{"content":"a"}}]`:                 {"0:assistant:a:stop", "1:assistant:b:stop"},
		`[{"index":0,"message":{"role":"assistant","content":"","tool_calls":null}}]`:                   {"0:assistant::stop"},
		`[{"index":0,"message":{"role":"assistant","content":"","tool_calls":[]},"logprobs":null}]`:     {"0:assistant::stop"},
		`[{"index":0,"message":{"role":"assistant","content":null},"logprobs":{"content":[]}}]`:         {"0:assistant::stop"},
		`[{"index":0,"message":{"content":"x","content":"y"},"finish_reason":"a","finish_reason":"b"}]`: {"0:assistant:y:b"},
	} {
		stream, err := eventStream([]byte(`{"id":null,"object":"chat.completion","created":1,"model":null,"choices":`+choices+`}`), false)
		if err != nil {
			t.Fatalf("%s: %v", choices, err)
		}
		var got []string
		for id, c := range reassemble(t, streamEvents(t, stream)) {
			got = append(got, fmt.Sprintf("%s:%v:%v:%v", id, c.message["role"], c.message["content"], c.finish))
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
		if err := checkCompletion([]byte(completion), "", ""); err != nil {
			t.Fatal(err)
		}
		if stream, err := eventStream([]byte(completion), true); !errors.Is(err, ErrResponseSchema) || stream != nil {
			t.Errorf("%s: %v, %s", completion, err, stream)
		}
	}
}

// Long content travels in pieces that end between characters, in lines that a bufio.Scanner takes by default.
func TestEventStreamSplitsLongContent(t *testing.T) {
	for name, text := range map[string]string{
		"ASCII":        strings.Repeat("abcdefg ", 10_000),
		"two bytes":    strings.Repeat("é", 40_000),
		"three bytes":  "x" + strings.Repeat("€", 30_000),
		"four bytes":   "xyz" + strings.Repeat("😀", 20_000),
		"mixed":        strings.Repeat("aé€😀\u2028", 10_000),
		"controls":     strings.Repeat("\x00\x1f\x7f", 20_000),
		"quotes":       strings.Repeat(`\"`, 30_000),
		"one piece":    strings.Repeat("a", eventPiece-2),
		"just two":     strings.Repeat("a", eventPiece+1),
		"at a border":  strings.Repeat("a", eventPiece-1) + "€" + strings.Repeat("b", eventPiece-1) + "😀",
		"replacements": strings.Repeat("\ufffd", 20_000),
	} {
		stream, err := eventStream([]byte(completionJSON(text, "")), false)
		if err != nil {
			t.Fatal(err)
		}
		chunks := streamEvents(t, stream)
		if got := reassemble(t, chunks)["0"].message["content"]; got != text {
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

// randomCompletion is a chat.completion as a server could write it, with unknown members, escapes and white space.
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
		for _, extra := range []string{"refusal", "reasoning_content", "annotations", "function_call", "Content", "rôle", "audio"} {
			if r.IntN(4) == 0 {
				message[extra] = some(nil, text(10), []any{}, []any{text(5), 1.5e300}, map[string]any{text(4): nil}, true, 12)
			}
		}
		if r.IntN(2) == 0 {
			calls := []any{}
			for range r.IntN(4) {
				call := map[string]any{"id": text(8), "type": "function", "function": map[string]any{"name": text(9), "arguments": text(2000)}}
				if r.IntN(3) == 0 {
					call["index"] = some(nil, 0, 5, "x")
				}
				calls = append(calls, call)
			}
			message["tool_calls"] = some(calls, calls, nil)
		}
		choice := map[string]any{"index": i, "message": message, "finish_reason": some("stop", "tool_calls", "length", nil)}
		if r.IntN(2) == 0 {
			choice["logprobs"] = some(nil, map[string]any{"content": []any{text(3)}})
		}
		choices = append(choices, choice)
	}
	doc := map[string]any{
		"id": some(nil, text(12)), "object": "chat.completion", "created": some(1, 1.5, 1765250382), "model": some(nil, text(9)), "choices": choices,
		"usage": some(nil, map[string]any{"total_tokens": r.IntN(100)}), "_metadata": some(nil, map[string]any{"payload_id": "p"}),
	}
	var data []byte
	switch r.IntN(3) {
	case 0:
		data, _ = json.Marshal(doc)
	case 1:
		data, _ = json.MarshalIndent(doc, "", "\t")
	default:
		data, _ = chatjson.Marshal(doc)
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
		if err := checkCompletion(completion, "p", ""); err != nil {
			t.Fatalf("the generator is wrong: %v in %.500s", err, completion)
		}
		usage := r.IntN(2) == 0
		stream, err := eventStream(bytes.Clone(completion), usage)
		if err != nil {
			t.Fatalf("%v in %.500s", err, completion)
		}
		want := decodeNumbers(t, completion)
		chunks := streamEvents(t, stream)
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
		got, choices := reassemble(t, chunks), want["choices"].([]any)
		if len(got) != len(choices) {
			t.Fatalf("%d choices of %d", len(got), len(choices))
		}
		for _, item := range choices {
			choice := item.(map[string]any)
			c := got[fmt.Sprint(choice["index"])]
			sameMessage(t, c.message, choice["message"].(map[string]any))
			if choice["finish_reason"] != nil && c.finish != choice["finish_reason"] {
				t.Fatalf("finish_reason %v, want %v", c.finish, choice["finish_reason"])
			}
			if p := choice["logprobs"]; p != nil && !reflect.DeepEqual(c.logprobs, []any{p}) || p == nil && c.logprobs != nil {
				t.Fatalf("logprobs %v, want %v once", c.logprobs, p)
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
	f.Add([]byte(completionJSON("\ufffd", `,"choices":[{"message":{"content":[{"type":"text"}],"tool_calls":[{}]}}]`)), true)
	f.Add([]byte(`{"id":null,"object":"chat.completion","created":1,"model":null,"choices":[{"index":{},"message":{},"logprobs":"\ud800"}]}`), false)
	f.Fuzz(func(t *testing.T, completion []byte, usage bool) {
		if checkCompletion(completion, "", "") != nil {
			return
		}
		stream, err := eventStream(bytes.Clone(completion), usage)
		if err != nil {
			if !errors.Is(err, ErrResponseSchema) || stream != nil {
				t.Errorf("error %v", err)
			}
			return
		}
		for _, chunk := range streamEvents(t, stream) {
			for _, item := range chunk["choices"].([]any) {
				if _, ok := item.(map[string]any)["delta"].(map[string]any); !ok {
					t.Errorf("no delta in %v", item)
				}
			}
		}
	})
}
