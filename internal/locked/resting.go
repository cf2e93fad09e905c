// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"github.com/awnumar/memcall"
	"github.com/awnumar/memguard"
)

const (
	// margin is how many bytes must remain below the lock limit before memguard is asked. If
	// memguard cannot lock, it destroys every buffer of the process, those of the host program
	// included, and panics. Memory that others lock meanwhile has to fit into the margin.
	margin = 64 << 10
	// maxGuards bounds the buffers behind memguard. Each splits the address space into four
	// mappings. A Linux process may have 65,530 of them, and memguard panics if there are no more.
	maxGuards = 256
)

// guard is a buffer of memguard. It lies between pages that cannot be accessed, so that reading or
// writing past its ends faults. Plain buffers start no goroutine and make no key. Only the enclaves
// of memguard do that, and this package does not use them.
type guard struct {
	buffer *memguard.LockedBuffer
	size   int64 // bytes of locked pages
}

// NewResting is NewWith for a key that is kept for long. It uses memguard as long as the lock limit
// leaves enough room. It takes at least a page and some 0.1 ms.
func NewResting(policy Policy, n int) (*Buffer, error) {
	if n > 0 && policy != Off {
		if g := newGuard(n); g != nil {
			return newBuffer(policy, &memory{whole: g.buffer.Bytes(), locked: true, guard: g}), nil
		}
	}
	return NewWith(policy, n)
}

// newGuard returns nil if memguard might fail.
func newGuard(n int) *guard {
	process.guards.Lock()
	defer process.guards.Unlock()
	if process.guarded >= maxGuards || !memguardCan(n) {
		return nil
	}
	g := &guard{buffer: memguard.NewBuffer(n), size: roundToPages(n)}
	process.guarded++
	process.locked.Add(g.size)
	advise(g.buffer.Inner())
	return g
}

// memguardCan tries everything that memguard will do, with the margin on top.
func memguardCan(n int) bool {
	page := int(roundToPages(1))
	size := int(roundToPages(n)) + margin
	all, err := memcall.Alloc(page + size + page)
	if err != nil {
		return false
	}
	inner := all[page : page+size]
	locked := memcall.Lock(inner) == nil
	can := locked
	for _, edge := range [][]byte{all[:page], all[page+size:]} {
		can = can && memcall.Protect(edge, memcall.NoAccess()) == nil
	}
	can = memcall.Protect(all, memcall.ReadWrite()) == nil && can
	if locked {
		can = memcall.Unlock(inner) == nil && can
	}
	return memcall.Free(all) == nil && can
}

// alive reports whether memguard still has the buffer. The host program can purge all buffers of
// memguard.
func (g *guard) alive() bool { return g.buffer.IsAlive() }

// free wipes the buffer and gives it back.
func (g *guard) free() {
	process.guards.Lock()
	defer process.guards.Unlock()
	g.buffer.Destroy()
	process.guarded--
	process.locked.Add(-g.size)
}
