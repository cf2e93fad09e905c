// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file has the signature under a store's list of configurations for Oblivious HTTP. crypto/ed25519 leaves on the heap
// what it makes of a private key, so a list is signed once a second at most.

// signatureLife is how long a signature says that it is good for.
const signatureLife = 24 * time.Hour

// signedKeys is a list with its signature.
type signedKeys struct {
	list    []byte
	created int64  // 0: none
	header  string // value of ohttp.HeaderSignature
}

// signList vouches for a list of configurations, in a header's form.
func (s *KeyStore) signList(list []byte, now time.Time) (string, error) {
	s.signing.Lock() // who comes meanwhile finds the signature
	defer s.signing.Unlock()
	created := now.Unix()
	s.mu.Lock()
	last, public := s.configs.signed, s.configs.public
	purged := s.configs.purged()
	s.mu.Unlock()
	if purged {
		return "", s.errClosed()
	}
	if last.created == created && bytes.Equal(last.list, list) {
		return last.header, nil
	}
	var header string
	if err := s.withSigner(func(key ed25519.PrivateKey) {
		header = ohttp.SignList(key, list, now, now.Add(signatureLife))
	}); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.configs.public, public) { // and the store is open
		s.configs.signed = signedKeys{slices.Clone(list), created, header}
	}
	return header, nil
}

// signerFingerprint is SHA-256 of the signer's public key.
func (s *KeyStore) signerFingerprint() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.configs.signer == nil || s.configs.purged() {
		return "", s.errClosed() // whoever asks has seen a list, so there was one
	}
	sum := sha256.Sum256(s.configs.public)
	return hex.EncodeToString(sum[:]), nil
}

// setSigner copies the seed of the key that signs, and knows its public half from then on.
func (c *configKeys) setSigner(seed []byte) {
	copy(c.signer, seed)
	key := ed25519.NewKeyFromSeed(seed)
	defer clear(key)
	c.public = bytes.Clone(key[ed25519.SeedSize:])
}

// withSigner lends f the key that signs.
func (s *KeyStore) withSigner(f func(ed25519.PrivateKey)) (err error) {
	defer s.sweeper.Soon()
	erase.Do(func() {
		s.mu.Lock()
		if s.configs.signer == nil || s.configs.purged() {
			s.mu.Unlock()
			err = s.errClosed()
			return
		}
		key := ed25519.NewKeyFromSeed(s.configs.signer)
		s.mu.Unlock()
		defer forget(key)
		f(key)
	})
	return err
}

// forget wipes a key that may have signed. crypto/ed25519 keeps what it made of a key for as long as the key's memory
// lives, and a collection more; with another key in the same place it lets go of that at once.
func forget(key ed25519.PrivateKey) {
	copy(key, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	_ = ed25519.Sign(key, nil)
}
