// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Unescape undoes the escapes in s, the part of a valid JSON string between the quotes. The result
// is never longer than s. Unescape overwrites dst from its first byte, and allocates only if the
// capacity of dst is less than len(s). dst may begin where s begins, or earlier in the same memory:
// then Unescape works in place.
//
// A surrogate without its other half becomes U+FFFD. Text that is no valid escape stays as it is.
func Unescape(dst, s []byte) []byte {
	if cap(dst) < len(s) {
		dst = make([]byte, 0, len(s))
	}
	dst = dst[:0]
	for {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			return append(dst, s...)
		}
		r, n := escape(s[i:])
		if n == 0 {
			dst, s = append(dst, s[:i+1]...), s[i+1:]
			continue
		}
		dst = append(dst, s[:i]...)
		dst, s = utf8.AppendRune(dst, r), s[i+n:]
	}
}

// Text is Unescape with a string as its result.
func Text(s []byte) string {
	i := bytes.IndexByte(s, '\\')
	if i < 0 {
		return string(s)
	}
	var text strings.Builder
	text.Grow(len(s))
	for ; i >= 0; i = bytes.IndexByte(s, '\\') {
		r, n := escape(s[i:])
		if n == 0 {
			text.Write(s[:i+1])
			s = s[i+1:]
			continue
		}
		text.Write(s[:i])
		text.WriteRune(r)
		s = s[i+n:]
	}
	text.Write(s)
	return text.String()
}

// AppendString appends s as a JSON string, as encoding/json writes it without escapes for HTML: it
// escapes control characters, quotes, backslashes, U+2028 and U+2029, and replaces bytes that are
// not UTF-8 by U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(slices.Grow(dst, len(s)+len(`""`)), '"')
	rare := !utf8.ValidString(s) || (strings.IndexByte(s, 0xe2) >= 0 &&
		(strings.Contains(s, "\u2028") || strings.Contains(s, "\u2029")))
	for rare && s != "" {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(dst, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&15])
		default:
			dst = appendPlain(dst, s[:n])
		}
		s = s[n:]
	}
	return append(appendPlain(dst, s), '"')
}

const hexDigits = "0123456789abcdef"

// appendPlain appends the inside of a string of which only ASCII characters need an escape. It
// copies first and then looks for them in the copy, eight bytes at a time.
func appendPlain(dst []byte, s string) []byte {
	const least = 64
	for most := len(s); s != ""; {
		start := len(dst)
		n := min(len(s), most)
		dst = append(dst, s[:n]...)
		stop := skipPlain(dst, start)
		if stop == len(dst) {
			s, most = s[n:], 2*most
			continue
		}
		c := dst[stop]
		dst = appendEscape(dst[:stop], c)
		// this bounds how much is copied in vain
		s, most = s[stop-start+1:], max(least, 2*(stop-start))
	}
	return dst
}

// appendEscape appends the escape of one ASCII character.
func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// Equal reports whether inside, the part of a valid JSON string between the quotes, stands for s.
func Equal(inside []byte, s string) bool {
	if bytes.IndexByte(inside, '\\') < 0 {
		return string(inside) == s
	}
	for len(inside) > 0 {
		if c := inside[0]; c != '\\' {
			if s == "" || s[0] != c {
				return false
			}
			inside, s = inside[1:], s[1:]
			continue
		}
		r, n := escape(inside)
		have, size := utf8.DecodeRuneInString(s)
		if n == 0 || r != have || size != utf8.RuneLen(r) {
			return false
		}
		inside, s = inside[n:], s[size:]
	}
	return s == ""
}

// escape decodes the escape at the beginning of s, which begins with a backslash. n is the length
// of the escape, or 0 if there is no valid one. A surrogate pair of two escapes counts as one.
func escape(s []byte) (r rune, n int) {
	n = escapeLen(s)
	if n == 0 {
		return 0, 0
	}
	switch s[1] {
	case 'b':
		return '\b', n
	case 'f':
		return '\f', n
	case 'n':
		return '\n', n
	case 'r':
		return '\r', n
	case 't':
		return '\t', n
	case 'u':
	default: // quote, backslash, slash
		return rune(s[1]), n
	}
	r = hex4(s[2:])
	if !utf16.IsSurrogate(r) {
		return r, n
	}
	if rest := s[n:]; escapeLen(rest) == n {
		if pair := utf16.DecodeRune(r, hex4(rest[2:])); pair != utf8.RuneError {
			return pair, 2 * n
		}
	}
	return utf8.RuneError, n
}

// escapeLen returns the length of the single escape at the beginning of s: 2, 6, or 0 if there is
// none.
func escapeLen(s []byte) int {
	if len(s) < 2 || s[0] != '\\' {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) >= 6 && hex4(s[2:]) >= 0 {
			return 6
		}
	}
	return 0
}

// hex4 decodes four hexadecimal digits. It returns -1 if one of them is not a digit.
func hex4(s []byte) rune {
	var r rune
	for _, c := range s[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}
