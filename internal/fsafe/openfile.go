// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// This file is for a file that several processes keep open and write, each while it holds the lock
// on the file itself. [Dir.Lock] costs some 24 µs, most of it for opening its file; this one is
// taken on what is open already.

// OpenShared opens a file to be read and written at any place, and makes it, empty and with mode
// 0600, where there is none. The handle is the caller's.
func (d *Dir) OpenShared(name string) (*os.File, error) {
	if err := d.ready("open", name); err != nil {
		return nil, err
	}
	f, err := d.openOrCreate(name, os.O_RDWR)
	if err != nil {
		return nil, d.fail("open", name, err)
	}
	return f, nil
}

// Current returns the size of the file that is open as f, and whether name still names it: it does
// not once the file was renamed, removed or replaced.
func (d *Dir) Current(f *os.File, name string) (size int64, named bool, err error) {
	mine, err := f.Stat()
	if err != nil {
		return 0, false, d.fail("stat", name, err)
	}
	at, err := d.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mine.Size(), false, nil
	case err != nil:
		return 0, false, d.fail("stat", name, err)
	}
	return mine.Size(), os.SameFile(mine, at), nil
}

const (
	fileLockFirst = 20 * time.Microsecond // the wait after the first try; it doubles
	fileLockLast  = 5 * time.Millisecond
)

// LockFile takes the lock on an open file, which no other handle then has, in whatever process.
// After wait the error is [ErrLocked]. The kernel lets go of it when the file is closed or the
// process ends. Whoever has the lock asks [Dir.Current] whether it is still the right file.
func LockFile(f *os.File, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for delay := fileLockFirst; ; delay = min(2*delay, fileLockLast) {
		ok, err := tryLockFile(f)
		switch {
		case err != nil:
			return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		case ok:
			return nil
		case !time.Now().Before(deadline):
			err := fmt.Errorf("%w for %v", ErrLocked, wait)
			return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		time.Sleep(delay)
	}
}

// UnlockFile lets go of what [LockFile] took.
func UnlockFile(f *os.File) error {
	if err := unlockFile(f); err != nil {
		return &fs.PathError{Op: "unlock", Path: f.Name(), Err: err}
	}
	return nil
}

// RemoveTemps is [Lock.RemoveStaleTemps] for files that another lock guards. The caller has that
// lock.
func (d *Dir) RemoveTemps(files ...string) (int, error) {
	names, err := d.Names()
	if err != nil {
		return 0, err
	}
	removed := 0
	for _, temp := range names {
		for _, name := range files {
			if !isTemp(temp, name) {
				continue
			}
			fi, err := d.root.Lstat(temp)
			if err == nil && !fi.Mode().IsRegular() {
				continue
			}
			if err == nil {
				err = d.root.Remove(temp)
			}
			if err != nil {
				return removed, d.fail("remove", temp, err)
			}
			removed++
		}
	}
	return removed, nil
}
