// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"encoding/base64"
	"math"
	"strconv"
)

// What stands between the values, in the protocol's order.
const (
	beforeCiphertext  = `{"version":"` + Version + `","algorithm":"` + Algorithm + `","encrypted_payload":{"ciphertext":"`
	beforeNonce       = `","nonce":"`
	beforeTag         = `","tag":"`
	beforeKey         = `"},"encrypted_aes_key":"`
	afterKey          = `","key_algorithm":"` + KeyAlgorithm + `","payload_algorithm":"` + PayloadAlgorithm + `"`
	beforeProcessedAt = `,"processed_at":`
	end               = `}`
)

// Size is the exact number of bytes that Append adds. Like Append it panics if Sealed is shorter than nonce and tag.
func Size(e *Envelope) int {
	ciphertext, tag := e.split()
	n := len(beforeCiphertext) + base64.StdEncoding.EncodedLen(len(ciphertext)) +
		len(beforeNonce) + base64.StdEncoding.EncodedLen(NonceSize) +
		len(beforeKey) + base64.StdEncoding.EncodedLen(len(e.WrappedKey)) + len(afterKey) + len(end)
	if tag != nil {
		n += len(beforeTag) + base64.StdEncoding.EncodedLen(len(tag))
	}
	if e.writesProcessedAt() {
		var buf [32]byte
		n += len(beforeProcessedAt) + len(appendNumber(buf[:0], e.ProcessedAt))
	}
	return n
}

// Append appends the envelope to dst as compact JSON. dst grows once at most, and not at all if it has room for Size bytes;
// it must not overlap the envelope's own memory. A ProcessedAt that is not finite is left out, as JSON has no such number.
func Append(dst []byte, e *Envelope) []byte {
	ciphertext, tag := e.split()
	if total := len(dst) + Size(e); cap(dst) < total {
		dst = append(make([]byte, 0, total), dst...)
	}
	dst = append(dst, beforeCiphertext...)
	dst = base64.StdEncoding.AppendEncode(dst, ciphertext)
	dst = append(dst, beforeNonce...)
	dst = base64.StdEncoding.AppendEncode(dst, e.Sealed[:NonceSize])
	if tag != nil {
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

// split returns what the members ciphertext and tag hold; no tag means no member.
func (e *Envelope) split() (ciphertext, tag []byte) {
	sealed := e.Sealed[NonceSize:]
	tag = sealed[len(sealed)-TagSize:]
	if e.TagForm == Appended {
		return sealed, nil
	}
	return sealed[:len(sealed)-TagSize], tag
}

func (e *Envelope) writesProcessedAt() bool {
	return e.HasProcessedAt && !math.IsNaN(e.ProcessedAt) && !math.IsInf(e.ProcessedAt, 0)
}

// appendNumber writes the shortest digits that read back as f, with an exponent where there would be a row of zeros. That
// takes 25 bytes at most.
func appendNumber(dst []byte, f float64) []byte {
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64)
}
