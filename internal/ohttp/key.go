// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"sync"
)

// PrivateKey is a gateway's key with the configuration that it publishes. It is safe for concurrent use.
type PrivateKey struct {
	config *Config

	mu   sync.RWMutex // held for reading while the key works, for writing while it is wiped
	key  hpke.PrivateKey
	seed []byte
}

// GenerateKey makes a key for XWing or X25519. Another KEM is ErrNoSuite.
func GenerateKey(id uint8, kemID uint16) (*PrivateKey, error) {
	k := kemByID(kemID)
	if k == nil {
		return nil, ErrNoSuite
	}
	key, err := k.new().GenerateKey()
	if err != nil {
		return nil, err
	}
	return newPrivateKey(id, k, aes256, key)
}

// NewPrivateKey makes the key of a seed that Seed returned. It wipes nothing: seed stays the caller's.
func NewPrivateKey(id uint8, kemID uint16, seed []byte) (*PrivateKey, error) {
	return privateKey(id, kemID, aes256, seed)
}

func privateKey(id uint8, kemID uint16, a *aead, seed []byte) (*PrivateKey, error) {
	k := kemByID(kemID)
	if k == nil {
		return nil, ErrNoSuite
	}
	key, err := k.new().NewPrivateKey(seed)
	if err != nil {
		return nil, err
	}
	return newPrivateKey(id, k, a, key)
}

func newPrivateKey(id uint8, k *kem, a *aead, key hpke.PrivateKey) (*PrivateKey, error) {
	seed, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	c := &Config{id: id, kem: k, aead: a}
	e := binary.BigEndian.AppendUint16([]byte{id}, k.id)
	e = append(e, key.PublicKey().Bytes()...)
	e = binary.BigEndian.AppendUint16(e, 4)
	e = binary.BigEndian.AppendUint16(e, kdfHKDFSHA256)
	c.encoded = binary.BigEndian.AppendUint16(e, a.id)
	// A public key of its own: the private key's is wiped with it.
	if c.public, err = k.new().NewPublicKey(key.PublicKey().Bytes()); err != nil {
		return nil, err
	}
	return &PrivateKey{config: c, key: key, seed: seed}, nil
}

// Config is the key's public configuration. It outlives Close.
func (k *PrivateKey) Config() *Config { return k.config }

// Seed returns the 32 bytes from which NewPrivateKey makes this key again. The caller wipes them. It is nil after Close.
func (k *PrivateKey) Seed() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return bytes.Clone(k.seed)
}

// Close waits for requests that are being opened, and wipes the key: the seed, and what crypto/hpke made of it. Garbage that
// the key's work left on the heap is out of reach. Close is idempotent.
func (k *PrivateKey) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	wipe(k.key)
	clear(k.seed)
	k.key, k.seed = nil, nil
}

// recipient sets up the HPKE context of a request. After Close it is ErrUnknownKey.
func (k *PrivateKey) recipient(enc, info []byte) (*hpke.Recipient, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.key == nil {
		return nil, ErrUnknownKey
	}
	r, err := hpke.NewRecipient(enc, k.key, hpke.HKDFSHA256(), k.config.aead.new(), info)
	if err != nil {
		return nil, ErrDecryption
	}
	return r, nil
}
