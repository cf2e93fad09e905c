// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"math"

	"github.com/emmansun/base64"
)

// Base64 within one piece of memory. No library promises that for memory that overlaps, so encode
// and decode call it on parts that do not overlap.

// apart is the lead of memory that does not overlap.
const apart = math.MaxInt

// encode encodes src into dst, whose length fits exactly. src may lie in the same memory, if it
// begins lead bytes after dst begins, and ends 4 bytes or more after dst ends.
func encode(dst, src []byte, lead int) {
	for len(dst) > lead {
		n := lead / 4 // groups: each brings the writer one byte closer to the reader
		base64.StdEncoding.Encode(dst[:4*n], src[:3*n])
		dst, src, lead = dst[4*n:], src[3*n:], lead-n
	}
	base64.StdEncoding.Encode(dst, src)
}

const notBase64 = "not standard padded base64"

// strict refuses trailing bits that are not zero. Nobody writes to it.
var strict = base64.StdEncoding.Strict()

// decode decodes text, which holds no line breaks and stands for exactly len(dst) bytes. text may
// lie in the same memory, if it begins lead bytes after dst begins, and lead is 3 or more.
func decode(dst, text []byte, lead int, field string) error {
	for len(dst) > lead {
		// groups: each takes the writer one byte farther from the reader
		n := lead / 3
		// padding stands only at the end
		if got, err := strict.Decode(dst[:3*n], text[:4*n]); err != nil || got != 3*n {
			return &FormatError{field, notBase64}
		}
		dst, text, lead = dst[3*n:], text[4*n:], lead+n
	}
	if got, err := strict.Decode(dst, text); err != nil || got != len(dst) {
		return &FormatError{field, notBase64}
	}
	return nil
}
