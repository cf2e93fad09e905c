// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// eventPiece bounds the text in one event: readers of event streams have buffers for lines.
// Escapes make it up to six times as long, and 64 KiB is what a bufio.Scanner takes.
const eventPiece = 8 << 10

// maxRepeated bounds what every event repeats.
const maxRepeated = 1024

// eventStream writes a complete and checked chat.completion as the events that a streaming server would have sent
// (chat.completion.chunk objects, then [DONE]).
func eventStream(completion []byte, includeUsage bool) ([]byte, error) {
	o, _ := pick(completion, "id", "created", "model", "choices", "usage", "system_fingerprint", "service_tier")
	if err := checkWeight(completion); err != nil {
		return nil, err
	}
	for _, name := range []string{"id", "created", "model", "system_fingerprint", "service_tier"} {
		if len(o[name]) > maxRepeated {
			return nil, schemaError(name, "too long to stand in every event")
		}
	}
	s := &eventWriter{common: o, usage: includeUsage}
	choices, _ := elements(o["choices"])
	n := 0
	for choice := range choices {
		if err := s.choice(n, choice); err != nil {
			return nil, err
		}
		n++
	}
	if includeUsage {
		s.event([]byte("[]"), o["usage"])
	}
	s.buf.WriteString("data: [DONE]\n\n")
	return s.buf.Bytes(), nil
}

type eventWriter struct {
	buf    bytes.Buffer
	common members
	usage  bool
}

// event writes one chunk. JSON text has no line breaks outside strings that matter: they are taken out.
func (s *eventWriter) event(choices, usage []byte) {
	var line bytes.Buffer
	line.WriteString(`{"id":`)
	line.Write(orNull(s.common["id"]))
	line.WriteString(`,"object":"chat.completion.chunk"`)
	for _, name := range []string{"created", "model", "system_fingerprint", "service_tier"} {
		if v, ok := s.common[name]; ok {
			line.WriteString(`,"` + name + `":`)
			line.Write(v)
		}
	}
	line.WriteString(`,"choices":`)
	line.Write(choices)
	if s.usage {
		line.WriteString(`,"usage":`)
		line.Write(orNull(usage))
	}
	line.WriteByte('}')
	s.buf.WriteString("data: ")
	_ = json.Compact(&s.buf, line.Bytes()) // checked JSON compacts
	s.buf.WriteString("\n\n")
}

func orNull(v []byte) []byte {
	if v == nil {
		return []byte("null")
	}
	return v
}

// eventChoice is a choice as far as its events need to know it.
type eventChoice struct {
	Index        json.RawMessage `json:"index"`
	Message      json.RawMessage `json:"message"`
	FinishReason json.RawMessage `json:"finish_reason"`
	LogProbs     json.RawMessage `json:"logprobs"`
}

// choice writes the events of the n'th choice: role, content in pieces, everything else of the message, the finish
// reason.
func (s *eventWriter) choice(n int, data []byte) error {
	var c eventChoice
	if _, err := decodeObject(data, &c); err != nil {
		return schemaError("choices", "want objects")
	}
	if jsonspan.KindOf(c.Index) != jsonspan.Number { // or else two choices would become one
		c.Index = json.RawMessage(strconv.Itoa(n))
	}
	var m struct {
		Role      json.RawMessage `json:"role"`
		Content   json.RawMessage `json:"content"`
		ToolCalls json.RawMessage `json:"tool_calls"`
	}
	rest, err := decodeObject(c.Message, &m)
	if err != nil {
		return schemaError("choices.message", "want an object")
	}
	if jsonspan.KindOf(m.Role) != jsonspan.String {
		m.Role = json.RawMessage(`"assistant"`)
	}
	events := []map[string]json.RawMessage{{"role": m.Role, "content": json.RawMessage(`""`)}}
	for _, piece := range contentPieces(m.Content) {
		events = append(events, map[string]json.RawMessage{"content": piece})
	}
	calls, err := indexedCalls(m.ToolCalls)
	if err != nil {
		return err
	}
	if calls != nil {
		if rest == nil {
			rest = make(map[string]json.RawMessage)
		}
		rest["tool_calls"] = calls
	}
	if len(rest) > 0 || (len(events) == 1 && jsonspan.KindOf(c.LogProbs) != jsonspan.Null) {
		events = append(events, rest)
	}
	return s.deltas(&c, events)
}

// deltas writes an event for each delta, and one for the finish reason. The log probabilities go once, with the first
// delta after the role.
func (s *eventWriter) deltas(c *eventChoice, deltas []map[string]json.RawMessage) error {
	for i, delta := range deltas {
		var logprobs json.RawMessage
		if i == 1 {
			logprobs = c.LogProbs
		}
		if err := s.delta(c, delta, logprobs, nil); err != nil {
			return err
		}
	}
	if jsonspan.KindOf(c.FinishReason) == jsonspan.Null {
		c.FinishReason = json.RawMessage(`"stop"`) // a stream without one is a stream that was cut
	}
	return s.delta(c, nil, nil, c.FinishReason)
}

func (s *eventWriter) delta(c *eventChoice, delta map[string]json.RawMessage, logprobs, finish json.RawMessage) error {
	if delta == nil {
		delta = map[string]json.RawMessage{}
	}
	event := map[string]any{"index": c.Index, "delta": delta, "finish_reason": json.RawMessage(orNull(finish))}
	if logprobs != nil {
		event["logprobs"] = logprobs
	}
	choices, err := marshal([]any{event})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrResponseSchema, err)
	}
	s.event(choices, nil)
	return nil
}

// contentPieces splits a long text. Content that is no text goes as it is.
func contentPieces(content []byte) []json.RawMessage {
	if content == nil || jsonspan.KindOf(content) == jsonspan.Null {
		return nil
	}
	if jsonspan.KindOf(content) != jsonspan.String || len(content) <= eventPiece {
		return []json.RawMessage{content}
	}
	text := jsonspan.Unescape(nil, content[1:len(content)-1])
	var pieces []json.RawMessage
	for len(text) > 0 {
		n := min(eventPiece, len(text))
		for n < len(text) && n > 1 && !utf8.RuneStart(text[n]) {
			n--
		}
		piece, err := marshal(string(text[:n]))
		if err != nil {
			return []json.RawMessage{content}
		}
		pieces = append(pieces, piece)
		text = text[n:]
	}
	return pieces
}

// indexedCalls gives each tool call its index, by which the pieces of a stream are put together again.
func indexedCalls(data []byte) (json.RawMessage, error) {
	if jsonspan.KindOf(data) == jsonspan.Null { // or absent
		return nil, nil
	}
	calls, ok := elements(data)
	if !ok {
		return nil, schemaError("choices.message.tool_calls", "want an array")
	}
	var indexed []json.RawMessage
	for call := range calls {
		var known struct {
			Index json.RawMessage `json:"index"` // a server's own is replaced
		}
		o, err := decodeObject(call, &known)
		if err != nil {
			return nil, schemaError("choices.message.tool_calls", "want objects")
		}
		text, err := appendObject(nil, struct {
			Index int `json:"index"`
		}{len(indexed)}, o)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrResponseSchema, err)
		}
		indexed = append(indexed, text)
	}
	if indexed == nil {
		return nil, nil
	}
	return marshal(indexed)
}
