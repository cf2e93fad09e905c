// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// TestFolderGoneBetweenEvents: a log whose folder is not where it was writes nothing, says so, and
// makes nothing in the place of the folder.
func TestFolderGoneBetweenEvents(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open folder can be neither removed nor renamed there")
	}
	for what, take := range map[string]func(dir string) error{
		"removed": os.RemoveAll,
		"moved":   func(dir string) error { return os.Rename(dir, dir+".away") },
		"replaced by an empty one": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700))
		},
		"replaced by a new log": func(dir string) error {
			err := errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700))
			l, openErr := Open(t.Context(), filepath.Join(dir, "audit.log"),
				&testKeys{store: newTestStore()}, withDefaults(nil))
			return errors.Join(err, openErr, l.Close())
		},
		"replaced by a file": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".away"), os.WriteFile(dir, nil, 0o600))
		},
	} {
		for _, after := range []time.Duration{0, time.Nanosecond} {
			t.Run(what, func(t *testing.T) {
				var said bytes.Buffer
				l, path, keys := startLog(t, &Options{FlushEvery: after,
					Logger: slog.New(slog.NewTextHandler(&said, nil))})
				writeNotes(t, l, 0, 3)
				dir := filepath.Dir(path)
				if err := take(dir); err != nil {
					t.Fatal(err)
				}
				before := tree(t, dir)
				for range 2 {
					err := l.Record(t.Context(), "note", note(3))
					if !errors.Is(err, fault.ErrAuditTampered) ||
						!strings.Contains(err.Error(), "folder") ||
						!strings.Contains(err.Error(), "restore it") {
						t.Errorf("%v", err)
					}
				}
				if l.flush.stop(); tree(t, dir) != before {
					t.Errorf("before it was %q, and now it is %q", before, tree(t, dir))
				}
				if !strings.Contains(said.String(), "lost=2") {
					t.Errorf("the Logger was told %q", said.String())
				}
				if what == "removed" {
					return
				}
				if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+".away", dir)); err != nil {
					t.Fatal(err)
				}
				writeNotes(t, l, 4, 5)
				if r := mustVerify(t, path, keys, Head{}); r.Lines != 4 || r.Lost != 2 {
					t.Errorf("restored: %+v", r)
				}
			})
		}
	}
}

// tree is what lies at a path: its kind, and the names and sizes in it.
func tree(t *testing.T, path string) string {
	t.Helper()
	var all strings.Builder
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all.WriteString(strings.TrimPrefix(p, path) + " " + info.Mode().String() + "\n")
		return nil
	})
	return all.String()
}

// TestFileGoneBetweenEvents: lines that were there and are gone leave a gap that Verify finds,
// whichever process writes on, also one that has only read them.
func TestFileGoneBetweenEvents(t *testing.T) {
	for what, take := range map[string]func(path string) error{
		"removed": os.Remove,
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"replaced": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path,
				nil, 0o600))
		},
		"rolled back": func(path string) error {
			return os.Truncate(path, int64(bytes.IndexByte(readLog(t,
				path), '\n')+1))
		},
		"everything but the folder": func(path string) error {
			return errors.Join(os.Remove(path), os.Remove(path+lockSuffix))
		},
	} {
		for _, who := range []string{"the writer", "a reader", "a reader of older lines"} {
			t.Run(what+", "+who, func(t *testing.T) {
				var said bytes.Buffer
				o := &Options{Logger: slog.New(slog.NewTextHandler(&said, nil))}
				l, path, keys := startLog(t, o)
				writeNotes(t, l, 0, 2)
				older := openLog(t, path, keys, o)
				writeNotes(t, l, 2, 4)
				next := map[string]*Log{"the writer": l, "a reader": openLog(t, path, keys, o),
					"a reader of older lines": older}[who]
				reached := next.Head()
				if err := take(path); err != nil {
					t.Fatal(err)
				}
				writeNotes(t, next, 4, 6)
				if got := next.Head().Seq; got != reached.Seq+2 {
					t.Errorf("line %d follows %d", got, reached.Seq)
				}
				if _, err := Verify(t.Context(), path, keys, Head{}); !tampered(err) {
					t.Errorf("found %v", err)
				}
				if !strings.Contains(said.String(), "lines that were there are gone") {
					t.Errorf("the Logger was told %q", said.String())
				}
			})
		}
	}
}

// TestFlushMakesNoFile: what confirms in the background does not make the file that was removed.
func TestFlushMakesNoFile(t *testing.T) {
	l, path, _ := startLog(t, &Options{FlushEvery: time.Hour})
	writeNotes(t, l, 0, 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := l.flushNow(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestLogGoneBetweenOpens: where a log was, no new one is begun: without a head as far as its lock
// file tells, and with one always.
func TestLogGoneBetweenOpens(t *testing.T) {
	first := func(path string) int64 { return int64(bytes.IndexByte(readLog(t, path), '\n') + 1) }
	remove := func(path string) error { return os.Remove(path) }
	for what, c := range map[string]struct {
		take      func(path string) error
		lockTells bool
	}{
		"the file removed": {remove, true},
		"the file moved":   {func(path string) error { return os.Rename(path, path+".old") }, true},
		"the file emptied": {func(path string) error { return os.Truncate(path, 0) }, false},
		"the file replaced": {func(path string) error {
			return errors.Join(os.Remove(path),
				os.WriteFile(path, nil, 0o600))
		}, false},
		"the file cut": {func(path string) error { return os.Truncate(path, first(path)) }, false},
		"half of a line left": {func(path string) error { return os.Truncate(path, first(path)/2) },
			false},
		"the folder removed": {func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
			false},
		"the folder emptied": {func(path string) error {
			return errors.Join(os.Remove(path),
				os.Remove(path+lockSuffix))
		}, false},
		"the folder replaced": {func(path string) error {
			dir := filepath.Dir(path)
			return errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700))
		}, false},
		"a longer log in its place": {func(path string) error {
			l, err := Open(t.Context(), path+"2", &testKeys{store: newTestStore()},
				withDefaults(nil))
			if err != nil {
				return err
			}
			writeNotes(t, l, 10, 20)
			return errors.Join(l.Close(), os.Rename(path+"2", path))
		}, false},
		"another log in its place": {func(path string) error {
			l, err := Open(t.Context(), path+"2", &testKeys{store: newTestStore()},
				withDefaults(nil))
			if err != nil {
				return err
			}
			writeNotes(t, l, 10, 13)
			return errors.Join(l.Close(), os.Rename(path+"2", path))
		}, false},
	} {
		t.Run(what, func(t *testing.T) {
			l, path, keys := startLog(t, nil)
			writeNotes(t, l, 0, 3)
			head := l.Head()
			if err := errors.Join(l.Close(), c.take(path)); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Dir(path)
			before := tree(t, dir)
			_, err := Open(t.Context(), path, keys, withDefaults(&Options{Head: head}))
			if !errors.Is(err, fault.ErrAuditTampered) || !strings.Contains(err.Error(),
				"under another name") {
				t.Errorf("with a head: %v", err)
			}
			if got := tree(t, dir); got != before && !strings.HasPrefix(got, before) {
				t.Errorf("before it was %q, and now it is %q", before, got)
			}
			if strings.HasSuffix(what, "removed") && tree(t, dir) != before {
				t.Errorf("something was made: %q", tree(t, dir))
			}
			l, err = Open(t.Context(), path, keys, withDefaults(nil))
			if c.lockTells != errors.Is(err, fault.ErrAuditTampered) ||
				c.lockTells != errors.Is(err,
					fs.ErrNotExist) {
				t.Errorf("without one: %v", err)
			}
			if err == nil {
				_ = l.Close()
			}
		})
	}
}

// TestHeadReached: a log that has its head, or more, opens with it.
func TestHeadReached(t *testing.T) {
	l, path, keys := startLog(t, smallFiles)
	writeNotes(t, l, 0, 2)
	head := l.Head()
	_ = l.Close()
	l = openLog(t, path, keys, &Options{Head: head})
	writeNotes(t, l, 2, 4)
	_ = l.Close()
	openLog(t, path, keys, &Options{Head: head})
	// A crash between two files is no removal.
	if err := os.Rename(path, path+".000001"); err != nil {
		t.Fatal(err)
	}
	for _, h := range []Head{head, {}} {
		l = openLog(t, path, keys, &Options{Head: h})
		if l.Head().Seq != 4 {
			t.Errorf("%v", l.Head())
		}
		_ = l.Close()
	}
	mustVerify(t, path, keys, head)
}

// TestFirstOpen: a process that was killed while it began a log keeps nobody from it, and looking
// for a log leaves nothing that tells of one.
func TestFirstOpen(t *testing.T) {
	keys := &testKeys{store: newTestStore()}
	path := filepath.Join(t.TempDir(), "log", "audit.log")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, filepath.Dir(path))
	if _, err := Verify(t.Context(), path, keys, Head{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Open(t.Context(), path, keys,
		withDefaults(&Options{Head: Head{Seq: 1}})); !errors.Is(err, fault.ErrAuditTampered) {
		t.Errorf("%v", err)
	}
	if got := tree(t, filepath.Dir(path)); got != before {
		t.Errorf("something was made: %q", got)
	}
	writeLog(t, path, nil) // killed before it made the lock
	l := openLog(t, path, keys, nil)
	writeNotes(t, l, 0, 1)
	mustVerify(t, path, keys, l.Head())
}

// TestHeadInOlderFiles: a head is looked for where its line is, and is not missed where its line
// was dropped.
func TestHeadInOlderFiles(t *testing.T) {
	l, path, keys := startLog(t, smallFiles)
	var heads []Head
	for range 5 * smallFiles.MaxFiles {
		if err := l.Record(t.Context(), "note", largeNote()); err != nil {
			t.Fatal(err)
		}
		heads = append(heads, l.Head())
	}
	_ = l.Close()
	first := mustVerify(t, path, keys, Head{}).First
	for _, head := range heads {
		o := *smallFiles
		o.Head = head
		l, err := Open(t.Context(), path, keys, withDefaults(&o))
		if err != nil {
			t.Fatalf("line %d: %v", head.Seq, err)
		}
		_ = l.Close()
		o.Head.MAC[0] ^= 1
		l, err = Open(t.Context(), path, keys, withDefaults(&o))
		if refused := errors.Is(err, fault.ErrAuditTampered); refused != (head.Seq >= first) {
			t.Errorf("another line %d, where the first is %d: %v", head.Seq, first, err)
		}
		if err == nil {
			_ = l.Close()
		}
	}
}

// TestFolderBehindALink: a folder that was moved, with a link to it in its place, is still the
// log's.
func TestFolderBehindALink(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open folder cannot be renamed there")
	}
	l, path, keys := startLog(t, nil)
	writeNotes(t, l, 0, 2)
	dir := filepath.Dir(path)
	if err := errors.Join(os.Rename(dir, dir+".away"), os.Symlink(dir+".away", dir)); err != nil {
		t.Fatal(err)
	}
	writeNotes(t, l, 2, 3)
	_, err := Verify(t.Context(), path, keys, Head{})
	if !errors.Is(err, fault.ErrInsecurePermissions) {
		t.Errorf("a link is not followed: %v", err)
	}
	if r := mustVerify(t, filepath.Join(dir+".away", "audit.log"), keys, l.Head()); r.Lines != 3 {
		t.Errorf("%+v", r)
	}
}
