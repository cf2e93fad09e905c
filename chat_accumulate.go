// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// ChatAccumulator puts the chunks of a stream together. The zero value is ready; it is for one goroutine at a time.
type ChatAccumulator struct {
	head    ChatResponse
	choices map[int64]*choiceSoFar
}

type choiceSoFar struct {
	role, finish     string
	content, refusal strings.Builder
	calls            map[int64]*callSoFar
	extra, message   map[string]json.RawMessage // members of the choice, and of its message
}

type callSoFar struct {
	id, kind, name string
	arguments      strings.Builder
	extra          map[string]json.RawMessage
}

// Add takes in the next chunk, which stays the caller's.
func (a *ChatAccumulator) Add(c *ChatChunk) {
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
		h.Usage = c.Usage
	}
	for name, v := range c.Extra {
		if h.Extra == nil {
			h.Extra = make(map[string]json.RawMessage)
		}
		h.Extra[name] = v
	}
	for i := range c.Choices {
		a.add(&c.Choices[i])
	}
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
	s.extra = joinMembers(s.extra, c.Extra)
	s.message = joinMembers(s.message, c.Delta.Extra)
	for i := range c.Delta.ToolCalls {
		s.addCall(&c.Delta.ToolCalls[i])
	}
}

func (s *choiceSoFar) addCall(d *ToolCallDelta) {
	call := s.calls[d.Index]
	if call == nil {
		if s.calls == nil {
			s.calls = make(map[int64]*callSoFar)
		}
		call = &callSoFar{}
		s.calls[d.Index] = call
	}
	setIfAny(&call.id, d.ID)
	setIfAny(&call.kind, d.Type)
	setIfAny(&call.name, d.Function.Name)
	call.arguments.WriteString(d.Function.Arguments)
	call.extra = joinMembers(call.extra, d.Extra)
}

// joinMembers adds pieces to members that this package does not know: texts and lists are joined, objects member by member,
// of anything else the last one that is not null counts.
func joinMembers(so, more map[string]json.RawMessage) map[string]json.RawMessage {
	for name, v := range more {
		if so == nil {
			so = make(map[string]json.RawMessage)
		}
		so[name] = joinValues(so[name], v)
	}
	return so
}

func joinValues(so, more json.RawMessage) json.RawMessage {
	kind := jsonspan.KindOf(more)
	if kind == jsonspan.Null && so != nil {
		return so
	}
	if so == nil || kind != jsonspan.KindOf(so) {
		return more
	}
	switch kind {
	case jsonspan.String:
		return slices.Concat(so[:len(so)-1], more[1:])
	case jsonspan.Array:
		return joinLists(so, more)
	case jsonspan.Object:
		return joinObjects(so, more)
	}
	return more
}

func joinLists(so, more json.RawMessage) json.RawMessage {
	var items [][]byte
	for _, list := range [][]byte{so, more} {
		all, _ := elements(list)
		for item := range all {
			items = append(items, item)
		}
	}
	return slices.Concat([]byte("["), slices.Concat(separated(items)...), []byte("]"))
}

func separated(items [][]byte) (out [][]byte) {
	for i, item := range items {
		if i > 0 {
			out = append(out, []byte(","))
		}
		out = append(out, item)
	}
	return out
}

// joinObjects goes one level down: what OpenAI's own servers stream that way is logprobs, an object of lists.
func joinObjects(so, more json.RawMessage) json.RawMessage {
	var none struct{}
	a, errA := decodeObject(so, &none)
	b, errB := decodeObject(more, &none)
	if errA != nil || errB != nil {
		return more
	}
	for name, v := range b {
		before, known := a[name]
		if known && jsonspan.KindOf(v) == jsonspan.Array && jsonspan.KindOf(before) == jsonspan.Array {
			v = joinLists(before, v)
		} else if known && jsonspan.KindOf(v) == jsonspan.Null {
			v = before
		}
		if a == nil {
			a = make(map[string]json.RawMessage)
		}
		a[name] = v
	}
	joined, err := appendObject(nil, struct{}{}, a)
	if err != nil {
		return more
	}
	return joined
}

// Response is what came so far, in the form of a complete answer, with the choices in the order of their indices. It shares
// no memory with what later chunks add. Raw and Metadata are nil.
func (a *ChatAccumulator) Response() *ChatResponse {
	r := a.head
	r.Object = "chat.completion"
	r.Extra = maps.Clone(r.Extra)
	for _, index := range slices.Sorted(maps.Keys(a.choices)) {
		s := a.choices[index]
		m := Message{Role: s.role, Content: s.content.String(), Refusal: s.refusal.String(), Extra: maps.Clone(s.message)}
		if m.Role == "" {
			m.Role = "assistant"
		}
		for _, i := range slices.Sorted(maps.Keys(s.calls)) {
			call := s.calls[i]
			m.ToolCalls = append(m.ToolCalls, ToolCall{
				ID: call.id, Type: call.kind, Function: FunctionCall{Name: call.name, Arguments: call.arguments.String()},
				Extra: maps.Clone(call.extra),
			})
		}
		r.Choices = append(r.Choices, Choice{Index: index, Message: m, FinishReason: s.finish, Extra: maps.Clone(s.extra)})
	}
	return &r
}
