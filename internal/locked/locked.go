// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package locked hands out memory for secrets: outside the Go heap, so that the garbage collector
// neither moves nor copies it, on Linux left out of core dumps, and locked into RAM where the
// operating system allows. It is the only importer of memcall and memguard. What a process may lock
// is one number for all that it does, so the count of it is global here.
package locked

import (
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Policy says what becomes of memory that cannot be locked.
type Policy uint8

// The policies. BestEffort is the zero value.
const (
	BestEffort Policy = iota // what cannot be locked is wiped only
	Required                 // what cannot be locked is a *LimitError
	Off                      // nothing is locked: the Go heap, wiped
)

// Level says how memory is protected.
type Level uint8

// The levels, lowest first.
const (
	Wiped  Level = iota // wiped when it is given back; until then it may be swapped out
	Locked              // also locked into RAM
)

func (l Level) String() string {
	switch l {
	case Wiped:
		return "wiped only"
	case Locked:
		return "locked"
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

// LimitError says that memory could not be locked, and Required asks for it. It is an
// ErrMemoryLimit.
type LimitError struct {
	Limit  int64 // what the process may lock, in bytes; negative: none, or not known
	InUse  int64 // what this package has locked already
	Needed int64 // what it would have had to lock in addition
	Err    error // the system's word
}

func (e *LimitError) Error() string {
	limit := "no limit is known"
	if e.Limit >= 0 {
		limit = fmt.Sprintf("the limit (ulimit -l) is %d", e.Limit)
	}
	return fmt.Sprintf("%v: %d bytes more are needed, %d are locked, %s", fault.ErrMemoryLimit,
		e.Needed, e.InUse, limit)
}

// Is makes errors.Is(e, fault.ErrMemoryLimit) true.
func (e *LimitError) Is(target error) bool { return target == fault.ErrMemoryLimit }
func (e *LimitError) Unwrap() error        { return e.Err }

// ErrClosed is an arena's error after Close.
var ErrClosed = fmt.Errorf("%w: its memory was given back", fault.ErrClosed)

// Buffer is memory for one secret. It is not safe for concurrent use; its owner orders access and
// calls Destroy. The zero Buffer has no memory.
type Buffer struct {
	// behind a pointer of its own: package fmt follows one level of pointers, and prints what it
	// finds there
	m *memory
}

// memory lies in pages of its own, in an arena, behind memguard, or, with none of them, on the Go
// heap.
type memory struct {
	whole  []byte
	lo, hi int // what of it Bytes returns
	locked bool

	pages *pages
	chunk *chunk
	at    int // in chunk
	guard *guard
}

// New returns n zero bytes in pages of their own. It never fails: what cannot be locked
// (RLIMIT_MEMLOCK) is wiped by Destroy only, and what cannot even be mapped lies on the Go heap.
// Locked tells the difference. Here, as everywhere in this package, the bytes begin at a multiple
// of 8 if n is one.
func New(n int) *Buffer {
	b, _ := NewWith(BestEffort, n) // only Required fails
	return b
}

// NewWith is New under a policy. The error is a *LimitError, and only Required has it.
func NewWith(policy Policy, n int) (*Buffer, error) {
	if n <= 0 {
		return &Buffer{}, nil
	}
	if policy == Off {
		return onHeap(policy, n), nil
	}
	p, err := mapPages(n)
	if policy == Required && !p.isLocked() {
		p.free()
		return nil, limitError(roundToPages(n), err)
	}
	if p == nil {
		return onHeap(policy, n), nil
	}
	return newBuffer(policy, &memory{whole: p.data[:n:n], locked: p.locked, pages: p}), nil
}

func onHeap(policy Policy, n int) *Buffer {
	return newBuffer(policy, &memory{whole: make([]byte, n)})
}

func newBuffer(policy Policy, m *memory) *Buffer {
	m.hi = len(m.whole)
	process.add(m)
	if !m.locked && policy != Off {
		process.misses.Add(1)
	}
	return &Buffer{m}
}

// Bytes is the memory itself, valid until Destroy.
func (b *Buffer) Bytes() []byte {
	if b.m == nil || (b.m.guard != nil && !b.m.guard.alive()) {
		return nil
	}
	return b.m.whole[b.m.lo:b.m.hi:b.m.hi]
}

// Narrow makes Bytes return what is [from:to] of it now. Destroy wipes the whole all the same. It
// panics when from and to are out of range.
func (b *Buffer) Narrow(from, to int) {
	if b.m == nil {
		_ = []byte(nil)[from:to]
		return
	}
	if from < 0 || to < from || to > b.m.hi-b.m.lo {
		panic(fmt.Sprintf("locked: narrowing %d bytes to [%d:%d]", b.m.hi-b.m.lo, from, to))
	}
	b.m.lo, b.m.hi = b.m.lo+from, b.m.lo+to
}

// Locked reports whether the memory cannot be swapped out.
func (b *Buffer) Locked() bool { return b.m != nil && b.m.locked }

// Destroy wipes the memory and gives it back. It is idempotent.
func (b *Buffer) Destroy() {
	m := b.m
	if m == nil {
		return
	}
	b.m = nil
	process.remove(m)
	switch {
	case m.guard != nil:
		m.guard.free() // wipes
	case m.chunk != nil:
		clear(m.whole)
		m.chunk.release(m.at, len(m.whole))
	default:
		clear(m.whole)
		m.pages.free()
	}
}
