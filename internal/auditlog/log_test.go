// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// An unfinished last line, of whatever length, is no tampering; the log goes on, and says so.
func TestAuditLogTornLine(t *testing.T) {
	l, path, keys := startLog(t, nil)
	writeNotes(t, l, 0, 3)
	l.Close()
	whole := readLog(t, path)
	lines := logLines(t, path)
	last := len(lines[2])
	for cut := 1; cut < last; cut++ {
		writeLog(t, path, whole[:len(whole)-cut])
		mustFind(t, "torn", path, keys, Head{}, Problem{File: "audit.log", Line: 3, Seq: 3,
			Finding: Torn})
		if cut%7 != 1 && cut != last-1 {
			continue
		}
		l := openLog(t, path, keys, nil)
		writeNotes(t, l, 3, 5)
		if r := mustVerify(t, path, keys, Head{}); r.Torn != 1 || r.Lines != 4 ||
			r.Head != l.Head() {
			t.Fatalf("cut %d: %+v", cut, r)
		}
		l.Close()
		// The note vouches for the unfinished line, too.
		after := logLines(t, path)
		after[2][0] ^= 1
		writeLog(t, path, bytes.Join(after, nil))
		mustFind(t, "fragment changed", path, keys, Head{},
			Problem{File: "audit.log", Line: 3, Seq: 3,
				Finding: Changed})
		writeLog(t, path, bytes.Join(append(after[:2], after[3:]...), nil))
		mustFind(t, "fragment removed", path, keys, Head{},
			Problem{File: "audit.log", Line: 3, Seq: 3,
				Finding: Removed})
	}
	// Zeros, as some file systems leave them after a power cut.
	writeLog(t, path, append(bytes.Clone(whole[:len(whole)-last/2]), make([]byte, 100)...))
	mustFind(t, "zeros", path, keys, Head{}, Problem{File: "audit.log", Line: 3, Finding: Torn})
	for what, text := range map[string][]byte{"half": whole[:len(whole)-last/2],
		"nothing": whole[:len(whole)-last]} {
		for _, zeros := range []int{64<<10 - last/2, 64 << 10, 1 << 20} {
			writeLog(t, path, append(bytes.Clone(text), make([]byte, zeros)...))
			mustFind(t, what+" and zeros", path, keys, Head{}, Problem{File: "audit.log", Line: 3,
				Finding: Torn})
			l = openLog(t, path, keys, nil)
			writeNotes(t, l, 3, 5)
			if r := mustVerify(t, path, keys, Head{}); r.Lines != 4 ||
				what == "half" && r.Torn != 1 {
				t.Errorf("%s and %d zeros: %+v", what, zeros, r)
			}
			l.Close()
		}
	}
	writeLog(t, path, append(append(bytes.Clone(whole), make([]byte, 1<<20)...), 'x'))
	mustFind(t, "zeros and more", path, keys, Head{}, Problem{File: "audit.log", Line: 4,
		Finding: Changed})
	// What no writer of the log begins with is nobody's unfinished line, also after the log went
	// on.
	writeLog(t, path, append(bytes.Clone(whole), "{\"seq\":5,"...))
	mustFind(t, "appended", path, keys, Head{}, Problem{File: "audit.log", Line: 4, Seq: 4,
		Finding: Changed})
	l = openLog(t, path, keys, nil)
	writeNotes(t, l, 3, 4)
	mustFind(t, "appended, then gone on", path, keys, Head{}, Problem{File: "audit.log", Line: 4,
		Seq: 4, Finding: Changed})
}

// What a running process has written cannot be taken back under its hands.
func TestAuditLogNoticesCutsWhileItRuns(t *testing.T) {
	for what, cut := range map[string]func(path string, lines [][]byte) error{
		"a line": func(path string, lines [][]byte) error {
			return os.Truncate(path,
				int64(len(lines[0])+len(lines[1])))
		},
		"all":      func(path string, _ [][]byte) error { return os.Truncate(path, 0) },
		"the file": func(path string, _ [][]byte) error { return os.Remove(path) },
		"half": func(path string, lines [][]byte) error {
			return os.Truncate(path,
				int64(len(lines[0])+30))
		},
		"everything": func(path string, _ [][]byte) error { return os.RemoveAll(path + ".lock") },
	} {
		l, path, keys := startLog(t, nil)
		writeNotes(t, l, 0, 3)
		if err := cut(path, logLines(t, path)); err != nil {
			t.Fatal(err)
		}
		writeNotes(t, l, 3, 5)
		_, err := Verify(t.Context(), path, keys, Head{})
		if want := what != "everything"; tampered(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Close wipes the keys, the older ones too.
func TestAuditLogCloseWipesKeys(t *testing.T) {
	l, path, keys := startLog(t, nil)
	writeNotes(t, l, 0, 1)
	keys.store.renew()
	old := l.key
	writeNotes(t, l, 1, 2)
	lines := logLines(t, path)
	fits := func(key *Key, n int) bool {
		text := bytes.TrimSuffix(lines[n], []byte("\n"))
		line, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return key.Fits(text, line)
	}
	newest, known := l.key, l.keyOf(1)
	if old == newest || fits(old, 0) || !fits(known, 0) || !fits(newest, 1) {
		t.Errorf("before Close: %v %v %v", fits(old, 0), fits(known, 0), fits(newest, 1))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if fits(known, 0) || fits(newest, 1) {
		t.Error("Close left keys that sign")
	}
}

func TestAuditLogFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, path, keys := startLog(t, &Options{FlushEvery: time.Second})
		var syncs atomic.Int32
		var fails atomic.Pointer[error]
		l.sync = func(*os.File) error {
			syncs.Add(1)
			if err := fails.Load(); err != nil {
				return *err
			}
			return nil
		}
		step := func(what string, d time.Duration, want int) {
			time.Sleep(d)
			synctest.Wait()
			if n := int(syncs.Load()); n != want {
				t.Errorf("%s: %d syncs, want %d", what, n, want)
			}
		}
		step("nothing to do", time.Hour, 0)
		writeNotes(t, l, 0, 5)
		step("written, not confirmed", 999*time.Millisecond, 0)
		step("a second later", 2*time.Millisecond, 1)
		step("nothing more", time.Hour, 1)
		failure := error(fs.ErrInvalid)
		fails.Store(&failure)
		writeNotes(t, l, 5, 6)
		step("fails", 2*time.Second, 2)
		fails.Store(nil)
		if err := l.Record(t.Context(), "note", note(6)); !errors.Is(err, fault.ErrUnconfirmed) ||
			!errors.Is(err, fs.ErrInvalid) {
			t.Errorf("after a failure in the background: %v", err)
		}
		if r := mustVerify(t, path, keys, Head{}); r.Lines != 7 || r.Lost != 0 {
			t.Errorf("it is written: %+v", r)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		step("Close confirms, and nothing is left in the background", time.Hour, 3)
	})
	l, _, _ := startLog(t, nil)
	var syncs int
	l.sync = func(*os.File) error { syncs++; return nil }
	writeNotes(t, l, 0, 3)
	if syncs != 3 {
		t.Errorf("%d syncs for 3 events", syncs)
	}
	l.sync = func(*os.File) error { return fs.ErrInvalid }
	if err := l.Record(t.Context(), "note", note(3)); !errors.Is(err, fault.ErrUnconfirmed) ||
		!errors.Is(err, fs.ErrInvalid) {
		t.Errorf("unconfirmed: %v", err)
	}
}

// Close comes while others write: each event is written or refused, none is lost.
func TestAuditLogCloseRace(t *testing.T) {
	for _, flush := range []time.Duration{0, time.Second} {
		l, path, keys := startLog(t, &Options{FlushEvery: flush})
		var wg sync.WaitGroup
		var mu sync.Mutex
		written := 0
		for i := range 8 {
			wg.Go(func() {
				for n := range 20 {
					err := l.Record(context.Background(), "note", note(n))
					mu.Lock()
					switch {
					case err == nil:
						written++
					case !errors.Is(err, fault.ErrClosed):
						t.Error(err)
					}
					mu.Unlock()
					_ = l.Head()
				}
			})
			if i == 4 {
				wg.Go(func() {
					if err := l.Close(); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if r := mustVerify(t, path, keys, Head{}); int(r.Lines) != written {
			t.Errorf("%d lines, %d were reported", r.Lines, written)
		}
	}
}

// A call that ends while another process has the log is told so, and counted.
func TestAuditLogLost(t *testing.T) {
	for _, goesOn := range []bool{false, true} {
		l, path, keys := startLog(t, &Options{KeepGoing: goesOn})
		lock, err := l.dir.Lock(t.Context(), l.name+lockSuffix)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err = l.Record(ctx, "note", note(0))
		cancel()
		if !goesOn && !errors.Is(err, fault.ErrLocked) || goesOn && err != nil {
			t.Errorf("%v: %v", goesOn, err)
		}
		l.turn <- struct{}{}
		err = l.Record(ctx, "note", note(1))
		<-l.turn
		if !goesOn && !errors.Is(err, context.DeadlineExceeded) || goesOn && err != nil {
			t.Errorf("%v: %v", goesOn, err)
		}
		if err := lock.Unlock(); err != nil {
			t.Fatal(err)
		}
		writeNotes(t, l, 2, 4)
		if r := mustVerify(t, path, keys, Head{}); r.Lines != 2 || r.Lost != 2 {
			t.Errorf("%+v", r)
		}
		if lines := logLines(t, path); !bytes.Contains(lines[0], []byte(`,"lost":2,`)) ||
			bytes.Contains(lines[1], []byte(`"lost"`)) {
			t.Errorf("%s", lines)
		}
		if err := l.Close(); err != nil {
			t.Errorf("it was said: %v", err)
		}
	}
}

// Files are ended by size and dropped by number; the chain goes on over them. What somebody else
// removes shows, and what is left stays.
func TestRotatedAuditLog(t *testing.T) {
	o := &Options{MaxFileBytes: 64 << 10, MaxFiles: 3}
	l, path, keys := startLog(t, o)
	fill := func(files int) {
		t.Helper()
		for range 3 * files { // three fit into one
			if err := l.Record(t.Context(), "note", largeNote()); err != nil {
				t.Fatal(err)
			}
		}
	}
	older := func(r *Report, i int) string { return r.Files[i] }
	fill(2)
	r := mustVerify(t, path, keys, Head{})
	if r.Lines != 6 || r.First != 1 || len(r.Files) != 2 || filepath.Base(older(r,
		0)) != "audit.log.000001" {
		t.Errorf("%+v", r)
	}
	early := l.Head()
	fill(4)
	r = mustVerify(t, path, keys, Head{})
	if r.Lines != 9 || r.First != 10 || len(r.Files) != 3 || filepath.Base(older(r,
		0)) != "audit.log.000004" {
		t.Errorf("%+v", r)
	}
	if r := mustVerify(t, path, keys, early); r.HeadChecked {
		t.Error("its line was dropped")
	}
	for _, file := range r.Files {
		if info, err := os.Stat(file); err != nil || info.Size() > o.MaxFileBytes ||
			runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	text := readLog(t, older(r, 1))
	writeLog(t, older(r, 1), text[:len(text)-1])
	mustFind(t, "only the line feed cut", path, keys, Head{}, Problem{File: "audit.log.000005",
		Line: 3, Seq: 15, Finding: Changed})
	writeLog(t, older(r, 1), text)
	// A crash between two files: the current one is missing, or empty.
	l.Close()
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), "audit.log.000006")); err != nil {
		t.Fatal(err)
	}
	head := Head(mustVerify(t, path, keys, r.Head).Head)
	l = openLog(t, path, keys, o)
	if l.Head() != head {
		t.Errorf("the head is %v, want %v", l.Head(), head)
	}
	mustVerify(t, path, keys, head)
	fill(1)
	r = mustVerify(t, path, keys, head)
	if r.First != 13 || r.Lines != 9 || len(r.Files) != 3 {
		t.Errorf("%+v", r)
	}
	// Somebody removes the oldest file, and later the limit would have.
	if err := os.Remove(older(r, 0)); err != nil {
		t.Fatal(err)
	}
	mustFind(t, "oldest removed", path, keys, Head{}, Problem{File: "audit.log.000006", Line: 1,
		Seq: 13, Missing: 3, Finding: Removed})
	fill(1)
	mustFind(t, "and one written", path, keys, Head{}, Problem{File: "audit.log.000006", Line: 1,
		Seq: 13, Missing: 3, Finding: Removed})
	fill(1)
	mustFind(t, "and another one", path, keys, Head{}, Problem{File: "audit.log.000006", Line: 1,
		Seq: 13, Missing: 3, Finding: Removed})
	if _, err := os.Stat(older(r, 1)); err != nil {
		t.Errorf("what is left was deleted: %v", err)
	}
}
