// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import "sync"

// Spare is memory that one call used and wiped, for the next one that needs some: to make and clear
// a megabyte costs as much as to seal it. The zero value is ready, and safe for concurrent use. The
// garbage collector takes what nobody asks for.
type Spare struct{ pool sync.Pool }

// Get returns empty memory with room for size bytes, and not for many times as much: whoever has it
// wipes all of it. All of it is zero.
func (s *Spare) Get(size int) []byte {
	if b, ok := s.pool.Get().(*[]byte); ok {
		if cap(*b) >= size && cap(*b) <= 4*size+4<<10 {
			return (*b)[:0]
		}
		s.pool.Put(b)
	}
	return make([]byte, 0, size)
}

// Put wipes b, which nobody uses any more, and keeps it for Get.
func (s *Spare) Put(b []byte) {
	clear(b[:cap(b)])
	s.PutWiped(b)
}

// PutWiped is Put for memory that is wiped to its capacity.
func (s *Spare) PutWiped(b []byte) {
	if cap(b) > 0 {
		s.pool.Put(&b)
	}
}
