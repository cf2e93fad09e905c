// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// FineAnswer is a chat.completion.
const FineAnswer = `{"id":"x","object":"chat.completion","created":1,"model":"m",` +
	`"choices":[{"index":0,"message":{"role":"assistant","content":"t"}}]}`

// AnswerWith returns FineAnswer with some members replaced. A member whose value is "-" is left
// out.
func AnswerWith(replace ...string) string {
	members := []string{"id", `"x"`, "object", `"chat.completion"`, "created", "1", "model", `"m"`,
		"choices", `[]`}
	var b strings.Builder
	b.WriteByte('{')
	write := func(name, value string) {
		if value == "-" {
			return
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", name, value)
	}
	used := map[string]bool{}
	for i := 0; i < len(members); i += 2 {
		value := members[i+1]
		for j := 0; j < len(replace); j += 2 {
			if replace[j] == members[i] {
				value = replace[j+1]
				used[replace[j]] = true
			}
		}
		write(members[i], value)
	}
	for j := 0; j < len(replace); j += 2 {
		if !used[replace[j]] {
			write(replace[j], replace[j+1])
		}
	}
	return b.String() + "}"
}

// StreamEvents demands a well-formed event stream and returns its chunks without the [DONE].
func StreamEvents(t testing.TB, stream []byte) []map[string]any {
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

// StreamChoice is one choice put together again by the rules that SDKs follow. Finish is nil where
// no finish_reason came.
type StreamChoice struct {
	Message  map[string]any // with content "" where there was none
	Finish   any
	LogProbs []any
}

// Reassemble puts the choices of chunks together, by their index.
func Reassemble(t testing.TB, chunks []map[string]any) map[string]*StreamChoice {
	t.Helper()
	choices := make(map[string]*StreamChoice)
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
				known = &StreamChoice{Message: map[string]any{"content": "", "role": delta["role"]}}
				choices[id] = known
			} else if _, again := delta["role"]; again || known.Finish != nil {
				t.Fatalf("a second role, or something after finish_reason: %v", c)
			}
			known.add(t, delta)
			if finish, ok := c["finish_reason"]; !ok {
				t.Fatalf("no finish_reason in %v", c)
			} else if finish != nil {
				known.Finish = finish
			}
			if c["logprobs"] != nil {
				known.LogProbs = append(known.LogProbs, c["logprobs"])
			}
		}
	}
	return choices
}

func (c *StreamChoice) add(t testing.TB, delta map[string]any) {
	for name, v := range delta {
		text, isText := v.(string)
		switch {
		case name == "role":
		case name == "content" && isText:
			c.Message["content"] = c.Message["content"].(string) + text
		case name == "tool_calls":
			calls, _ := c.Message[name].([]any)
			for _, item := range v.([]any) {
				call := item.(map[string]any)
				if n, _ := strconv.Atoi(fmt.Sprint(call["index"])); n < len(calls) {
					continueCall(t, calls[n].(map[string]any), call)
					continue
				}
				if fmt.Sprint(call["index"]) != strconv.Itoa(len(calls)) {
					t.Fatalf("index %v of tool call %d", call["index"], len(calls))
				}
				delete(call, "index")
				calls = append(calls, call)
			}
			c.Message[name] = calls
		default:
			before, twice := c.Message[name]
			if begun, ok := before.(string); ok && isText && name != "content" {
				c.Message[name] = begun + text // a long text comes in pieces
				continue
			}
			if twice && name != "content" {
				t.Fatalf("%s comes twice", name)
			}
			c.Message[name] = v
		}
	}
}

// continueCall adds the next piece of a tool call's arguments.
func continueCall(t testing.TB, call, piece map[string]any) {
	function, _ := piece["function"].(map[string]any)
	more, ok := function["arguments"].(string)
	if !ok || len(piece) != 2 || len(function) != 1 {
		t.Fatalf("a piece of a tool call has more than arguments: %v", piece)
	}
	function = call["function"].(map[string]any)
	function["arguments"] = function["arguments"].(string) + more
}
