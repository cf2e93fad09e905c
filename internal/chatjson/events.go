// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"
	"io"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

const (
	// eventPiece bounds the text in one event: readers of event streams have buffers for lines, and
	// 64 KiB is what a bufio.Scanner takes.
	eventPiece = 8 << 10
	// maxRepeated bounds a member of the answer that every choice repeats, maxShort one that every
	// event repeats. Longer ones stand in the first event alone.
	maxRepeated, maxShort = 1024, 64
	// All events together have at most growth times the answer's size, and slack.
	growth, slack = 16, 1 << 20
	// reserve is the part of slack for what is not a choice's: the long members in the first event,
	// and the event with the usage.
	reserve = 16 << 10
	// frame is more than an event adds to its head, its choice's index, and its texts.
	frame = 192
)

// and id, first
var repeated = [...]string{"created", "model", "system_fingerprint", "service_tier"}

// Events makes the events that a streaming server would have sent of a complete chat.completion,
// one at a time: for each choice its role, its content in pieces, all else of the message, and its
// finish reason; then the usage.
//
// Invariant: what was made never exceeds growth times what was taken of the answer, plus slack.
// A few bytes of an answer can be a choice, and a choice costs some events with a head each. Where
// the budget does not last for that, the parts of a choice share events, and then their heads have
// nothing that the first event had.
type Events struct {
	own     []byte // choices that were repaired; nil where none was
	usage   []byte // the value; nil when it is not asked for
	choices [][]byte
	at      int // of choices; the usage is behind them
	choice  choice

	heads  [4][]byte // what events of each headKind begin with
	begun  bool      // the first event was made
	ended  bool
	budget int // bytes that may still be made for the choices that were taken
	buf    []byte
}

// headKind says which members of the answer an event repeats.
type headKind int

const (
	bare  headKind = iota // none
	short                 // those of at most maxShort bytes
	long                  // those of at most maxRepeated bytes
	all                   // all of them
)

// choice is a choice as far as its events need to know it. Values are slices of the answer.
type choice struct {
	index, role, content, calls, logprobs, finish []byte
	message                                       []byte
	others                                        bool // message has members of other names
	parted                                        bool // content is a text that is split

	brief bool       // parts share events
	head  headKind   // of all events but the first
	said  bool       // its first event was made
	tail  bool       // others and calls were written, except for items
	items []tailItem // of others and calls, where they are too many for one event, or too long
}

// tailItem is a member of a message, a tool call, or a text that is split.
type tailItem struct {
	name   []byte // of the member; nil for a tool call
	value  []byte // of a text that is split, what of it is left
	number int    // of the tool call
	text   bool   // it is split: the inside of a string
}

// NewEvents is for a complete and checked chat.completion, of which it keeps slices: the events are
// those of the answer as SDKs read it (see Repaired). Every error comes from here.
func NewEvents(completion []byte, includeUsage bool) (*Events, error) {
	if err := CheckWeight(completion); err != nil {
		return nil, err
	}
	o, _ := Pick(completion, "id", "created", "model", "choices", "usage", "system_fingerprint",
		"service_tier")
	for name, value := range o {
		m := jsonspan.Member{Name: []byte(name), Value: value}
		if v := repairedMember(m); v != nil {
			o[name] = v
		}
	}
	e := &Events{budget: slack - reserve, own: repairedChoices(o["choices"], anyIndex)}
	if e.own != nil {
		o["choices"] = e.own
	}
	if includeUsage {
		e.usage = orNull(o["usage"])
	}
	e.writeHeads(o)
	n := 0
	for range jsonspan.ElementsOf(o["choices"]) {
		n++
	}
	e.choices = make([][]byte, 0, n)
	for text := range jsonspan.ElementsOf(o["choices"]) {
		if _, err := parseChoice(len(e.choices), text); err != nil {
			return nil, err
		}
		e.choices = append(e.choices, text)
	}
	e.enter()
	return e, nil
}

func (e *Events) writeHeads(o Members) {
	const object = `"object":"chat.completion.chunk"`
	limits := map[headKind]int{short: maxShort, long: maxRepeated, all: math.MaxInt}
	e.heads[bare] = []byte("{" + object)
	for kind, limit := range limits {
		head := []byte("{")
		if len(o["id"]) <= limit {
			head = append(AppendLine(append(head, `"id":`...), orNull(o["id"])), ',')
		}
		head = append(head, object...)
		for _, name := range repeated {
			if v, ok := o[name]; ok && len(v) <= limit {
				head = AppendLine(append(head, `,"`+name+`":`...), v)
			}
		}
		e.heads[kind] = head
	}
}

// enter takes the next choice, and decides how many events it is worth.
func (e *Events) enter() {
	if e.at == len(e.choices) {
		return
	}
	text := e.choices[e.at]
	e.choice, _ = parseChoice(e.at, text) // which NewEvents has done before
	c := &e.choice
	e.budget += growth * (len(text) + 1) // and the comma
	pieces := 1 + 2*len(text)/(eventPiece-16)
	each := frame + len(c.index)
	texts := 6 * len(text) // "{}," of a tool call becomes `{"index":65535},`
	switch {
	case (pieces+3)*(each+len(e.heads[short]))+len(e.heads[long])+texts <= e.budget:
		c.head = short
	case pieces*(each+len(e.heads[short]))+texts <= e.budget:
		c.head, c.brief = short, true
	default:
		c.head, c.brief = bare, true
	}
}

// Next returns the JSON of the next event, without line breaks, or io.EOF. It is overwritten by the
// next call.
func (e *Events) Next() ([]byte, error) {
	switch {
	case e.at < len(e.choices):
		e.nextOfChoice()
	case e.usage != nil && !e.ended:
		e.ended = true
		e.begin(short)
		e.buf = put(e.buf, `,"choices":[],"usage":`)
		e.buf = put(AppendLine(e.buf, e.usage), `}`)
	default:
		return nil, io.EOF
	}
	return e.buf, nil
}

func (e *Events) begin(head headKind) {
	if !e.begun {
		head, e.begun = all, true
	}
	e.buf = put(e.buf[:0], e.heads[head])
}

// nextOfChoice writes the next event of the present choice, and goes on to the next choice behind
// its last one.
func (e *Events) nextOfChoice() {
	c := &e.choice
	head, first := c.head, !c.said
	if first && !c.brief {
		head = long
	}
	c.said = true
	e.begin(head)
	e.buf = put(put(e.buf, `,"choices":[{"index":`), c.index)
	e.buf = put(e.buf, `,"delta":{`)
	empty := len(e.buf)
	if first {
		e.buf = put(AppendLine(put(e.buf, `"role":`), c.role), `,"content":`)
	}
	alone := first && !c.brief // the role, and nothing else
	switch {
	case !alone && c.content != nil:
		if !first {
			e.buf = put(e.buf, `"content":`)
		}
		e.piece()
	case first:
		e.buf = put(e.buf, `""`)
	}
	finish := false
	if !alone && c.content == nil && (c.brief || len(e.buf) == empty) {
		finish = c.brief || c.tail && len(c.items) == 0 ||
			!c.others && c.calls == nil && c.logprobs == nil
		e.nextOfTail(len(e.buf) > empty)
		finish = finish && len(c.items) == 0
	}
	e.buf = put(e.buf, `}`)
	if !alone && c.logprobs != nil {
		e.buf = AppendLine(put(e.buf, `,"logprobs":`), c.logprobs)
		c.logprobs = nil
	}
	e.buf = put(e.buf, `,"finish_reason":`)
	if finish {
		e.buf = put(AppendLine(e.buf, c.finish), "}]")
	} else {
		e.buf = put(e.buf, "null}]")
	}
	if e.usage != nil {
		e.buf = put(e.buf, `,"usage":null`)
	}
	e.buf = put(e.buf, `}`)
	e.budget -= len(e.buf) + len("data: \n\n")
	if finish {
		e.at++
		e.enter()
	}
}

// piece writes the next piece of the content. Content that is no text goes as it is.
func (e *Events) piece() {
	c := &e.choice
	if !c.parted {
		e.buf = AppendLine(e.buf, c.content)
		c.content = nil
		return
	}
	n := cutText(c.content)
	e.buf = put(put(put(e.buf, `"`), c.content[:n]), `"`)
	if c.content = c.content[n:]; len(c.content) == 0 {
		c.content = nil
	}
}

// cutText says how much of a text, which stands in JSON, a piece takes: no escape, no character and
// no pair of surrogates is cut in two.
func cutText(inside []byte) int {
	if len(inside) <= eventPiece {
		return len(inside)
	}
	n := 0
	for n < eventPiece {
		next := n + 1
		switch {
		case inside[n] != '\\':
			for next < len(inside) && !utf8.RuneStart(inside[next]) {
				next++
			}
		case inside[n+1] != 'u':
			next = n + 2
		default:
			next = n + 6
			if isSurrogate(inside[n:], '8', 'b') && isSurrogate(inside[next:], 'c', 'f') {
				next += 6
			}
		}
		if next > eventPiece {
			break
		}
		n = next
	}
	return n
}

// isSurrogate tells whether text begins with the escape \uDXxx, of which X is in the range.
func isSurrogate(text []byte, least, most byte) bool {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' || text[2]|0x20 != 'd' {
		return false
	}
	x := text[3]
	if x >= 'A' {
		x |= 0x20
	}
	return x >= least && x <= most
}

func (e *Events) member(m jsonspan.Member) {
	e.buf = put(put(put(e.buf, `"`), m.Name), `":`)
	e.buf = AppendLine(e.buf, m.Value)
}

// Wipe clears the last event, and what was repaired. Nothing can be read after it.
func (e *Events) Wipe() {
	clear(e.buf[:cap(e.buf)])
	clear(e.own)
}

// assistant is never changed.
var assistant = []byte(`"assistant"`)

// parseChoice looks at the n'th choice.
func parseChoice(n int, text []byte) (choice, error) {
	var c choice
	for m := range jsonspan.MembersOf(text) {
		switch {
		case m.Is("index"):
			c.index = m.Value
		case m.Is("message"):
			c.message = m.Value
		case m.Is("finish_reason"):
			c.finish = m.Value
		case m.Is("logprobs"):
			c.logprobs = m.Value
		}
	}
	if jsonspan.KindOf(c.index) != jsonspan.Number { // or else two choices would become one
		c.index = strconv.AppendInt(nil, int64(n), 10)
	} else if index, err := WholeNumber(c.index); err != nil {
		return c, SchemaError("choices.index", "unexpected type or out of range")
	} else if wholeOrNull(c.index) != nil { // SDKs read integers
		c.index = strconv.AppendInt(nil, index, 10)
	}
	if jsonspan.KindOf(c.logprobs) == jsonspan.Null { // or absent
		c.logprobs = nil
	}
	c.finish = orNull(c.finish) // none of our own: [DONE] is the end
	return c, c.parseMessage()
}

func (c *choice) parseMessage() error {
	for m := range jsonspan.MembersOf(c.message) {
		switch {
		case m.Is("role"):
			c.role = m.Value
		case m.Is("content"):
			c.content = m.Value
		case m.Is("tool_calls"):
			c.calls = m.Value
		default:
			c.others = true
		}
	}
	if jsonspan.KindOf(c.role) != jsonspan.String {
		c.role = assistant
	}
	switch kind := jsonspan.KindOf(c.content); {
	case kind == jsonspan.Null:
		c.content = nil
	case kind == jsonspan.String && len(c.content) > eventPiece:
		c.content, c.parted = c.content[1:len(c.content)-1], true
	}
	if jsonspan.KindOf(c.calls) == jsonspan.Null {
		c.calls = nil
		return nil
	}
	calls, ok := Elements(c.calls)
	if !ok {
		return SchemaError("choices.message.tool_calls", "want an array")
	}
	some := false
	for call := range calls {
		if jsonspan.KindOf(call) != jsonspan.Object {
			return SchemaError("choices.message.tool_calls", "want objects")
		}
		some = true
	}
	if !some {
		c.calls = nil
	}
	return nil
}

// put appends to dst, which owns its memory.
func put[T string | []byte](dst []byte, more T) []byte { return sse.AppendWiping(dst, more) }

// AppendLine appends checked JSON without its line breaks, which stand between tokens alone. dst
// owns its memory: what it outgrows is wiped.
func AppendLine(dst, value []byte) []byte {
	for {
		i := bytes.IndexAny(value, "\r\n")
		if i < 0 {
			return put(dst, value)
		}
		dst = put(dst, value[:i])
		value = value[i+1:]
	}
}

// AppendEvent appends an event with checked JSON, as AppendLine does.
func AppendEvent(dst, data []byte) []byte {
	return put(AppendLine(put(dst, "data: "), data), "\n\n")
}

func orNull(v []byte) []byte {
	if v == nil {
		return null
	}
	return v
}
