// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// This file makes working keys, in locked memory, of what a key store's body says. That can fail, and takes time: it is
// done before anything is written or taken over, and without the store's mutex.

// preparedKeys wait to be taken over. Whoever changes the store has them.
type preparedKeys struct {
	keys       map[string]*hybrid.PrivateKey // by fingerprint
	dataKeysAt *locked.Buffer
	dataKeys   int
	configs    configKeys
}

// prepare makes all of body's keys that are not in use yet.
func (s *KeyStore) prepare(body *keyfile.Body) error {
	p := &s.prepared
	if p.keys == nil {
		p.keys = make(map[string]*hybrid.PrivateKey)
	}
	s.mu.Lock()
	known := make(map[string]bool)
	for _, k := range s.keys {
		known[k.Public().Fingerprint()] = true
	}
	s.mu.Unlock()
	for _, e := range body.Keys {
		fingerprint := hexFingerprint(e.Key)
		if !inUse(e.State) || known[fingerprint] || p.keys[fingerprint] != nil {
			continue
		}
		k, err := s.loadKey(e.Key)
		if err != nil {
			return err
		}
		p.keys[fingerprint] = k
	}
	if err := s.prepareConfigs(body); err != nil {
		return err
	}
	if p.dataKeysAt != nil && p.dataKeys == len(body.DataKeys) {
		return nil
	}
	at, err := locked.NewResting(s.policy.internal(), len(body.DataKeys)*hybrid.DataKeySize)
	if err != nil {
		return err
	}
	if p.dataKeysAt != nil {
		p.dataKeysAt.Destroy()
	}
	p.dataKeysAt, p.dataKeys = at, len(body.DataKeys)
	return nil
}

// inUse is false for states that nothing here makes.
func inUse(s keyfile.State) bool { return s == keyfile.Primary || s == keyfile.Retired }

// dropPrepared wipes what was prepared and not taken over.
func (s *KeyStore) dropPrepared() {
	for _, k := range s.prepared.keys {
		k.Wipe()
	}
	if s.prepared.dataKeysAt != nil {
		s.prepared.dataKeysAt.Destroy()
	}
	s.prepared.configs.wipe(s.configKeysInUse())
	s.prepared = preparedKeys{}
}

// loadKey makes a key that works, in protected memory where that is possible.
func (s *KeyStore) loadKey(from *keyfile.RSAKey) (*hybrid.PrivateKey, error) {
	defer s.sweeper.Soon()
	private, err := from.PrivateKey()
	if err != nil {
		return nil, keyStoreError(err)
	}
	k, err := hybrid.NewPrivateKey(private)
	if err != nil {
		erase.Wipe(private)
		return nil, keyStoreError(err)
	}
	if err := s.protect(k); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// protect moves a key into protected memory. One that has to stay where it is, and may, counts as not locked.
func (s *KeyStore) protect(k *hybrid.PrivateKey) error {
	err := k.Protect(s.policy.internal())
	switch {
	case err != nil && s.policy != MemoryRequired:
		s.log.Warn("a private key stays in ordinary memory", "fingerprint", k.Public().Fingerprint(), slog.Any("error", err))
	case errors.Is(err, hybrid.ErrKeyShape) || errors.Is(err, hybrid.ErrKeyTest):
		return fmt.Errorf("%w: %w", ErrMemoryLimit, err)
	case err != nil:
		return err
	}
	k.CountUnlocked()
	return nil
}

// elsewhere stands for n bytes of a key that lie in ordinary memory, so that MemoryReport knows of them. It never fails.
func elsewhere(n int) *locked.Buffer {
	b, _ := locked.NewWith(locked.Off, n)
	return b
}

func (s *KeyStore) takeOverDataKeys(keys []keyfile.DataKey, at *locked.Buffer) {
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
			s.dataKeys = append(s.dataKeys, heldDataKey{generation: k.Generation, key: key})
		}
	})
}

// dropDataKeys wipes the data keys. s.mu is held.
func (s *KeyStore) dropDataKeys() {
	if s.dataKeysAt != nil {
		s.dataKeysAt.Destroy()
		s.dataKeys, s.dataKeysAt = nil, nil
	}
}

// options are what package keyfile has to know of the store.
func (s *KeyStore) options() []keyfile.Option {
	o := slices.Clone(s.kdf)
	switch s.policy {
	case MemoryRequired:
		o = append(o, keyfile.RequireLock)
	case MemoryOff:
		o = append(o, keyfile.WithoutLock)
	}
	return o
}
