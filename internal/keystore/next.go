// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// This file has the RSA key that is made ahead of time, so that clients can be told of it before it
// is in use. The next rotation makes it the primary key, whichever process does that. Until then it
// opens nothing: a message that is sealed to it was sealed by somebody who was not given it by this
// store's owner as the key in use.

// Next is the public half of the next key, made now if there is none yet. A store without a primary
// key makes that first. With an error that stands the key comes along.
func (s *Store) Next(ctx context.Context) (*hybrid.PublicKey, error) {
	if _, err := s.Public(ctx); err != nil {
		return nil, err
	}
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	for {
		if key := s.next(); key != nil {
			return key, nil
		}
		// A rotation that is under way counts as well: the loop looks for what it left.
		if _, err := s.rotator.making.Do(ctx, s.life, s.makeNext); err != nil {
			err = s.waitError(ctx, err)
			if stands(err) {
				return s.next(), err
			}
			return nil, err
		}
	}
}

// next is the public half of the next key, or nil if there is none that works.
func (s *Store) next() *hybrid.PublicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if e.state == keyfile.Next && !e.isPurged() {
			return e.RSA.Public()
		}
	}
	return nil
}

// makeNext makes the next key. It replaces no primary key, and so never reports true.
func (s *Store) makeNext(ctx context.Context) (bool, error) {
	unlock, err := s.lockRotation(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	if s.next() != nil {
		return false, nil // another process was first
	}
	key, err := s.generate(ctx, "made ahead of time, for the next rotation")
	if err != nil {
		return false, err
	}
	defer key.Wipe()
	err = s.change(ctx, func(b *keyfile.Body) error {
		if slices.ContainsFunc(b.Keys, isNext) {
			return errNoChange
		}
		now := wallTime()
		s.dropExpired(b, now)
		if err := hasRoom(b); err != nil {
			return err
		}
		b.Keys = append(b.Keys, keyfile.Entry{State: keyfile.Next, Created: now, Key: key})
		return nil
	})
	if err == nil || stands(err) {
		s.log.Info("key made ahead of time", "fingerprint", fingerprintOf(key), "bits", key.Bits())
	}
	return false, err
}

// promoteNext is promote with the body's next key, or with key if there is none. Without both it is
// errNoChange: another process deleted the next key a moment ago.
func (s *Store) promoteNext(b *keyfile.Body, key *keyfile.RSAKey) error {
	if !slices.ContainsFunc(b.Keys, isNext) {
		if key == nil {
			return errNoChange
		}
		return s.promote(b, key)
	}
	now := wallTime()
	s.retirePrimary(b, now)
	e := &b.Keys[slices.IndexFunc(b.Keys, isNext)]
	e.State, e.Activated = keyfile.Primary, now
	countRotation(b, now)
	return nil
}

func isNext(e keyfile.Entry) bool { return e.State == keyfile.Next }
