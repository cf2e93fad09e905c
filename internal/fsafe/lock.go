// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

const (
	lockWait  = 10 * time.Second // for contexts without a deadline
	lockFirst = time.Millisecond // the wait after the first try; it doubles
	lockLast  = 100 * time.Millisecond
)

// Lock is an exclusive lock that this process holds. The kernel releases it when the process ends
// in any way, so it is never stale. Its file stays for the next holder. A Lock that is dropped
// without Unlock lasts until the garbage collector finds it. Its methods are safe for concurrent
// use.
//
// mu guards fl. It is held while the file system is asked, and no other lock is taken under it.
type Lock struct {
	dir  *Dir
	name string

	mu sync.Mutex
	fl *flock.Flock // nil once unlocked
}

// Lock takes the lock of the named file. It makes the file if there is none, and never removes it.
// It tries again after 1 ms, and then after twice as long up to 100 ms, until the context ends, or
// for 10 s if the context has no deadline. Then the error is [ErrLocked] together with the error of
// the context. Two calls exclude each other within a process as they do between processes.
//
// All processes that share the folder must use the same name for the same purpose.
func (d *Dir) Lock(ctx context.Context, name string) (*Lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, d.fail("lock", name, err)
	}
	if err := d.ready("lock", name); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lockWait)
		defer cancel()
	}
	for delay := lockFirst; ; delay = min(2*delay, lockLast) {
		l, err := d.tryLock(name)
		if l != nil || err != nil {
			return l, d.fail("lock", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, d.fail("lock", name, fmt.Errorf("%w: %w", ErrLocked, ctx.Err()))
		case <-time.After(delay):
		}
	}
}

// tryLock returns nil and no error if the caller has to try again.
func (d *Dir) tryLock(name string) (*Lock, error) {
	f, err := d.openOrCreate(name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return d.lockOpen(name, f)
}

// lockOpen locks the file that is open as f; its results are those of tryLock. flock opens by path.
// So lockFlag makes it open only a file that exists and is no link, and lockOpen checks that the
// locked file is the one that was checked and still has the name.
func (d *Dir) lockOpen(name string, f *os.File) (*Lock, error) {
	checked, err := f.Stat()
	if err != nil {
		return nil, err
	}
	fl := flock.New(d.join(name), flock.SetFlag(lockFlag), flock.SetPermissions(fileMode))
	switch ok, err := fl.TryLock(); {
	case errors.Is(err, fs.ErrNotExist):
		// the file was removed just now; or the whole folder was moved, and then waiting is useless
		return nil, d.AtPath()
	case errors.Is(err, syscall.EINTR), inUse(err), err == nil && !ok:
		return nil, nil
	case err != nil:
		return nil, err
	}
	l := &Lock{dir: d, name: name, fl: fl}
	held, err := fl.Stat()
	if err == nil && os.SameFile(held, checked) && l.Check() == nil {
		return l, nil
	}
	return nil, errors.Join(err, fl.Unlock(), d.AtPath())
}

// Check returns [ErrLockLost] if the file of the lock was replaced or removed while the lock was
// held: others may then hold a lock of the same name. The caller calls Check right before a step
// that must not happen twice.
func (l *Lock) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check()
}

// check is Check, with mu held.
func (l *Lock) check() error {
	if l.fl == nil {
		return l.dir.fail("lock", l.name, ErrLockLost)
	}
	held, err := l.fl.Stat()
	if err != nil {
		return l.dir.fail("lock", l.name, err)
	}
	named, err := l.dir.root.Lstat(l.name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(held, named) {
		err = ErrLockLost
	}
	return l.dir.fail("lock", l.name, err)
}

// Unlock releases the lock. [ErrLockLost] says that the lock had been lost before; see
// [Lock.Check]. Only the first call does anything; later ones return nil.
func (l *Lock) Unlock() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fl == nil {
		return nil
	}
	err := errors.Join(l.check(), l.fl.Unlock())
	l.fl = nil
	return err
}

// RemoveStaleTemps removes the temporary files of processes that died while they wrote one of the
// named files, and returns how many it removed. All writers of those files must hold this lock
// while they write. Then no living process is writing one. It touches only regular files whose name
// the package makes for exactly these files.
func (l *Lock) RemoveStaleTemps(files ...string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.check(); err != nil {
		return 0, err
	}
	return l.dir.RemoveTemps(files...)
}
