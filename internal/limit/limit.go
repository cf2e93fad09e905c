// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package limit bounds what one address, account or request may have at a time or in a while, and
// what all of them may have together.
package limit

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

const (
	maxKey = 64          // bytes of a key that count
	retry  = time.Second // how long to wait for units that come back with Return alone
)

// Config says how many units there are. A unit is whatever the caller counts: requests, places,
// bytes.
type Config struct {
	// Each is how many units one key may have: 1 or more.
	Each int64
	// Rate is how many units a second come back to a key by themselves. 0 = none: they come back
	// with Return alone.
	Rate float64
	// Wide is how many times Each, and Rate, the keys of one IPv6 /48 have together. 0 = keys have
	// no networks.
	Wide int64
	// All is how many units all keys have together. 0 = no bound.
	All int64
	// Keys bounds the table of keys. A key that has all its units says nothing and may be
	// forgotten; when there is none, keys that are not in the table share Wide times the units of
	// one, so that nobody gets new ones by the thousand. 0 = no bound: for limits without Rate,
	// whose table has only keys that hold something.
	Keys int
	// Now is the clock. nil = time.Now.
	Now func() time.Time
}

// Limiter hands out units by key. The empty key is nobody in particular: only All bounds it. A nil
// *Limiter sets no limit. Its methods may be called from several goroutines.
type Limiter struct {
	c Config

	mu     sync.Mutex // guards all below, and the leases' units
	keys   map[string]*list.Element
	recent list.List // of *bucket; the one that was used last in front
	others bucket    // of the keys for which the table has no room
	all    bucket
	taken  int64
}

// bucket has the units that a key, or several, may still take.
type bucket struct {
	key   string
	units float64
	size  float64
	rate  float64
	at    time.Time
}

// New makes a limiter in which nothing is taken.
func New(c Config) *Limiter {
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Limiter{c: c, keys: make(map[string]*list.Element)}
	l.others = l.bucket("", float64(max(c.Wide, 1)))
	l.all = l.bucket("", float64(c.All)/float64(c.Each))
	return l
}

// Lease is units that were taken. A nil *Lease has none, and does nothing.
type Lease struct {
	l       *Limiter
	buckets []*bucket
	units   int64
}

// Take takes n units, 1 or more, for a key and returns them with a wait of 0; or it takes none, and
// says how long to wait before another try. Without Rate the lease has to be returned. With it, one
// that is not returned comes back with time.
func (l *Limiter) Take(key string, n int64) (*Lease, time.Duration) {
	if l == nil {
		return nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.c.Now()
	s := &Lease{l: l}
	// The widest first: one that is empty keeps narrower keys out of the table.
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

// Grow takes n units more, or none, like Take. It is for limits without Rate.
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

// take takes units that are there. The lock is held.
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
	for _, b := range s.buckets { // one that left the table had all its units back before
		b.fill(now)
		b.units = min(b.units+float64(s.units), b.size)
	}
	s.l.forget(s.buckets)
	s.l.taken -= s.units
	s.units, s.buckets = 0, nil
}

// Taken is how many units were taken and not returned.
func (l *Limiter) Taken() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken
}

// Len is how many keys and networks are in the table.
func (l *Limiter) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.keys)
}

func (l *Limiter) bucket(key string, scale float64) bucket {
	size := float64(l.c.Each) * scale
	return bucket{key: key, units: size, size: size, rate: l.c.Rate * scale, at: l.c.Now()}
}

func (l *Limiter) network(key string) string {
	if l.c.Wide == 0 {
		return ""
	}
	return wider(key)
}

// find returns the bucket of a key as it is now, made if there is none. The lock is held.
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

// forget removes keys that have all their units from the table of a limiter without Rate. The lock
// is held.
func (l *Limiter) forget(buckets []*bucket) {
	for _, b := range buckets {
		if l.c.Rate == 0 && b != &l.others && b != &l.all && b.units >= b.size {
			l.remove(b)
		}
	}
}

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

// wait is how long it takes until there are n units, 0 if there are.
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
