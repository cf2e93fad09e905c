// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file has a store's key configurations for Oblivious HTTP as a gateway uses them. They are
// made when a gateway first needs them, and live in the same file as the RSA keys.

// KEMs are those for which a store has keys, the preferred one first.
var KEMs = []uint16{ohttp.XWing, ohttp.X25519}

var errNoConfigs = errors.New(
	"sealedchat: the key store has no key configuration that is supported here")

// OfferAES128 says whether the configurations that are made from now on offer AES-128-GCM beside
// AES-256-GCM. Those that there are stay as they are. In a process that never says it, as one that
// only manages keys, new configurations offer what the newest one offers.
func (s *Store) OfferAES128(offer bool) { s.aes128.Store(&offer) }

// ConfigKey is the key of an id and KEM that opens requests now, or nil. It looks into the file for
// one that is not known here: another process may have made it a moment ago.
func (s *Store) ConfigKey(ctx context.Context, id uint8, kem uint16) *ohttp.PrivateKey {
	if k := s.configKey(id, kem); k != nil {
		return k
	}
	if s.refresh(ctx) != nil {
		return nil
	}
	return s.configKey(id, kem)
}

func (s *Store) configKey(id uint8, kem uint16) *ohttp.PrivateKey {
	defer s.sweeper.Soon() // of the garbage that its use leaves
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, e := range s.entries {
		if e.isConfig(kem) && e.OHTTP.Config().ID() == id &&
			!e.isPurged() && !s.rotation.isExpired(e.life, now) {
			return e.OHTTP
		}
	}
	return nil
}

// listed are the configurations that clients are to use, in the order of a list. ErrClosed for a
// store that is closed, or whose memory was purged.
func (s *Store) listed() (configs []*ohttp.Config, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.signer.isPurged() {
		return nil, s.errClosed()
	}
	for _, kem := range KEMs {
		for _, e := range slices.Backward(s.entries) {
			if e.isConfig(kem) && e.isCurrent() {
				configs = append(configs, e.OHTTP.Config())
			}
		}
	}
	return configs, nil
}

// Configs returns the configurations to list, made now if there are none yet.
func (s *Store) Configs(ctx context.Context) ([]*ohttp.Config, error) {
	s.reloadSeldom(ctx)
	configs, err := s.listed()
	if err != nil || len(configs) > 0 {
		return configs, err
	}
	err = s.change(ctx, func(b *keyfile.Body) error {
		if slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool {
			return c.Retired.IsZero() && ohttp.Supported(c.KEM)
		}) {
			return errNoChange // another process was first
		}
		return s.makeConfigs(b, wallTime())
	})
	if err != nil && !isUnconfirmed(err) {
		return nil, err
	}
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	s.startWorker()
	s.rotator.nudge() // there is another time to wait for now
	if configs, err = s.listed(); err == nil && len(configs) == 0 {
		err = errNoConfigs
	}
	return configs, err
}

// rotateConfigs replaces the configurations that are due by age, and those alone.
func (s *Store) rotateConfigs(ctx context.Context) error {
	return s.change(ctx, func(b *keyfile.Body) error {
		now := wallTime()
		if !slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool {
			return s.rotation.isDue(lifeOf(c), now)
		}) {
			return errNoChange // another process was first
		}
		return s.replaceConfigs(b, now)
	})
}
