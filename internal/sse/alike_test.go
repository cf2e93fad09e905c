// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"strings"
	"testing"
)

// A chunk that differs from the one before in its text alone is taken as fast as it can be, and no
// other is.
func TestAlike(t *testing.T) {
	event := func(text string) string {
		return `{"choices":[{"index":0,"delta":{"content":"` + text + `"},"finish_reason":null}]}`
	}
	var a Alike
	first := Event{Data: []byte(event("first"))}
	if a.Is(first) {
		t.Error("the first one is like none")
	}
	a.Learn(first)
	for _, text := range []string{"", "second", "ü", `a\n`, `\"quoted\"`, `\\`} {
		if !a.Is(Event{Data: []byte(event(text))}) {
			t.Errorf("%s is not alike", text)
		}
	}
	for _, text := range []string{`"`, `\`, `a\`, `\u0041`, `\x`, "\n", "\x00", "\xff", "\xe2\x82", `\\\`,
		`","role":"assistant`} {
		if a.Is(Event{Data: []byte(event(text))}) {
			t.Errorf("%q is alike", text)
		}
	}
	same := []byte(event("x"))
	for name, e := range map[string]Event{
		"a name": {Data: same, Name: "error"}, "cut": {Data: same, Cut: true},
		"a failure": {Data: same, Failure: []byte("x")}, "unended": {Data: same, Unended: true},
		"shorter": {Data: same[:len(same)-1]}, "longer": {Data: append(same, ' ')}, "none": {},
		"finished": {Data: bytes.Replace(same, []byte("null"), []byte(`"ok"`), 1)},
	} {
		if a.Is(e) {
			t.Errorf("%s: alike", name)
		}
	}
	kept := a.before
	a.Forget()
	if a.Is(first) || len(bytes.Trim(kept, "\x00")) > 0 {
		t.Error("it is not forgotten")
	}
	for _, data := range []string{`{}`, `{"choices":[]}`, `{"choices":[{"delta":{"content":""}}]}`,
		`{"choices":[{"delta":{"content":7}}]}`, `{"choices":[{"delta":null}]}`,
		`{"choices":[{"delta":{"content":"\u0041"}}]}`,
		`{"x":"\n","choices":[{"delta":{"content":"a"}}]}`,
		`{"choices":[{"delta":{"content":"a","tool_calls":[]}}]}`} {
		if a.Learn(Event{Data: []byte(data)}); len(a.before) > 0 {
			t.Errorf("%s is learned", data)
		}
		a.missed = 0
	}
	// a stream whose chunks differ in more
	for range maxMissed {
		a.Learn(first)
	}
	if a.Learn(first); a.Is(first) {
		t.Error("it goes on learning")
	}
}

// Chunks that are passed over change nothing about the end of a stream.
func FuzzAlike(f *testing.F) {
	const chunk = `data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n"
	for _, s := range []string{"b", `","role":"x`, `b"},"finish_reason":"stop"},{"delta":{"content":"`,
		`b"}}],"error":"x","x":[{"y":{"z":"`, "b\xff", `b\`, `b\ud83d`, `"`} {
		f.Add(chunk, strings.Replace(chunk, `"a"`, `"`+s+`"`, 1), "data: [DONE]\n\n")
	}
	f.Add(chunk+chunk, "error: x\n\n", chunk)
	f.Add(strings.Replace(chunk, "null", `"stop"`, 1), chunk, "event: error\n"+chunk)
	f.Fuzz(func(t *testing.T, first, second, third string) {
		ended := func(alike Alike) (bool, bool) {
			s := EndingOf("text/event-stream", "/v1/chat/completions", -1).(*Stream)
			defer s.Wipe()
			s.alike = alike
			for _, piece := range []string{first, second, second, third} {
				s.See([]byte(piece))
			}
			return s.Ended(), s.failed
		}
		got, failed := ended(Alike{})
		if want, wantFailed := ended(Alike{missed: maxMissed}); got != want ||
			failed != wantFailed {
			t.Errorf("ended %v, failed %v; without passing over %v, %v", got, failed, want,
				wantFailed)
		}
	})
}
