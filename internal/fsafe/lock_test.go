// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func lock(t testing.TB, d *Dir) *Lock {
	t.Helper()
	l, err := d.Lock(t.Context(), "l")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Unlock() })
	return l
}

func unlock(t testing.TB, l *Lock) {
	t.Helper()
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestLockExcludesOwnProcess(t *testing.T) {
	d := newDir(t)
	l := lock(t, d)
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := d.Lock(ctx, "l")
	wantErr(t, err, ErrLocked)
	wantErr(t, err, context.DeadlineExceeded)
	_, err = openDir(t, d.Path()).Lock(ctx, "l") // the context has ended before the first try
	wantErr(t, err, context.DeadlineExceeded)
	if errors.Is(err, ErrLocked) {
		t.Fatal("nobody looked whether it was locked")
	}
	other, err := d.Lock(t.Context(), "other")
	if err != nil {
		t.Fatal("another name is another lock:", err)
	}
	unlock(t, other)
	unlock(t, l)
	unlock(t, l) // a second time is nothing
	wantErr(t, l.Check(), ErrLockLost)
	unlock(t, lock(t, d))
	wantNames(t, d, "l", "other")
}

func TestLockCancelWhileWaiting(t *testing.T) {
	d := newDir(t)
	lock(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	start := time.Now()
	_, err := d.Lock(ctx, "l")
	wantErr(t, err, ErrLocked)
	wantErr(t, err, context.Canceled)
	if took := time.Since(start); took > 30*time.Second {
		t.Fatalf("took %v to notice", took)
	}
}

func TestLockIsHandedOver(t *testing.T) {
	d := newDir(t)
	l := lock(t, d)
	time.AfterFunc(20*time.Millisecond, func() { l.Unlock() })
	unlock(t, lock(t, d))
}

func TestLockCounts(t *testing.T) {
	d := newDir(t)
	n := 0 // the race detector sees it too
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				l, err := d.Lock(t.Context(), "l")
				if err != nil {
					t.Error(err)
					return
				}
				n++
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n != 40 {
		t.Fatalf("counted to %d, want 40", n)
	}
}

func TestLockLost(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			if err := os.Rename(path, path+".old"); err != nil {
				return err
			}
			return os.WriteFile(path, nil, 0o600)
		},
		"linked": func(path string) error {
			if err := os.Rename(path, path+".old"); err != nil {
				return err
			}
			return os.Symlink(path+".old", path) // the same file, but no longer by that name
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			l := lock(t, d)
			if err := lose(filepath.Join(d.Path(), "l")); err != nil {
				t.Skip("an open file cannot be moved here:", err)
			}
			wantErr(t, l.Check(), ErrLockLost)
			_, err := l.RemoveStaleTemps("f")
			wantErr(t, err, ErrLockLost)
			if name != "linked" {
				unlock(t, lock(t, d)) // another one gets it meanwhile: that is why it is lost
			}
			wantErr(t, l.Unlock(), ErrLockLost)
			unlock(t, l)
		})
	}
}

// TestLockReplacedWhileWaiting replaces the lock file under a waiting call, which must end up with
// the new one.
func TestLockReplacedWhileWaiting(t *testing.T) {
	d := newDir(t)
	old := lock(t, d)
	got := make(chan *Lock)
	go func() {
		l, err := d.Lock(t.Context(), "l")
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	if err := os.Remove(filepath.Join(d.Path(), "l")); err != nil {
		unlock(t, old) // the waiting call gets it, before its folder is closed
		unlock(t, <-got)
		t.Skip("an open file cannot be removed here:", err)
	}
	l := <-got
	if l == nil {
		t.FailNow()
	}
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, old.Unlock(), ErrLockLost)
	unlock(t, l)
}

// TestLockedAnotherFile replaces the lock file between its check and its locking.
func TestLockedAnotherFile(t *testing.T) {
	d := newDir(t)
	f, err := d.openOrCreate("l", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(d.Path(), "l")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Skip("an open file cannot be moved here:", err)
	}
	if l, err := d.lockOpen("l", f); l != nil || err != nil {
		t.Fatalf("removed: got %v, %v; want to try again", l, err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := d.lockOpen("l", f); l != nil || err != nil {
		t.Fatalf("replaced: got %v, %v; want to try again", l, err)
	}
	unlock(t, lock(t, d)) // the other file was let go
}

// TestLockedByAnotherName has the checked file where flock looks for it, but no longer in the
// folder.
func TestLockedByAnotherName(t *testing.T) {
	d := newDir(t)
	f, err := d.openOrCreate("l", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(d.Path(), d.Path()+".moved"); err != nil {
		t.Skip("an open folder cannot be moved here:", err)
	}
	other := openDir(t, d.Path())
	if err := os.Rename(filepath.Join(d.Path()+".moved", "l"),
		filepath.Join(d.Path(), "l")); err != nil {
		t.Fatal(err)
	}
	if l, err := d.lockOpen("l", f); l != nil || err == nil {
		t.Fatalf("got %v, %v; want an error about the folder", l, err)
	}
	unlock(t, lock(t, other)) // it was let go
}

// TestLockFileKeepsVanishing removes the lock file all the time: locks get lost, but taking one
// never fails.
func TestLockFileKeepsVanishing(t *testing.T) {
	d := newDir(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				l, err := d.Lock(t.Context(), "l")
				if err != nil {
					t.Error(err)
					return
				}
				if err := l.Unlock(); err != nil && !errors.Is(err, ErrLockLost) {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	removed := 0
	for {
		select {
		case <-done:
			t.Logf("removed %d times", removed)
			return
		default:
			path := filepath.Join(d.Path(), "l")
			if _, err := os.Lstat(path); err != nil {
				continue
			}
			// at once, no lock could ever be had
			time.Sleep(time.Duration(removed%5) * 100 * time.Microsecond)
			if os.Remove(path) == nil {
				removed++
			}
		}
	}
}

func TestRemoveStaleTemps(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	ours := []string{tempName("f"), tempName("f"), tempName("g")}
	for _, name := range append(ours, tempName("h"), ".f.tmp", ".f.short.tmp", "f.tmp") {
		if err := os.WriteFile(filepath.Join(d.Path(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	folder := tempName("f")
	if err := os.Mkdir(filepath.Join(d.Path(), folder), 0o700); err != nil {
		t.Fatal(err)
	}
	l := lock(t, d)
	if n, err := l.RemoveStaleTemps("f", "g"); n != len(ours) || err != nil {
		t.Fatalf("removed %d, %v; want %d", n, err, len(ours))
	}
	for _, name := range ours {
		if ok, err := d.Exists(name); ok || err != nil {
			t.Errorf("%s is still there, %v", name, err)
		}
	}
	if entries, err := os.ReadDir(d.Path()); err != nil || len(entries) != 7 {
		t.Fatalf("%d entries are left, %v; want f, l, h's, the folder and three that look similar",
			len(entries), err)
	}
	unlock(t, l)
	_, err := l.RemoveStaleTemps("f")
	wantErr(t, err, ErrLockLost)
}

func TestLockNeedsOpenDir(t *testing.T) {
	d := newDir(t)
	l := lock(t, d)
	d.Close()
	if err := l.Unlock(); !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
	unlock(t, lock(t, openDir(t, d.Path()))) // it was let go all the same
}
