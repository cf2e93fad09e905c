// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"os"

	"github.com/awnumar/memcall"
)

// pages is a mapping of its own. A nil *pages has nothing.
type pages struct {
	data   []byte // whole pages
	locked bool
}

// mapPages maps room for n bytes and tries to lock it. What could not be locked comes with an
// error; what could not even be mapped is nil.
func mapPages(n int) (*pages, error) {
	size := roundToPages(n)
	data, err := memcall.Alloc(int(size))
	if err != nil {
		return nil, err
	}
	p := &pages{data: data}
	process.guards.RLock()
	// also keeps it out of core dumps, where the system can, even when it does not lock
	err = memcall.Lock(data)
	process.guards.RUnlock()
	p.locked = err == nil
	advise(data)
	if p.locked {
		process.locked.Add(size)
	}
	return p, err
}

func (p *pages) isLocked() bool { return p != nil && p.locked }

// free gives the pages back, which are wiped.
func (p *pages) free() {
	if p == nil {
		return
	}
	if p.locked {
		_ = memcall.Unlock(p.data) // freeing unlocks as well
		process.locked.Add(-int64(len(p.data)))
	}
	// on failure the pages are wiped and stay mapped: nothing to tell anyone
	_ = memcall.Free(p.data)
}

// roundToPages is how much n bytes take in pages of their own.
func roundToPages(n int) int64 {
	page := int64(os.Getpagesize())
	return (int64(n) + page - 1) / page * page
}
