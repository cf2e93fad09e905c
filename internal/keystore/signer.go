// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// signatureLife is how long a signature says that it is good for.
const signatureLife = 24 * time.Hour

// signer is the Ed25519 key that signs the list of configurations. The zero signer is none.
// Store.mu guards it. It is made with the first configurations, and never replaced.
type signer struct {
	seed   *locked.Buffer
	public ed25519.PublicKey
	last   signedList
}

// signedList is a list with its signature.
type signedList struct {
	list    []byte
	created int64  // in Unix seconds; 0: none
	header  string // value of ohttp.HeaderSignature
}

// newSigner copies a seed into memory under the policy, and knows its public half from then on.
func newSigner(policy locked.Policy, seed []byte) (signer, error) {
	at, err := locked.NewResting(policy, seedSize)
	if err != nil {
		return signer{}, err
	}
	made := signer{seed: at}
	erase.Do(func() {
		copy(at.Bytes(), seed)
		key := ed25519.NewKeyFromSeed(seed)
		defer clear(key)
		made.public = bytes.Clone(key[ed25519.SeedSize:])
	})
	return made, nil
}

func (k *signer) isThere() bool { return k.seed != nil }

// isPurged reports that the program has had memguard destroy its buffers, this one with them.
func (k *signer) isPurged() bool { return k.seed != nil && k.seed.Bytes() == nil }

// is reports whether k can be used and has this seed.
func (k *signer) is(seed []byte) bool {
	return k.isThere() && !k.isPurged() && subtle.ConstantTimeCompare(k.seed.Bytes(), seed) == 1
}

func (k *signer) fingerprint() string { return hybrid.HexFingerprint(sha256.Sum256(k.public)) }

func (k *signer) wipe() {
	if k.seed != nil {
		k.seed.Destroy()
	}
	*k = signer{}
}

// Signer is the fingerprint of the signer's public key. A store has one once it has configurations.
func (s *Store) Signer() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.signer.isThere() || s.signer.isPurged() {
		return "", s.errClosed() // the caller has seen a list, so there was one
	}
	return s.signer.fingerprint(), nil
}

// SignList signs a list of configurations, in the form of ohttp.HeaderSignature. crypto/ed25519
// leaves on the heap values that it derives from a private key, so a list is signed once a second
// at most.
func (s *Store) SignList(list []byte, now time.Time) (string, error) {
	s.signing.Lock() // a caller that comes meanwhile finds the signature
	defer s.signing.Unlock()
	s.mu.Lock()
	last, public := s.signer.last, s.signer.public
	purged := s.signer.isPurged()
	s.mu.Unlock()
	if purged {
		return "", s.errClosed()
	}
	if last.created == now.Unix() && bytes.Equal(last.list, list) {
		return last.header, nil
	}
	var header string
	err := s.withSigner(func(key ed25519.PrivateKey) {
		header = ohttp.SignList(key, list, now, now.Add(signatureLife))
	})
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.signer.public, public) { // and the store is open
		s.signer.last = signedList{slices.Clone(list), now.Unix(), header}
	}
	return header, nil
}

// withSigner lends f the key that signs.
func (s *Store) withSigner(f func(ed25519.PrivateKey)) (err error) {
	defer s.sweeper.Soon()
	erase.Do(func() {
		s.mu.Lock()
		if !s.signer.isThere() || s.signer.isPurged() {
			s.mu.Unlock()
			err = s.errClosed()
			return
		}
		key := ed25519.NewKeyFromSeed(s.signer.seed.Bytes())
		s.mu.Unlock()
		defer forget(key)
		f(key)
	})
	return err
}

// forget wipes a key that may have signed. crypto/ed25519 keeps values that it derived from a key
// for as long as the key's memory lives, and a collection more; with another key in the same place
// it drops them at once.
func forget(key ed25519.PrivateKey) {
	copy(key, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	_ = ed25519.Sign(key, nil)
}
