// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// PublicKey is a key that requests are sealed to: an RSA public key of 2048 to 8192 bits with
// version 1 of the protocol, see [ParsePublicKey], or a gateway's key configuration (RFC 9458,
// section 3) with [ProtocolOHTTP]. It is immutable and safe for concurrent use.
type PublicKey struct {
	rsa         *hybrid.PublicKey // nil for a key configuration
	config      *ohttp.Config     // nil for an RSA key
	der         []byte            // SubjectPublicKeyInfo, or the encoded key configuration
	fingerprint string
	signer      string    // fingerprint of the key that signed config's list, "" if none did
	signed      int64     // when, in Unix seconds
	list        [32]byte  // SHA-256 of the list that was signed
	evidence    *evidence // for the signer, or for an RSA key; nil without Attested
}

// ParsePublicKey reads the content of a PEM file (RFC 7468) with exactly one "PUBLIC KEY" block (a
// SubjectPublicKeyInfo, RFC 5280, section 4.1.2.7) and nothing except white space around it. The
// key is RSA, 2048 to 8192 bits, with an odd exponent of 65537 to 2³¹-1. Anything else is
// [ErrPublicKey], or [ErrTooLarge] above 16 KiB. text stays the caller's.
func ParsePublicKey(text []byte) (*PublicKey, error) {
	key, err := hybrid.ParsePublicKey(text)
	if err != nil {
		return nil, err
	}
	return publicKeyOf(key), nil
}

func publicKeyOf(key *hybrid.PublicKey) *PublicKey {
	return &PublicKey{rsa: key, der: key.DER(), fingerprint: key.Fingerprint()}
}

// PEM is the key as a "PUBLIC KEY" block with lines of 64 characters and a final newline; nil for a
// key configuration. The caller owns the slice.
func (k *PublicKey) PEM() []byte {
	if k.rsa == nil {
		return nil
	}
	return k.rsa.PEM()
}

// Fingerprint is the text that [Pin] takes: 64 lower-case hex digits of SHA-256, over the DER
// SubjectPublicKeyInfo, or over the encoded key configuration. Of an RSA key in a PEM file:
// openssl pkey -pubin -in key.pem -outform DER | sha256sum
func (k *PublicKey) Fingerprint() string { return k.fingerprint }

// String is the fingerprint, so that a key prints as what Pin takes.
func (k *PublicKey) String() string { return k.fingerprint }

// Bits is the size of the RSA modulus; 0 for a key configuration.
func (k *PublicKey) Bits() int {
	if k.rsa == nil {
		return 0
	}
	return k.rsa.Bits()
}

// Equal reports whether both are the same key, whether or not the same signer signed it. A nil
// key equals only nil.
func (k *PublicKey) Equal(other *PublicKey) bool {
	if k == nil || other == nil {
		return k == other
	}
	return bytes.Equal(k.der, other.der)
}

func newConfigKey(c *ohttp.Config) *PublicKey {
	return &PublicKey{config: c, der: c.Encoded(),
		fingerprint: hybrid.HexFingerprint(c.Fingerprint())}
}

// usesAES128 tells a key configuration that does not offer AES-256-GCM.
func (k *PublicKey) usesAES128() bool { return k.config != nil && k.config.AES128() }

// Signer is the fingerprint of the Ed25519 key that signed a key configuration's list: SHA-256 of
// its 32 bytes, 64 hex digits. It is "" for a list without a signature, and for an RSA key. [Pin]
// and [SecureCompletionClient.AcceptServerKey] take it, and then trust every configuration that it
// signs; [FirstUse] remembers it in place of the configuration. It says nothing about where the
// configuration comes from, since an attacker can sign any list: compare it with [Gateway.Keys].
func (k *PublicKey) Signer() string { return k.signer }

// Attestation is what evidence of the server's hardware proved about the key, or about its Signer,
// when the client took it; nil without [Attested]. The caller owns it.
func (k *PublicKey) Attestation() *AttestationResult {
	if k.evidence == nil {
		return nil
	}
	result := k.evidence.result
	return &result
}

// matches tells whether a fingerprint that is trusted is k's own, or its signer's.
func (k *PublicKey) matches(fingerprint string) bool {
	return fingerprint == k.fingerprint || (k.signer != "" && fingerprint == k.signer)
}

// lasting is the fingerprint to remember: the signer's, if there is one, since configurations come
// and go.
func (k *PublicKey) lasting() string {
	if k.signer != "" {
		return k.signer
	}
	return k.fingerprint
}

// follows tells a key configuration that the signer of the one before has signed: it was replaced,
// as happens each hour.
func (k *PublicKey) follows(old *PublicKey) bool { return k.signer != "" && k.signer == old.signer }

// withoutSigner is k as if its list had no signature.
func (k *PublicKey) withoutSigner() *PublicKey {
	plain := *k
	plain.signer, plain.signed, plain.list, plain.evidence = "", 0, [32]byte{}, nil
	return &plain
}

// refusal is the error of a key that is not trusted.
func (k *PublicKey) refusal(want []string, err error) *ServerKeyError {
	return &ServerKeyError{Want: want, Got: k.fingerprint, Signer: k.signer, Err: err}
}
