// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"strconv"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// Missing is what an answer gets that lacks it. Model is a JSON value, or nil.
type Missing struct {
	ID      string
	Created int64
	Model   []byte
}

// FillIn is a checked completion with the members that a chat.completion must have, where it lacks
// them: id, object, created, model, choices[].index and message.role. Null is as good as none,
// except for id and model, of which all clients take it. FillIn is nil where none is missing. The
// copies that it makes on the way are wiped. What the answer says, and why it ends, is the server's
// alone.
func FillIn(completion []byte, with Missing) []byte {
	lacking := []struct {
		name    string
		value   []byte
		nothing bool // null may stay
	}{
		{"id", jsonspan.AppendString(nil, with.ID), true},
		{"object", []byte(`"` + objectCompletion + `"`), false},
		{"created", strconv.AppendInt(nil, with.Created, 10), false},
		{"model", orNull(with.Model), true},
	}
	out := completion
	become := func(edited []byte) {
		if edited == nil || isSame(edited, out) {
			return
		}
		if !isSame(out, completion) {
			clear(out)
		}
		out = edited
	}
	for _, l := range lacking {
		if l.nothing && Last(out, l.name) != nil {
			continue
		}
		become(filled(out, l.name, l.value))
	}
	var choices, choice []byte // are copied, each before the next one is made
	become(editMembers(out, func(m jsonspan.Member) []byte {
		if !m.Is("choices") {
			return nil
		}
		clear(choices)
		choices = editElements(m.Value, func(n int, was []byte) []byte {
			clear(choice)
			choice = filledChoice(n, was)
			return choice
		})
		return choices
	}))
	clear(choices)
	clear(choice)
	if isSame(out, completion) {
		return nil
	}
	return out
}

// isSame tells a text that was not edited: what was filled in may be as long as the nulls that it
// replaced. None is empty.
func isSame(a, b []byte) bool { return &a[0] == &b[0] }

// filled is object with the member, if it has none of that name that is not null.
func filled(object []byte, name string, value []byte) []byte {
	was := Last(object, name)
	if was == nil {
		member := append(jsonspan.AppendString(nil, name), ':')
		return putFirst(object, append(member, value...))
	}
	if jsonspan.KindOf(was) != jsonspan.Null {
		return object
	}
	return editMembers(object, func(m jsonspan.Member) []byte {
		if m.Is(name) {
			return value
		}
		return nil
	})
}

// filledChoice fills in the n'th choice; nil where nothing is missing.
func filledChoice(n int, choice []byte) []byte {
	out := filled(choice, "index", strconv.AppendInt(nil, int64(n), 10))
	var message []byte
	edited := editMembers(out, func(m jsonspan.Member) []byte {
		if !m.Is("message") {
			return nil
		}
		clear(message)
		if message = filled(m.Value, "role", assistant); isSame(message, m.Value) {
			message = nil
		}
		return message
	})
	clear(message)
	switch changed := !isSame(out, choice); {
	case edited == nil && !changed:
		return nil
	case edited == nil:
		return out
	case changed:
		clear(out)
	}
	return edited
}
