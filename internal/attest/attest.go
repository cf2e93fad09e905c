// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package attest has the bytes of the attestation profile (SPEC.md, section 14): what a report
// vouches for, the document in which evidence travels, and the nonce that a client asks with. It
// judges no evidence, and knows no hardware.
package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Path is the path of the gateway's endpoint.
const Path = "/.well-known/sealedchat-attestation"

// label separates this hash from every other one.
const label = "sealedchat attestation v1\x00"

// The types of keys that a report vouches for.
const (
	TypeSigner = 1 // the Ed25519 key that signs the list of key configurations
	TypeRSA    = 2 // the RSA key of protocol v1
)

// Key is one key that a report vouches for, by its fingerprint.
type Key struct {
	Type        uint8
	Fingerprint [32]byte
}

// ReportData is what the report of a gateway with these keys holds, for a client's nonce. keys are
// in ascending order of their types, without two of one type: see Document.
func ReportData(nonce [32]byte, keys []Key) (data [64]byte) {
	h := sha256.New()
	h.Write([]byte(label))
	h.Write(nonce[:])
	h.Write([]byte{byte(len(keys))})
	for _, k := range keys {
		h.Write([]byte{k.Type})
		h.Write(k.Fingerprint[:])
	}
	h.Sum(data[:0])
	return data
}

// NewNonce is 32 random bytes.
func NewNonce() (nonce [32]byte) {
	_, _ = rand.Read(nonce[:])
	return nonce
}

const nonceName = "nonce="

// Query is the query of a request for evidence.
func Query(nonce [32]byte) string { return nonceName + hex.EncodeToString(nonce[:]) }

// ParseQuery reads the query of a request for evidence as it came, in the one spelling that it
// has: "nonce=" and 64 lower-case hex digits.
func ParseQuery(query string) (nonce [32]byte, ok bool) {
	digits, ok := strings.CutPrefix(query, nonceName)
	return nonce, ok && parseHex(&nonce, digits)
}

// parseHex reads 64 lower-case hex digits.
func parseHex(to *[32]byte, digits string) bool {
	if len(digits) != 2*len(to) || strings.ToLower(digits) != digits {
		return false
	}
	_, err := hex.Decode(to[:], []byte(digits))
	return err == nil
}
