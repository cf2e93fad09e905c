// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// smallFiles are files of three large notes.
var smallFiles = &Options{MaxFileBytes: 64 << 10, MaxFiles: 3}

func fillAuditLog(t testing.TB, l *Log, files int) {
	t.Helper()
	for range 3 * files {
		if err := l.Record(t.Context(), "note", largeNote()); err != nil {
			t.Fatal(err)
		}
	}
}

// What somebody puts beside the older files, or makes of them, never has the log drop lines of its
// own and vouch for that.
func TestRotatedAuditLogDropsOnlyItsOwn(t *testing.T) {
	added := map[string]bool{"empty files": true, "garbage": true, "copies": true}
	older := func(path string, n int) string { return fmt.Sprintf("%s.%06d", path, n) }
	// the second file says that the log begins with it; its code stays
	forge := func(t *testing.T, path string, key int) {
		text := readLog(t, older(path, 2))
		_, rest, ok := bytes.Cut(text, []byte(`"begins":1,`))
		if !ok || !bytes.HasPrefix(text, []byte(`{"seq":4,"key":1,`)) {
			t.Fatalf("the second file is %.200s", text)
		}
		prev := text[bytes.Index(text, []byte(`"prev"`)):][:len(`"prev":"",`)+64]
		writeLog(t, older(path, 2), append(fmt.Appendf(nil, `{"seq":4,"key":%d,%s"begins":4,`, key,
			prev),
			rest...))
	}
	for what, tamper := range map[string]func(t *testing.T, path string){
		"empty files": func(t *testing.T, path string) {
			for n := 900; n < 920; n++ {
				writeLog(t, older(path, n), nil)
			}
		},
		"garbage": func(t *testing.T, path string) {
			for n := 900; n < 920; n++ {
				writeLog(t, older(path, n), []byte("x\n"))
			}
		},
		"copies": func(t *testing.T, path string) {
			for n := 900; n < 920; n++ {
				writeLog(t, older(path, n), readLog(t, older(path, 2)))
			}
		},
		"the ends of a file": func(t *testing.T, path string) {
			lines := logLines(t, older(path, 1))
			writeLog(t, older(path, 1), append(bytes.Clone(lines[0]), lines[2]...))
		},
		"a file cut short": func(t *testing.T, path string) {
			writeLog(t, older(path, 1), logLines(t,
				older(path, 1))[0])
		},
		"a file in pieces": func(t *testing.T, path string) {
			lines := append(logLines(t, older(path, 1)), logLines(t, older(path, 2))...)
			for n, line := range lines {
				writeLog(t, older(path, n+1), line)
			}
		},
		"a forged beginning": func(t *testing.T, path string) { forge(t, path, 1) },
		"a beginning under a key that nobody has": func(t *testing.T, path string) {
			forge(t, path, 77)
		},
		"a forged beginning, and nothing before it": func(t *testing.T, path string) {
			forge(t, path, 1)
			if err := os.Remove(older(path, 1)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			var said bytes.Buffer
			o, rounds := *smallFiles, 6
			o.Logger = slog.New(slog.NewTextHandler(&said, nil))
			if o.MaxFiles = 5; added[what] {
				rounds = 2 // it may keep so many
			}
			l, path, keys := startLog(t, &o)
			fillAuditLog(t, l, 3)
			tamper(t, path)
			files, err := filepath.Glob(path + ".0*")
			if err != nil {
				t.Fatal(err)
			}
			for range rounds {
				fillAuditLog(t, l, 1)
				if _, err := Verify(t.Context(), path, keys, Head{}); !tampered(err) &&
					what != "a file in pieces" {
					t.Fatalf("found %v", err)
				}
			}
			for _, file := range files {
				if _, err := os.Stat(file); err != nil {
					t.Errorf("deleted: %v", err)
				}
			}
			if !strings.Contains(said.String(), "none is deleted") && !added[what] {
				t.Errorf("the log says %q", said.String())
			}
		})
	}
}

func TestAuditLogBeginsAfterItself(t *testing.T) {
	l, path, keys := startLog(t, nil)
	writeNotes(t, l, 0, 1)
	line := &Line{Seq: 2, Generation: 1, Prev: l.Head().MAC, Begins: 3,
		Event: []byte(`"type":"note"`)}
	writeLog(t, path, l.key.Append(readLog(t, path), line))
	mustFind(t, "begins", path, keys, Head{}, Problem{File: "audit.log", Line: 2, Seq: 2,
		Finding: Changed})
}

// A crash in the first line of any file is no more than that, also when the files before it are
// gone.
func TestRotatedAuditLogTornFirstLine(t *testing.T) {
	whole := func(line []byte) int { return len(line) - 1 }
	for what, size := range map[string]func([]byte) int{
		"a byte": func([]byte) int {
			return 1
		}, "half": func(line []byte) int { return len(line) / 2 },
		"all but the line feed": whole,
	} {
		t.Run(what, func(t *testing.T) {
			l, path, keys := startLog(t, smallFiles)
			for range smallFiles.MaxFiles + 2 {
				fillAuditLog(t, l, 1)
				var lines [][]byte
				var before map[string][]byte
				// to the first line of the next file
				for ; len(lines) != 1; lines = logLines(t, path) {
					before = olderTexts(t, path)
					if err := l.Record(t.Context(), "note", largeNote()); err != nil {
						t.Fatal(err)
					}
				}
				writeLog(t, path, lines[0][:size(lines[0])])
				for file, text := range before { // files are deleted when the line is on the disk
					writeLog(t, file, text)
				}
				_ = l.Close()
				l = openLog(t, path, keys, smallFiles)
				fillAuditLog(t, l, 1)
				if r := mustVerify(t, path, keys, Head{}); r.Torn == 0 ||
					len(r.Files) > smallFiles.MaxFiles {
					t.Errorf("%+v", r)
				}
			}
			fillAuditLog(t, l, 2)
			if r := mustVerify(t, path, keys, Head{}); r.First == 1 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func olderTexts(t testing.TB, path string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(path + ".0*")
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string][]byte)
	for _, file := range files {
		texts[file] = readLog(t, file)
	}
	return texts
}

// Older files are deleted after the disk has confirmed the line that says so.
func TestAuditLogConfirmsBeforeItDrops(t *testing.T) {
	l, path, keys := startLog(t, smallFiles)
	fillAuditLog(t, l, 3)
	syncs := 0
	l.sync = func(*os.File) error {
		if syncs++; syncs == 1 { // of the file that is ended
			return nil
		}
		return fs.ErrInvalid
	}
	if err := l.Record(t.Context(), "note", largeNote()); !errors.Is(err, fault.ErrUnconfirmed) {
		t.Errorf("%v", err)
	}
	if n := len(olderTexts(t, path)); n != 3 {
		t.Errorf("%d older files", n)
	}
	l.sync = (*os.File).Sync
	fillAuditLog(t, l, 1)
	if r := mustVerify(t, path, keys, Head{}); r.First != 7 || len(r.Files) != 3 || r.Lines != 7 {
		t.Errorf("%+v", r)
	}
}

// A file that cannot be deleted keeps those that follow it: a gap would look like tampering.
func TestAuditLogDropsWithoutGaps(t *testing.T) {
	for _, said := range []error{fs.ErrPermission, nil} { // nil: deleted when others close it
		l, path, keys := startLog(t, smallFiles)
		fillAuditLog(t, l, 3)
		l.remove = func(name string) error {
			if strings.HasSuffix(name, ".000001") {
				return said
			}
			return l.dir.Remove(name)
		}
		for range 3 {
			fillAuditLog(t, l, 1)
			if r := mustVerify(t, path, keys, Head{}); r.First != 1 {
				t.Errorf("%v: %+v", said, r)
			}
		}
		l.remove = l.dir.Remove
		fillAuditLog(t, l, 1)
		if r := mustVerify(t, path, keys, Head{}); len(r.Files) != smallFiles.MaxFiles ||
			r.First == 1 {
			t.Errorf("%v: %+v", said, r)
		}
	}
}

// When the disk does not confirm the file that is ended, the event is not written, and that is
// said.
func TestAuditLogUnconfirmedRotation(t *testing.T) {
	l, path, keys := startLog(t, smallFiles)
	fillAuditLog(t, l, 1)
	l.sync = func(*os.File) error { return fs.ErrInvalid }
	if err := l.Record(t.Context(), "note", largeNote()); !errors.Is(err, fs.ErrInvalid) ||
		errors.Is(err, fault.ErrUnconfirmed) {
		t.Errorf("%v", err)
	}
	l.sync = (*os.File).Sync
	fillAuditLog(t, l, 1)
	if r := mustVerify(t, path, keys, Head{}); r.Lines != 6 || r.Lost != 1 {
		t.Errorf("%+v", r)
	}
}

// A process that does not know the newest key deletes nothing, and does not keep others from it.
func TestRotatedAuditLogOverGenerations(t *testing.T) {
	keys := &testKeys{store: newTestStore()}
	path := filepath.Join(t.TempDir(), "log", "audit.log")
	mine := openLog(t, path, keys, smallFiles)
	theirs := openLog(t, path, &testKeys{store: keys.store, knows: 1}, smallFiles)
	fillAuditLog(t, mine, 5)
	keys.store.renew()
	for _, l := range []*Log{mine, theirs, theirs, theirs, mine, theirs} {
		fillAuditLog(t, l, 1)
		mustVerify(t, path, keys, Head{})
	}
	fillAuditLog(t, mine, 1)
	if r := mustVerify(t, path, keys, Head{}); len(r.Files) != smallFiles.MaxFiles ||
		r.First != r.Head.Seq-8 {
		t.Errorf("%+v", r)
	}
}
