// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"math"
	"strconv"

	"github.com/emmansun/base64"
)

// The text between the values, in the order of the protocol.
const (
	beforeCiphertext = `{"version":"` + Version + `","algorithm":"` + Algorithm +
		`","encrypted_payload":{"ciphertext":"`
	beforeNonce = `","nonce":"`
	beforeTag   = `","tag":"`
	beforeKey   = `"},"encrypted_aes_key":"`
	afterKey    = `","key_algorithm":"` + KeyAlgorithm + `","payload_algorithm":"` +
		PayloadAlgorithm + `"`
	beforeProcessedAt = `,"processed_at":`
	end               = `}`
)

// Size returns the exact number of bytes that Append adds. Like Append, it panics if Sealed is
// shorter than nonce and tag together.
func Size(e *Envelope) int {
	e.split()
	return sizeFor(e, len(e.Sealed))
}

// sizeFor is Size for a Sealed of the given length.
func sizeFor(e *Envelope, sealed int) int {
	payload := sealed - NonceSize
	n := len(beforeCiphertext) + len(beforeNonce) + base64.StdEncoding.EncodedLen(NonceSize) +
		len(beforeKey) + base64.StdEncoding.EncodedLen(len(e.WrappedKey)) + len(afterKey) + len(end)
	if e.TagForm != Appended {
		payload -= TagSize
		n += len(beforeTag) + base64.StdEncoding.EncodedLen(TagSize)
	}
	if e.writesProcessedAt() {
		var buf [32]byte
		n += len(beforeProcessedAt) + len(appendNumber(buf[:0], e.ProcessedAt))
	}
	return n + base64.StdEncoding.EncodedLen(payload)
}

// Reserve prepares for Append, so that the envelope is built in one piece of memory, for a
// plaintext of n bytes. It returns dst with room for the whole envelope, and points e.Sealed at the
// end of that room. The caller sets the other fields of e before Reserve, writes nonce ‖ ciphertext
// ‖ tag into e.Sealed, and then calls Append with the dst that Reserve returned.
func Reserve(dst []byte, e *Envelope, n int) []byte {
	sealed := NonceSize + n + TagSize
	total := len(dst) + sizeFor(e, sealed)
	dst = grown(dst, total)
	e.Sealed = dst[total-sealed : total : total]
	return dst
}

// grown returns dst with a capacity of at least total.
func grown(dst []byte, total int) []byte {
	if cap(dst) >= total {
		return dst
	}
	return append(make([]byte, 0, total), dst...)
}

// Append appends the envelope to dst as compact JSON. dst grows at most once, and not at all if it
// has room for Size bytes. dst must not overlap the memory of the envelope, except an e.Sealed that
// Reserve set: Append overwrites that one. A ProcessedAt that is not finite is left out, because
// JSON has no such number.
func Append(dst []byte, e *Envelope) []byte {
	ciphertext, tag := e.split()
	total := len(dst) + Size(e)
	dst = grown(dst, total)
	nonce, lead := e.Sealed[:NonceSize], apart
	if last := len(e.Sealed) - 1; &e.Sealed[last] == &dst[:total][total-1] { // where Reserve put it
		var keep [NonceSize + TagSize]byte
		nonce, tag = keep[:copy(keep[:], nonce)], keep[NonceSize:][:copy(keep[NonceSize:], tag)]
		lead = total - len(e.Sealed) + NonceSize - (len(dst) + len(beforeCiphertext))
	}
	dst = append(dst, beforeCiphertext...)
	text := dst[len(dst) : len(dst)+base64.StdEncoding.EncodedLen(len(ciphertext))]
	encode(text, ciphertext, lead)
	dst = append(dst[:len(dst)+len(text)], beforeNonce...)
	dst = base64.StdEncoding.AppendEncode(dst, nonce)
	if e.TagForm != Appended {
		dst = append(dst, beforeTag...)
		dst = base64.StdEncoding.AppendEncode(dst, tag)
	}
	dst = append(dst, beforeKey...)
	dst = base64.StdEncoding.AppendEncode(dst, e.WrappedKey)
	dst = append(dst, afterKey...)
	if e.writesProcessedAt() {
		dst = append(dst, beforeProcessedAt...)
		dst = appendNumber(dst, e.ProcessedAt)
	}
	return append(dst, end...)
}

// split returns the contents of the members ciphertext and tag. A nil tag means that there is no
// member tag.
func (e *Envelope) split() (ciphertext, tag []byte) {
	sealed := e.Sealed[NonceSize:]
	tag = sealed[len(sealed)-TagSize:]
	if e.TagForm == Appended {
		return sealed, nil
	}
	return sealed[:len(sealed)-TagSize], tag
}

// writesProcessedAt reports whether the envelope has a processed_at that JSON can express.
func (e *Envelope) writesProcessedAt() bool {
	return e.HasProcessedAt && !math.IsNaN(e.ProcessedAt) && !math.IsInf(e.ProcessedAt, 0)
}

// appendNumber writes the shortest digits that read back as f, with an exponent for very small and
// very large numbers. It writes at most 25 bytes.
func appendNumber(dst []byte, f float64) []byte {
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64)
}
