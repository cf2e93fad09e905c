// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"compress/gzip"
	"io"
	"regexp"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Each decoder below undoes one encoding wherever it could apply in a text, and leaves the rest as
// it is. So a marker that was written in that encoding becomes readable, however the writer mixed
// escapes. Undoing too much hides nothing, because the text before decoding is searched as well. A
// result that equals the text, or is empty, adds nothing.
var decoders = []struct {
	name   string
	decode func([]byte) []byte
}{
	{"gzip", gunzip},
	{"JSON", unescapeJSON},
	{"percent", func(b []byte) []byte { return unescapePercent(b, false) }},
	{"form", func(b []byte) []byte { return unescapePercent(b, true) }},
	{"hex", decodeHex},
	{"base64", decodeBase64},
}

// formDepth is how many encodings inside each other are undone.
const formDepth = 3

// maxForm is the size up to which a decoded text is kept; only gzip makes texts longer.
const maxForm = 2 * witnessLimit

// forms calls visit with the text of a stream, and with every text that undoing encodings makes of
// it.
func forms(data []byte, visit func(form string, text []byte)) {
	visit("plain", data)
	undo(data, "", formDepth, visit)
	if body := dechunk(data); !bytes.Equal(body, data) {
		visit("chunks", body)
		undo(body, "chunks, ", formDepth, visit)
	}
}

func undo(text []byte, done string, depth int, visit func(form string, text []byte)) {
	if depth == 0 {
		return
	}
	for _, d := range decoders {
		inner := d.decode(text)
		if len(inner) < minMarker || bytes.Equal(inner, text) {
			continue
		}
		visit(done+d.name, inner)
		undo(inner, done+d.name+", ", depth-1, visit)
	}
}

var chunkedHead = regexp.MustCompile(`(?i)\ntransfer-encoding:[^\n]*chunked`)

// dechunk takes the framing of RFC 9112, section 7.1 out of every chunked body in a stream of
// HTTP/1.1 messages.
func dechunk(b []byte) []byte {
	var out []byte
	for {
		i := bytes.Index(b, []byte("\r\n\r\n"))
		if i < 0 {
			return append(out, b...)
		}
		// The text before the blank line is a head, perhaps after the unchunked body of an earlier
		// message.
		head := b[:i+4]
		out, b = append(out, head...), b[i+4:]
		if chunkedHead.Match(head) {
			out, b = chunks(out, b)
		}
	}
}

// chunks appends to out the chunks at the beginning of b, and returns the text after them.
func chunks(out, b []byte) (joined, rest []byte) {
	for {
		line, after, ok := bytes.Cut(b, []byte("\r\n"))
		if !ok {
			return out, b
		}
		digits, _, _ := bytes.Cut(line, []byte(";"))
		size, err := strconv.ParseUint(string(bytes.TrimSpace(digits)), 16, 31)
		if err != nil || size == 0 {
			return out, b // the end, or no chunk: trailers are searched as they are
		}
		n := min(int(size), len(after)) // less if the stream was cut
		out, b = append(out, after[:n]...), bytes.TrimPrefix(after[n:], []byte("\r\n"))
	}
}

// gunzip returns the contents of every gzip member in b, one after the other.
func gunzip(b []byte) []byte {
	var out []byte
	for {
		i := bytes.Index(b, []byte{0x1f, 0x8b, 8})
		if i < 0 {
			return out
		}
		b = b[i:]
		if zr, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			zr.Multistream(false)
			// the text before an error counts, too
			text, _ := io.ReadAll(io.LimitReader(zr, int64(maxForm-len(out))))
			out = append(out, text...)
		}
		b = b[3:]
	}
}

// unescapeJSON undoes the escapes of RFC 8259, section 7, inside strings or not.
func unescapeJSON(b []byte) []byte {
	if !bytes.ContainsRune(b, '\\') {
		return nil
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' || i+1 == len(b) {
			out = append(out, b[i])
			continue
		}
		switch c := b[i+1]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		default:
			r, ok := escapedUnit(b[i:])
			if !ok {
				out = append(out, b[i])
				continue
			}
			i += 4
			if low, ok := escapedUnit(b[i+2:]); ok && utf16.IsSurrogate(r) {
				if both := utf16.DecodeRune(r, low); both != utf8.RuneError {
					r = both
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		}
		i++
	}
	return out
}

// escapedUnit reads the \uXXXX at the beginning of b.
func escapedUnit(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(unit), err == nil
}

// unescapePercent undoes RFC 3986's encoding, and that of HTML forms if plus is set, where + is a
// space.
func unescapePercent(b []byte, plus bool) []byte {
	if plus && !bytes.ContainsRune(b, '+') || !plus && !bytes.ContainsRune(b, '%') {
		return nil // the other call does the work
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '%' && i+2 < len(b) && hexDigit(b[i+1]) >= 0 && hexDigit(b[i+2]) >= 0:
			out = append(out, byte(hexDigit(b[i+1])<<4|hexDigit(b[i+2])))
			i += 2
		case b[i] == '+' && plus:
			out = append(out, ' ')
		default:
			out = append(out, b[i])
		}
	}
	return out
}

func decodeHex(b []byte) []byte { return decodeRuns(b, hexDigit, 4) }

// decodeBase64 reads both alphabets of RFC 4648 as one.
func decodeBase64(b []byte) []byte { return decodeRuns(b, base64Digit, 6) }

// decodeRuns decodes each run of digits of the given number of bits, without the blanks and line
// breaks in it, once for each place at which the encoded text could begin. These places cover every
// alignment, so digits before the encoded text do not hide it. Runs too short for a marker are
// ignored. A zero byte separates the results.
func decodeRuns(b []byte, value func(byte) int, bits uint) []byte {
	// After how many digits bytes and digits meet again: 2 of hex, 4 of base64.
	period := map[uint]int{4: 2, 6: 4}[bits]
	var out []byte
	var run []byte // the values of the digits
	flush := func() {
		if uint(len(run))*bits >= 8*minMarker {
			for skip := range period {
				var acc, have uint
				for _, v := range run[skip:] {
					acc, have = acc<<bits|uint(v), have+bits
					if have >= 8 {
						have -= 8
						out = append(out, byte(acc>>have))
					}
				}
				out = append(out, 0)
			}
		}
		run = run[:0]
	}
	for _, c := range b {
		if v := value(c); v >= 0 {
			run = append(run, byte(v))
		} else if c != '\r' && c != '\n' && c != ' ' && c != '\t' {
			flush()
		}
	}
	flush()
	return out
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func base64Digit(c byte) int {
	switch {
	case 'A' <= c && c <= 'Z':
		return int(c - 'A')
	case 'a' <= c && c <= 'z':
		return int(c-'a') + 26
	case '0' <= c && c <= '9':
		return int(c-'0') + 52
	case c == '+', c == '-':
		return 62
	case c == '/', c == '_':
		return 63
	}
	return -1
}
