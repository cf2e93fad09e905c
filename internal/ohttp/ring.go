// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"slices"
	"sync"
	"time"
)

// Ring is a gateway's keys. It is safe for concurrent use.
//
// A key opens requests from the moment it is added, so that replicas whose clocks differ understand each other; its
// configuration is published from Lifetime.Publish to Lifetime.Retire; and at Lifetime.Expire it is wiped. Retire and
// Expire have to be further apart than clients keep a list.
type Ring struct {
	now func() time.Time

	mu     sync.Mutex
	keys   []ringKey // in the order of adding
	lastID uint8
	closed bool
}

// Lifetime says what becomes of a key when. A zero Publish is at once; a zero Retire, or Expire, is never.
type Lifetime struct{ Publish, Retire, Expire time.Time }

type ringKey struct {
	*PrivateKey
	Lifetime
}

// NewRing returns an empty ring. now is its clock; nil is time.Now.
func NewRing(now func() time.Time) *Ring {
	if now == nil {
		now = time.Now
	}
	return &Ring{now: now, lastID: 255}
}

// Add takes k over: the ring closes it when it expires. While a key lives no other one gets its id: that is ErrKeyID,
// and k stays the caller's. After Close it is ErrUsed.
func (r *Ring) Add(k *PrivateKey, life Lifetime) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	if r.closed {
		return ErrUsed
	}
	if r.index(k.config.id) >= 0 {
		return ErrKeyID
	}
	r.keys = append(r.keys, ringKey{k, life})
	r.lastID = k.config.id
	return nil
}

// SetLifetime changes when the key of an id is published, retired and wiped. It reports whether there is such a key.
func (r *Ring) SetLifetime(id uint8, life Lifetime) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	i := r.index(id)
	if i < 0 {
		return false
	}
	r.keys[i].Lifetime = life
	r.expire()
	return true
}

// FreeID returns an id for a new key: the next one after the key added last that no living key has. ErrKeyID if all 256
// are in use.
func (r *Ring) FreeID() (uint8, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	for id := r.lastID + 1; ; id++ {
		if r.index(id) < 0 {
			return id, nil
		}
		if id == r.lastID {
			return 0, ErrKeyID
		}
	}
}

// Key is the living key of an id and KEM, or nil. It may be closed at any time by the ring, not before requests that are
// being opened are through.
func (r *Ring) Key(id uint8, kem uint16) *PrivateKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	if i := r.index(id); i >= 0 && r.keys[i].config.kem.id == kem {
		return r.keys[i].PrivateKey
	}
	return nil
}

// Configs lists the configurations to publish now: X-Wing first, and of each KEM the key added last first. Empty if there
// is none.
func (r *Ring) Configs() []*Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	now := r.now()
	var configs []*Config
	for _, k := range kems {
		for _, key := range slices.Backward(r.keys) {
			if key.config.kem == k && !now.Before(key.Publish) && (key.Retire.IsZero() || now.Before(key.Retire)) {
				configs = append(configs, key.config)
			}
		}
	}
	return configs
}

// Expire wipes the keys whose time is over, which every other method does as well, and returns when to call it next. The
// time is zero if no key expires. Who wants keys wiped on time calls it then.
func (r *Ring) Expire() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	var next time.Time
	for _, k := range r.keys {
		if !k.Expire.IsZero() && (next.IsZero() || k.Expire.Before(next)) {
			next = k.Expire
		}
	}
	return next
}

// Close wipes all keys. It is idempotent.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, k := range r.keys {
		k.PrivateKey.Close()
	}
	r.keys = nil
}

func (r *Ring) expire() {
	now := r.now()
	r.keys = slices.DeleteFunc(r.keys, func(k ringKey) bool {
		over := !k.Expire.IsZero() && !now.Before(k.Expire)
		if over {
			k.PrivateKey.Close()
		}
		return over
	})
}

func (r *Ring) index(id uint8) int {
	return slices.IndexFunc(r.keys, func(k ringKey) bool { return k.config.id == id })
}
