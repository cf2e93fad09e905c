// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"slices"
	"sync"
)

const (
	chunkSize = 32 << 10 // bytes that an arena maps at a time: two chunks of a message
	// sizes are rounded up to a multiple of granule, and every buffer begins at one
	granule = 64
)

// Arena provides one owner, such as a client, with many small buffers that share locked pages. A
// lock of its own would cost each buffer a page and some 20 µs. An arena grows as needed and keeps
// one empty chunk. It is safe for concurrent use.
//
// mu guards the fields below it and everything in the chunks. Invariant: each byte of a chunk is
// either in one of its free spans or in one living buffer, and locked chunks come first.
type Arena struct {
	policy Policy

	mu     sync.Mutex
	closed bool
	chunks []*chunk
}

// chunk is a mapping that an arena cuts buffers from.
type chunk struct {
	arena *Arena
	pages *pages
	free  []span // ascending; no two of them touch
}

// span is a part of a chunk.
type span struct{ at, n int }

// NewArena makes an arena that takes no memory before the first Alloc.
func NewArena(policy Policy) *Arena { return &Arena{policy: policy} }

// Alloc returns n zero bytes. Large buffers get pages of their own, and with Off all buffers lie on
// the heap. The errors are ErrClosed and, with Required alone, a *LimitError.
func (a *Arena) Alloc(n int) (*Buffer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrClosed
	}
	if n <= 0 || n > chunkSize/2 || a.policy == Off {
		return NewWith(a.policy, n)
	}
	need := (n + granule - 1) / granule * granule
	if b := a.take(n, need, true); b != nil {
		return b, nil
	}
	err := a.grow(need)
	if b := a.take(n, need, a.policy == Required); b != nil {
		return b, nil
	}
	if a.policy == Required {
		return nil, limitError(roundToPages(need), err)
	}
	return onHeap(a.policy, n), nil // not even mapped
}

// take cuts a buffer from one of the chunks, or returns nil. With locked, it uses only locked
// chunks.
func (a *Arena) take(n, need int, locked bool) *Buffer {
	for _, c := range a.chunks {
		if locked && !c.pages.locked {
			return nil
		}
		if at := c.take(need); at >= 0 {
			return newBuffer(a.policy, &memory{whole: c.pages.data[at : at+n : at+n],
				locked: c.pages.locked, chunk: c, at: at})
		}
	}
	return nil
}

// grow adds a chunk: a whole one, or near the limit a small one that can still be locked. It adds a
// chunk that is not locked only if no other chunk has room, and never with Required.
func (a *Arena) grow(need int) error {
	p, err := mapPages(chunkSize)
	if !p.isLocked() && roundToPages(need) < roundToPages(chunkSize) {
		if small, smallErr := mapPages(need); small.isLocked() {
			p.free()
			p, err = small, nil
		} else {
			small.free()
			err = smallErr
		}
	}
	switch {
	case p == nil:
		return err
	case p.locked:
		a.chunks = slices.Insert(a.chunks, 0, newChunk(a, p))
	case a.policy == Required, slices.ContainsFunc(a.chunks, func(c *chunk) bool {
		return c.fits(need)
	}):
		p.free()
	default:
		a.chunks = append(a.chunks, newChunk(a, p))
	}
	return err
}

func newChunk(a *Arena, p *pages) *chunk {
	return &chunk{arena: a, pages: p, free: []span{{0, len(p.data)}}}
}

func (c *chunk) fits(need int) bool {
	return slices.ContainsFunc(c.free, func(s span) bool { return s.n >= need })
}

// take cuts need bytes from the first free span that is large enough, and returns their offset, or
// -1.
func (c *chunk) take(need int) int {
	for i := range c.free {
		s := &c.free[i]
		if s.n < need {
			continue
		}
		at := s.at
		s.at, s.n = s.at+need, s.n-need
		if s.n == 0 {
			c.free = slices.Delete(c.free, i, i+1)
		}
		return at
	}
	return -1
}

func (c *chunk) isEmpty() bool { return len(c.free) == 1 && c.free[0].n == len(c.pages.data) }

// release returns the n bytes at an offset that take returned. They are wiped already.
func (c *chunk) release(at, n int) {
	c.arena.mu.Lock()
	defer c.arena.mu.Unlock()
	back := span{at, (n + granule - 1) / granule * granule}
	i, _ := slices.BinarySearchFunc(c.free, back, func(a, b span) int { return a.at - b.at })
	if i < len(c.free) && back.at+back.n == c.free[i].at {
		back.n += c.free[i].n
		c.free = slices.Delete(c.free, i, i+1)
	}
	if i > 0 && c.free[i-1].at+c.free[i-1].n == back.at {
		c.free[i-1].n += back.n
	} else {
		c.free = slices.Insert(c.free, i, back)
	}
	if c.isEmpty() {
		c.arena.shrink()
	}
}

// shrink unmaps empty chunks. Before Close it keeps one of them that is locked.
func (a *Arena) shrink() {
	kept := a.closed
	a.chunks = slices.DeleteFunc(a.chunks, func(c *chunk) bool {
		if !c.isEmpty() {
			return false
		}
		if !kept && c.pages.locked {
			kept = true
			return false
		}
		c.pages.free()
		return true
	})
}

// Close unmaps the free chunks, and each other chunk when its last buffer is destroyed. Alloc fails
// from now on. Close is idempotent.
func (a *Arena) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.shrink()
}
