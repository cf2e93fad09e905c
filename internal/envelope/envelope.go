// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package envelope reads and writes the JSON envelope in which a sealed chat travels, in both
// directions. It is a codec and knows no cryptography: an envelope that it has read has the right
// form, and is not yet authentic.
//
//	{"version":"1.0","algorithm":"hybrid-aes256-rsa4096",
//	 "encrypted_payload":{"ciphertext":"<base64>","nonce":"<base64>","tag":"<base64>"},
//	 "encrypted_aes_key":"<base64>",
//	 "key_algorithm":"RSA-OAEP-SHA256","payload_algorithm":"AES-256-GCM",
//	 "processed_at":1763800000.25}
package envelope

import "errors"

// The only protocol version and algorithms. Parse refuses all others, so that nothing can be
// negotiated down.
const (
	Version          = "1.0"
	Algorithm        = "hybrid-aes256-rsa4096"
	KeyAlgorithm     = "RSA-OAEP-SHA256"
	PayloadAlgorithm = "AES-256-GCM"
)

// Sizes, and the depth of the JSON text.
const (
	NonceSize     = 12   // bytes, AES-GCM
	TagSize       = 16   // bytes, AES-GCM
	MinWrappedKey = 256  // bytes: RSA of 2048 bits
	MaxWrappedKey = 1024 // bytes: RSA of 8192 bits
	MaxDepth      = 100  // nesting of the JSON text, unknown members included
)

// TagForm says where the tag stands in the JSON text.
type TagForm uint8

const (
	// Separate is a tag in a member of its own: the form of the Python client, and the one that the
	// package writes by default.
	Separate TagForm = iota
	// Appended is a tag at the end of the ciphertext, without a member: the form of the JavaScript
	// client.
	Appended
)

// Envelope is the content of an envelope.
type Envelope struct {
	Sealed     []byte  // nonce ‖ ciphertext ‖ tag, whatever the tag's form
	WrappedKey []byte  // the AES key, encrypted with RSA
	TagForm    TagForm // where Parse found the tag, or Append writes it

	ProcessedAt    float64 // Unix seconds, finite; not authenticated
	HasProcessedAt bool
}

// ErrTooLarge reports an envelope whose plaintext would be larger than the caller allows.
var ErrTooLarge = errors.New("envelope: payload too large")

// FormatError reports the fault of an envelope. Both fields are words of this package and hold
// nothing from the peer.
type FormatError struct {
	// for example "version" or "encrypted_payload.nonce"; "" means the text as a whole
	Field  string
	Reason string
}

func (e *FormatError) Error() string {
	if e.Field == "" {
		return "envelope: " + e.Reason
	}
	return "envelope: " + e.Field + ": " + e.Reason
}
