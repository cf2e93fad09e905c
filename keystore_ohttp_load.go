// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file makes working keys for Oblivious HTTP of what a key store's body says, as keystore_load.go does with RSA keys.

// prepareConfigs makes b's keys ready to be taken over: those that are in use stay what they are, the others are made.
func (s *KeyStore) prepareConfigs(b *keyfile.Body) error {
	if s.prepared.configs.says(b) {
		return nil
	}
	old := s.configKeysInUse()
	s.prepared.configs.wipe(old)
	if b.Signer == nil {
		return nil
	}
	at, err := locked.NewResting(s.policy.internal(), seedSize*(1+len(b.ConfigKeys)))
	if err != nil {
		return err
	}
	room := at.Bytes()
	if room == nil {
		return s.errClosed() // the program has purged memguard's memory this very moment
	}
	now := configKeys{at: at, signer: room[:seedSize:seedSize]}
	erase.Do(func() { now.setSigner(b.Signer) })
	for _, c := range b.ConfigKeys {
		room = room[seedSize:]
		key := &configKey{created: c.Created, retired: c.Retired, seed: room[:seedSize:seedSize]}
		if i := slices.IndexFunc(old, func(k *configKey) bool { return !k.purged() && k.is(c) }); i >= 0 {
			key.PrivateKey, key.memory = old[i].PrivateKey, old[i].memory
		} else if err := s.loadConfig(key, c); errors.Is(err, ohttp.ErrNoSuite) {
			now.others++
			continue
		} else if err != nil {
			now.wipe(old)
			return err
		}
		erase.Do(func() { copy(key.seed, c.Seed) })
		now.keys = append(now.keys, key)
	}
	s.prepared.configs = now
	return nil
}

// configKeysInUse are those that can be: none where the program has purged memguard's memory. The caller is the only one
// who changes the store.
func (s *KeyStore) configKeysInUse() []*configKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.configs.purged() {
		return nil
	}
	return s.configs.keys
}

// says reports whether the keys are those of b.
func (c *configKeys) says(b *keyfile.Body) bool {
	if c.purged() || subtle.ConstantTimeCompare(c.signer, b.Signer) != 1 {
		return false
	}
	same := 0
	for _, k := range b.ConfigKeys {
		if same < len(c.keys) && c.keys[same].is(k) {
			same++
		}
	}
	return same == len(c.keys) && same+c.others == len(b.ConfigKeys)
}

// takeOverConfigs makes memory say what b says, which was prepared. Keys that are gone are wiped when the last request that
// is being opened is through. s.mu is held.
func (s *KeyStore) takeOverConfigs() {
	before := s.configs
	s.configs, s.prepared.configs = s.prepared.configs, configKeys{}
	before.wipe(s.configs.keys)
}

// loadConfig makes a key that works, what can be of it in protected memory.
func (s *KeyStore) loadConfig(k *configKey, c keyfile.ConfigKey) (err error) {
	defer s.sweeper.Soon()
	erase.Do(func() { k.PrivateKey, err = ohttp.NewPrivateKey(c.ID, c.KEM, c.Seed) })
	if errors.Is(err, ohttp.ErrNoSuite) {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: a configuration key", ErrKeyStoreDamaged)
	}
	if k.memory, err = locked.NewResting(s.policy.internal(), ohttp.SecretSize); err != nil {
		k.Close()
		return err
	}
	erase.Do(func() { err = s.moveConfig(k.PrivateKey, k.memory.Bytes()) })
	if err != nil && s.policy == MemoryRequired {
		k.wipe()
		return fmt.Errorf("%w: %w", ErrMemoryLimit, err)
	} else if err != nil {
		s.log.Warn("a private key stays in ordinary memory", "key_id", c.ID, "error", err)
		k.memory.Destroy()
		k.memory = elsewhere(ohttp.SecretSize)
	}
	return nil
}
