// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file makes working keys, in locked memory, of the keys that a body has. That can fail, and
// takes time: it is done before anything is written or taken over, and without the store's mutex.

// preparedKeys wait to be taken over. They belong to the goroutine that changes the store.
type preparedKeys struct {
	keys       map[string]*Key // by fingerprint; each has the store as its user
	signer     signer
	dataKeysAt *locked.Buffer
	dataKeys   int // how many fit there
}

// prepare makes all of body's keys that are not in use yet, and returns those that can be used.
func (s *Store) prepare(body *keyfile.Body) ([]record, error) {
	keys, err := records(body)
	if err != nil {
		return nil, err
	}
	p := &s.prepared
	if p.keys == nil {
		p.keys = make(map[string]*Key)
	}
	for _, r := range keys {
		s.mu.Lock()
		known := s.usable(r.fingerprint)
		s.mu.Unlock()
		if known != nil || p.keys[r.fingerprint] != nil {
			continue
		}
		k := &Key{fingerprint: r.fingerprint, users: 1}
		if r.rsa != nil {
			err = s.loadRSA(k, r.rsa)
		} else {
			err = s.loadConfig(k, r.config)
		}
		if err != nil {
			return nil, err
		}
		p.keys[r.fingerprint] = k
	}
	if err := s.prepareSigner(body.Signer); err != nil {
		return nil, err
	}
	return keys, s.prepareDataKeys(len(body.DataKeys))
}

// prepareSigner makes the signer of a seed, unless it is in use or prepared already.
func (s *Store) prepareSigner(seed []byte) error {
	p := &s.prepared
	s.mu.Lock()
	known := s.signer.is(seed)
	s.mu.Unlock()
	if seed == nil || known || p.signer.is(seed) {
		return nil
	}
	p.signer.wipe()
	made, err := newSigner(s.policy, seed)
	if err != nil {
		return err
	}
	if made.isPurged() {
		made.wipe()
		return s.errClosed() // the program has purged memguard's memory this very moment
	}
	p.signer = made
	return nil
}

func (s *Store) prepareDataKeys(n int) error {
	p := &s.prepared
	if p.dataKeysAt != nil && p.dataKeys == n {
		return nil
	}
	at, err := locked.NewResting(s.policy, n*hybrid.DataKeySize)
	if err != nil {
		return err
	}
	if p.dataKeysAt != nil {
		p.dataKeysAt.Destroy()
	}
	p.dataKeysAt, p.dataKeys = at, n
	return nil
}

// wipePrepared wipes what was prepared and not taken over.
func (s *Store) wipePrepared() {
	for _, k := range s.prepared.keys {
		k.wipe()
	}
	s.prepared.signer.wipe()
	if s.prepared.dataKeysAt != nil {
		s.prepared.dataKeysAt.Destroy()
	}
	s.prepared = preparedKeys{}
}

// loadRSA makes an RSA key that works, in protected memory where that is possible.
func (s *Store) loadRSA(k *Key, from *keyfile.RSAKey) error {
	defer s.sweeper.Soon()
	private, err := from.PrivateKey()
	if err != nil {
		return storeError(err)
	}
	if k.RSA, err = hybrid.NewPrivateKey(private); err != nil {
		erase.Wipe(private)
		return storeError(err)
	}
	if err := s.protect(k.RSA); err != nil {
		k.RSA.Wipe()
		return err
	}
	return nil
}

// protect moves a key into protected memory. A key that has to stay where it is, and may, counts as
// not locked.
func (s *Store) protect(k *hybrid.PrivateKey) error {
	err := k.Protect(s.policy)
	switch {
	case err != nil && s.policy != locked.Required:
		s.log.Warn("a private key stays in ordinary memory",
			"fingerprint", k.Public().Fingerprint(), "error", err)
	case errors.Is(err, hybrid.ErrKeyShape) || errors.Is(err, hybrid.ErrKeyTest):
		return fmt.Errorf("%w: %w", fault.ErrMemoryLimit, err)
	case err != nil:
		return err
	}
	k.CountUnlocked()
	return nil
}

// loadConfig makes the key of a configuration, as much of it in protected memory as crypto/hpke can
// do without.
func (s *Store) loadConfig(k *Key, c *keyfile.ConfigKey) (err error) {
	defer s.sweeper.Soon()
	if k.OHTTP, err = newConfig(c); err != nil {
		return err
	}
	if k.memory, err = locked.NewResting(s.policy, ohttp.SecretSize); err != nil {
		k.OHTTP.Close()
		return err
	}
	erase.Do(func() { err = s.moveConfig(k.OHTTP, k.memory.Bytes()) })
	switch {
	case err != nil && s.policy == locked.Required:
		k.wipe()
		return fmt.Errorf("%w: %w", fault.ErrMemoryLimit, err)
	case err != nil:
		s.log.Warn("a private key stays in ordinary memory", "key_id", c.ID, "error", err)
		k.memory.Destroy()
		// So that the account has it; it never fails.
		k.memory, _ = locked.NewWith(locked.Off, ohttp.SecretSize)
	}
	return nil
}

func (s *Store) takeOverDataKeys(keys []keyfile.DataKey, at *locked.Buffer) {
	s.dropDataKeys()
	s.dataKeysAt = at
	to := at.Bytes()
	if len(to) < len(keys)*hybrid.DataKeySize {
		return // the program has purged memguard's memory; Seal and Open say so
	}
	erase.Do(func() {
		for i, k := range keys {
			key := to[i*hybrid.DataKeySize : (i+1)*hybrid.DataKeySize]
			copy(key, k.Key)
			s.dataKeys = append(s.dataKeys, dataKey{generation: k.Generation, key: key})
		}
	})
}

// dropDataKeys wipes the data keys. s.mu is held.
func (s *Store) dropDataKeys() {
	if s.dataKeysAt != nil {
		s.dataKeysAt.Destroy()
		s.dataKeys, s.dataKeysAt = nil, nil
	}
}

// options are what package keyfile has to know of the store.
func (s *Store) options() []keyfile.Option {
	o := slices.Clone(s.kdf)
	switch s.policy {
	case locked.Required:
		o = append(o, keyfile.RequireLock)
	case locked.Off:
		o = append(o, keyfile.WithoutLock)
	}
	return o
}
