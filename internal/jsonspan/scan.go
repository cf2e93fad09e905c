// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// nesting remembers for every open container whether it is an object, in one bit each. So the
// scanner needs no recursion and no allocation.
type nesting [MaxDepth/64 + 1]uint64

func (n *nesting) set(depth int, object bool) {
	word, bit := &n[depth/64], uint64(1)<<(depth%64)
	if *word &^= bit; object {
		*word |= bit
	}
}

func (n *nesting) isObject(depth int) bool { return n[depth/64]>>(depth%64)&1 != 0 }

// check checks the whole grammar of values. It checks UTF-8 first and at once, so that the scanner
// needs to look only at bytes.
func check(data []byte, maxDepth int) error {
	if !utf8.Valid(data) {
		return ErrSyntax
	}
	maxDepth = min(maxDepth, MaxDepth)
	var open nesting
	depth := 0 // containers that are open; the innermost is open[depth]
	for i := skipSpace(data, 0); ; {
		if i == len(data) {
			return ErrSyntax
		}
		// A value begins at i.
		if c := data[i]; c == '{' || c == '[' {
			if depth >= maxDepth {
				return ErrDepth
			}
			depth++
			open.set(depth, c == '{')
			i = skipSpace(data, i+1)
			if i == len(data) {
				return ErrSyntax
			}
			if data[i] != c+2 { // not empty: '}' is '{'+2, ']' is '['+2
				if c == '{' {
					if i = scanName(data, i); i < 0 {
						return ErrSyntax
					}
				}
				continue
			}
		} else {
			if i = scanScalar(data, i); i < 0 {
				return ErrSyntax
			}
			i = skipSpace(data, i)
		}
		// A value has ended, or its closing bracket stands at i.
		for depth > 0 && i < len(data) && data[i] == closing(open.isObject(depth)) {
			depth--
			i = skipSpace(data, i+1)
		}
		if depth == 0 {
			if i != len(data) {
				return ErrSyntax
			}
			return nil
		}
		if i == len(data) || data[i] != ',' {
			return ErrSyntax
		}
		i = skipSpace(data, i+1)
		if open.isObject(depth) {
			if i = scanName(data, i); i < 0 {
				return ErrSyntax
			}
		}
	}
}

// closing returns the bracket that closes an object or an array.
func closing(object bool) byte {
	if object {
		return '}'
	}
	return ']'
}

// skipSpace returns the offset of the first byte from i on that is not white space.
func skipSpace(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\r' || data[i] == '\t') {
		i++
	}
	return i
}

// The scan functions return the offset after what they scanned, or -1.

// scanName scans a member's name, its colon and the white space around that.
func scanName(data []byte, i int) int {
	if i == len(data) || data[i] != '"' {
		return -1
	}
	if i = scanString(data, i+1); i < 0 {
		return -1
	}
	i = skipSpace(data, i)
	if i == len(data) || data[i] != ':' {
		return -1
	}
	return skipSpace(data, i+1)
}

// scanScalar scans a string, a number, true, false or null.
func scanScalar(data []byte, i int) int {
	switch data[i] {
	case '"':
		return scanString(data, i+1)
	case 't':
		return scanWord(data, i, "true")
	case 'f':
		return scanWord(data, i, "false")
	case 'n':
		return scanWord(data, i, "null")
	}
	return scanNumber(data, i)
}

func scanWord(data []byte, i int, word string) int {
	if len(data)-i < len(word) || string(data[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

// scanNumber scans -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?
func scanNumber(data []byte, i int) int {
	if data[i] == '-' {
		i++
	}
	if i < len(data) && data[i] == '0' {
		i++
	} else if i = scanDigits(data, i); i < 0 {
		return -1
	}
	if i < len(data) && data[i] == '.' {
		if i = scanDigits(data, i+1); i < 0 {
			return -1
		}
	}
	if i < len(data) && (data[i] == 'e' || data[i] == 'E') {
		i++
		if i < len(data) && (data[i] == '+' || data[i] == '-') {
			i++
		}
		return scanDigits(data, i)
	}
	return i
}

// scanDigits scans one digit or more.
func scanDigits(data []byte, i int) int {
	start := i
	for i < len(data) && '0' <= data[i] && data[i] <= '9' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}

// scanString scans a string from after its opening quote to after its closing one.
func scanString(data []byte, i int) int {
	for {
		i = skipPlain(data, i)
		if i == len(data) {
			return -1
		}
		switch data[i] {
		case '"':
			return i + 1
		case '\\':
			n := escapeLen(data[i:])
			if n == 0 {
				return -1
			}
			i += n
		default: // a control character
			return -1
		}
	}
}

// skipPlain skips the characters of a string that stand for themselves. It stops at a quote, a
// backslash, a control character or the end.
func skipPlain(data []byte, i int) int {
	if len(data)-i >= 8 { // most strings are short
		if stop := stops(data[i:]); stop != 0 {
			return i + bits.TrailingZeros64(stop)/8
		}
		i += 8
	}
	for len(data)-i >= 32 { // four words at a time, which the processor works on side by side
		s := data[i : i+32 : i+32]
		first, second, third, fourth := stops(s), stops(s[8:]), stops(s[16:]), stops(s[24:])
		if first|second|third|fourth != 0 {
			for first == 0 {
				i += 8
				first, second, third = second, third, fourth
			}
			return i + bits.TrailingZeros64(first)/8
		}
		i += 32
	}
	for len(data)-i >= 8 {
		if stop := stops(data[i:]); stop != 0 {
			return i + bits.TrailingZeros64(stop)/8
		}
		i += 8
	}
	for i < len(data) && data[i] != '"' && data[i] != '\\' && data[i] >= 0x20 {
		i++
	}
	return i
}

// stops looks at eight bytes for a quote, a backslash or a control character. The lowest bit that
// is set in the result is the high bit of the first one of them; the result is 0 if there is none.
func stops(s []byte) uint64 {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	x := binary.LittleEndian.Uint64(s)
	quote, slash := x^(ones*'"'), x^(ones*'\\')
	// (x-ones)&^x has the high bit of the first zero byte of x set and none below it; with 0x20 in
	// place of 1 the same goes for the first byte under 0x20.
	return ((quote-ones)&^quote | (slash-ones)&^slash | (x-ones*0x20)&^x) & high
}
