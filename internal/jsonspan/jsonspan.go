// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package jsonspan reads JSON without copying it. [Valid] checks a text once, as a whole and
// strictly (RFC 8259, valid UTF-8, no byte order mark, nothing after the value, bounded nesting).
// The other functions then return spans of the checked text.
//
// The text may hold secrets: the package makes no copies of it, and its errors hold none of it.
// Functions are safe for concurrent use over memory that nobody writes.
package jsonspan

import (
	"errors"
	"iter"
)

// MaxDepth is the deepest nesting that a caller can allow. A larger maxDepth counts as MaxDepth.
const MaxDepth = 10_000

var (
	// ErrSyntax reports a text that is not exactly one JSON value in valid UTF-8.
	ErrSyntax = errors.New("jsonspan: not valid JSON")
	// ErrDepth reports a value that nests deeper than allowed.
	ErrDepth = errors.New("jsonspan: nested too deep")
)

// Kind is the type of a JSON value. The zero Kind is Null.
type Kind uint8

// The kinds of JSON values (RFC 8259, section 3).
const (
	Null Kind = iota
	Bool
	Number
	String
	Array
	Object
)

// KindOf returns the kind of a valid value, which its first byte after white space decides. An
// empty text counts as Null.
func KindOf(value []byte) Kind {
	i := skipSpace(value, 0)
	if i == len(value) {
		return Null
	}
	switch value[i] {
	case '{':
		return Object
	case '[':
		return Array
	case '"':
		return String
	case 't', 'f':
		return Bool
	case 'n':
		return Null
	}
	return Number
}

// Valid checks that data is one JSON value that nests at most maxDepth deep. A flat object or array
// has depth 1, and a scalar has depth 0. The error is ErrSyntax or ErrDepth, whichever comes first
// in the text.
func Valid(data []byte, maxDepth int) error {
	return check(data, maxDepth)
}

// Member is a member of an object. Name and Value are spans of the memory of the object.
type Member struct {
	Name  []byte // between the quotes, still escaped
	Value []byte // exactly the value, without white space around it

	// Offsets in the object's text: of the opening quote of the name, and one past the value.
	Start, End int
}

// Is reports whether the member has this name, compared byte by byte after undoing the escapes.
func (m Member) Is(name string) bool { return Equal(m.Name, name) }

// MembersOf walks the members of an object in their order, repeated names included. The object must
// be all or part of a text that Valid accepted. Another kind of value has no members.
//
// The loop may overwrite everything before the End of the member that it was given, and nothing
// after it.
func MembersOf(valid []byte) iter.Seq[Member] {
	return func(yield func(Member) bool) { walkMembers(valid, yield) }
}

// ElementsOf walks the elements of an array, as MembersOf walks the members of an object.
func ElementsOf(valid []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) { walkElements(valid, yield) }
}

// CutOf appends to dst the object in valid, without those of its own members for which drop returns
// true. The object must be all or part of a text that Valid accepted.
//
// A dropped member takes the comma and the white space before it along. Every other byte stays, in
// its order. The first member that is kept stands where the first member stood.
//
// dst grows at most once. It may be valid[:0]: then CutOf works in place.
func CutOf(dst, valid []byte, drop func(Member) bool) []byte {
	if most := len(dst) + len(valid); cap(dst) < most {
		dst = append(make([]byte, 0, most), dst...)
	}
	end, kept := 0, false // end of the previous member
	for m := range MembersOf(valid) {
		lead := valid[end:m.Start]
		if end == 0 {
			dst, lead = append(dst, lead...), nil // the brace, which always stays
		}
		end = m.End
		if drop(m) {
			continue
		}
		if kept {
			dst = append(dst, lead...)
		}
		dst, kept = append(dst, valid[m.Start:m.End]...), true
	}
	return append(dst, valid[end:]...)
}
