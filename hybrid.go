// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

const (
	minKeyBits   = 2048
	maxKeyBits   = 8192
	minExponent  = 65537
	maxKeyText   = 16 << 10 // bytes of PEM; an 8192-bit key has 1,500
	dataKeySize  = 32       // AES-256
	pemPublicKey = "PUBLIC KEY"
)

// PublicKey is what requests are sealed to: an RSA public key of 2048 to 8192 bits with version 1 of the protocol, see
// [ParsePublicKey], or a gateway's key configuration (RFC 9458, section 3) with [ProtocolOHTTP]. It is immutable and safe
// for concurrent use.
type PublicKey struct {
	key         *rsa.PublicKey // nil for a key configuration
	der         []byte         // SubjectPublicKeyInfo, or the encoded key configuration
	fingerprint string
	config      *ohttp.Config // nil for an RSA key
	signer      string        // fingerprint of who vouches for config, "" for nobody
	signed      int64         // when, in Unix seconds
	list        [32]byte      // SHA-256 of the list that was signed
	escaped     func() string // PEM, percent-encoded; made once
}

// ParsePublicKey reads the content of a PEM file (RFC 7468) with exactly one "PUBLIC KEY" block (a SubjectPublicKeyInfo,
// RFC 5280, section 4.1.2.7) and nothing but white space around it. The key is RSA, 2048 to 8192 bits, with an odd exponent
// of 65537 to 2³¹-1. Anything else is [ErrPublicKey], or [ErrTooLarge] above 16 KiB. text stays the caller's.
func ParsePublicKey(text []byte) (*PublicKey, error) {
	if len(text) > maxKeyText {
		return nil, fmt.Errorf("%w: public key of %d bytes, limit %d", ErrTooLarge, len(text), maxKeyText)
	}
	text = bytes.TrimSpace(text)
	if hint := publicKeyHint(text); hint != "" {
		return nil, fmt.Errorf("%w: %s", ErrPublicKey, hint)
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%w: no PEM block", ErrPublicKey)
	case bytes.Count(text, []byte("-----BEGIN ")) != 1: // pem.Decode skips what it cannot read
		return nil, fmt.Errorf("%w: more than one PEM block", ErrPublicKey)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, fmt.Errorf("%w: something follows the PEM block", ErrPublicKey)
	case len(block.Headers) != 0:
		return nil, fmt.Errorf("%w: PEM headers", ErrPublicKey)
	case block.Type != pemPublicKey:
		return nil, fmt.Errorf("%w: the PEM block is not a PUBLIC KEY", ErrPublicKey)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: not a SubjectPublicKeyInfo", ErrPublicKey)
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: the key is not RSA", ErrPublicKey)
	}
	public, err := newPublicKey(key)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(public.der, block.Bytes) { // one key has one fingerprint
		return nil, fmt.Errorf("%w: not in canonical DER", ErrPublicKey)
	}
	return public, nil
}

// publicKeyHint names the usual mistakes. text has no white space around it.
func publicKeyHint(text []byte) string {
	const begin = "-----BEGIN "
	switch {
	case len(text) == 0:
		return "empty"
	case bytes.HasPrefix(text, []byte("{")), bytes.HasPrefix(text, []byte(`"`)):
		return "this is JSON; the endpoint must answer with the bare PEM text"
	case bytes.HasPrefix(text, []byte("<")):
		return "this is HTML or XML; is the base URL right?"
	case bytes.HasPrefix(text, []byte(begin+"CERTIFICATE")):
		return "this is a certificate; extract its key with: openssl x509 -pubkey -noout"
	case bytes.HasPrefix(text, []byte(begin+"RSA PUBLIC KEY")):
		return "this is PKCS#1; convert it with: openssl rsa -RSAPublicKey_in -pubout"
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return "this is a PRIVATE key, and whoever serves it has lost it"
	case !bytes.HasPrefix(text, []byte(begin)):
		return "it does not begin with a PEM block"
	}
	return ""
}

func newPublicKey(key *rsa.PublicKey) (*PublicKey, error) {
	switch bits := key.N.BitLen(); {
	case bits < minKeyBits || bits > maxKeyBits:
		return nil, fmt.Errorf("%w: RSA of %d bits, want %d to %d", ErrPublicKey, bits, minKeyBits, maxKeyBits)
	case key.N.Bit(0) == 0:
		return nil, fmt.Errorf("%w: the modulus is even", ErrPublicKey)
	case key.E < minExponent || key.E&1 == 0 || int64(key.E) > 1<<31-1:
		return nil, fmt.Errorf("%w: exponent %d, want an odd one from %d to 2^31-1", ErrPublicKey, key.E, minExponent)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPublicKey, err)
	}
	sum := sha256.Sum256(der)
	public := &PublicKey{key: key, der: der, fingerprint: hex.EncodeToString(sum[:])}
	public.escaped = sync.OnceValue(func() string { return httpx.PercentEncode(public.PEM()) })
	return public, nil
}

// PEM is the key as a "PUBLIC KEY" block with lines of 64 characters and a final newline; nil for a key configuration. The
// caller owns the slice.
func (k *PublicKey) PEM() []byte {
	if k.key == nil {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: k.der})
}

// header is how the key stands in X-Public-Key.
func (k *PublicKey) header() string { return k.escaped() }

// Fingerprint is what [Pin] takes: 64 lower-case hex digits of SHA-256, over the DER SubjectPublicKeyInfo, or over the
// encoded key configuration. Of an RSA key in a PEM file: openssl pkey -pubin -in key.pem -outform DER | sha256sum
func (k *PublicKey) Fingerprint() string { return k.fingerprint }

// Bits is the size of the RSA modulus; 0 for a key configuration.
func (k *PublicKey) Bits() int {
	if k.key == nil {
		return 0
	}
	return k.key.N.BitLen()
}

// Equal reports whether both are the same key, whoever signs it. A nil key equals only nil.
func (k *PublicKey) Equal(other *PublicKey) bool {
	if k == nil || other == nil {
		return k == other
	}
	return bytes.Equal(k.der, other.der)
}

// String is the fingerprint.
func (k *PublicKey) String() string { return k.fingerprint }

// appendSealed encrypts plaintext, which it leaves as it is and does not copy, under a fresh AES-256 key and nonce, wraps
// that key for k, and appends the envelope to dst, which must not overlap plaintext. e says what else stands in the
// envelope; its Sealed and WrappedKey are overwritten, and of no use afterwards. All is written into one piece of memory,
// dst's if that has the room: the ciphertext at its end, from where it becomes base64 in place.
func (k *PublicKey) appendSealed(dst []byte, e *envelope.Envelope, plaintext []byte) ([]byte, error) {
	dst, err := k.sealInto(dst, e, plaintext)
	if err != nil {
		return nil, err
	}
	return envelope.Append(dst, e), nil
}

// sealInto encrypts for appendSealed: it sets e.WrappedKey, and e.Sealed to memory in the room that the returned dst has.
func (k *PublicKey) sealInto(dst []byte, e *envelope.Envelope, plaintext []byte) (_ []byte, err error) {
	e.WrappedKey = make([]byte, k.key.Size())
	dst = envelope.Reserve(dst, e, len(plaintext))
	erase.Do(func() { err = k.encrypt(e, plaintext) })
	return dst, err
}

// encrypt fills e.Sealed and e.WrappedKey, which have their lengths already.
func (k *PublicKey) encrypt(e *envelope.Envelope, plaintext []byte) error {
	dataKey := make([]byte, dataKeySize)
	defer clear(dataKey)
	_, _ = rand.Read(dataKey) // never fails: crypto/rand ends the process instead
	aead, err := newAEAD(dataKey)
	if err != nil {
		return err
	}
	defer erase.Wipe(aead)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, k.key, dataKey, nil)
	if err != nil {
		return fmt.Errorf("sealedchat: wrapping the key: %w", err)
	}
	copy(e.WrappedKey, wrapped)
	aead.Seal(e.Sealed[:0], nil, plaintext, nil)
	return nil
}

// newAEAD is AES-256-GCM over nonce ‖ ciphertext ‖ tag, with a random 96-bit nonce: the form that the FIPS 140 module
// seals in. One key seals one message here, so nonces never meet. The key schedule holds the key: the caller wipes it.
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

// envelopeError gives errors of the codec this package's sentinels.
func envelopeError(err error) error {
	var format *envelope.FormatError
	switch {
	case errors.Is(err, envelope.ErrTooLarge):
		return fmt.Errorf("%w: envelope", ErrTooLarge)
	case errors.As(err, &format):
		return fmt.Errorf("%w: %s: %s", ErrEnvelope, format.Field, format.Reason)
	default:
		return fmt.Errorf("%w: %w", ErrEnvelope, err)
	}
}
