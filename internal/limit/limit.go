// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package limit bounds how much one address, account or request may use at a time or per second,
// and how much all of them may use together.
package limit

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

const (
	maxKey = 64          // bytes of a key; the rest is ignored
	retry  = time.Second // the wait for units that only Return brings back
)

// Config says how many units there are. A unit is whatever the caller counts: requests, places,
// bytes.
type Config struct {
	// Each is how many units one key may have: 1 or more.
	Each int64
	// Rate is how many units per second come back to a key by themselves. 0 means that only Return
	// brings units back.
	Rate float64
	// Wide is how many times Each, and Rate, the keys of one IPv6 /48 share. 0 means that keys have
	// no networks.
	Wide int64
	// All is how many units all keys have together. 0 means no bound.
	All int64
	// Keys bounds the table of keys. A key that has all its units carries no information and may be
	// removed. If there is no such key, the keys outside the table share Wide times the units of
	// one key, so that an attacker with thousands of addresses does not get fresh units for each. 0
	// means no bound: it is for limits without Rate, whose table has only keys that hold something.
	Keys int
	// Now is the clock. nil means time.Now.
	Now func() time.Time
}

// Limiter hands out units by key. Only All bounds the empty key. A nil *Limiter sets no limit. Its
// methods are safe for concurrent use.
//
// mu guards the fields below it, and the units of every Lease and bucket. Invariant: keys and
// recent have the same buckets. Without Rate, every bucket in them lacks units that a Lease holds.
type Limiter struct {
	c Config

	mu     sync.Mutex
	keys   map[string]*list.Element
	recent list.List // of *bucket, the most recently used one first
	others bucket    // shared by the keys that the table has no room for
	all    bucket    // shared by all keys
	taken  int64     // units of all leases that were not returned
}

// bucket counts the units that one key, or several, may still take.
type bucket struct {
	key   string
	units float64   // that are left
	size  float64   // units of a full bucket
	rate  float64   // units that come back per second
	at    time.Time // when units was right
}

// New makes a limiter of which nothing is taken.
func New(c Config) *Limiter {
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Limiter{c: c, keys: make(map[string]*list.Element)}
	l.others = l.bucket("", float64(max(c.Wide, 1)))
	l.all = l.bucket("", float64(c.All)/float64(c.Each))
	return l
}

// Lease is a number of units that were taken from some buckets. A nil *Lease has none, and its
// methods do nothing. A Lease has units until Return, and none after it.
type Lease struct {
	l       *Limiter
	buckets []*bucket
	units   int64
}

// Take takes n units, 1 or more, for a key, and returns them with a wait of 0. Or it takes none,
// and returns how long the caller should wait before it tries again. Without Rate the caller has to
// return the lease. With Rate the units come back by themselves.
func (l *Limiter) Take(key string, n int64) (*Lease, time.Duration) {
	if l == nil {
		return nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.c.Now()
	s := &Lease{l: l}
	// The widest bucket comes first: if it is empty, narrower keys do not enter the table.
	add := func(b *bucket) time.Duration {
		if len(s.buckets) > 0 && s.buckets[len(s.buckets)-1] == b {
			return 0
		}
		s.buckets = append(s.buckets, b)
		return b.wait(n)
	}
	var wait time.Duration
	if l.c.All > 0 {
		wait = add(l.all.fill(now))
	}
	if network := l.network(key); wait == 0 && network != "" {
		wait = add(l.find(network, float64(l.c.Wide), now))
	}
	if wait == 0 && key != "" {
		wait = add(l.find(key, 1, now))
	}
	if wait > 0 {
		l.forget(s.buckets)
		return nil, wait
	}
	s.take(n)
	return s, 0
}

// Grow takes n more units, or none, like Take. It is for limits without Rate.
func (s *Lease) Grow(n int64) time.Duration {
	if s == nil || n <= 0 {
		return 0
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	for _, b := range s.buckets {
		if wait := b.wait(n); wait > 0 {
			return wait
		}
	}
	s.take(n)
	return 0
}

// take takes units that are there. mu is held.
func (s *Lease) take(n int64) {
	s.units += n
	s.l.taken += n
	for _, b := range s.buckets {
		b.units -= float64(n)
	}
}

// Return gives all units of the lease back. It is idempotent.
func (s *Lease) Return() {
	if s == nil {
		return
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	now := s.l.c.Now()
	for _, b := range s.buckets { // a bucket that left the table was full before
		b.fill(now)
		b.units = min(b.units+float64(s.units), b.size)
	}
	s.l.forget(s.buckets)
	s.l.taken -= s.units
	s.units, s.buckets = 0, nil
}

// Taken returns how many units were taken and not returned.
func (l *Limiter) Taken() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken
}

// Len returns how many keys and networks are in the table.
func (l *Limiter) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.keys)
}

// bucket returns a full bucket with scale times the units of one key.
func (l *Limiter) bucket(key string, scale float64) bucket {
	size := float64(l.c.Each) * scale
	return bucket{key: key, units: size, size: size, rate: l.c.Rate * scale, at: l.c.Now()}
}

// network returns the network of a key, or "".
func (l *Limiter) network(key string) string {
	if l.c.Wide == 0 {
		return ""
	}
	return wider(key)
}

// find returns the bucket of a key, filled to the present, and makes one if there is none. mu is
// held.
func (l *Limiter) find(key string, scale float64, now time.Time) *bucket {
	key = key[:min(len(key), maxKey)]
	if e := l.keys[key]; e != nil {
		l.recent.MoveToFront(e)
		return e.Value.(*bucket).fill(now)
	}
	if l.c.Keys > 0 && len(l.keys) >= l.c.Keys {
		oldest := l.recent.Back().Value.(*bucket).fill(now)
		if oldest.units < oldest.size {
			return l.others.fill(now)
		}
		l.remove(oldest)
	}
	b := l.bucket(strings.Clone(key), scale)
	l.keys[b.key] = l.recent.PushFront(&b)
	return &b
}

// forget removes full buckets from the table of a limiter without Rate. mu is held.
func (l *Limiter) forget(buckets []*bucket) {
	for _, b := range buckets {
		if l.c.Rate == 0 && b != &l.others && b != &l.all && b.units >= b.size {
			l.remove(b)
		}
	}
}

// remove takes a bucket out of the table. mu is held.
func (l *Limiter) remove(b *bucket) {
	if e := l.keys[b.key]; e != nil && e.Value.(*bucket) == b {
		l.recent.Remove(e)
		delete(l.keys, b.key)
	}
}

// fill adds the units that came back by themselves.
func (b *bucket) fill(now time.Time) *bucket {
	b.units = min(b.units+max(now.Sub(b.at).Seconds(), 0)*b.rate, b.size)
	b.at = now
	return b
}

// wait returns how long it takes until the bucket has n units, and 0 if it has them now.
func (b *bucket) wait(n int64) time.Duration {
	switch missing := float64(n) - b.units; {
	case missing <= 0:
		return 0
	case b.rate == 0:
		return retry
	default:
		return max(time.Duration(missing/b.rate*float64(time.Second)), time.Millisecond)
	}
}
