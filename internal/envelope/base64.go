// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"math"

	"github.com/emmansun/base64"
)

// Base64 within one piece of memory. No library promises that for memory that overlaps, so it goes
// by pieces that do not.

// apart is the lead of memory that does not overlap.
const apart = math.MaxInt

// encode encodes src into dst, whose length fits exactly. src may lie in the same memory, if it
// begins lead bytes behind dst, and if its end lies 4 bytes or more behind dst's.
func encode(dst, src []byte, lead int) {
	for len(dst) > lead {
		n := lead / 4 // groups; each brings what is written one byte closer to what is read
		base64.StdEncoding.Encode(dst[:4*n], src[:3*n])
		dst, src, lead = dst[4*n:], src[3*n:], lead-n
	}
	base64.StdEncoding.Encode(dst, src)
}

const notBase64 = "not standard padded base64"

// strict refuses trailing bits that are not zero. It is never written to.
var strict = base64.StdEncoding.Strict()

// decode decodes text, which holds no line breaks and whose decoded length is len(dst). text may
// lie in the same memory, if it begins lead bytes behind dst, which are 3 or more.
func decode(dst, text []byte, lead int, field string) error {
	for len(dst) > lead {
		// groups; each takes what is written one byte farther from what is read
		n := lead / 3
		// padding comes at the end alone
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
