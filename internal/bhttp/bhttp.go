// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package bhttp encodes and decodes HTTP messages in the binary form of RFC 9292: requests and
// responses, of known and of indeterminate length, with informational responses, trailers and
// padding.
//
// Decoding is strict and incremental. Sizes are checked against [Limits] before anything is
// allocated, every part is checked for what HTTP allows in it, and the content is handed out as it
// comes. Nothing that was handed out counts as a complete message before [Body.Read] has returned
// io.EOF: a message may turn out to be invalid, or cut, at its last byte.
//
// Names and values of fields are strings, because net/http's are.
package bhttp

import (
	"errors"
	"strconv"
)

// ErrTruncated is the error of a message that ends where RFC 9292 does not let it end.
var ErrTruncated = errors.New("bhttp: message is cut short")

// ErrTooLarge is the error of a message that is larger than the reader's Limits.
var ErrTooLarge = errors.New("bhttp: message is too large")

// FormatError is the error of an invalid message. It holds nothing that the message said.
type FormatError struct {
	Part   string // "method", "field name", "content", …
	Reason string
}

func (e *FormatError) Error() string { return "bhttp: " + e.Part + ": " + e.Reason }

// Field is one field line. Name is lower-case.
type Field struct{ Name, Value string }

// Request is the control data and the header of a request. Authority may be empty.
type Request struct {
	Method, Scheme, Authority, Path string
	Header                          []Field
}

// Informational is a response with a status from 100 to 199, without 101, that comes before the
// final one.
type Informational struct {
	Status int
	Header []Field
}

// Response is the control data and the header of a response, its status from 200 to 599.
type Response struct {
	Informational []Informational
	Status        int
	Header        []Field
}

// Limits caps what a reader takes of a message. A field that is zero stands for its default.
type Limits struct {
	Head    int   // bytes of control data and field sections, the trailer's included; 64 KiB
	Fields  int   // field lines, and informational responses, in all; 256
	Content int64 // bytes of content; 64 MiB
	Padding int64 // bytes of padding; 1 MiB
}

func (l Limits) withDefaults() Limits {
	if l.Head == 0 {
		l.Head = 64 << 10
	}
	if l.Fields == 0 {
		l.Fields = 256
	}
	if l.Content == 0 {
		l.Content = 64 << 20
	}
	if l.Padding == 0 {
		l.Padding = 1 << 20
	}
	return l
}

// The framing indicators of RFC 9292, section 3.3.
const (
	knownRequest = iota
	knownResponse
	indeterminateRequest
	indeterminateResponse
)

// declaredLength is the value of the header's content-length, or -1.
func declaredLength(header []Field) (int64, error) {
	declared := int64(-1)
	for _, f := range header {
		if f.Name != "content-length" {
			continue
		}
		n, err := strconv.ParseUint(f.Value, 10, 62)
		if err != nil || declared >= 0 || f.Value[0] == '+' {
			return 0, &FormatError{"content-length", "not one decimal number"}
		}
		declared = int64(n)
	}
	return declared, nil
}

// checkLength compares a declared length with the real one. A response without content may be one
// to HEAD, or a 304: then it declares what it does not have.
func checkLength(declared, length int64, response bool) error {
	if declared < 0 || declared == length || response && length == 0 {
		return nil
	}
	return &FormatError{"content-length", "not the length of the content"}
}
