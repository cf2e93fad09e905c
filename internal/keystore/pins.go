// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// This file is a store's memory of server keys that were trusted on first use.

// Pin returns the key that is remembered for origin.
func (s *Store) Pin(origin string) ([32]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.pins[origin]
	return p.Fingerprint, ok
}

// AddPin remembers fp for origin, unless there is one already, and returns the one that is
// remembered then.
func (s *Store) AddPin(ctx context.Context, origin string, fp [32]byte) ([32]byte, error) {
	if remembered, ok := s.Pin(origin); ok {
		return remembered, nil
	}
	err := s.change(ctx, func(b *keyfile.Body) error {
		for _, p := range b.Pins {
			if p.Origin == origin { // another process was first
				fp = p.Fingerprint
				return errNoChange
			}
		}
		return appendPin(b, keyfile.Pin{Origin: origin, Fingerprint: fp, FirstSeen: time.Now()})
	})
	return fp, err
}

// AcceptPin remembers fp for origin in place of any other.
func (s *Store) AcceptPin(ctx context.Context, origin string, fp [32]byte) error {
	return s.change(ctx, func(b *keyfile.Body) error {
		now := time.Now()
		for i := range b.Pins {
			if b.Pins[i].Origin == origin {
				b.Pins[i].Fingerprint, b.Pins[i].Accepted = fp, now
				return nil
			}
		}
		return appendPin(b, keyfile.Pin{Origin: origin, Fingerprint: fp, FirstSeen: now,
			Accepted: now})
	})
}

func appendPin(b *keyfile.Body, p keyfile.Pin) error {
	if len(p.Origin) > keyfile.MaxOriginSize {
		return fmt.Errorf("%w: a base URL of %d bytes, limit %d",
			fault.ErrTooLarge, len(p.Origin), keyfile.MaxOriginSize)
	}
	if len(b.Pins) >= keyfile.MaxPins {
		return fmt.Errorf("%w: the key store remembers no more than %d server keys",
			fault.ErrTooLarge, keyfile.MaxPins)
	}
	b.Pins = append(b.Pins, p)
	return nil
}
