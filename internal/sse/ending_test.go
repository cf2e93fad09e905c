// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

const (
	fineAnswer = `{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"]}\""}}]}`
	fineEvents = "data: {\"choices\":[]}\n\n: comment\n\ndata: [DONE]\n\n"
)

// newStream watches the events of a chat completion.
func newStream() *Stream {
	return EndingOf("text/event-stream", "/v1/chat/completions", -1).(*Stream)
}

// Whole JSON has ended, its beginnings have not, and neither depends on the pieces in which it
// comes.
func FuzzJSONEnding(f *testing.F) {
	for _, s := range []string{fineAnswer, `{}`, `[[],{"a":"]}\\\""}]`, `"a\u005c"`, `1`,
		` {"a":1} `, `{"a`, `{}}`, `]`, ``, `"\`, "\xff{"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		ended := func(pieces ...[]byte) bool {
			e := &JSON{}
			for _, p := range pieces {
				e.See(p)
			}
			return e.Ended()
		}
		whole := ended(data)
		if at >= 0 && at <= len(data) && ended(data[:at], data[at:]) != whole {
			t.Error("the pieces matter")
		}
		if !json.Valid(data) {
			return
		}
		if !whole {
			t.Errorf("%q has not ended", data)
		}
		data = bytes.TrimSpace(data)
		if data[0] != '{' && data[0] != '[' && data[0] != '"' {
			return // a number may go on
		}
		for n := range data {
			if ended(data[:n]) {
				t.Errorf("%q has ended", data[:n])
			}
		}
	})
}

var lineBreak = regexp.MustCompile("\r\n|\r|\n")

// plainEvents reads a whole stream by the standard, except that the end completes an event.
func plainEvents(stream string) (datas []string) {
	var lines []string
	flush := func() {
		if lines != nil {
			datas = append(datas, strings.Join(lines, "\n"))
		}
		lines = nil
	}
	for _, line := range lineBreak.Split(strings.TrimPrefix(stream, "\xef\xbb\xbf"), -1) {
		name, value, _ := strings.Cut(line, ":")
		switch {
		case line == "":
			flush()
		case name == "data":
			lines = append(lines, strings.TrimPrefix(value, " "))
		}
	}
	flush()
	return datas
}

// The last event is found wherever a stream is cut into pieces, and only as an event of its own.
func FuzzEventEnding(f *testing.F) {
	for _, s := range []string{
		fineEvents, "data: [DONE]", "data:[DONE]\r\rx", "x data: [DONE]", "data: [DONE]x\n", "\n\n",
		strings.Repeat("data: ", 20) + "[DONE]\n", "data: a\ndata: [DONE]\n\n",
		"data: [DONE]\ndata: a\n\n",
		"\xef\xbb\xbfdata: [DONE] ", "data:  [DONE]", "data:\t[DONE]\t", "data: [DONE]\u00a0",
	} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, stream string, at int) {
		see := func(pieces ...string) (bool, int) {
			e, complete, from := newStream(), 0, 0
			defer e.Wipe()
			for _, p := range pieces {
				e.See([]byte(p))
				if n := e.Complete(); n > 0 {
					complete = from + n
				}
				from += len(p)
			}
			return e.Ended(), complete
		}
		want := false
		for _, data := range plainEvents(stream) {
			want = want || strings.Trim(data, " \t") == "[DONE]"
		}
		var first Sniffer // JSON under the type of event streams ends where JSON does
		if form, at := first.See([]byte(stream)); form == FormJSON {
			var j JSON
			j.See([]byte(stream[at:]))
			want = j.Ended()
		}
		got, n := see(stream)
		if got != want && len(stream) < 64 { // longer lines may end in spaces that were not kept
			t.Errorf("%q: %v, want %v", stream, got, want)
		}
		if at < 0 || at > len(stream) {
			return
		}
		inParts, m := see(stream[:at], stream[at:])
		if inParts != got {
			t.Error("the pieces matter")
		}
		// White space that comes alone is a block without data, even if JSON follows.
		if form, _ := new(Sniffer).See([]byte(stream)); m != n && form != FormJSON {
			t.Errorf("events end at %d, in pieces at %d", n, m)
		}
	})
}

// A stream ends with an event that says so, and with nothing else.
func TestStreamEndings(t *testing.T) {
	const chat, responses, other = "/v1/chat/completions", "/v1/responses", "/v1/audio"
	for _, c := range []struct {
		path, stream string
		ended        bool
	}{
		{chat, "data: [DONE]\n\n", true}, {chat, "data: [DONE]", true}, {chat,
			"data:[DONE]  \r\n\r\n", true},
		{chat, "event: message\ndata: [DONE]\n\n", true}, {chat, ": [DONE]\n\ndata: [DONE]\r",
			true},
		{chat, "", false}, {chat, "data: {}\n\n", false}, {chat, "data: \"[DONE]\"\n\n", false},
		{chat, "data: [DONE]\ndata: x\n\n", false}, {chat, "data: x\ndata: [DONE]\n\n", false},
		{chat, ": [DONE]\n\n", false}, {chat, "event: [DONE]\n\n", false}, {chat,
			"data : [DONE]\n\n", false},
		{chat, "event: error\ndata: {}\n\n", false}, {chat, "data: [DONE]" + strings.Repeat("x",
			99) + "\n\n", false},
		{chat, "data: [DONE]" + strings.Repeat(" ", 99) + "x\n\n", false}, {chat,
			"event: response.completed\ndata: {}\n\n", false},
		{responses, "event: response.completed\ndata: {}\n\n", true}, {responses,
			"event: error\ndata: {}\n\n", true},
		{responses, "event: response.failed\ndata: " + strings.Repeat("x", 999) + "\n\n", true},
		{responses, "event: response.incomplete \ndata: {}\n", true}, {responses,
			"data: [DONE]\n\n", true},
		{responses, "event: response.created\ndata: {}\n\n", false}, {responses,
			"event: response.completed\n\n", false},
		{responses, "event: response.completed\n", false}, {responses,
			"data: response.completed\n\n", false},
		{other, "", true}, {other, "data: x", true},
	} {
		for _, step := range []int{1, 7, 1 << 20} {
			e := EndingOf("text/event-stream", c.path, -1)
			for rest := c.stream; rest != ""; {
				n := min(step, len(rest))
				e.See([]byte(rest[:n]))
				rest = rest[n:]
			}
			again := e.Ended() // asking changes nothing
			if e.Ended() != c.ended || again != c.ended || e.Known() != (c.path != other) {
				t.Errorf("%s, %.60q in steps of %d: %v", c.path, c.stream, step, e.Ended())
			}
			e.Wipe()
		}
	}
}

func TestEventLines(t *testing.T) {
	for in, want := range map[string]int{
		"a": 0, "a\n": 0, "a\n\n": 3, "a\n\nb": 3, "a\n\nb\n\nc": 6, "a\r\n\r\n": 5, "a\r\r": 3,
		"\n": 1, "a\n\n\n": 4, "a\n:\n\n": 5, "": 0,
	} {
		whole := newStream()
		whole.See([]byte(in))
		if n := whole.Complete(); n != want {
			t.Errorf("%q: %d, want %d", in, n, want)
		}
		parts := newStream()
		last := 0
		for i := range len(in) {
			if parts.See([]byte{in[i]}); parts.Complete() > 0 {
				last = i + 1
			}
		}
		if last != want {
			t.Errorf("%q byte by byte: %d, want %d", in, last, want)
		}
	}
}
