// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/erase"
)

// PrivateKey is a key of a gateway, with the configuration that the gateway publishes. It is safe
// for concurrent use.
//
// Invariant: key and seed are set until Close, and nil after it. mu is held for reading while the
// key works, and for writing while it is moved or wiped.
type PrivateKey struct {
	config *Config // with the AEAD that clients prefer
	also   *Config // the same with AES-128-GCM, if it offers both; otherwise nil

	mu   sync.RWMutex // guards key and seed
	key  hpke.PrivateKey
	seed []byte
}

// Supported reports whether this process can have keys of a KEM. Where FIPS 140 is enforced, it
// cannot have keys of X25519.
func Supported(kemID uint16) bool { return kemByID(kemID) != nil }

// NewSeed draws the 32 bytes of a new key for XWing or X25519. The caller wipes them. The error for
// another KEM is ErrNoSuite.
func NewSeed(kemID uint16) ([]byte, error) {
	k := kemByID(kemID)
	if k == nil {
		return nil, ErrNoSuite
	}
	seed := make([]byte, k.seed)
	_, _ = rand.Read(seed)
	if kemID == X25519 { // as Seed returns it (RFC 9180, section 7.1.2)
		seed[0] &= 248
		seed[31] = seed[31]&127 | 64
	}
	return seed, nil
}

// GenerateKey makes a key from a new seed. The error for another KEM than XWing and X25519 is
// ErrNoSuite.
func GenerateKey(id uint8, kemID uint16) (*PrivateKey, error) {
	seed, err := NewSeed(kemID)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	return NewPrivateKey(id, kemID, seed)
}

// NewPrivateKey makes the key of a seed that NewSeed or Seed returned. The caller keeps seed, and
// wipes it.
func NewPrivateKey(id uint8, kemID uint16, seed []byte) (*PrivateKey, error) {
	return privateKey(id, kemID, seed, aes256)
}

// NewPrivateKeyAES128 is NewPrivateKey for a configuration that offers AES-128-GCM beside
// AES-256-GCM.
func NewPrivateKeyAES128(id uint8, kemID uint16, seed []byte) (*PrivateKey, error) {
	return privateKey(id, kemID, seed, aes256, aes128)
}

func privateKey(id uint8, kemID uint16, seed []byte, offer ...*aead) (*PrivateKey, error) {
	k := kemByID(kemID)
	if k == nil {
		return nil, ErrNoSuite
	}
	key, err := k.new().NewPrivateKey(seed)
	if err != nil {
		return nil, err
	}
	return newPrivateKey(id, k, key, offer)
}

// newPrivateKey wraps a key of crypto/hpke and encodes its configuration, which offers one AEAD or
// both, the preferred one first.
func newPrivateKey(id uint8, k *kem, key hpke.PrivateKey, offer []*aead) (*PrivateKey, error) {
	seed, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	c := &Config{id: id, kem: k, aead: offer[0]}
	e := binary.BigEndian.AppendUint16([]byte{id}, k.id)
	e = append(e, key.PublicKey().Bytes()...)
	e = binary.BigEndian.AppendUint16(e, uint16(4*len(offer)))
	for _, a := range offer {
		e = binary.BigEndian.AppendUint16(e, kdfHKDFSHA256)
		e = binary.BigEndian.AppendUint16(e, a.id)
	}
	c.encoded = e
	// The configuration has a public key of its own, because Close wipes the private key's.
	if c.public, err = k.new().NewPublicKey(key.PublicKey().Bytes()); err != nil {
		return nil, err
	}
	private := &PrivateKey{config: c, key: key, seed: seed}
	if len(offer) > 1 {
		also := *c
		also.aead = offer[1]
		private.also = &also
	}
	return private, nil
}

// OffersAES128 reports whether the configuration offers AES-128-GCM beside AES-256-GCM.
func (k *PrivateKey) OffersAES128() bool { return k.also != nil }

// configOf returns the configuration with the AEAD of a request with this header, or nil if it does
// not offer that.
func (k *PrivateKey) configOf(header []byte) *Config {
	for _, c := range []*Config{k.config, k.also} {
		if c != nil && string(c.header()) == string(header) {
			return c
		}
	}
	return nil
}

// Config returns the public configuration of the key. It stays usable after Close.
func (k *PrivateKey) Config() *Config { return k.config }

// Seed returns the 32 bytes from which NewPrivateKey makes this key again. The caller wipes them.
// It is nil after Close.
func (k *PrivateKey) Seed() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return bytes.Clone(k.seed)
}

// Close waits for requests that are being opened, and wipes the seed and the numbers that
// crypto/hpke derived from it. It cannot reach garbage that the work of the key left on the heap.
// It is idempotent.
func (k *PrivateKey) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	wipe(k.key)
	clear(k.seed)
	k.key, k.seed = nil, nil
}

// recipient sets up the HPKE context of a request and exports the secret for its answer. a is what
// the header names. The error after Close is ErrUnknownKey.
func (k *PrivateKey) recipient(a *aead, enc, header []byte, l labels) (r *hpke.Recipient,
	secret []byte, err error) {
	erase.Do(func() { r, secret, err = k.decapsulate(a, enc, header, l) })
	return r, secret, err
}

// decapsulate does the work of recipient, under the lock.
func (k *PrivateKey) decapsulate(a *aead, enc, header []byte, l labels) (*hpke.Recipient, []byte,
	error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.key == nil {
		return nil, nil, ErrUnknownKey
	}
	r, err := hpke.NewRecipient(enc, k.key, hpke.HKDFSHA256(), a.new(), l.info(header))
	if err != nil {
		return nil, nil, ErrDecryption
	}
	secret, err := r.Export(l.response, a.key)
	if err != nil {
		wipe(r)
		return nil, nil, err
	}
	return r, secret, nil
}
