// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// ChatAccumulator puts the chunks of a stream together. The zero value is ready; it is for one
// goroutine at a time.
type ChatAccumulator struct {
	head    ChatResponse
	choices map[int64]*choiceSoFar
}

type choiceSoFar struct {
	role, finish     string
	content, refusal strings.Builder
	joined           chatjson.ToolCalls   // tells which pieces belong together
	calls            map[int64]*callSoFar // by the number that joined gives
	extra, message   membersSoFar         // of the choice, and of its message
}

type callSoFar struct {
	id, kind, name string
	arguments      strings.Builder
	extra          membersSoFar
}

// Add takes in a copy of the next chunk, which stays the caller's. It joins members in Extra that
// are texts or lists, and joins objects member by member; of anything else the last one counts.
// Inside those objects it joins lists, and the texts that servers send in pieces: a message's
// function_call.arguments, audio.data and audio.transcript. Of other texts in there, and of
// objects, the last one counts. Pieces of tool calls belong together if they have the same index,
// and the same id or none; where servers get those wrong, another call begins behind arguments that
// are complete. A call without an ID gets one. Add(nil) does nothing.
func (a *ChatAccumulator) Add(c *ChatChunk) {
	if c == nil {
		return
	}
	h := &a.head
	setIfAny(&h.ID, c.ID)
	setIfAny(&h.Model, c.Model)
	setIfAny(&h.SystemFingerprint, c.SystemFingerprint)
	setIfAny(&h.ServiceTier, c.ServiceTier)
	setIfAny(&h.PayloadID, c.PayloadID)
	if c.Created != 0 {
		h.Created = c.Created
	}
	if c.Usage != nil {
		u := *c.Usage
		u.Extra = cloneMembers(u.Extra)
		h.Usage = &u
	}
	for name, v := range c.Extra {
		if h.Extra == nil {
			h.Extra = make(map[string]json.RawMessage)
		}
		h.Extra[name] = bytes.Clone(v)
	}
	for i := range c.Choices {
		a.add(&c.Choices[i])
	}
}

func cloneMembers(m map[string]json.RawMessage) map[string]json.RawMessage {
	m = maps.Clone(m)
	for name, v := range m {
		m[name] = bytes.Clone(v)
	}
	return m
}

func setIfAny(to *string, v string) {
	if v != "" {
		*to = v
	}
}

func (a *ChatAccumulator) add(c *ChunkChoice) {
	s := a.choices[c.Index]
	if s == nil {
		if a.choices == nil {
			a.choices = make(map[int64]*choiceSoFar)
		}
		s = &choiceSoFar{}
		a.choices[c.Index] = s
	}
	setIfAny(&s.role, c.Delta.Role)
	setIfAny(&s.finish, c.FinishReason)
	s.content.WriteString(c.Delta.Content)
	s.refusal.WriteString(c.Delta.Refusal)
	s.extra.add(c.Extra, nil)
	s.message.add(c.Delta.Extra, joinedTexts)
	for i := range c.Delta.ToolCalls {
		s.addCall(&c.Delta.ToolCalls[i])
	}
}

func (s *choiceSoFar) addCall(d *ToolCallDelta) {
	arguments := d.Function.Arguments
	n := s.joined.Of(d.Index, d.ID, d.Function.Name, []byte(arguments))
	call := s.calls[n]
	if call == nil {
		if s.calls == nil {
			s.calls = make(map[int64]*callSoFar)
		}
		call = &callSoFar{}
		s.calls[n] = call
	}
	if call.id == "" { // some servers give each piece an id of its own: the first one counts
		call.id = d.ID
	}
	setIfAny(&call.kind, d.Type)
	setIfAny(&call.name, d.Function.Name)
	call.arguments.WriteString(arguments)
	call.extra.add(d.Extra, nil)
}

// membersSoFar are members that this package does not know, as their pieces come.
type membersSoFar map[string]*valueSoFar

// joinedTexts are the texts inside a message's objects that come in pieces. It is never changed.
var joinedTexts = map[string][]string{
	"function_call": {"arguments"}, "audio": {"data", "transcript"},
}

// add takes in pieces: texts and lists are joined, objects member by member, of anything else the
// last one that is not null counts. joined has, by the name of an object, which of its texts are
// joined as well.
func (s *membersSoFar) add(more map[string]json.RawMessage, joined map[string][]string) {
	for name, v := range more {
		s.of(name).add(v, true, joined[name])
	}
}

// of returns the value of that name, which it makes if need be.
func (s *membersSoFar) of(name string) *valueSoFar {
	v := (*s)[name]
	if v == nil {
		if *s == nil {
			*s = make(membersSoFar)
		}
		v = &valueSoFar{}
		(*s)[name] = v
	}
	return v
}

func (s membersSoFar) values() map[string]json.RawMessage {
	if s == nil {
		return nil
	}
	m := make(map[string]json.RawMessage, len(s))
	for name, v := range s {
		m[name] = v.append(nil)
	}
	return m
}

// valueSoFar grows by each piece, which costs what the piece has, however much there is already.
type valueSoFar struct {
	set     bool
	kind    jsonspan.Kind
	text    []byte       // of texts and lists without what closes them
	members membersSoFar // in place of text, once there was a second piece of an object
}

// add takes in a copy of a piece. Lists are joined anywhere: logprobs is an object of lists. join
// says that a text is joined as well, and an object member by member, with those of its texts that
// texts names.
func (v *valueSoFar) add(piece []byte, join bool, texts []string) {
	piece = bytes.TrimSpace(piece)
	kind := jsonspan.KindOf(piece)
	switch {
	case v.set && kind == jsonspan.Null:
	case !v.set || kind != v.kind || kind < jsonspan.String || (kind != jsonspan.Array && !join):
		*v = valueSoFar{set: true, kind: kind, text: append(v.text[:0], unclosed(kind, piece)...)}
	case kind == jsonspan.String:
		v.text = append(v.text, unclosed(kind, piece)[1:]...)
	case kind == jsonspan.Array:
		items := bytes.TrimSpace(unclosed(kind, piece)[1:])
		if len(items) > 0 && len(v.text) > 1 {
			v.text = append(v.text, ',')
		}
		v.text = append(v.text, items...)
	default:
		if v.members == nil {
			v.members.join(v.text, texts)
			v.text = nil
		}
		v.members.join(piece, texts)
	}
}

// unclosed is a piece without what closes it, so that another one can follow. White space in a text
// is content; before the bracket that closes a list it is none.
func unclosed(kind jsonspan.Kind, piece []byte) []byte {
	switch kind {
	case jsonspan.String:
		return piece[:max(len(piece)-1, 1)]
	case jsonspan.Array:
		return bytes.TrimRight(piece[:max(len(piece)-1, 1)], " \t\r\n")
	}
	return piece
}

func (s *membersSoFar) join(object []byte, texts []string) {
	if *s == nil {
		*s = make(membersSoFar)
	}
	for m := range jsonspan.MembersOf(object) {
		name := jsonspan.Text(m.Name)
		join := jsonspan.KindOf(m.Value) == jsonspan.String && slices.Contains(texts, name)
		s.of(name).add(m.Value, join, nil)
	}
}

// append appends the value, closed.
func (v *valueSoFar) append(dst []byte) []byte {
	if v.members == nil {
		dst = append(dst, v.text...)
		switch v.kind {
		case jsonspan.String:
			return append(dst, '"')
		case jsonspan.Array:
			return append(dst, ']')
		}
		return dst
	}
	dst = append(dst, '{')
	for i, name := range slices.Sorted(maps.Keys(v.members)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(jsonspan.AppendString(dst, name), ':')
		dst = v.members[name].append(dst)
	}
	return append(dst, '}')
}

// Response is what came so far, in the form of a complete answer, with the choices in the order of
// their indices: a new copy with each call, which shares no memory with the chunks. Raw and
// Metadata are nil.
func (a *ChatAccumulator) Response() *ChatResponse {
	r := a.head
	r.Object = "chat.completion"
	r.Extra = cloneMembers(r.Extra)
	if r.Usage != nil {
		u := *r.Usage
		u.Extra = cloneMembers(u.Extra)
		r.Usage = &u
	}
	for _, index := range slices.Sorted(maps.Keys(a.choices)) {
		s := a.choices[index]
		m := Message{Role: s.role, Content: s.content.String(), Refusal: s.refusal.String(),
			Extra: s.message.values()}
		for _, n := range slices.Sorted(maps.Keys(s.calls)) {
			call := s.calls[n]
			m.ToolCalls = append(m.ToolCalls, ToolCall{
				ID: call.id, Type: call.kind, Extra: call.extra.values(),
				Function: FunctionCall{Name: call.name, Arguments: call.arguments.String()},
			})
		}
		m.complete()
		r.Choices = append(r.Choices, Choice{
			Index: index, Message: m, FinishReason: s.finish, Extra: s.extra.values(),
		})
	}
	return &r
}
