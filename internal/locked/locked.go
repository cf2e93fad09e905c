// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package locked hands out memory for secrets: outside the Go heap, so that the garbage collector neither moves nor
// copies it, and locked into RAM where the operating system allows. It is the only importer of memcall.
package locked

import (
	"os"

	"github.com/awnumar/memcall"
)

// Buffer is memory for one secret. It is not safe for concurrent use; its owner orders access and calls Destroy.
// The zero Buffer has no memory.
type Buffer struct {
	m *memory // behind a pointer of its own: package fmt follows one level of pointers, and prints what it finds there
}

type memory struct {
	data   []byte
	pages  []byte // the whole mapping; nil when data lies on the Go heap
	locked bool
}

// New returns n zero bytes. It never fails: what cannot be locked (RLIMIT_MEMLOCK) is wiped by Destroy only, and
// what cannot even be mapped lies on the Go heap. Locked tells the difference.
func New(n int) *Buffer {
	if n == 0 {
		return &Buffer{}
	}
	page := os.Getpagesize()
	pages, err := memcall.Alloc((n + page - 1) / page * page)
	if err != nil {
		return &Buffer{&memory{data: make([]byte, n)}}
	}
	return &Buffer{&memory{data: pages[:n:n], pages: pages, locked: memcall.Lock(pages) == nil}}
}

// Bytes is the memory itself, valid until Destroy.
func (b *Buffer) Bytes() []byte {
	if b.m == nil {
		return nil
	}
	return b.m.data
}

// Locked reports whether the memory cannot be swapped out.
func (b *Buffer) Locked() bool { return b.m != nil && b.m.locked }

// Destroy wipes the memory and gives it back. It is idempotent.
func (b *Buffer) Destroy() {
	if b.m == nil {
		return
	}
	clear(b.m.data)
	if b.m.pages != nil {
		if b.m.locked {
			_ = memcall.Unlock(b.m.pages) // freeing unlocks as well
		}
		_ = memcall.Free(b.m.pages) // on failure the pages are wiped and stay mapped: nothing to tell anyone
	}
	b.m = nil
}
