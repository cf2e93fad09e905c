// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"os"
	"sync"
	"sync/atomic"
)

// process is the account of this process. RLIMIT_MEMLOCK is one number for a process, so the
// account is one, too.
var process account

// account counts buffers and pages. The counters are atomic; guards guards only what its comment
// says.
type account struct {
	inUse, unlocked atomic.Int64 // bytes in living buffers, and those of them that are not locked
	peak            atomic.Int64 // the largest inUse so far
	locked          atomic.Int64 // bytes of pages that this package holds locked
	misses          atomic.Int64 // buffers that should have been locked and were not

	watched, leaked atomic.Int64 // owners under watch, and owners that never destroyed their buffer

	// guards guards guarded. A goroutine that uses memguard holds it for writing, so that nobody
	// locks pages between its test of the limit and memguard. A goroutine that locks pages without
	// memguard holds it for reading.
	guards  sync.RWMutex
	guarded int // living guards
}

// add counts a new buffer.
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

// remove counts a destroyed buffer.
func (a *account) remove(m *memory) {
	n := int64(len(m.whole))
	if !m.locked {
		a.unlocked.Add(-n)
	}
	a.inUse.Add(-n)
}

// Stats is the account of the process at one moment. Sizes are in bytes.
type Stats struct {
	// Level is Locked if all memory in use is locked, or if none is in use and a page can be
	// locked.
	Level    Level
	PageSize int
	InUse    int64 // in living buffers
	Unlocked int64 // those of them that are not locked
	Peak     int64 // the most that was in use at once
	Misses   int64 // buffers that could not be locked so far
	Locked   int64 // in locked pages, free parts included
	Watched  int64 // living owners of buffers under watch
	Leaked   int64 // owners that became unreachable without a Destroy
	// bytes that the process may lock, in this package and elsewhere; negative: no limit, or
	// unknown
	Limit int64
}

// Report returns the current account.
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

// limitError is the error for memory that Required could not lock.
func limitError(needed int64, err error) *LimitError {
	return &LimitError{Limit: limit(), InUse: process.locked.Load(), Needed: needed, Err: err}
}
