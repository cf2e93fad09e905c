// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"
	"maps"
	"slices"
	"strconv"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// This file makes of what servers write what SDKs read. Everything else stays byte for byte.

// null is never changed.
var null = []byte("null")

// Repaired is a checked completion as SDKs read it, or nil where it is that already: a new text, in
// which members that have not their type are null, choices are told apart by an index, parts of
// content are one text, and arguments that came as an object are that object's text. The caller
// wipes it.
func Repaired(completion []byte) []byte {
	hasError := false
	edited := editMembers(completion, func(m jsonspan.Member) []byte {
		switch {
		case m.Is("choices"):
			return repairedChoices(m.Value, repairedIndex)
		case m.Is("error"):
			hasError = true
		}
		return repairedMember(m)
	})
	if !hasError {
		return edited
	}
	return withoutError(completion, edited)
}

// withoutError is object, which edited is after other edits if it is not nil, without an error that
// says nothing. SDKs take any such member for a failure.
func withoutError(object, edited []byte) []byte {
	if edited != nil {
		object = edited
	}
	value := Last(object, "error")
	if value == nil || !sse.IsNothing(value) {
		return edited
	}
	return jsonspan.CutOf(nil, object, func(m jsonspan.Member) bool { return m.Is("error") })
}

func repairedChoices(choices []byte, index func(n int, choice, edited []byte) []byte) []byte {
	return editElements(choices, func(n int, choice []byte) []byte {
		return index(n, choice, editMembers(choice, repairedOfChoice))
	})
}

// anyIndex is for events, which give each choice an index in any case.
func anyIndex(_ int, _, edited []byte) []byte { return edited }

// repairedOfChoice gives a member of a choice its type, except for the index.
func repairedOfChoice(m jsonspan.Member) []byte {
	switch {
	case m.Is("finish_reason"):
		return stringOrNull(m.Value)
	case m.Is("message"):
		return editMembers(m.Value, repairedOfMessage)
	}
	return nil
}

// repairedIndex gives the n'th choice, which edited is after other edits if it is not nil, an index
// that is an integer: its own, or n. The first choice needs none.
func repairedIndex(n int, choice, edited []byte) []byte {
	if edited != nil {
		choice = edited
	}
	var is []byte
	again := editMembers(choice, func(m jsonspan.Member) []byte {
		if !m.Is("index") {
			return nil
		}
		is = m.Value
		if jsonspan.KindOf(m.Value) != jsonspan.Number {
			return strconv.AppendInt(nil, int64(n), 10)
		}
		return wholeOrNull(m.Value)
	})
	switch {
	case is == nil && n > 0:
		return putFirst(choice, strconv.AppendInt([]byte(`"index":`), int64(n), 10))
	case again != nil:
		return again
	}
	return edited
}

// repairedMember gives a member of an answer, or of a chunk, its type: its new value, or nil.
func repairedMember(m jsonspan.Member) []byte {
	switch {
	case m.Is("id"), m.Is("object"), m.Is("model"), m.Is("system_fingerprint"),
		m.Is("service_tier"):
		return stringOrNull(m.Value)
	case m.Is("created"):
		return wholeOrNull(m.Value)
	case m.Is("usage"):
		if kind := jsonspan.KindOf(m.Value); kind != jsonspan.Object {
			return nullUnless(kind == jsonspan.Null)
		}
		return editMembers(m.Value, func(m jsonspan.Member) []byte {
			if m.Is("prompt_tokens") || m.Is("completion_tokens") || m.Is("total_tokens") {
				return wholeOrNull(m.Value)
			}
			return nil
		})
	}
	return nil
}

// repairedOfMessage gives a member of a message its type.
func repairedOfMessage(m jsonspan.Member) []byte {
	switch {
	case m.Is("role"), m.Is("refusal"):
		return stringOrNull(m.Value)
	case m.Is("content"):
		if jsonspan.KindOf(m.Value) == jsonspan.Array {
			return joinedParts(m.Value)
		}
	case m.Is("tool_calls"):
		return editElements(m.Value, func(_ int, call []byte) []byte {
			return editMembers(call, repairedOfCall)
		})
	}
	return nil
}

// repairedOfCall gives a member of a tool call its type.
func repairedOfCall(m jsonspan.Member) []byte {
	switch {
	case m.Is("id"), m.Is("type"):
		return stringOrNull(m.Value)
	case m.Is("function"):
		return editMembers(m.Value, func(m jsonspan.Member) []byte {
			if m.Is("arguments") && jsonspan.KindOf(m.Value) == jsonspan.Object {
				return jsonspan.AppendString(nil, string(m.Value))
			}
			return nil
		})
	}
	return nil
}

// joinedParts is the text of parts, as a string in JSON.
func joinedParts(parts []byte) []byte {
	text := []byte{'"'}
	for part := range jsonspan.ElementsOf(parts) {
		if v := Last(part, "text"); jsonspan.KindOf(v) == jsonspan.String {
			text = append(text, v[1:len(v)-1]...)
		}
	}
	return append(text, '"')
}

func stringOrNull(value []byte) []byte {
	kind := jsonspan.KindOf(value)
	return nullUnless(kind == jsonspan.String || kind == jsonspan.Null)
}

// wholeOrNull is nil for an integer and for null.
func wholeOrNull(value []byte) []byte {
	kind := jsonspan.KindOf(value)
	if kind != jsonspan.Number {
		return nullUnless(kind == jsonspan.Null)
	}
	if _, err := strconv.ParseInt(string(value), 10, 64); err == nil {
		return nil
	}
	n, err := WholeNumber(value)
	if err != nil {
		return null
	}
	return strconv.AppendInt(nil, n, 10)
}

func nullUnless(good bool) []byte {
	if good {
		return nil
	}
	return null
}

// editMembers is object with the values that value returns for its members, or nil where it returns
// nil for all of them.
func editMembers(object []byte, value func(jsonspan.Member) []byte) (out []byte) {
	at := 0
	for m := range jsonspan.MembersOf(object) {
		v := value(m)
		if v == nil {
			continue
		}
		if out == nil {
			out = make([]byte, 0, len(object)+len(v)+64)
		}
		out = append(append(out, object[at:m.End-len(m.Value)]...), v...)
		at = m.End
	}
	if out == nil {
		return nil
	}
	return append(out, object[at:]...)
}

// editElements is editMembers for the elements of an array.
func editElements(array []byte, value func(n int, element []byte) []byte) (out []byte) {
	if jsonspan.KindOf(array) != jsonspan.Array {
		return nil
	}
	n, at := 0, 0                          // at: what of array is in out
	end := bytes.IndexByte(array, '[') + 1 // of the element before
	for element := range jsonspan.ElementsOf(array) {
		for bytes.IndexByte([]byte(", \t\r\n"), array[end]) >= 0 {
			end++
		}
		start := end
		end += len(element)
		v := value(n, element)
		n++
		if v == nil {
			continue
		}
		if out == nil {
			out = make([]byte, 0, len(array)+len(v)+64)
		}
		out = append(append(out, array[at:start]...), v...)
		at = end
	}
	if out == nil {
		return nil
	}
	return append(out, array[at:]...)
}

// putFirst is object with a member before all others.
func putFirst(object, member []byte) []byte {
	at := bytes.IndexByte(object, '{') + 1
	out := append(append(make([]byte, 0, len(object)+len(member)+1), object[:at]...), member...)
	for range jsonspan.MembersOf(object) {
		out = append(out, ',')
		break
	}
	return append(out, object[at:]...)
}

// chunkRepair makes of the chunks of one stream what SDKs read: besides what Repaired does, tool
// calls have numbers that tell them apart, and no character is split over two chunks.
type chunkRepair struct {
	choices map[int64]*choiceRepair
	// holds is set where a half of a character waits for the next chunk
	holds bool
}

type choiceRepair struct {
	calls ToolCalls
	// held are first halves of surrogate pairs, by the name of the text that they ended. Of the
	// arguments of a call, it is the call's number.
	held map[string][]byte
}

// repaired is a checked chunk as SDKs read it, or nil where it is that already.
func (r *chunkRepair) repaired(chunk []byte) []byte {
	defer r.lookForHalves()
	return withoutError(chunk, editMembers(chunk, func(m jsonspan.Member) []byte {
		if !m.Is("choices") {
			return repairedMember(m)
		}
		return editElements(m.Value, func(n int, choice []byte) []byte {
			c, ends := r.of(n, Last(choice, "index")), endsChoice(Last(choice, "finish_reason"))
			edited := editMembers(choice, func(m jsonspan.Member) []byte {
				if m.Is("delta") {
					return c.delta(m.Value, ends)
				}
				return repairedOfChoice(m)
			})
			return repairedIndex(n, choice, edited)
		})
	}))
}

func (r *chunkRepair) lookForHalves() {
	r.holds = false
	for _, c := range r.choices {
		r.holds = r.holds || len(c.held) > 0
	}
}

func endsChoice(finish []byte) bool {
	return jsonspan.KindOf(finish) == jsonspan.String && len(finish) > len(`""`)
}

func (r *chunkRepair) of(n int, index []byte) *choiceRepair {
	i, err := WholeNumber(index)
	if err != nil {
		i = int64(n)
	}
	c := r.choices[i]
	if c == nil {
		if r.choices == nil {
			r.choices = make(map[int64]*choiceRepair)
		}
		c = &choiceRepair{}
		r.choices[i] = c
	}
	return c
}

func (c *choiceRepair) delta(delta []byte, ends bool) []byte {
	out := editMembers(delta, func(m jsonspan.Member) []byte {
		v := repairedOfDelta(m)
		switch {
		case m.Is("tool_calls"):
			return editElements(m.Value, func(n int, call []byte) []byte {
				return c.call(int64(n), call, ends)
			})
		case v == nil && jsonspan.KindOf(m.Value) == jsonspan.String && !m.Is("role"):
			return c.joined(jsonspan.Text(m.Name), m.Value, ends)
		case v != nil && m.Is("content"):
			if j := c.joined("content", v, ends); j != nil {
				return j
			}
		}
		return v
	})
	if !ends || len(c.held) == 0 || jsonspan.KindOf(delta) != jsonspan.Object {
		return out
	}
	if out == nil {
		out = delta
	}
	for _, name := range slices.Sorted(maps.Keys(c.held)) { // their other half does not come
		if _, err := strconv.Atoi(name); err == nil {
			continue
		}
		member := append(jsonspan.AppendString(nil, name), `:"`...)
		out = putFirst(out, append(append(member, c.held[name]...), '"'))
	}
	c.held = nil
	return out
}

// repairedOfDelta is repairedOfMessage, except for tool calls.
func repairedOfDelta(m jsonspan.Member) []byte {
	if m.Is("tool_calls") {
		return nil
	}
	return repairedOfMessage(m)
}

// call numbers a piece of a tool call, the n'th of its delta.
func (c *choiceRepair) call(n int64, call []byte, ends bool) []byte {
	o, _ := Pick(call, "index", "id", "function")
	f, _ := Pick(o["function"], "name", "arguments")
	arguments := f["arguments"]
	if f.Is("arguments", jsonspan.String) {
		arguments = jsonspan.Unescape(nil, arguments[1:len(arguments)-1])
	} else if !f.Is("arguments", jsonspan.Object) {
		arguments = nil
	}
	index := int64(0)
	if o.Is("index", jsonspan.Number) {
		index, _ = WholeNumber(o["index"])
	}
	number := c.calls.Of(index, stringOf(o, "id"), stringOf(f, "name"), arguments)
	text := strconv.AppendInt(nil, number, 10)
	out := editMembers(call, func(m jsonspan.Member) []byte {
		switch {
		case m.Is("index"):
			if !bytes.Equal(m.Value, text) {
				return text
			}
			return nil
		case m.Is("function") && f.Is("arguments", jsonspan.String):
			return editMembers(m.Value, func(m jsonspan.Member) []byte {
				if m.Is("arguments") && jsonspan.KindOf(m.Value) == jsonspan.String {
					return c.joined(string(text), m.Value, ends)
				}
				return nil
			})
		}
		return repairedOfCall(m)
	})
	if _, ok := o["index"]; !ok {
		if out == nil {
			out = call
		}
		out = putFirst(out, append([]byte(`"index":`), text...))
	}
	return out
}

// stringOf is the value of a string member, "" when it is anything else.
func stringOf(o Members, name string) string {
	if !o.Is(name, jsonspan.String) {
		return ""
	}
	return jsonspan.Text(o[name][1 : len(o[name])-1])
}

// joined is the next piece of the text of that name, with the first half of a surrogate pair that
// the piece before ended with, and without the one that it ends with itself, except in its last
// piece. It is nil where the piece is that already.
func (c *choiceRepair) joined(name string, piece []byte, last bool) []byte {
	inside := piece[1 : len(piece)-1]
	before, held := c.held[name]
	if len(inside) == 0 && !last {
		return nil
	}
	keep := len(inside)
	if n := len(inside) - len(`\ud800`); !last && n >= 0 && isSurrogate(inside[n:], '8', 'b') &&
		(len(inside[:n])-len(bytes.TrimRight(inside[:n], `\`)))%2 == 0 {
		keep = n
	}
	if !held && keep == len(inside) {
		return nil
	}
	out := append(append(append([]byte{'"'}, before...), inside[:keep]...), '"')
	delete(c.held, name)
	if keep < len(inside) {
		if c.held == nil {
			c.held = make(map[string][]byte)
		}
		c.held[name] = bytes.Clone(inside[keep:])
	}
	return out
}
