// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import "bytes"

// The functions of this file walk over text that check has accepted. On other text they may panic.

func walkMembers(data []byte, yield func(Member) bool) {
	if KindOf(data) != Object {
		return
	}
	for i := skipSpace(data, skipSpace(data, 0)+1); data[i] != '}'; {
		if data[i] == ',' {
			i = skipSpace(data, i+1)
		}
		m := Member{Start: i}
		i = skipString(data, i)
		m.Name = data[m.Start+1 : i-1]
		i = skipSpace(data, skipSpace(data, i)+1) // the colon
		m.End = skipValue(data, i)
		m.Value = data[i:m.End:m.End]
		if !yield(m) {
			return
		}
		i = skipSpace(data, m.End)
	}
}

func walkElements(data []byte, yield func([]byte) bool) {
	if KindOf(data) != Array {
		return
	}
	for i := skipSpace(data, skipSpace(data, 0)+1); data[i] != ']'; {
		if data[i] == ',' {
			i = skipSpace(data, i+1)
		}
		end := skipValue(data, i)
		if !yield(data[i:end:end]) {
			return
		}
		i = skipSpace(data, end)
	}
}

// skipValue returns the offset after the value that begins at i.
func skipValue(data []byte, i int) int {
	depth := 0
	for {
		switch data[i] {
		case '"':
			i = skipString(data, i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		default:
			i++ // in a container anything else is left to the next round; a scalar runs to its end
			for depth == 0 && i < len(data) && !endsScalar(data[i]) {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}

// endsScalar reports whether c cannot be part of a number or a word.
func endsScalar(c byte) bool {
	switch c {
	case ',', ']', '}', ' ', '\n', '\r', '\t':
		return true
	}
	return false
}

// skipString returns the offset after the string whose opening quote stands at i.
func skipString(data []byte, i int) int {
	i++
	for {
		quote := i + bytes.IndexByte(data[i:], '"')
		slash := quote
		for data[slash-1] == '\\' { // stops before i at the latest: a quote stands there
			slash--
		}
		i = quote + 1
		if (quote-slash)%2 == 0 { // an even number of backslashes escapes only themselves
			return i
		}
	}
}
