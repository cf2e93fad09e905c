// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file has a store's keys for Oblivious HTTP: of each KEM one that is listed, others that still open requests, and
// the Ed25519 key that vouches for the list. They are made when a gateway first needs them, live in the same file as the RSA
// keys, and are replaced together with them.

// configKEMs are those for which a store has keys, the preferred one first.
var configKEMs = []uint16{ohttp.XWing, ohttp.X25519}

// configKeys is what a store holds of them. KeyStore.mu guards it.
type configKeys struct {
	keys   []*configKey   // in the order of their making
	others int            // of KEMs of a later version, or that FIPS 140 rules out here: they stay in the file
	signer []byte         // seed of an Ed25519 key; nil if there is none
	at     *locked.Buffer // where the seeds lie
	public ed25519.PublicKey
	signed signedKeys // the last list that was signed
}

type configKey struct {
	*ohttp.PrivateKey
	memory           *locked.Buffer // where as much of it lies as crypto/hpke lets go
	seed             []byte
	created, retired time.Time
}

// wipe clears the key. What memguard has destroyed is cleared, and cannot be written any more.
func (k *configKey) wipe() {
	if !k.purged() {
		k.Close()
	}
	k.memory.Destroy()
}

// purged reports that the program has had memguard destroy its buffers, these with them.
func (k *configKey) purged() bool { return k.memory.Bytes() == nil }

func (c *configKeys) purged() bool { return c.at != nil && c.at.Bytes() == nil }

const seedSize = 32

func (k *configKey) is(c keyfile.ConfigKey) bool {
	return k.Config().ID() == c.ID && k.Config().KEM() == c.KEM && subtle.ConstantTimeCompare(k.seed, c.Seed) == 1
}

// KeyConfig describes a key that requests of the second protocol are sealed to: a key configuration (RFC 9458, section 3).
type KeyConfig struct {
	ID          uint8  // in the list, and in each request
	KEM         string // "X-Wing" or "X25519"
	Fingerprint string // SHA-256 of the configuration, 64 hex digits: what clients pin
	Created     time.Time
	Retired     time.Time // when it ceased to be listed; zero for one that is
}

func kemName(id uint16) string {
	switch id {
	case ohttp.XWing:
		return "X-Wing"
	case ohttp.X25519:
		return "X25519"
	}
	return fmt.Sprintf("%#04x", id)
}

// configKey is the key of an id and KEM that opens requests now, or nil. What its use leaves is collected soon.
func (s *KeyStore) configKey(id uint8, kem uint16) *ohttp.PrivateKey {
	defer s.sweeper.Soon()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, k := range s.configs.keys {
		if k.Config().ID() == id && k.Config().KEM() == kem && !k.purged() && !s.configExpired(k.retired, now) {
			return k.PrivateKey
		}
	}
	return nil
}

func (s *KeyStore) configExpired(retired, now time.Time) bool {
	return !retired.IsZero() && over(retired, s.rotation.Grace, now)
}

// listed are the configurations that clients are to use, in the order of a list.
func (s *KeyStore) listed() (configs []*ohttp.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kem := range configKEMs {
		for _, k := range slices.Backward(s.configs.keys) {
			if k.retired.IsZero() && k.Config().KEM() == kem {
				configs = append(configs, k.Config())
			}
		}
	}
	return configs
}

// configList returns the configurations to list, made now if there are none yet.
func (s *KeyStore) configList(ctx context.Context) ([]*ohttp.Config, error) {
	s.look(ctx)
	for range 2 {
		s.mu.Lock()
		closed := s.closed || s.configs.purged()
		s.mu.Unlock()
		if closed {
			return nil, s.errClosed()
		}
		if configs := s.listed(); len(configs) > 0 {
			return configs, nil
		}
		err := s.change(ctx, func(b *keyfile.Body) error {
			if slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool { return c.Retired.IsZero() && ohttp.Supported(c.KEM) }) {
				return errNoChange // another process was first
			}
			return makeConfigs(b, time.Now())
		})
		if err != nil && !unconfirmed(err) {
			return nil, err
		}
		if err := s.refresh(ctx); err != nil {
			return nil, err
		}
		s.startWorker()
		s.rotator.nudge() // there is another time to wait for now
	}
	if configs := s.listed(); len(configs) > 0 {
		return configs, nil
	}
	return nil, errNoConfigs
}

var errNoConfigs = errors.New("sealedchat: the key store has no key configuration that is supported here")

// look takes over, once a second at most, what another process may have made of the file. If it cannot, what is known holds,
// and the background reports it.
func (s *KeyStore) look(ctx context.Context) {
	if s.dir == nil {
		return
	}
	now := int64(time.Since(s.rotator.since))
	if last := s.rotator.looked.Load(); now-last >= int64(lookEvery) && s.rotator.looked.CompareAndSwap(last, now) && s.refresh(ctx) != nil {
		s.rotator.nudge()
	}
}

// keyConfigs describes the keys, those that are listed first.
func (s *KeyStore) keyConfigs() (list []KeyConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kem := range configKEMs {
		for _, k := range slices.Backward(s.configs.keys) {
			if k.Config().KEM() == kem {
				sum := k.Config().Fingerprint()
				list = append(list, KeyConfig{
					ID: k.Config().ID(), KEM: kemName(kem), Fingerprint: hex.EncodeToString(sum[:]), Created: k.created, Retired: k.retired,
				})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b KeyConfig) int {
		switch {
		case a.Retired.IsZero() == b.Retired.IsZero():
			return 0
		case a.Retired.IsZero():
			return -1
		}
		return 1
	})
	return list
}

// configListed is the state of a listed configuration among the states of RSA keys, none of which has it.
const configListed = keyfile.Next

// addConfigStates adds the configurations of b by their fingerprints.
func addConfigStates(states keyStates, b *keyfile.Body) {
	erase.Do(func() { states.addConfigs(b) })
}

func (k keyStates) addConfigs(b *keyfile.Body) {
	for _, c := range b.ConfigKeys {
		key, err := ohttp.NewPrivateKey(c.ID, c.KEM, c.Seed)
		if err != nil {
			continue // of a KEM that is not known here
		}
		fp := key.Config().Fingerprint()
		key.Close()
		state := configListed
		if !c.Retired.IsZero() {
			state = keyfile.Retired
		}
		k[hex.EncodeToString(fp[:])] = state
	}
}

// replaceConfigs retires the keys that are listed and makes new ones, if there are any: what a rotation does.
func (s *KeyStore) replaceConfigs(b *keyfile.Body, now time.Time) error {
	if len(b.ConfigKeys) == 0 {
		return nil
	}
	for i := range b.ConfigKeys {
		if b.ConfigKeys[i].Retired.IsZero() {
			b.ConfigKeys[i].Retired = now
		}
	}
	s.dropExpiredConfigs(b, now)
	return makeConfigs(b, now)
}

// makeConfigs adds one key for each KEM, and the signer if there is none: their seeds, which b owns.
func makeConfigs(b *keyfile.Body, now time.Time) error {
	now = now.Round(0) // wall time, as in promote
	if b.Signer == nil {
		b.Signer = make([]byte, ed25519.SeedSize)
		_, _ = rand.Read(b.Signer)
	}
	for _, kem := range configKEMs {
		id, err := freeKeyID(b)
		if err != nil {
			return err
		}
		seed, err := ohttp.NewSeed(kem)
		if err != nil {
			continue // X25519, where FIPS 140 rules it out
		}
		b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{ID: id, KEM: kem, Seed: seed, Created: now})
	}
	return nil
}

// freeKeyID is the next id after the one that was given last, so that one that was in use lately does not come back soon.
func freeKeyID(b *keyfile.Body) (uint8, error) {
	if len(b.ConfigKeys) >= mostKeys {
		return 0, fmt.Errorf("%w: %d keys are still in their grace", ErrTooLarge, len(b.ConfigKeys))
	}
	var id uint8
	if n := len(b.ConfigKeys); n > 0 {
		id = b.ConfigKeys[n-1].ID + 1
	}
	for slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool { return c.ID == id }) {
		id++
	}
	return id, nil
}

// dropExpiredConfigs takes out the keys whose grace is over, and reports whether there were any.
func (s *KeyStore) dropExpiredConfigs(b *keyfile.Body, now time.Time) bool {
	before := len(b.ConfigKeys)
	b.ConfigKeys = slices.DeleteFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool {
		expired := s.configExpired(c.Retired, now)
		if expired {
			clear(c.Seed)
		}
		return expired
	})
	return len(b.ConfigKeys) < before
}

// appendConfigs copies what the store holds into b. s.mu is held.
func (s *KeyStore) appendConfigs(b *keyfile.Body) error {
	if s.configs.purged() {
		return s.errClosed()
	}
	if s.configs.signer == nil {
		return nil
	}
	b.Signer = make([]byte, len(s.configs.signer))
	for _, k := range s.configs.keys {
		b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{
			ID: k.Config().ID(), KEM: k.Config().KEM(), Seed: make([]byte, len(k.seed)), Created: k.created, Retired: k.retired,
		})
	}
	erase.Do(func() { // copies go through registers
		copy(b.Signer, s.configs.signer)
		for i, k := range s.configs.keys {
			copy(b.ConfigKeys[i].Seed, k.seed)
		}
	})
	return nil
}

// wipe clears everything but keys that are also among others.
func (c *configKeys) wipe(others []*configKey) {
	for _, k := range c.keys {
		if !slices.ContainsFunc(others, func(o *configKey) bool { return o.PrivateKey == k.PrivateKey }) {
			k.wipe()
		}
	}
	if c.at != nil {
		c.at.Destroy()
	}
	*c = configKeys{}
}

// dropConfigs wipes everything. s.mu is held.
func (s *KeyStore) dropConfigs() { s.configs.wipe(nil) }

// untilConfigs is how long there is nothing to do for these keys, wait at most. s.mu is held.
func (s *KeyStore) untilConfigs(wait time.Duration, now time.Time) time.Duration {
	for _, k := range s.configs.keys {
		switch {
		case !k.retired.IsZero():
			wait = min(wait, left(k.retired, s.rotation.Grace, now))
		case s.rotation.Every > 0:
			wait = min(wait, left(k.created, s.rotation.Every, now))
		}
	}
	return wait
}

// anyConfigExpired: s.mu is held.
func (s *KeyStore) anyConfigExpired(now time.Time) bool {
	return slices.ContainsFunc(s.configs.keys, func(k *configKey) bool { return s.configExpired(k.retired, now) })
}

// hasKey reports whether there is an RSA key.
func (s *KeyStore) hasKey() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.primary() != nil
}

// configsDue reports whether the keys are to be replaced by age. They have the primary key's age where there is one.
func (s *KeyStore) configsDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rotation.Every > 0 && slices.ContainsFunc(s.configs.keys, func(k *configKey) bool {
		return k.retired.IsZero() && over(k.created, s.rotation.Every, now)
	})
}

// rotateConfigs replaces the keys whose time is over, and those alone.
func (s *KeyStore) rotateConfigs(ctx context.Context) error {
	return s.change(ctx, func(b *keyfile.Body) error {
		now := time.Now()
		if !slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool {
			return c.Retired.IsZero() && over(c.Created, s.rotation.Every, now)
		}) {
			return errNoChange // another process was first
		}
		return s.replaceConfigs(b, now)
	})
}
