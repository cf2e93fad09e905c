// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/sse"
)

func TestAccumulatedMembers(t *testing.T) {
	for name, test := range map[string]struct {
		pieces []string
		want   string
	}{
		"texts": {[]string{`"a"`, `""`, `"\\"`, `"\ud83d"`, `"\ude00"`},
			`"a\\\ud83d\ude00"`},
		"lists": {[]string{`[]`, `[ ]`, `[1]`, `[]`, `[ [2], {"a":3} ]`},
			`[1,[2], {"a":3}]`},
		"empty lists":  {[]string{`[]`, `[ ]`}, `[]`},
		"null before":  {[]string{`null`, `[1]`}, `[1]`},
		"null behind":  {[]string{`[1]`, `null`, `[2]`}, `[1,2]`},
		"nulls":        {[]string{`null`, `null`}, `null`},
		"numbers":      {[]string{`1`, `2`}, `2`},
		"bools":        {[]string{`true`, `false`}, `false`},
		"another kind": {[]string{`"a"`, `[1]`, `[2]`}, `[1,2]`},
		"one object":   {[]string{`{"b": 1, "a":{}}`}, `{"b": 1, "a":{}}`},
		"objects": {[]string{`{"b":[1],"t":"x","n":null}`,
			`{"a":[],"b":[2],"t":"y","n":[3]}`, `{"b":null}`},
			`{"a":[],"b":[1,2],"n":[3],"t":"y"}`},
		"objects of objects":   {[]string{`{"a":{"x":[1]}}`, `{"a":{"y":[2]}}`}, `{"a":{"y":[2]}}`},
		"empty objects":        {[]string{`{}`, `{}`}, `{}`},
		"an object, and none":  {[]string{`{"a":1}`, `{"b":2}`, `7`}, `7`},
		"odd names":            {[]string{`{"\u0061":[1]}`, `{"a":[2]}`}, `{"a":[1,2]}`},
		"white space around":   {[]string{" [1] ", " [2] "}, `[1,2]`},
		"nothing, by a caller": {[]string{"", "[1]", `[`, `"`, `"`}, `""`},
	} {
		var a ChatAccumulator
		for _, p := range test.pieces {
			m := map[string]json.RawMessage{"m": json.RawMessage(p)}
			a.Add(&ChatChunk{Choices: []ChunkChoice{{Delta: Delta{Extra: m,
				ToolCalls: []ToolCallDelta{{Extra: m}}}, Extra: m}}})
		}
		c := a.Response().Choices[0]
		for _, got := range []json.RawMessage{c.Extra["m"], c.Message.Extra["m"],
			c.Message.ToolCalls[0].Extra["m"]} {
			if string(got) != test.want {
				t.Errorf("%s: got %s, want %s", name, got, test.want)
			}
		}
	}
}

// Some texts come in pieces inside an object; of the others there the last one counts.
func TestAccumulatedTextsInObjects(t *testing.T) {
	for name, test := range map[string]struct {
		member string
		pieces []string
		want   string
	}{
		"a function call": {"function_call", []string{`{"name":"f","arguments":""}`,
			`{"arguments":"{\"a\""}`, `null`, `{"arguments":":1}"}`},
			`{"arguments":"{\"a\":1}","name":"f"}`},
		"its name again": {"function_call", []string{`{"name":"f","arguments":"1"}`,
			`{"name":"f","arguments":"2"}`}, `{"arguments":"12","name":"f"}`},
		"odd spelling": {"function_call", []string{`{"argument\u0073":"1"}`,
			` { "arguments" : "2" } `}, `{"arguments":"12"}`},
		"no text": {"function_call", []string{`{"arguments":{"a":1}}`,
			`{"arguments":{"b":2}}`, `{"arguments":null}`}, `{"arguments":{"b":2}}`},
		"audio": {"audio", []string{`{"id":"a","data":"QUJD","transcript":"Hel"}`,
			`{"data":"REVG"}`, `{"transcript":"lo","expires_at":7}`},
			`{"data":"QUJDREVG","expires_at":7,"id":"a","transcript":"Hello"}`},
		"another's": {"audio", []string{`{"arguments":"1"}`, `{"arguments":"2"}`},
			`{"arguments":"2"}`},
		"not known": {"other", []string{`{"data":"1","arguments":"2"}`,
			`{"data":"3","arguments":"4"}`}, `{"arguments":"4","data":"3"}`},
		"deeper than that": {"audio", []string{`{"x":{"data":"1"}}`, `{"x":{"data":"2"}}`},
			`{"x":{"data":"2"}}`},
	} {
		var a ChatAccumulator
		for _, p := range test.pieces {
			m := map[string]json.RawMessage{test.member: json.RawMessage(p)}
			a.Add(&ChatChunk{Choices: []ChunkChoice{{Delta: Delta{Extra: m}}}})
		}
		if got := a.Response().Choices[0].Message.Extra[test.member]; string(got) != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

// Some servers send whole calls without an index: then the id tells them apart.
func TestAccumulatedToolCalls(t *testing.T) {
	type piece = ToolCallDelta
	call := func(index int64, id, arguments string) piece {
		return piece{Index: index, ID: id, Function: FunctionCall{Arguments: arguments}}
	}
	for name, test := range map[string]struct {
		pieces []piece
		want   string
	}{
		"no index": {[]piece{call(0, "call_1", `{"x":1}`),
			call(0, "call_2", `{"y":2}`)}, `call_1 {"x":1}, call_2 {"y":2}`},
		"no index, in pieces": {[]piece{call(0, "call_1", `{"x"`), call(0, "", `:1}`),
			call(0, "call_2", `{"y"`), call(0, "", `:2}`)}, `call_1 {"x":1}, call_2 {"y":2}`},
		"an id in every piece": {[]piece{call(0, "a", `1`), call(0, "b", `2`), call(0, "a", `3`),
			call(0, "", `4`)}, `a 134, b 2`},
		"an id that is late": {[]piece{call(0, "", `1`), call(0, "a", `2`), call(0, "", `3`)},
			`a 123`},
		"indices": {[]piece{call(1, "b", `1`), call(0, "a", `2`), call(1, "", `3`),
			call(0, "a", `4`)}, `a 24, b 13`},
		"no id at all": {[]piece{call(0, "", `1`), call(1, "", `2`), call(0, "", `3`)},
			`call_0 13, call_1 2`},
		"one id, two indices": {[]piece{call(0, "a", `1`), call(1, "a", `2`)}, `a 1, a 2`},
	} {
		var a ChatAccumulator
		for _, p := range test.pieces {
			a.Add(&ChatChunk{Choices: []ChunkChoice{{Delta: Delta{ToolCalls: []piece{p}}}}})
		}
		var got []string
		for _, c := range a.Response().Choices[0].Message.ToolCalls {
			got = append(got, c.ID+" "+c.Function.Arguments)
		}
		if s := strings.Join(got, ", "); s != test.want {
			t.Errorf("%s: got %s, want %s", name, s, test.want)
		}
	}
	var a ChatAccumulator
	a.Add(nil)
	if r := a.Response(); len(r.Choices) != 0 {
		t.Errorf("of nothing: %+v", r)
	}
}

// What a chunk costs does not depend on how much came before it.
func TestAccumulatingIsLinear(t *testing.T) {
	const n = 4000
	token := `{"token":"x","logprob":-0.5,"bytes":[120],"top_logprobs":[` +
		strings.Repeat(`{"token":"y","logprob":-1.5,"bytes":[121]},`, 19) + `{}]}`
	chunk, err := parseChunk(sse.Event{Data: []byte(fmt.Sprintf(
		`{"choices":[{"index":0,"delta":{"content":"x","reasoning_content":"thinking"},"logprobs":{"content":[%s],"refusal":null}}]}`, token))})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var a ChatAccumulator
	for range n {
		a.Add(chunk)
	}
	r := a.Response()
	runtime.ReadMemStats(&after)
	c := r.Choices[0]
	in := n * (len(token) + 32)
	if len(c.Extra["logprobs"]) < n*len(token) ||
		len(c.Message.Extra["reasoning_content"]) != n*len("thinking")+2 ||
		!json.Valid(c.Extra["logprobs"]) {
		t.Fatalf("%d bytes of logprobs", len(c.Extra["logprobs"]))
	}
	if spent := after.TotalAlloc - before.TotalAlloc; spent > uint64(12*in) {
		t.Errorf("%d chunks with %d bytes took %d bytes", n, in, spent)
	}
}

// The caller may overwrite a chunk, and the answer, at once.
func TestAccumulatorSharesNothing(t *testing.T) {
	data := []byte(`{"x":"top","choices":[{"index":0,"delta":{"r":"text"},"l":{"a":[1]}}],"usage":{"total_tokens":3,"y":"usage"}}`)
	chunk, err := parseChunk(sse.Event{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	var a ChatAccumulator
	a.Add(chunk)
	wipe := func(m map[string]json.RawMessage) {
		for _, v := range m {
			clear(v)
		}
	}
	check := func() {
		t.Helper()
		r := a.Response()
		c := r.Choices[0]
		got := fmt.Sprintf("%s %s %s %s %d", r.Extra["x"], c.Message.Extra["r"], c.Extra["l"],
			r.Usage.Extra["y"], r.Usage.TotalTokens)
		if want := `"top" "text" {"a":[1]} "usage" 3`; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		wipe(r.Extra)
		wipe(c.Message.Extra)
		wipe(c.Extra)
		wipe(r.Usage.Extra)
		r.Usage.TotalTokens = 0
	}
	chunk.Usage.TotalTokens = 9
	clear(data)
	clear(chunk.Raw)
	wipe(chunk.Extra)
	wipe(chunk.Usage.Extra)
	wipe(chunk.Choices[0].Extra)
	wipe(chunk.Choices[0].Delta.Extra)
	check()
	check()
}

func FuzzChatChunk(f *testing.F) {
	f.Add("",
		[]byte(`{"choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"function":{}}]},"logprobs":{"content":[1]}}],"usage":{}}`))
	f.Add("error", []byte(`{"error":{"message":"x"}}`))
	f.Add("", []byte(`{"choices":[{"delta":null},{"delta":{"x":"\ud83d"}},{"delta":{"x":["y"]}}]}`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		chunk, err := parseChunk(sse.Event{Name: name, Data: data})
		if err != nil {
			if _, api := errors.AsType[*APIError](err); !api && !errors.Is(err, ErrResponseSchema) {
				t.Fatalf("%v", err)
			}
			return
		}
		var a ChatAccumulator
		a.Add(chunk)
		a.Add(chunk)
		for _, c := range a.Response().Choices {
			for name, v := range c.Message.Extra {
				if !json.Valid(v) {
					t.Errorf("%s: %q", name, v)
				}
			}
			for name, v := range c.Extra {
				if !json.Valid(v) {
					t.Errorf("%s: %q", name, v)
				}
			}
		}
	})
}
