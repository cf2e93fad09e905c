// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package bhttp encodes and decodes HTTP messages in the binary form of RFC 9292: requests and
// responses, of known and of indeterminate length, with informational responses, trailers and
// padding.
//
// Decoding is strict and incremental. The decoder checks sizes against [Limits] before it allocates
// anything, checks every part against the rules of HTTP, and hands out the content as it arrives. A
// message is complete only when [Body.Read] has returned io.EOF: before that, its last byte may
// still make it invalid or show that it was cut short.
//
// Names and values of fields are strings, because those of net/http are.
package bhttp

import (
	"errors"
	"strconv"
)

// ErrTruncated is the error for a message that ends where RFC 9292 does not let it end.
var ErrTruncated = errors.New("bhttp: message is cut short")

// ErrTooLarge is the error for a message that is larger than the Limits of its reader.
var ErrTooLarge = errors.New("bhttp: message is too large")

// FormatError is the error for an invalid message. It holds nothing that came from the message.
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

// Informational is a response that comes before the final one. Its status is from 100 to 199,
// except 101.
type Informational struct {
	Status int
	Header []Field
}

// Response is the control data and the header of a response. Its status is from 200 to 599.
type Response struct {
	Informational []Informational
	Status        int
	Header        []Field
}

// Limits bounds how much a reader accepts of one message. A field that is zero means its default.
type Limits struct {
	Head    int   // bytes of control data, header and trailer together; default 64 KiB
	Fields  int   // field lines and informational responses together; default 256
	Content int64 // bytes of content; default 64 MiB
	Padding int64 // bytes of padding; default 1 MiB
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

// declaredLength returns the value of content-length in the header, or -1 if there is none.
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

// checkLength compares the declared length with the real one. A response without content may answer
// HEAD or be a 304: such a response declares the length of content that it does not carry.
func checkLength(declared, length int64, response bool) error {
	if declared < 0 || declared == length || response && length == 0 {
		return nil
	}
	return &FormatError{"content-length", "not the length of the content"}
}
