// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"strconv"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// This file writes what a message has besides its role and its content: other members, and tool
// calls with the index by which the pieces of a stream are put together again.

// nextOfTail writes as much of the tail as an event takes: all of it, or some items. Long texts are
// split as content is: of members, and of the arguments of calls.
func (e *Events) nextOfTail(more bool) {
	c := &e.choice
	if !c.tail {
		c.tail = true
		if !c.isLong() {
			e.wholeTail(more)
			return
		}
		c.takeItems()
	}
	start := len(e.buf)
	for calls := false; ; more = true {
		done := len(c.items) == 0 || len(e.buf)-start >= eventPiece
		if calls && (done || c.items[0].name != nil) {
			e.buf, calls = put(e.buf, `]`), false
		}
		if done {
			return
		}
		item := c.items[0]
		if item.name == nil && !item.text && !calls { // the first call of a list
			e.comma(more)
			e.buf, calls, more = put(e.buf, `"tool_calls":[`), true, false
		}
		if item.text {
			if len(e.buf) > start { // its pieces are events of their own
				if calls {
					e.buf = put(e.buf, `]`)
				}
				return
			}
			e.comma(more)
			e.textPiece()
			return
		}
		e.comma(more)
		c.items = c.items[1:]
		if item.name != nil {
			e.member(jsonspan.Member{Name: item.name, Value: item.value})
			continue
		}
		e.call(item.number, item.value, true)
	}
}

func (e *Events) comma(more bool) {
	if more {
		e.buf = put(e.buf, `,`)
	}
}

// textPiece writes the next piece of the text that is the first item.
func (e *Events) textPiece() {
	c := &e.choice
	item := &c.items[0]
	n := cutText(item.value)
	end := `"`
	if item.name != nil {
		e.buf = put(put(put(e.buf, `"`), item.name), `":"`)
	} else {
		e.buf = put(put(e.buf, `"tool_calls":[{"index":`), strconv.Itoa(item.number))
		e.buf = put(e.buf, `,"function":{"arguments":"`)
		end = `"}}]`
	}
	e.buf = put(put(e.buf, item.value[:n]), end)
	if item.value = item.value[n:]; len(item.value) == 0 {
		c.items = c.items[1:]
	}
}

// isLong tells a tail that does not fit in one event.
func (c *choice) isLong() bool {
	n := len(c.calls)
	for m := range jsonspan.MembersOf(c.message) {
		if !isOfHead(m) {
			n += len(m.Name) + len(m.Value)
		}
	}
	return n > eventPiece
}

// isOfHead tells the members that are no part of the tail.
func isOfHead(m jsonspan.Member) bool {
	return m.Is("role") || m.Is("content") || m.Is("tool_calls")
}

// takeItems lists what the tail is made of: members, calls, and then the texts that are split.
func (c *choice) takeItems() {
	var texts []tailItem
	for m := range jsonspan.MembersOf(c.message) {
		switch {
		case isOfHead(m):
		case isLongText(m.Value) && len(m.Name) <= maxShort:
			texts = putText(texts, m)
		default:
			c.items = append(c.items, tailItem{name: m.Name, value: m.Value})
		}
	}
	n := 0
	for call := range jsonspan.ElementsOf(c.calls) {
		c.items = append(c.items, tailItem{value: call, number: n})
		if v := Last(Last(call, "function"), "arguments"); isLongText(v) {
			texts = append(texts, tailItem{value: v[1 : len(v)-1], number: n, text: true})
		}
		n++
	}
	c.items = append(c.items, texts...)
}

// putText adds the text m, in place of one of the same name: the last of a repeated name counts.
func putText(texts []tailItem, m jsonspan.Member) []tailItem {
	item := tailItem{name: m.Name, value: m.Value[1 : len(m.Value)-1], text: true}
	for i := range texts {
		if string(texts[i].name) == string(m.Name) {
			texts[i] = item
			return texts
		}
	}
	return append(texts, item)
}

func isLongText(value []byte) bool {
	return jsonspan.KindOf(value) == jsonspan.String && len(value) > eventPiece
}

// wholeTail writes all of a tail that fits in one event.
func (e *Events) wholeTail(more bool) {
	c := &e.choice
	if c.others {
		for m := range jsonspan.MembersOf(c.message) {
			if !isOfHead(m) {
				e.comma(more)
				e.member(m)
				more = true
			}
		}
	}
	if c.calls == nil {
		return
	}
	e.comma(more)
	e.buf = put(e.buf, `"tool_calls":[`)
	n := 0
	for call := range jsonspan.ElementsOf(c.calls) {
		e.comma(n > 0)
		e.call(n, call, false)
		n++
	}
	e.buf = put(e.buf, `]`)
}

// call writes the n'th tool call, without its arguments where those are split.
func (e *Events) call(n int, call []byte, split bool) {
	e.buf = put(put(e.buf, `{"index":`), strconv.Itoa(n))
	for m := range jsonspan.MembersOf(call) {
		switch {
		case m.Is("index"): // a server's own is replaced
		case split && m.Is("function") && isLongText(Last(m.Value, "arguments")):
			e.buf = put(e.buf, `,`)
			m.Value = editMembers(m.Value, func(m jsonspan.Member) []byte {
				if m.Is("arguments") {
					return []byte(`""`)
				}
				return nil
			})
			e.member(m)
		default:
			e.buf = put(e.buf, `,`)
			e.member(m)
		}
	}
	e.buf = put(e.buf, `}`)
}
