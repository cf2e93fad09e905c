// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package hybrid is the cryptography of NOMYO's protocol v1: an envelope is sealed to an RSA public
// key with RSA-OAEP and AES-256-GCM, and opened with the private key, which lies in locked memory
// where the system allows it. The names that both ends of the protocol use over HTTP are here too.
//
// Errors are the sentinels of package fault, so that the caller hands them on as they are.
package hybrid

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Paths and headers of protocol v1.
const (
	PathPublicKey  = "/pki/public_key"
	PathCompletion = "/v1/chat/secure_completion"

	HeaderPayloadID = "X-Payload-ID"
	HeaderPublicKey = "X-Public-Key"
	HeaderTier      = "X-Security-Tier" // also of sealed requests and answers of Oblivious HTTP
	ContentType     = "application/octet-stream"
)

// Tier names how well a server protects a request while it works on it.
type Tier string

// The tiers of the protocol, lowest first. The empty one leaves the choice to the server.
const (
	TierStandard Tier = "standard"
	TierHigh     Tier = "high"
	TierMaximum  Tier = "maximum"
)

// Rank orders the tiers; 0 is the empty tier, -1 an unknown one.
func (t Tier) Rank() int {
	switch t {
	case "":
		return 0
	case TierStandard:
		return 1
	case TierHigh:
		return 2
	case TierMaximum:
		return 3
	}
	return -1
}

// DataKeySize is the size of an AES-256 key in bytes.
const DataKeySize = 32

// sealedOverhead is how many bytes a sealed payload is longer than its plaintext.
const sealedOverhead = envelope.NonceSize + envelope.TagSize

// newAEAD is AES-256-GCM over nonce ‖ ciphertext ‖ tag, with a random 96-bit nonce: the form that
// the FIPS 140 module seals in. One key seals one message here, so no nonce is used twice with a
// key. The key schedule holds the key: the caller wipes it.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: AES: %w", err)
	}
	defer erase.Wipe(block) // GCM has a copy of its own
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: GCM: %w", err)
	}
	return aead, nil
}

// EnvelopeError gives an error of [envelope.Parse] the sentinel that callers know.
func EnvelopeError(err error) error {
	var format *envelope.FormatError
	switch {
	case errors.Is(err, envelope.ErrTooLarge):
		return fmt.Errorf("%w: envelope", fault.ErrTooLarge)
	case errors.As(err, &format):
		return fmt.Errorf("%w: %s: %s", fault.ErrEnvelope, format.Field, format.Reason)
	default:
		return fmt.Errorf("%w: %w", fault.ErrEnvelope, err)
	}
}

// A fingerprint is a SHA-256: 32 bytes, or 64 hex digits in text, lower case in its normal form.

// NormalFingerprint is a user's text without white space around it and in lower case.
//
// It takes off what tools print around the digits: "sha256:" before them, colons between them, and
// the name of a file behind them, as sha256sum has it.
func NormalFingerprint(text string) string {
	text = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(text)), "sha256:")
	text = strings.TrimLeft(text, " ")
	if digits, file, _ := strings.Cut(text, " "); len(digits) == 64 && file != "" {
		text = digits
	}
	if len(text) == 32*3-1 { // aa:bb:…
		text = strings.ReplaceAll(text, ":", "")
	}
	return text
}

// ValidFingerprint says what is wrong with a fingerprint, in either case, or nil.
func ValidFingerprint(text string) error {
	if b, err := hex.DecodeString(text); err != nil || len(b) != 32 {
		return errors.New("a fingerprint is a SHA-256 as PublicKey.Fingerprint gives it, 64 hex digits")
	}
	return nil
}

// ParseFingerprint reads 64 hex digits. Anything else is ErrInvalidRequest.
func ParseFingerprint(text string) (fp [32]byte, err error) {
	if err := ValidFingerprint(text); err != nil {
		return fp, fmt.Errorf("%w: %w", fault.ErrInvalidRequest, err)
	}
	_, err = hex.Decode(fp[:], []byte(text))
	return fp, err
}

// HexFingerprint is the normal form of a fingerprint.
func HexFingerprint(fp [32]byte) string { return hex.EncodeToString(fp[:]) }
