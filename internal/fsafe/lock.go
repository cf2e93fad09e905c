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

// Lock is an exclusive lock that this process holds. The kernel lets go of it when the process
// ends, however that happens, so it is never stale; its file stays for the next one. A Lock that is
// dropped without Unlock lasts until the garbage collector finds it.
type Lock struct {
	dir  *Dir
	name string

	mu sync.Mutex
	fl *flock.Flock // nil once unlocked
}

// Lock takes the lock that the named file stands for, making the file where there is none and never
// removing it. It tries after 1 ms, doubling to 100 ms, until the context ends, or for 10 s if the
// context has no deadline; then the error is [ErrLocked] together with the context's. Two calls
// exclude each other within a process as between processes.
//
// Every process that shares the folder must use the same name for the same purpose.
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

// tryLock returns nil and no error when it is to be tried again.
func (d *Dir) tryLock(name string) (*Lock, error) {
	f, err := d.openOrCreate(name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return d.lockOpen(name, f)
}

// lockOpen locks the file that f has open, or returns as tryLock does. flock opens by path, so it
// is made to open only what exists and no link, and what it locked must be the file that was
// checked and that still has the name.
func (d *Dir) lockOpen(name string, f *os.File) (*Lock, error) {
	checked, err := f.Stat()
	if err != nil {
		return nil, err
	}
	fl := flock.New(d.join(name), flock.SetFlag(lockFlag), flock.SetPermissions(fileMode))
	switch ok, err := fl.TryLock(); {
	case errors.Is(err, fs.ErrNotExist):
		// removed just now; or the whole folder was moved, then waiting is no use
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

// Check returns [ErrLockLost] if the lock's file was replaced or removed while it was held: others
// may then hold a lock of the same name. Check right before what must not happen twice.
func (l *Lock) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check()
}

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

// Unlock lets go of the lock. [ErrLockLost] says that it had been lost before, see [Lock.Check].
// Only the first call does anything; the others return nil.
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

// RemoveStaleTemps removes the temporary files that processes which died while writing one of the
// named files left behind, and returns how many there were. The lock must be the one that every
// writer of those files holds: then nobody alive is writing them. Only regular files with a name
// that this package gives to a temporary file of exactly these files are touched.
func (l *Lock) RemoveStaleTemps(files ...string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.check(); err != nil {
		return 0, err
	}
	return l.dir.RemoveTemps(files...)
}
