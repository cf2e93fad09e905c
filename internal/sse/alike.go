// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// Alike knows chunks that differ from one before them in the text of a delta alone, as nearly all
// chunks of a stream do. That chunk was checked, and its choices were counted. All of that holds
// for any other text in its place: no verdict depends on what the text says, only on its being a
// string. Nothing but what is left out here depends on what came between the two chunks: halves of
// characters, which are escapes by number, and calls of tools, which are counted. The zero value is
// ready.
//
// Invariant: before and after are the chunk up to the inside of the text, and from its closing
// quote on. Both are empty while no chunk is known.
type Alike struct {
	before, after []byte
	missed        int // chunks in a row that were not alike
}

// maxMissed is how many chunks may differ before a stream is taken for one whose chunks do.
const maxMissed = 8

// Is tells a chunk that is alike.
func (a *Alike) Is(e Event) bool {
	n := len(e.Data) - len(a.after)
	if len(a.before) == 0 || n < len(a.before) || e.Name != "" || e.Failure != nil || e.Cut ||
		e.Unended || !bytes.Equal(e.Data[:len(a.before)], a.before) ||
		!bytes.Equal(e.Data[n:], a.after) || !isPlainText(e.Data[len(a.before):n]) {
		return false
	}
	a.missed = 0
	return true
}

// isPlainText tells the inside of a string in JSON that has no escape by number.
func isPlainText(text []byte) bool {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c < ' ', c == '"':
			return false
		case c == '\\':
			if i++; i == len(text) || bytes.IndexByte([]byte(`"\/bfnrt`), text[i]) < 0 {
				return false
			}
		}
	}
	return utf8.Valid(text)
}

// Learn takes the chunk of an event for the one to compare with. Its JSON was checked.
func (a *Alike) Learn(e Event) {
	if a.missed++; a.missed > maxMissed || e.Name != "" || e.Failure != nil {
		a.Forget()
		return
	}
	from, to := textOf(e.Data)
	before, after := e.Data[:from], e.Data[to:]
	if from == to || !isPlainText(e.Data[from:to]) || !isSimple(before) || !isSimple(after) {
		return
	}
	a.Forget()
	a.before, a.after = append(a.before, before...), append(a.after, after...)
}

// isSimple tells a part of a chunk that has no escapes, and no calls of tools.
func isSimple(part []byte) bool {
	return bytes.IndexByte(part, '\\') < 0 && !bytes.Contains(part, []byte("tool_calls"))
}

// textOf is where the text of the first choice's delta lies in a checked chunk, without its quotes.
// Where there is no such text, or an empty one, from and to are the same.
func textOf(chunk []byte) (from, to int) {
	choices, at := lastOf(chunk, "choices")
	for choice := range jsonspan.ElementsOf(choices) {
		at += bytes.Index(choices, choice[:1]) // the first brace: only white space is before it
		delta, deltaAt := lastOf(choice, "delta")
		text, textAt := lastOf(delta, "content")
		if jsonspan.KindOf(text) == jsonspan.String {
			from = at + deltaAt + textAt + len(`"`)
			to = from + len(text) - len(`""`)
		}
		break
	}
	return from, to
}

// lastOf is the last member of that name, and where in data its value lies.
func lastOf(data []byte, name string) (value []byte, at int) {
	for m := range jsonspan.MembersOf(data) {
		if m.Is(name) {
			value, at = m.Value, m.End-len(m.Value)
		}
	}
	return value, at
}

// Forget wipes what is known.
func (a *Alike) Forget() {
	clear(a.before[:cap(a.before)])
	clear(a.after[:cap(a.after)])
	a.before, a.after = a.before[:0], a.after[:0]
}
