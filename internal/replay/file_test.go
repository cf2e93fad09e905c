// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

var client1 = [32]byte{1}

// wantClosed wants a claim to fail, with what helps, and to serve nobody.
func wantClosed(t *testing.T, f *File, n uint64, is error) {
	t.Helper()
	for _, client := range [][32]byte{client1, {}} {
		ok, err := f.Claim(t.Context(), replayID(n), client, time.Now().Add(time.Hour))
		if ok || err == nil || is != nil && !errors.Is(err, is) ||
			!strings.Contains(err.Error(), "set Replay") {
			t.Errorf("got %v, %v; want %v", ok, err, is)
		}
	}
}

func TestFileTouchesNothingBeforeTheFirstClaim(t *testing.T) {
	d := newFolder(t)
	f := openFile(t, d, 0, nil)
	f.Knows(replayID(1))
	if names, err := d.Names(); len(names) != 0 || err != nil {
		t.Errorf("%v, %v", names, err)
	}
	mustClaimFile(t, f, 1, true)
	if err := f.Ready(t.Context()); err != nil || f.Len() != 1 {
		t.Errorf("ready: %v, %d requests", err, f.Len())
	}
	info, err := os.Stat(filepath.Join(d.Path(), FileName))
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if ok, err := f.Claim(t.Context(), replayID(2), client1, time.Now()); ok ||
			!errors.Is(err, fault.ErrClosed) {
			t.Errorf("closed: %v, %v", ok, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ok, err := openFile(t, d, 0, nil).Claim(ctx, replayID(3), client1, time.Now()); ok ||
		!errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, %v", ok, err)
	}
}

func TestFileOneWins(t *testing.T) {
	d := newFolder(t)
	files := []*File{openFile(t, d, 0, nil), openFile(t, d, 0, nil), openFile(t, d, 0, nil)}
	for _, f := range files {
		f.spare = 8
	}
	var won [128]atomic.Int32
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			for n := range won {
				client := [32]byte{byte(n % 2)}
				ok, err := files[i%3].Claim(t.Context(), replayID(uint64(n)), client,
					time.Now().Add(time.Hour))
				if err != nil {
					t.Error(err)
				} else if ok {
					won[n].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for n := range won {
		if won[n].Load() != 1 {
			t.Errorf("%d was claimed %d times", n, won[n].Load())
		}
	}
}

// What a running process knows survives its file, and gets into the next one.
func TestFileIsTakenAway(t *testing.T) {
	for name, take := range map[string]func(t *testing.T, path string, old []byte){
		"removed": func(t *testing.T, path string, _ []byte) { mustDo(t, os.Remove(path)) },
		"renamed": func(t *testing.T, path string, _ []byte) {
			mustDo(t, os.Rename(path, path+".old"))
		},
		"cut": func(t *testing.T, path string, _ []byte) {
			mustDo(t, os.Truncate(path, 3*recordSize))
		},
		"emptied": func(t *testing.T, path string, _ []byte) { mustDo(t, os.Truncate(path, 0)) },
		"an older copy": func(t *testing.T, path string, old []byte) {
			mustDo(t, os.Remove(path))
			mustDo(t, os.WriteFile(path, old, 0o600))
		},
		"another file": func(t *testing.T, path string, _ []byte) {
			mustDo(t, os.Remove(path))
			d := openFolder(t, filepath.Dir(path))
			other := openFile(t, d, 0, nil)
			mustClaimFile(t, other, 100, true)
			other.crash()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newFolder(t)
			path := filepath.Join(d.Path(), FileName)
			f := openFile(t, d, 0, nil)
			mustClaimFile(t, f, 0, true)
			old, err := os.ReadFile(path)
			mustDo(t, err)
			for n := uint64(1); n < 10; n++ {
				mustClaimFile(t, f, n, true)
			}
			if runtime.GOOS == "windows" {
				f.crash() // others cannot take away what is open
			}
			take(t, path, old)
			for n := range uint64(10) {
				mustClaimFile(t, f, n, false)
			}
			mustClaimFile(t, f, 10, true)
			mustClaimFile(t, f, 100, name != "another file")
			next := openFile(t, d, 0, nil)
			for n := range uint64(11) {
				mustClaimFile(t, next, n, false)
			}
		})
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFolderIsTakenAway(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows keeps an open folder")
	}
	d := newFolder(t)
	f := openFile(t, d, 0, nil)
	mustClaimFile(t, f, 1, true)
	mustDo(t, os.RemoveAll(d.Path()))
	wantClosed(t, f, 2, os.ErrNotExist)
	wantClosed(t, f, 1, os.ErrNotExist)
	mustDo(t, os.Mkdir(d.Path(), 0o700)) // another folder of that name is not the one of the keys
	wantClosed(t, f, 2, os.ErrNotExist)
	if err := f.Ready(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ready: %v", err)
	}
	mustDo(t, d.Close())
	wantClosed(t, f, 3, nil)
}

func TestFileThatIsNotOurs(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, path string){
		"text": func(t *testing.T, path string) {
			mustDo(t, os.WriteFile(path, bytes.Repeat([]byte("text "), 100), 0o600))
		},
		"folder": func(t *testing.T, path string) { mustDo(t, os.Mkdir(path, 0o700)) },
		"link":   func(t *testing.T, path string) { mustDo(t, os.Symlink(path+".x", path)) },
		"open to others": func(t *testing.T, path string) {
			mustDo(t, os.WriteFile(path, nil, 0o600))
			mustDo(t, os.Chmod(path, 0o644))
		},
		"a later version": func(t *testing.T, path string) {
			r := record{kind: kindHeader,
				id: [32]byte([]byte("sealedchat replays, version 2\n\x00\x00"))}
			mustDo(t, os.WriteFile(path, r.appendTo(nil), 0o600))
		},
		"a later record": func(t *testing.T, path string) {
			h, r := record{kind: kindHeader, id: magic, client: [32]byte{1}},
				record{kind: kindGone + 1}
			mustDo(t, os.WriteFile(path, r.appendTo(h.appendTo(nil)), 0o600))
		},
		"a second header": func(t *testing.T, path string) {
			h := record{kind: kindHeader, id: magic, client: [32]byte{1}}
			mustDo(t, os.WriteFile(path, h.appendTo(h.appendTo(nil)), 0o600))
		},
		"too large": func(t *testing.T, path string) {
			h := record{kind: kindHeader, id: magic, client: [32]byte{1}}
			mustDo(t, os.WriteFile(path, h.appendTo(nil), 0o600))
			mustDo(t, os.Truncate(path, 1<<20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if runtime.GOOS == "windows" && (name == "open to others" || name == "link") {
				t.Skip("there are no modes here")
			}
			d := newFolder(t)
			path := filepath.Join(d.Path(), FileName)
			make(t, path)
			before, _ := os.ReadFile(path)
			c := newFakeClock()
			f := openFile(t, d, 100, c)
			f.spare = 1
			wantClosed(t, f, 1, nil)
			c.pass(time.Second)
			wantClosed(t, f, 1, nil)
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("it was changed")
			}
			mustDo(t, os.RemoveAll(path))
			c.pass(time.Minute)
			mustClaimFile(t, f, 1, true)
		})
	}
}

// A record that the disk had confirmed and that is not as it was stops the service; each byte
// counts.
func TestDamagedFile(t *testing.T) {
	d := newFolder(t)
	path := filepath.Join(d.Path(), FileName)
	f := openFile(t, d, 0, nil)
	mustClaimFile(t, f, 1, true)
	f.confirm()
	mustClaimFile(t, f, 2, true) // which says that the first is on the disk
	f.crash()
	whole, err := os.ReadFile(path)
	mustDo(t, err)
	for at := range 2 * recordSize {
		b := bytes.Clone(whole)
		b[at] ^= 1 << (at % 8)
		mustDo(t, os.WriteFile(path, b, 0o600))
		c := newFakeClock()
		f := openFile(t, d, 0, c)
		wantClosed(t, f, 3, nil)
		c.pass(time.Minute)
		wantClosed(t, f, 3, nil) // it is read again from its beginning
		if err := f.Ready(t.Context()); err == nil {
			t.Error("ready, though damaged")
		}
		f.crash()
		mustDo(t, os.WriteFile(path, whole, 0o600))
		c.pass(time.Minute)
		if at%50 == 0 {
			mustClaimFile(t, f, 1, false)
		}
		f.crash()
	}
}

// TestFileClocks: after a restart with a clock that is wrong, and when it is right again, nothing
// is served twice.
func TestFileClocks(t *testing.T) {
	for name, jump := range map[string]time.Duration{"right": 0, "ahead": 48 * time.Hour,
		"behind": -48 * time.Hour} {
		for _, client := range [][32]byte{client1, {}} {
			d, c := newFolder(t), newFakeClock()
			start := c.at
			claim := func(f *File, n uint64, until time.Time) bool {
				t.Helper()
				ok, err := f.Claim(t.Context(), replayID(n), client, until)
				mustDo(t, err)
				return ok
			}
			f := openFile(t, d, 4, c)
			f.spare = 1
			if !claim(f, 1, start.Add(3*time.Minute)) {
				t.Fatal("new")
			}
			f.crash()
			c.aged, c.at = 0, start.Add(jump) // another process, which begins to count
			f = openFile(t, d, 4, c)
			f.spare = 1
			for n := range uint64(20) { // the file is written anew
				c.pass(time.Second)
				if client == client1 && n < 3 || n < 2 {
					claim(f, 10+n, c.at.Add(2*time.Second))
				}
			}
			if claim(f, 1, start.Add(3*time.Minute)) {
				t.Errorf("%s: served twice", name)
			}
			f.crash()
			c.aged, c.at = 0, start.Add(time.Minute)
			f = openFile(t, d, 4, c)
			if claim(f, 1, start.Add(3*time.Minute)) {
				t.Errorf("%s: served twice when the clock was right again", name)
			}
			c.aged, c.at = 10*time.Minute, start.Add(50*time.Hour) // its time is over by all clocks
			if ok := claim(f, 1, c.at.Add(3*time.Minute)); !ok {
				t.Errorf("%s: refused for ever", name)
			}
		}
	}
}

// A window that another run had stays with what was claimed in it.
func TestFileWindowChanges(t *testing.T) {
	for _, client := range [][32]byte{client1, {}} {
		d, c := newFolder(t), newFakeClock()
		claim := func(n uint64, window time.Duration, want bool) {
			t.Helper()
			f := openFile(t, d, 0, c)
			defer f.crash()
			if ok, err := f.Claim(t.Context(), replayID(n), client, c.at.Add(window)); ok != want ||
				err != nil {
				t.Errorf("%d: %v, %v", n, ok, err)
			}
		}
		claim(1, time.Hour, true)
		claim(2, time.Minute, true)
		c.pass(2 * time.Minute)
		claim(1, time.Minute, false)
		claim(2, time.Hour, true)
		c.pass(59 * time.Minute)
		claim(1, time.Minute, true)
		claim(2, time.Minute, false)
	}
}

func TestFileSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFile(t, newFolder(t), 0, nil)
		var syncs atomic.Int64
		f.disk.sync = func(*os.File) error { syncs.Add(1); return nil }
		mustClaimFile(t, f, 0, true)
		syncs.Store(0) // what a new file takes
		for n := range uint64(50) {
			mustClaimFile(t, f, n+1, true)
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := syncs.Load(); n < 4 || n > 5 {
			t.Errorf("%d times in 5 s", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		had := syncs.Load()
		mustClaimFile(t, f, 100, true)
		if err := f.Close(); err != nil || syncs.Load() != had+1 {
			t.Errorf("Close: %v, %d more", err, syncs.Load()-had)
		}
		time.Sleep(time.Hour)
		if syncs.Load() != had+1 {
			t.Error("somebody works on after Close")
		}
	})
}

func TestFileSyncFails(t *testing.T) {
	d, c := newFolder(t), newFakeClock()
	f := openFile(t, d, 0, c)
	mustClaimFile(t, f, 1, true)
	failure := errors.New("the disk fails")
	f.disk.sync = func(*os.File) error { return failure }
	f.confirm()
	f.disk.replace = func(*fsafe.Dir, string, []byte) error { return failure }
	wantClosed(t, f, 2, failure)
	f.disk.sync, f.disk.replace = (*os.File).Sync, (*fsafe.Dir).WriteFile
	wantClosed(t, f, 2, failure) // for a second
	version := f.version
	c.pass(time.Second)
	mustClaimFile(t, f, 2, true)
	if f.version == version {
		t.Error("the file was not written anew")
	}
	mustClaimFile(t, openFile(t, d, 0, c), 1, false)
}

// TestFileSyncedAfterAnError: what was written before an error, after which the file is closed, is
// confirmed as well.
func TestFileSyncedAfterAnError(t *testing.T) {
	for name, confirm := range map[string]func(f *File){
		"later":    (*File).confirm,
		"at Close": func(f *File) { _ = f.Close() },
		"closed during it": func(f *File) {
			sync := f.disk.sync
			f.disk.sync = func(*os.File) error { f.drop(); f.disk.sync = sync; return os.ErrClosed }
			f.confirm()
			if !f.pending {
				t.Error("it counts as confirmed")
			}
			f.confirm()
		},
	} {
		f := openFile(t, newFolder(t), 0, newFakeClock())
		mustClaimFile(t, f, 1, true)
		syncs := 0
		f.disk.sync = func(f *os.File) error { syncs++; return f.Sync() }
		failure := errors.New("no room")
		f.disk.writeAt = func(*os.File, []byte, int64) (int, error) { return 0, failure }
		wantClosed(t, f, 2, failure)
		if f.file != nil || !f.pending {
			t.Fatal("not what this test is for")
		}
		confirm(f)
		if syncs != 1 || f.pending {
			t.Errorf("%s: %d times", name, syncs)
		}
	}
}

// TestFileNotDurable replaces the file without knowing that a power cut would leave it so.
func TestFileNotDurable(t *testing.T) {
	d, c := newFolder(t), newFakeClock()
	f := openFile(t, d, 0, c)
	f.spare = 4
	d.FailSyncForTest(nil)
	mustClaimFile(t, f, 1, true)
	d.FailSyncForTest(errors.New("the disk fails"))
	grow := func() (err error) {
		for range 20 {
			for range 2 {
				if _, err = f.Claim(t.Context(), replayID(2), client1,
					c.at.Add(time.Hour)); err != nil {
					return err
				}
				_ = f.Release(t.Context(), replayID(2))
			}
		}
		return nil
	}
	if err := grow(); !errors.Is(err, fsafe.ErrNotDurable) {
		t.Error(err)
	}
	wantClosed(t, f, 3, nil)
	d.FailSyncForTest(nil)
	c.pass(time.Second)
	if err := grow(); err != nil {
		t.Error(err)
	}
	other := openFile(t, d, 0, c)
	mustClaimFile(t, other, 1, false)
	mustClaimFile(t, other, 3, true)
	mustClaimFile(t, f, 3, false)
}

// What could not be written was not claimed, or stays claimed by whoever could not be served.
func TestFileWriteFails(t *testing.T) {
	for _, part := range []int{0, 40, recordSize, recordSize + 40} {
		d := newFolder(t)
		f := openFile(t, d, 0, nil)
		mustClaimFile(t, f, 1, true)
		failure := errors.New("the disk fails")
		f.disk.writeAt = func(f *os.File, b []byte, off int64) (int, error) {
			n, _ := f.WriteAt(b[:min(part, len(b))], off)
			return n, failure
		}
		steps := []*step{
			{id: replayID(2), client: client1, until: time.Now().Add(time.Hour)},
			{id: replayID(3), until: time.Now().Add(time.Hour)},
			{id: replayID(1), release: true},
			{id: replayID(1), client: client1, until: time.Now().Add(time.Hour)},
		}
		if err := f.run(steps); !errors.Is(err, failure) {
			t.Fatal(err)
		}
		f.disk.writeAt = (*os.File).WriteAt
		written := part / recordSize
		for i, who := range []*File{f, openFile(t, d, 0, nil)} {
			first := i == 0
			ok, err := who.Claim(t.Context(), replayID(3), [32]byte{}, time.Now().Add(time.Hour))
			if ok != first || err != nil {
				t.Errorf("%d bytes, exchange: %v, %v", part, ok, err)
			}
			mustClaimFile(t, who, 2, first && written == 0)
			mustClaimFile(t, who, 1, false)
		}
	}
}

// TestFileLockIsHeld waits for a process that stands still with the lock.
func TestFileLockIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFolder(t)
		f := openFile(t, d, 0, nil)
		mustClaimFile(t, f, 1, true)
		held, err := d.OpenShared(FileName)
		mustDo(t, err)
		mustDo(t, fsafe.LockFile(held, 0))
		start := time.Now()
		wantClosed(t, f, 2, fsafe.ErrLocked)
		if waited := time.Since(start); waited < 2*lockWait || waited > 2*lockWait+time.Second {
			t.Errorf("two claims waited %v", waited)
		}
		go func() {
			time.Sleep(time.Second)
			held.Close()
		}()
		mustClaimFile(t, f, 2, true)
		synctest.Wait()
	})
}

// The file stays in proportion to what is alive, whatever is claimed.
func TestFileIsBounded(t *testing.T) {
	for name, storm := range map[string]func(f *File, c *fakeClock, n uint64){
		"claims": func(f *File, c *fakeClock, n uint64) {
			_, _ = f.Claim(context.Background(), replayID(n), client1, c.at.Add(time.Hour))
		},
		"releases": func(f *File, c *fakeClock, n uint64) {
			_, _ = f.Claim(context.Background(), replayID(0), client1, c.at.Add(time.Hour))
			_ = f.Release(context.Background(), replayID(0))
		},
		"exchanges": func(f *File, c *fakeClock, n uint64) {
			c.pass(100 * time.Millisecond)
			_, _ = f.Claim(context.Background(), replayID(n), [32]byte{}, c.at.Add(time.Second))
		},
		"expired": func(f *File, c *fakeClock, n uint64) {
			_, _ = f.Claim(context.Background(), replayID(n), client1, time.Time{})
		},
	} {
		d, c := newFolder(t), newFakeClock()
		f := openFile(t, d, 20, c)
		f.spare = 10
		largest := int64(0)
		for n := range uint64(1000) {
			storm(f, c, n)
			largest = max(largest, f.end)
		}
		info, err := os.Stat(filepath.Join(d.Path(), FileName))
		mustDo(t, err)
		if largest > 2*2*20+10+1 || info.Size() != f.end*recordSize || f.changes < 900 {
			t.Errorf("%s: %d records at most, %d bytes, %d changes", name, largest, info.Size(),
				f.changes)
		}
	}
}

// benchmarkFile measures claims, whose file is on the disk that TMPDIR is on.
func benchmarkFile(b *testing.B, client [32]byte, claim func(f *File, n uint64) error) {
	// claims of the second protocol are refused when it is full
	f := openFile(b, newFolder(b), 1<<30, nil)
	var n atomic.Uint64
	if err := claim(f, n.Add(1)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := claim(f, n.Add(1)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFileClaim(b *testing.B) {
	for name, client := range map[string][32]byte{"v1": client1, "ohttp": {}} {
		b.Run(name, func(b *testing.B) {
			benchmarkFile(b, client, func(f *File, n uint64) error {
				ok, err := f.Claim(context.Background(), replayID(n), client,
					time.Now().Add(time.Second))
				if err == nil && !ok {
					err = errors.New("known")
				}
				return err
			})
		})
	}
}

func BenchmarkMemoryClaim(b *testing.B) {
	m := NewMemory(0)
	for n := uint64(0); b.Loop(); n++ {
		_, _ = m.Claim(context.Background(), replayID(n), client1, time.Now().Add(time.Second))
	}
}
