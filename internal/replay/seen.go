// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import "sync"

// MaxSeen is how many answers [Seen] remembers; 1.3 MB when full.
const MaxSeen = 16384

// Seen remembers the last ids that it was given. The zero value is ready. Its method may be called
// from several goroutines.
type Seen struct {
	mu   sync.Mutex
	set  map[[32]byte]struct{}
	ring [][32]byte // in the order of arrival; overwritten from next on once full
	next int
}

// Add reports whether id is new, and remembers it. Once [MaxSeen] are known, the oldest is
// forgotten.
func (s *Seen) Add(id [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.set[id]; ok {
		return false
	}
	if s.set == nil {
		s.set = make(map[[32]byte]struct{})
	}
	if len(s.ring) < MaxSeen {
		s.ring = append(s.ring, id)
	} else {
		delete(s.set, s.ring[s.next])
		s.ring[s.next] = id
		s.next = (s.next + 1) % MaxSeen
	}
	s.set[id] = struct{}{}
	return true
}
