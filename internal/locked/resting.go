// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"github.com/awnumar/memcall"
	"github.com/awnumar/memguard"
)

const (
	// margin is what has to be left of the lock limit, in bytes, before memguard is asked: when
	// memguard cannot lock it destroys every buffer of the process, the host's too, and panics.
	// What others lock meanwhile has to fit into it.
	margin = 64 << 10
	// maxGuards bounds the buffers behind memguard. Each splits the address space into four
	// mappings, of which a Linux process may have 65,530, and running out is a panic as above.
	maxGuards = 256
)

// guard is a buffer of memguard's: between pages that cannot be accessed, so that reading or
// writing past its ends faults. Plain buffers start no goroutine and make no key; only memguard's
// enclaves do, and nothing here uses those.
type guard struct {
	buffer *memguard.LockedBuffer
	size   int64 // locked
}

// NewResting is NewWith for a key that rests for long: memguard is behind it, as long as there is
// room enough under the lock limit. It takes a page at least, and some 0.1 ms.
func NewResting(policy Policy, n int) (*Buffer, error) {
	if n > 0 && policy != Off {
		if g := newGuard(n); g != nil {
			return newBuffer(policy, &memory{whole: g.buffer.Bytes(), locked: true, guard: g}), nil
		}
	}
	return NewWith(policy, n)
}

// newGuard returns nil where memguard could fail.
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

// memguardCan does what memguard will do, with a margin more.
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

// alive is false if the host has purged memguard's buffers, this one with them.
func (g *guard) alive() bool { return g.buffer.IsAlive() }

func (g *guard) free() {
	process.guards.Lock()
	defer process.guards.Unlock()
	g.buffer.Destroy()
	process.guarded--
	process.locked.Add(-g.size)
}
