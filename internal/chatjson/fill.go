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
// except for id and model, of which all clients take it. FillIn is nil where none is missing. What
// the answer says, and why it ends, is the server's alone.
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
	for _, l := range lacking {
		if l.nothing && Last(out, l.name) != nil {
			continue
		}
		out = filled(out, l.name, l.value)
	}
	edited := editMembers(out, func(m jsonspan.Member) []byte {
		if !m.Is("choices") {
			return nil
		}
		return editElements(m.Value, filledChoice)
	})
	if edited != nil {
		out = edited
	}
	if len(out) == len(completion) { // whatever was filled in is longer than nothing
		return nil
	}
	return out
}

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
	edited := editMembers(out, func(m jsonspan.Member) []byte {
		if !m.Is("message") {
			return nil
		}
		if message := filled(m.Value, "role", assistant); len(message) != len(m.Value) {
			return message
		}
		return nil
	})
	switch {
	case edited != nil:
		return edited
	case len(out) != len(choice):
		return out
	}
	return nil
}
