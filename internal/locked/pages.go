// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"os"

	"github.com/awnumar/memcall"
)

// pages is a mapping of whole pages. A nil *pages has no memory.
type pages struct {
	data   []byte
	locked bool
}

// mapPages maps room for n bytes and tries to lock it. Pages that could not be locked come with an
// error. The result is nil if they could not even be mapped.
func mapPages(n int) (*pages, error) {
	size := roundToPages(n)
	data, err := memcall.Alloc(int(size))
	if err != nil {
		return nil, err
	}
	p := &pages{data: data}
	process.guards.RLock()
	// this also keeps the pages out of core dumps, if the system can, even if it does not lock them
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

// free unmaps the pages. The caller has wiped them.
func (p *pages) free() {
	if p == nil {
		return
	}
	if p.locked {
		_ = memcall.Unlock(p.data) // freeing unlocks as well
		process.locked.Add(-int64(len(p.data)))
	}
	// on failure the pages are wiped and stay mapped: the caller can do nothing about it
	_ = memcall.Free(p.data)
}

// roundToPages returns how many bytes n bytes take in pages of their own.
func roundToPages(n int) int64 {
	page := int64(os.Getpagesize())
	return (int64(n) + page - 1) / page * page
}
