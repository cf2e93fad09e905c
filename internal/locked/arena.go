// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"slices"
	"sync"
)

const (
	chunkSize = 16 << 10 // bytes that an arena takes at a time
	// bytes; sizes are rounded up to it, and every buffer begins at a multiple of it
	granule = 64
)

// Arena gives one owner, such as a client, many small buffers that share locked pages: a lock of
// its own would cost each of them a page and some 20 µs. It grows as needed and keeps one empty
// chunk. Safe for concurrent use.
type Arena struct {
	policy Policy

	mu     sync.Mutex
	closed bool
	chunks []*chunk // locked ones first
	given  bool     // a buffer was
	missed bool     // one that is not locked was
}

// chunk is some pages of an arena. arena.mu guards it.
type chunk struct {
	arena *Arena
	pages *pages
	free  []span // ascending, never touching
}

// span is a part of a chunk.
type span struct{ at, n int }

// NewArena makes an arena that takes no memory before it is needed.
func NewArena(policy Policy) *Arena { return &Arena{policy: policy} }

// Alloc returns n zero bytes. Large ones get pages of their own, and with Off all lie on the heap.
// Errors are *LimitError, with Required alone, and ErrClosed.
func (a *Arena) Alloc(n int) (*Buffer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrClosed
	}
	b, err := a.alloc(n)
	if err != nil {
		return nil, err
	}
	if n > 0 {
		a.given = true
		a.missed = a.missed || !b.Locked()
	}
	return b, nil
}

func (a *Arena) alloc(n int) (*Buffer, error) {
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

// take cuts a buffer from the chunks there are; from those only that are locked, if locked says so.
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

// grow adds a chunk: a whole one, or near the limit one page that fits. What is not locked is added
// only if no other such chunk has room, and never with Required.
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

// take cuts need bytes from the first free span that has them, and returns where they are, or -1.
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

// release takes back what take gave. The bytes are wiped.
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

// shrink gives empty chunks back: all of them after Close, else all but the first, and those that
// are not locked.
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

// Level is Locked as long as every buffer that the arena gave was. One that gave none yet tries
// whether it could.
func (a *Arena) Level() Level {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.missed || a.policy == Off || (!a.given && !canLock(1)) {
		return Wiped
	}
	return Locked
}

// Close gives back what is free, and the rest when the last buffer is destroyed. Nothing more can
// be taken. Idempotent.
func (a *Arena) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.shrink()
}
