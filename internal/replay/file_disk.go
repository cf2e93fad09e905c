// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// This file finds the file that is the right one, reads it, and writes it anew when it has grown.

var (
	errDamaged = errors.New("damaged; remove the file, and what it knew may be served again")
	errForeign = errors.New("not a file of replays")
	errTooBig  = errors.New("the file is too large")
	errBadEnd  = errors.New("it ends in records that a power cut spoilt")
	errMissing = errors.New("it was removed, cut or replaced by an older one")
)

// lockCurrent makes f.file the file of that name, takes its lock, and reads what it has not read
// yet. On error there is no lock.
func (f *File) lockCurrent() error {
	if _, age := f.time(); f.version == ([32]byte{}) && age < f.retryAt {
		return f.failed
	}
	for range 10 {
		if f.file == nil {
			if err := f.open(); err != nil {
				return err
			}
		}
		again, err := f.lockOpen()
		if err == nil && !again {
			return nil
		}
		f.drop()
		if err != nil {
			return err
		}
	}
	return fsafe.ErrLockLost
}

func (f *File) open() error {
	file, err := f.dir.OpenShared(f.name)
	if err != nil {
		return err
	}
	f.file, f.fresh = file, true
	return nil
}

// drop closes the file, and lets go of its lock.
func (f *File) drop() {
	if f.file != nil {
		_ = f.file.Close()
		f.file = nil
	}
}

// lockOpen locks the file that is open. It is to be tried again with the file that has the name by
// then.
func (f *File) lockOpen() (again bool, err error) {
	if err := fsafe.LockFile(f.file, lockWait); err != nil {
		return false, err
	}
	size, named, err := f.dir.Current(f.file, f.name)
	if err != nil {
		return false, err
	}
	// Also of a file that was replaced: its end may be new to us.
	if err := f.catchUp(size); err != nil {
		_, age := f.time()
		f.version, f.retryAt, f.failed = [32]byte{}, age+retryAfter, &namedError{f.name, err}
		return false, f.failed
	}
	if !named {
		return true, nil
	}
	if !f.opened {
		if _, err := f.dir.RemoveTemps(f.name); err != nil {
			return false, err
		}
		f.opened = true
	}
	return f.tidy()
}

type namedError struct {
	name string
	err  error
}

func (e *namedError) Error() string { return e.name + ": " + e.err.Error() }
func (e *namedError) Unwrap() error { return e.err }

// tidy writes the file anew where it has to be, or has grown. It reports whether it did.
func (f *File) tidy() (bool, error) {
	alive := int64(f.envelopes.len() + f.exchanges.len())
	if f.rewrite == nil && f.end <= 2*alive+f.spare {
		return false, nil
	}
	_, age := f.time()
	if age >= f.retryAt {
		if f.failed = f.replace(); f.failed == nil {
			f.rewrite = nil
			return true, nil
		}
		f.retryAt = age + retryAfter
		if errors.Is(f.failed, fsafe.ErrNotDurable) { // it was replaced all the same
			f.rewrite = errMissing
		}
	}
	switch {
	case f.rewrite != nil:
		return false, fmt.Errorf("%w; to write it anew: %w", f.rewrite, f.failed)
	case f.end > f.limit():
		return false, f.failed
	}
	return false, nil // there is room to go on for some time
}

// limit is how many records a file has at most.
func (f *File) limit() int64 { return 8*int64(f.most) + 16*f.spare }

// catchUp reads what the file has beyond f.end.
func (f *File) catchUp(size int64) error {
	records := size / recordSize // an unfinished one at the end is overwritten by the next
	if records > 2*f.limit() {
		return errTooBig
	}
	if f.fresh {
		if err := f.begin(records); err != nil {
			return err
		}
		records = max(records, 1)
		f.fresh = false
	}
	if records < f.end {
		f.rewrite = errMissing
		return nil
	}
	bad := int64(-1) // the first one with a wrong checksum
	var buffer []byte
	for f.end < records {
		if buffer == nil {
			buffer = make([]byte, recordSize*min(records-f.end, readChunk))
		}
		b := buffer[:recordSize*min(records-f.end, readChunk)]
		if _, err := f.file.ReadAt(b, f.end*recordSize); err != nil {
			return fmt.Errorf("read: %w", noEOF(err))
		}
		for ; len(b) > 0; b = b[recordSize:] {
			if err := f.read(b[:recordSize], &bad); err != nil {
				return err
			}
			f.end++
		}
	}
	if bad >= 0 {
		f.rewrite = errBadEnd
	}
	return nil
}

// read applies the record at f.end. One with a wrong checksum is left out, if the disk may not have
// had it.
func (f *File) read(b []byte, bad *int64) error {
	var r record
	switch err := r.parse(b); {
	case err == errChecksum:
		if *bad < 0 {
			*bad = f.end
		}
		if f.end < f.synced {
			return errDamaged
		}
		return nil
	case err != nil:
		return err
	case r.kind == kindHeader, *bad >= 0 && int64(r.synced) > *bad:
		return errDamaged
	}
	f.apply(&r)
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// begin reads the header, or writes one into a file that has nothing else.
func (f *File) begin(records int64) error {
	var r record
	if records > 0 {
		b := make([]byte, recordSize)
		if _, err := f.file.ReadAt(b, 0); err != nil {
			return fmt.Errorf("read: %w", noEOF(err))
		}
		switch err := r.parse(b); {
		case err == nil && r.kind == kindHeader && r.id == magic:
			f.reach(r.age)
			if r.client == f.version {
				return nil
			}
			f.version, f.end, f.synced = r.client, 1, int64(r.synced)
			if r.until < f.changes { // whoever wrote it has not seen all that this process knows
				f.rewrite = errMissing
			}
			f.changes = max(f.changes, r.until)
			return nil
		case err != errChecksum, records > 1:
			return errForeign
		}
	}
	r = f.header(1)
	if _, err := f.disk.writeAt(f.file, r.appendTo(nil), 0); err != nil {
		return err
	}
	if err := f.disk.sync(f.file); err != nil {
		return err
	}
	if f.changes > 0 {
		f.rewrite = errMissing // what this process knows has to stand in it
	}
	f.version, f.end, f.synced = r.client, 1, 1
	return nil
}

func (f *File) header(records int) record {
	now, age := f.time()
	r := record{
		kind: kindHeader, id: magic, synced: uint32(records),
		until: f.changes, now: now.UnixNano(), age: age,
	}
	_, _ = rand.Read(r.client[:])
	return r
}

// reach makes the age of the file at least age. Time in which no process ran does not count.
func (f *File) reach(age time.Duration) {
	if _, have := f.time(); age > have {
		f.base.Add(int64(age - have))
	}
}

// apply does again what a process did when it wrote r.
func (f *File) apply(r *record) {
	now, until := time.Unix(0, r.now), time.Unix(0, r.until)
	switch r.kind {
	case kindClaim:
		f.changes++
		f.reach(r.age)
		if !r.exchange() {
			f.envelopes.claim(r.id, r.client, until, now, r.age)
		} else if ok, _ := f.exchanges.claim(r.id, until, now, r.age); !ok { // somebody was served
			f.exchanges.keep(r.id, lifeUntil(until, now, r.age))
		}
	case kindRelease:
		f.changes++
		f.reach(r.age)
		f.envelopes.release(r.id)
	case kindKept:
		if r.exchange() {
			f.exchanges.keep(r.id, life{until, r.age})
		} else {
			f.envelopes.keep(r.id, envelopeClaim{
				client: r.client, life: life{until, r.age}, released: r.released,
			})
		}
	case kindGone:
		f.exchanges.keepGone(timeSpan{until, now})
	}
}

// replace writes a new version of the file, with what is alive. The lock on the old one is held.
func (f *File) replace() error {
	now, age := f.time()
	var records []record
	records = f.exchanges.snapshot(records, now, age)
	records = f.envelopes.snapshot(records, now, age)
	header := f.header(1 + len(records))
	b := header.appendTo(make([]byte, 0, recordSize*(1+len(records))))
	for i := range records {
		b = records[i].appendTo(b)
	}
	err := f.disk.replace(f.dir, f.name, b)
	if err == nil || errors.Is(err, fsafe.ErrNotDurable) {
		f.version, f.end = header.client, int64(len(b)/recordSize)
		f.synced = f.end
		f.pending = false
	}
	return err
}
