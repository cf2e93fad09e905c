// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"os"
	"sync"
	"sync/atomic"
)

// process is the account of this process. RLIMIT_MEMLOCK is one number for a process, and so is
// this.
var process account

type account struct {
	inUse, unlocked atomic.Int64 // bytes in living buffers, and those of them that are not locked
	peak            atomic.Int64 // most of inUse so far
	locked          atomic.Int64 // bytes of pages that this package holds locked
	misses          atomic.Int64 // buffers that were to be locked and were not

	watched, leaked atomic.Int64 // owners under watch, and those that never destroyed what they had

	// who asks memguard, alone; who locks pages without it reads, so that the room tried stays
	guards  sync.RWMutex
	guarded int // living guards
}

func (a *account) add(m *memory) {
	n := int64(len(m.whole))
	if !m.locked {
		a.unlocked.Add(n)
	}
	now := a.inUse.Add(n)
	for peak := a.peak.Load(); now > peak && !a.peak.CompareAndSwap(peak, now); {
		peak = a.peak.Load()
	}
}

func (a *account) remove(m *memory) {
	n := int64(len(m.whole))
	if !m.locked {
		a.unlocked.Add(-n)
	}
	a.inUse.Add(-n)
}

// Stats is what the process has here at one moment. Sizes are in bytes.
type Stats struct {
	// Locked if all that is in use is locked; with nothing in use, if a page can be locked
	Level    Level
	PageSize int
	InUse    int64 // in living buffers
	Unlocked int64 // those of them that are not locked
	Peak     int64 // the most that was in use at once
	Misses   int64 // how many buffers could not be locked so far and are, or were, wiped only
	Locked   int64 // in pages that are locked, with what is free in them
	Watched  int64 // owners of buffers under watch that are alive
	Leaked   int64 // owners that became unreachable without a Destroy
	// what the process may lock, this package and others; negative: none, or not known
	Limit int64
}

// Report tells how much memory is in use.
func Report() Stats {
	s := Stats{
		PageSize: os.Getpagesize(), InUse: process.inUse.Load(), Unlocked: process.unlocked.Load(),
		Peak: process.peak.Load(), Misses: process.misses.Load(), Locked: process.locked.Load(),
		Limit:   limit(),
		Watched: process.watched.Load(), Leaked: process.leaked.Load(),
	}
	if (s.InUse > 0 && s.Unlocked == 0) || (s.InUse == 0 && canLock(1)) {
		s.Level = Locked
	}
	return s
}

// canLock tries whether n bytes can be locked now.
func canLock(n int) bool {
	p, _ := mapPages(n)
	defer p.free()
	return p.isLocked()
}

func limitError(needed int64, err error) *LimitError {
	return &LimitError{Limit: limit(), InUse: process.locked.Load(), Needed: needed, Err: err}
}
