// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Whole JSON has ended, its beginnings have not, and neither depends on the pieces in which it comes.
func FuzzJSONEnding(f *testing.F) {
	for _, s := range []string{fineAnswer, `{}`, `[[],{"a":"]}\\\""}]`, `"a\u005c"`, `1`, ` {"a":1} `, `{"a`, `{}}`, `]`, ``, `"\`, "\xff{"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		ended := func(pieces ...[]byte) bool {
			e := &jsonEnding{}
			for _, p := range pieces {
				e.see(p)
			}
			return e.ended()
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

// The last event is found wherever a stream is cut into pieces, and only as a line of its own.
func FuzzEventEnding(f *testing.F) {
	for _, s := range []string{fineEvents, "data: [DONE]", "data:[DONE]\r\rx", "x data: [DONE]", "data: [DONE]x\n", "\n\n", strings.Repeat("data: ", 20) + "[DONE]\n"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, stream string, at int) {
		see := func(pieces ...string) bool {
			e := &eventEnding{last: doneLines}
			for _, p := range pieces {
				e.see([]byte(p))
			}
			return e.ended()
		}
		want := false
		for line := range strings.FieldsFuncSeq(stream, func(r rune) bool { return r == '\n' || r == '\r' }) {
			line = strings.TrimRight(line, " ")
			want = want || line == "data: [DONE]" || line == "data:[DONE]"
		}
		if got := see(stream); got != want && len(stream) < 64 { // longer lines may end in spaces that were not kept
			t.Errorf("%q: %v, want %v", stream, got, want)
		}
		if at >= 0 && at <= len(stream) && see(stream[:at], stream[at:]) != see(stream) {
			t.Error("the pieces matter")
		}
		var whole, parts eventLines
		n := whole.complete([]byte(stream))
		if at >= 0 && at <= len(stream) {
			m := parts.complete([]byte(stream[:at]))
			if more := parts.complete([]byte(stream[at:])); more > 0 {
				m = at + more
			}
			if m != n {
				t.Errorf("events end at %d, in pieces at %d", n, m)
			}
		}
	})
}
