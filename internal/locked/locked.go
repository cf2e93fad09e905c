// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package locked provides memory for secrets. The memory lies outside the Go heap, so that the
// garbage collector neither moves nor copies it. On Linux it is left out of core dumps. It is
// locked into RAM as far as the operating system allows.
//
// Only this package imports memcall and memguard. The limit of locked memory is one number for the
// whole process, so the account of it is global here.
//
// Order of locks: Arena.mu, then process.guards.
package locked

import (
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Policy says how a buffer is protected, and what happens if it cannot be locked.
type Policy uint8

// The policies. BestEffort is the zero value.
const (
	BestEffort Policy = iota // memory that cannot be locked is only wiped
	Required                 // memory that cannot be locked is a *LimitError
	Off                      // nothing is locked: memory of the Go heap, wiped
)

// Level says how the memory in use is protected.
type Level uint8

// The levels, the lowest first.
const (
	Wiped  Level = iota // wiped when it is given back; until then it may be swapped out
	Locked              // also locked into RAM
)

// String returns the words in which statistics report the level.
func (l Level) String() string {
	switch l {
	case Wiped:
		return "wiped only"
	case Locked:
		return "locked"
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

// LimitError says that memory could not be locked and that the policy is Required. It matches
// ErrMemoryLimit.
type LimitError struct {
	Limit  int64 // bytes that the process may lock; negative: no limit, or unknown
	InUse  int64 // bytes that this package has locked already
	Needed int64 // bytes that it would have to lock in addition
	Err    error // the error of the system
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

// ErrClosed is the error of an arena after Close.
var ErrClosed = fmt.Errorf("%w: its memory was given back", fault.ErrClosed)

// Buffer is memory for one secret. The zero Buffer has no memory. It is not safe for concurrent
// use: its owner orders access, and calls Destroy.
//
// Invariant: m is nil before the first use of a zero Buffer, and after Destroy.
type Buffer struct {
	// behind a pointer of its own: package fmt follows one level of pointers, and prints what it
	// finds there
	m *memory
}

// memory lies in exactly one place: in pages of its own (pages), in an arena (chunk), behind
// memguard (guard), or, if all three are nil, on the Go heap.
type memory struct {
	whole  []byte
	lo, hi int // Bytes returns whole[lo:hi]
	locked bool

	pages *pages
	chunk *chunk
	at    int // in chunk
	guard *guard
}

// NewWith returns n zero bytes in pages of their own, under a policy. Only Required can fail, with
// a *LimitError. With BestEffort, Destroy wipes memory that cannot be locked (RLIMIT_MEMLOCK), and
// memory that cannot even be mapped lies on the Go heap; Buffer.Locked tells the difference. As
// everywhere in this package, the bytes begin at a multiple of 8 if n is one.
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

// onHeap returns a buffer on the Go heap.
func onHeap(policy Policy, n int) *Buffer {
	return newBuffer(policy, &memory{whole: make([]byte, n)})
}

// newBuffer enters memory in the account of the process.
func newBuffer(policy Policy, m *memory) *Buffer {
	m.hi = len(m.whole)
	process.add(m)
	if !m.locked && policy != Off {
		process.misses.Add(1)
	}
	return &Buffer{m}
}

// Bytes returns the memory itself, which is valid until Destroy.
func (b *Buffer) Bytes() []byte {
	if b.m == nil || (b.m.guard != nil && !b.m.guard.alive()) {
		return nil
	}
	return b.m.whole[b.m.lo:b.m.hi:b.m.hi]
}

// Narrow makes Bytes return only its part [from:to] from now on. Destroy still wipes all of the
// memory. It panics if from or to is out of range.
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
