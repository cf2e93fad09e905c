// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package jsonspan reads JSON where it lies. It checks a text once, as a whole and strictly (RFC
// 8259, valid UTF-8, no byte order mark, nothing after the value, bounded nesting), and then hands
// out spans of it.
//
// It runs over memory that holds secrets: it makes no copies, allocates nothing, and its errors
// hold none of the text. Functions are safe for concurrent use over memory that nobody writes.
package jsonspan

import (
	"errors"
	"iter"
)

// MaxDepth is the deepest nesting that can be asked for. A larger maxDepth counts as MaxDepth.
const MaxDepth = 10_000

var (
	// ErrSyntax reports a text that is not exactly one JSON value in valid UTF-8.
	ErrSyntax = errors.New("jsonspan: not valid JSON")
	// ErrDepth reports a value that nests deeper than allowed.
	ErrDepth = errors.New("jsonspan: nested too deep")
	// ErrKind reports valid JSON that is not the object, or the array, that was asked for.
	ErrKind = errors.New("jsonspan: another kind of value")
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

// KindOf tells the kind of a valid value by its first byte that is not white space. No value at all
// counts as Null.
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

// Valid reports whether data is one JSON value, nested maxDepth deep at most; a flat object or
// array has depth 1, and a scalar 0. The error is ErrSyntax or ErrDepth, whichever comes first in
// the text.
func Valid(data []byte, maxDepth int) error {
	return check(data, maxDepth)
}

// Member is a member of an object: spans of the object's own memory.
type Member struct {
	Name  []byte // between the quotes, still escaped
	Value []byte // exactly the value, without white space around it

	// Offsets in the object's text: of the opening quote of the name, and one past the value.
	Start, End int
}

// Is reports whether the member has this name, compared byte by byte after undoing the escapes.
func (m Member) Is(name string) bool { return Equal(m.Name, name) }

// Members walks the members of the object that data is, in their order, repeated names included.
// The whole text is checked before it returns: after an error (ErrSyntax, ErrDepth or ErrKind) the
// sequence is empty.
//
// The loop may overwrite what it has been given so far, everything before the member's End, but not
// what comes after.
//
// The compiler puts the loop's own closure and the variables that it captures on the heap, since it
// cannot see through a function of two results. Valid and then MembersOf is the same without that.
func Members(data []byte, maxDepth int) (iter.Seq[Member], error) {
	valid, err := checkKind(data, maxDepth, Object)
	return MembersOf(valid), err
}

// Elements walks the elements of the array that data is, as Members does an object's members. Valid
// and then ElementsOf is the same without allocation.
func Elements(data []byte, maxDepth int) (iter.Seq[[]byte], error) {
	valid, err := checkKind(data, maxDepth, Array)
	return ElementsOf(valid), err
}

// MembersOf walks the members of an object as Members does, without checking it: the object must be
// all or part of a text that was checked before. Another kind of value has no members.
func MembersOf(valid []byte) iter.Seq[Member] {
	return func(yield func(Member) bool) { walkMembers(valid, yield) }
}

// ElementsOf walks the elements of an array as Elements does, without checking it: the array must
// be all or part of a text that was checked before. Another kind of value has no elements.
func ElementsOf(valid []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) { walkElements(valid, yield) }
}

// Cut appends to dst the object that data is, without those of its own members for which drop
// returns true. A dropped member takes the comma and the white space in front of it along; every
// other byte stays, in its order. The first member that is kept stands where the first member
// stood.
//
// dst grows once at most. It may be data[:0]: then the object is cut in place. After an error dst
// comes back as it was.
func Cut(dst, data []byte, maxDepth int, drop func(Member) bool) ([]byte, error) {
	if _, err := checkKind(data, maxDepth, Object); err != nil {
		return dst, err
	}
	return CutOf(dst, data, drop), nil
}

// CutOf is Cut without the check: the object must be all or part of a text that was checked before.
func CutOf(dst, valid []byte, drop func(Member) bool) []byte {
	if most := len(dst) + len(valid); cap(dst) < most {
		dst = append(make([]byte, 0, most), dst...)
	}
	end, kept := 0, false // end of the member before
	for m := range MembersOf(valid) {
		lead := valid[end:m.Start]
		if end == 0 {
			dst, lead = append(dst, lead...), nil // the brace: it stays in any case
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
