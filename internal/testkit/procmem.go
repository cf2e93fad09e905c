// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// MinFragment is the shortest piece of a secret that counts, in bytes. Shorter ones occur in text
// by chance, and reveal little.
const MinFragment = 16

const (
	// every run of MinFragment bytes holds a whole window at an address that window divides
	window      = 8
	minDistinct = 4 // different bytes in a window; fewer are zeros, padding and the like
)

// MemorySecret is a value that must not lie in memory. It has at least [MinFragment] bytes, which
// should look random: runs of few different bytes are not found.
type MemorySecret struct {
	Row  string // the name under which its copies are counted
	Name string // its name within the row
	// Bytes is the value; of an integer, big-endian.
	Bytes []byte
	// Integer means that Bytes is searched backwards as well: that is how the words of math/big lie
	// on a little-endian machine.
	Integer bool
	// Parts are spans of Bytes, start and end, that are secrets of their own, or public. A piece
	// with fewer than MinFragment bytes outside one of them does not count.
	Parts [][2]int
}

// MemoryMatch is a copy of a secret, or of a piece of one that is not part of a copy.
type MemoryMatch struct {
	Secret *MemorySecret
	// Offset and Len say which bytes were found. They count from the end of the secret if Reversed
	// is set.
	Offset, Len int
	Reversed    bool
	At          int // offset of the first of them in the searched memory
}

// Full reports whether the whole secret is there.
func (m MemoryMatch) Full() bool { return m.Len == len(m.Secret.Bytes) }

func (m MemoryMatch) String() string {
	order := ""
	if m.Reversed {
		order = " reversed"
	}
	if m.Full() {
		return fmt.Sprintf("%s: %s%s", m.Secret.Row, m.Secret.Name, order)
	}
	return fmt.Sprintf("%s: %s%s, %d bytes from %d of %d", m.Secret.Row, m.Secret.Name, order,
		m.Len, m.Offset, len(m.Secret.Bytes))
}

// SecretSearch finds many secrets in one pass, some hundred megabytes a second. It is immutable.
type SecretSearch struct {
	patterns []pattern
	filter   []uint64 // one bit for each hash of a window of a secret
	shift    uint
	heads    []int32 // by hash: the first of a chain in places, or -1
	places   []place
}

// pattern is a secret in one byte order.
type pattern struct {
	secret   *MemorySecret
	bytes    []byte
	reversed bool
}

// place is a window of a pattern.
type place struct {
	window  uint64
	pattern int32
	offset  int32
	next    int32
}

// NewSecretSearch prepares a search. Secrets with the same bytes as an earlier one are left out. It
// panics over a secret that could not be found: too short, or without a window of different bytes.
func NewSecretSearch(secrets []MemorySecret) *SecretSearch {
	s := &SecretSearch{}
	seen := make(map[string]bool)
	add := func(secret *MemorySecret, b []byte, reversed bool) {
		if len(b) < MinFragment {
			panic(fmt.Sprintf("testkit: %s: %s has only %d bytes", secret.Row, secret.Name, len(b)))
		}
		if !seen[string(b)] {
			seen[string(b)] = true
			s.patterns = append(s.patterns, pattern{secret, b, reversed})
		}
	}
	for _, secret := range secrets {
		add(&secret, bytes.Clone(secret.Bytes), false)
		if secret.Integer {
			b := bytes.Clone(secret.Bytes)
			slices.Reverse(b)
			add(&secret, b, true)
		}
	}
	s.index()
	return s
}

func (s *SecretSearch) index() {
	for i, p := range s.patterns {
		before := len(s.places)
		for offset := 0; offset+window <= len(p.bytes); offset++ {
			if w := p.bytes[offset : offset+window]; distinct(w) >= minDistinct {
				s.places = append(s.places, place{binary.LittleEndian.Uint64(w), int32(i),
					int32(offset), -1})
			}
		}
		if len(s.places) == before {
			panic(fmt.Sprintf("testkit: %s: %s is too uniform to be found", p.secret.Row,
				p.secret.Name))
		}
	}
	bits := uint(16)
	for 1<<bits < 16*len(s.places) {
		bits++
	}
	s.shift = 64 - bits
	s.filter = make([]uint64, 1<<bits/64)
	s.heads = make([]int32, 1<<bits/16)
	for i := range s.heads {
		s.heads[i] = -1
	}
	for i := range s.places {
		h := s.hash(s.places[i].window)
		s.filter[h/64] |= 1 << (h % 64)
		s.places[i].next = s.heads[h/16]
		s.heads[h/16] = int32(i)
	}
}

func (s *SecretSearch) hash(w uint64) uint64 { return w * 0x9e3779b97f4a7c15 >> s.shift }

func distinct(b []byte) int {
	n := 0
	for i, c := range b {
		if bytes.IndexByte(b[:i], c) < 0 {
			n++
		}
	}
	return n
}

// Find returns the matches in b, in no order. A stretch of b that belongs to several secrets gives
// several matches.
func (s *SecretSearch) Find(b []byte) []MemoryMatch {
	var found []MemoryMatch
	type diagonal struct {
		pattern int32
		start   int // where the pattern would begin
	}
	ends := make(map[diagonal]int) // end of the last match there
	for at := 0; at+window <= len(b); at += window {
		w := binary.LittleEndian.Uint64(b[at:])
		if w == 0 {
			continue
		}
		h := s.hash(w)
		if s.filter[h/64]&(1<<(h%64)) == 0 {
			continue
		}
		for i := s.heads[h/16]; i >= 0; i = s.places[i].next {
			if s.places[i].window != w {
				continue
			}
			d := diagonal{s.places[i].pattern, at - int(s.places[i].offset)}
			if at < ends[d] {
				continue
			}
			p := &s.patterns[d.pattern]
			from, to := p.extend(b, at, int(s.places[i].offset))
			ends[d] = to
			m := MemoryMatch{p.secret, from - d.start, to - from, p.reversed, from}
			if m.counts() {
				found = append(found, m)
			}
		}
	}
	return found
}

// extend grows the window at b[at:], which is equal to the pattern at offset, in both directions as
// far as they agree.
func (p *pattern) extend(b []byte, at, offset int) (from, to int) {
	from, to = at, at+window
	for offset > 0 && from > 0 && p.bytes[offset-1] == b[from-1] {
		offset--
		from--
	}
	for end := offset + to - from; end < len(p.bytes) && to < len(b) &&
		p.bytes[end] == b[to]; end++ {
		to++
	}
	return from, to
}

// counts reports whether a match is long enough, also outside of the Parts of the secret.
func (m MemoryMatch) counts() bool {
	if m.Len < MinFragment {
		return false
	}
	from, to := m.Offset, m.Offset+m.Len
	if m.Reversed {
		from, to = len(m.Secret.Bytes)-to, len(m.Secret.Bytes)-from
	}
	for _, part := range m.Secret.Parts {
		if common := min(to, part[1]) - max(from, part[0]); m.Len-max(common, 0) < MinFragment {
			return false
		}
	}
	return true
}
