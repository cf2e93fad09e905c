// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package hybrid

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// MaxKeyText is the most bytes of a public key's PEM; an 8192-bit key has 1,500.
const MaxKeyText = 16 << 10

const (
	minKeyBits   = 2048
	maxKeyBits   = 8192
	minExponent  = 65537
	pemPublicKey = "PUBLIC KEY"
)

// PublicKey is an RSA key that envelopes are sealed to. It never changes, and is safe for
// concurrent use.
type PublicKey struct {
	key         *rsa.PublicKey
	der         []byte // SubjectPublicKeyInfo
	fingerprint string
	escaped     func() string // PEM, percent-encoded; made once
}

// ParsePublicKey reads the content of a PEM file (RFC 7468) with exactly one "PUBLIC KEY" block, a
// SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), and nothing except white space around it. The
// key is RSA, 2048 to 8192 bits, with an odd exponent of 65537 to 2³¹-1. Anything else is
// ErrPublicKey, or ErrTooLarge above MaxKeyText. text stays the caller's.
func ParsePublicKey(text []byte) (*PublicKey, error) {
	if len(text) > MaxKeyText {
		return nil, fmt.Errorf("%w: public key of %d bytes, limit %d",
			fault.ErrTooLarge, len(text), MaxKeyText)
	}
	text = bytes.TrimSpace(text)
	if hint := publicKeyHint(text); hint != "" {
		return nil, fmt.Errorf("%w: %s", fault.ErrPublicKey, hint)
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%w: no PEM block", fault.ErrPublicKey)
	case bytes.Count(text, []byte("-----BEGIN ")) != 1: // pem.Decode skips what it cannot read
		return nil, fmt.Errorf("%w: more than one PEM block", fault.ErrPublicKey)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, fmt.Errorf("%w: something follows the PEM block", fault.ErrPublicKey)
	case len(block.Headers) != 0:
		return nil, fmt.Errorf("%w: PEM headers", fault.ErrPublicKey)
	case block.Type != pemPublicKey:
		return nil, fmt.Errorf("%w: the PEM block is not a PUBLIC KEY", fault.ErrPublicKey)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: not a SubjectPublicKeyInfo", fault.ErrPublicKey)
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: the key is not RSA", fault.ErrPublicKey)
	}
	public, err := NewPublicKey(key)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(public.der, block.Bytes) { // one key has one fingerprint
		return nil, fmt.Errorf("%w: not in canonical DER", fault.ErrPublicKey)
	}
	return public, nil
}

// publicKeyHint names the usual mistakes. text has no white space around it.
func publicKeyHint(text []byte) string {
	const begin = "-----BEGIN "
	switch {
	case len(text) == 0:
		return "empty"
	case bytes.HasPrefix(text, []byte("\xef\xbb\xbf")):
		return "it begins with a byte order mark: save it as UTF-8 without one"
	case bytes.HasPrefix(text, []byte("\xff\xfe")), bytes.HasPrefix(text, []byte("\xfe\xff")):
		return "it is UTF-16 text: save it as UTF-8"
	case bytes.HasPrefix(text, []byte("{")), bytes.HasPrefix(text, []byte(`"`)):
		return "this is JSON; the endpoint must answer with the bare PEM text"
	case bytes.HasPrefix(text, []byte("<")):
		return "this is HTML or XML; is the base URL right?"
	case bytes.HasPrefix(text, []byte(begin+"CERTIFICATE")):
		return "this is a certificate; extract its key with: openssl x509 -pubkey -noout"
	case bytes.HasPrefix(text, []byte(begin+"RSA PUBLIC KEY")):
		return "this is PKCS#1; convert it with: openssl rsa -RSAPublicKey_in -pubout"
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return "this is a PRIVATE key; it has leaked: replace it at once"
	case !bytes.HasPrefix(text, []byte(begin)):
		return "it does not begin with a PEM block"
	}
	return ""
}

// NewPublicKey takes over an RSA key that keeps the limits that ParsePublicKey states.
func NewPublicKey(key *rsa.PublicKey) (*PublicKey, error) {
	switch bits := key.N.BitLen(); {
	case bits < minKeyBits || bits > maxKeyBits:
		return nil, fmt.Errorf("%w: RSA of %d bits, want %d to %d",
			fault.ErrPublicKey, bits, minKeyBits, maxKeyBits)
	case key.N.Bit(0) == 0:
		return nil, fmt.Errorf("%w: the modulus is even", fault.ErrPublicKey)
	case key.E < minExponent || key.E&1 == 0 || int64(key.E) > 1<<31-1:
		return nil, fmt.Errorf("%w: exponent %d, want an odd one from %d to 2^31-1",
			fault.ErrPublicKey, key.E, minExponent)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fault.ErrPublicKey, err)
	}
	public := &PublicKey{key: key, der: der, fingerprint: HexFingerprint(sha256.Sum256(der))}
	public.escaped = sync.OnceValue(func() string { return PercentEncode(public.PEM()) })
	return public, nil
}

// PEM is the key as a "PUBLIC KEY" block with lines of 64 characters and a final newline. The
// caller owns the slice.
func (k *PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: k.der})
}

// DER is the SubjectPublicKeyInfo, which nobody may change.
func (k *PublicKey) DER() []byte { return k.der }

// Header is the key in the form of HeaderPublicKey.
func (k *PublicKey) Header() string { return k.escaped() }

// Fingerprint is the SHA-256 of DER: 64 lower-case hex digits.
func (k *PublicKey) Fingerprint() string { return k.fingerprint }

// Bits is the size of the modulus.
func (k *PublicKey) Bits() int { return k.key.N.BitLen() }

// Size is the length of a wrapped key in bytes.
func (k *PublicKey) Size() int { return k.key.Size() }

// AppendSealed encrypts plaintext, which it leaves as it is and does not copy, under a fresh
// AES-256 key and nonce, wraps that key for k, and appends the envelope to dst, which must not
// overlap plaintext. e says what else stands in the envelope; its Sealed and WrappedKey are
// overwritten, and of no use afterwards. The result is written into one piece of memory, dst's if
// it is large enough: the ciphertext at its end, from where it becomes base64 in place.
func (k *PublicKey) AppendSealed(
	dst []byte, e *envelope.Envelope, plaintext []byte,
) ([]byte, error) {
	dst, err := k.Seal(dst, e, plaintext)
	if err != nil {
		return nil, err
	}
	return envelope.Append(dst, e), nil
}

// Seal encrypts for AppendSealed: it sets e.WrappedKey, and e.Sealed to memory within the capacity
// of the dst that it returns.
func (k *PublicKey) Seal(dst []byte, e *envelope.Envelope, plaintext []byte) (_ []byte, err error) {
	e.WrappedKey = make([]byte, k.Size())
	dst = envelope.Reserve(dst, e, len(plaintext))
	erase.Do(func() { err = k.encrypt(e, plaintext) })
	return dst, err
}

// encrypt fills e.Sealed and e.WrappedKey, which have their lengths already.
func (k *PublicKey) encrypt(e *envelope.Envelope, plaintext []byte) error {
	dataKey := make([]byte, DataKeySize)
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

// PercentEncode escapes everything except letters, digits and "-_.~".
func PercentEncode(b []byte) string {
	return strings.ReplaceAll(url.QueryEscape(string(b)), "+", "%20")
}
