// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newDir returns a fresh private folder.
func newDir(t testing.TB) *Dir {
	t.Helper()
	return openDir(t, filepath.Join(t.TempDir(), "keys"))
}

func openDir(t testing.TB, path string) *Dir {
	t.Helper()
	d, err := CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func write(t testing.TB, d *Dir, name, data string) {
	t.Helper()
	if err := d.WriteFile(name, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t testing.TB, d *Dir, name, want string) {
	t.Helper()
	got, err := d.ReadFile(name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatalf("%s has %.40q, want %.40q", name, got, want)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// wantNames checks what is in the folder, temporary files included.
func wantNames(t testing.TB, d *Dir, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("the folder has %q, want %q", got, want)
	}
}

func TestWriteAndRead(t *testing.T) {
	d := newDir(t)
	_, err := d.ReadFile("f", 10)
	wantErr(t, err, fs.ErrNotExist)
	for _, data := range []string{"one", "", strings.Repeat("three", 10000)} {
		write(t, d, "f", data)
		wantFile(t, d, "f", data)
	}
	got, err := d.ReadFile("f", 50000)
	if err != nil || cap(got) != len(got) {
		t.Fatalf("cap %d, len %d, %v: want a slice of the exact size", cap(got), len(got), err)
	}
	wantNames(t, d, "f")
}

func TestReadLimit(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "12345678")
	for limit, want := range map[int64]error{8: nil, 9: nil, 7: ErrTooLarge, 0: ErrTooLarge,
		-1: ErrTooLarge} {
		if _, err := d.ReadFile("f", limit); !errors.Is(err, want) {
			t.Errorf("limit %d: %v, want %v", limit, err, want)
		}
	}
	// A sparse file of 1 TiB must not cost a byte of memory.
	if err := os.Truncate(filepath.Join(d.Path(), "f"), 1<<40); err != nil {
		t.Skip("no sparse files here:", err)
	}
	_, err := d.ReadFile("f", 1<<20)
	wantErr(t, err, ErrTooLarge)
}

func TestReadNoticesChange(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "1234")
	f, err := os.Open(filepath.Join(d.Path(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// now it ends before its size says, as if truncated
	if _, err := f.Seek(1, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	_, _, err = readAll(f, 100)
	wantErr(t, err, ErrChanged)

	grown, err := os.Open("/proc/self/status") // has more contents than its size says
	if err != nil {
		t.Skip("no /proc here:", err)
	}
	defer grown.Close()
	_, _, err = readAll(grown, 100)
	wantErr(t, err, ErrChanged)
}

func TestCreateFile(t *testing.T) {
	d := newDir(t)
	if err := d.CreateFile("f", []byte("first")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.CreateFile("f", []byte("second")), fs.ErrExist)
	wantFile(t, d, "f", "first")
	wantNames(t, d, "f")
}

func TestCreateFileOnce(t *testing.T) {
	d := newDir(t)
	errs := make(chan error)
	for range 16 {
		go func() { errs <- d.CreateFile("f", []byte("x")) }()
	}
	made := 0
	for range 16 {
		if err := <-errs; err == nil {
			made++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d of 16 made the file, want 1", made)
	}
	wantNames(t, d, "f")
}

func TestRemove(t *testing.T) {
	d := newDir(t)
	wantErr(t, d.Remove("f"), fs.ErrNotExist)
	write(t, d, "f", "x")
	if err := d.Remove("f"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.Path(), "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.Remove("sub"), ErrFileType)
	wantNames(t, d, "sub")
}

func TestExistsAndStat(t *testing.T) {
	d := newDir(t)
	if ok, err := d.Exists("f"); ok || err != nil {
		t.Fatal(ok, err)
	}
	_, err := d.Stat("f")
	wantErr(t, err, fs.ErrNotExist)
	write(t, d, "f", "one")
	if ok, err := d.Exists("f"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	first, err := d.Stat("f")
	if err != nil {
		t.Fatal(err)
	}
	_, read, err := d.ReadVersion("f", 10)
	if err != nil || !read.Same(first) || first.Same(Version{}) || (Version{}).Same(first) {
		t.Fatal("an untouched file must be the same, and not the zero Version", err)
	}
	write(t, d, "f", "two") // same size; the first version's inode is in use until the rename
	second, err := d.Stat("f")
	if err != nil || second.Same(first) {
		t.Fatal("replacement went unnoticed", err)
	}
	if !(Version{}).Same(Version{}) {
		t.Fatal("zero Versions differ")
	}
}

// TestVersionParts changes one part of a version at a time.
func TestVersionParts(t *testing.T) {
	d := newDir(t)
	path := filepath.Join(d.Path(), "f")
	then := time.Unix(1_700_000_000, 0)
	version := func() Version {
		t.Helper()
		v, err := d.Stat("f")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	inPlace := func(data string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(data), 0o600),
			os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, d, "f", "one")
	inPlace("one", then)
	first := version()
	inPlace("two", then)
	if !version().Same(first) {
		t.Fatal("size, time and inode are the same")
	}
	inPlace("three", then)
	if version().Same(first) {
		t.Fatal("another size went unnoticed")
	}
	inPlace("two", then.Add(time.Nanosecond))
	if version().Same(first) {
		t.Log("the file system has no nanoseconds")
		inPlace("two", then.Add(2*time.Second))
	}
	if version().Same(first) {
		t.Fatal("another time went unnoticed")
	}
	write(t, d, "f", "two")
	inPlace("two", then)
	if version().Same(first) {
		t.Fatal("another inode went unnoticed")
	}
}

func TestOpenAppend(t *testing.T) {
	d := newDir(t)
	for _, line := range []string{"one\n", "two\n"} {
		f, err := d.OpenAppend("log")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("-\n"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantFile(t, d, "log", "one\n-\ntwo\n-\n")
}

func TestNames(t *testing.T) {
	d := newDir(t)
	for _, name := range []string{"", ".", "..", "a/b", "/etc/passwd", "../x", `a\b`, "a\x00b",
		"a/", "./a"} {
		for op, f := range map[string]func() error{
			"read":   func() error { _, err := d.ReadFile(name, 1); return err },
			"write":  func() error { return d.WriteFile(name, nil) },
			"create": func() error { return d.CreateFile(name, nil) },
			"append": func() error { _, err := d.OpenAppend(name); return err },
			"remove": func() error { return d.Remove(name) },
			"stat":   func() error { _, err := d.Stat(name); return err },
			"exists": func() error { _, err := d.Exists(name); return err },
			"lock":   func() error { _, err := d.Lock(t.Context(), name); return err },
		} {
			if err := f(); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s %q: %v, want %v", op, name, err, fs.ErrInvalid)
			}
		}
	}
	wantNames(t, d)
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"keystore.json", "..", "a/b", `..\a`, "C:x", "NUL", "\x00",
		".keystore.json.ABC.tmp"} {
		f.Add(s)
	}
	d := newDir(f)
	f.Fuzz(func(t *testing.T, name string) {
		if d.ready("read", name) != nil {
			return
		}
		if rel, err := filepath.Rel(d.Path(), d.join(name)); err != nil || rel != name {
			t.Fatalf("%q leaves the folder: %q, %v", name, rel, err)
		}
		if !isTemp(tempName(name), name) {
			t.Fatalf("temp of %q is not known as such", name)
		}
	})
}

func TestIsTemp(t *testing.T) {
	temp := tempName("f")
	if !isTemp(temp, "f") || tempName("f") == temp {
		t.Fatal(temp)
	}
	for _, no := range []string{"f", ".f", ".f.tmp", ".f..tmp", temp + "x", "x" + temp,
		strings.ToLower(temp), temp[1:],
		".f." + strings.Repeat("A", 25) + ".tmp", ".f." + strings.Repeat("A", 27) + ".tmp",
		".f." + strings.Repeat("1", 26) + ".tmp", tempName("g"), ".f.x" + temp[2:]} {
		if isTemp(no, "f") {
			t.Errorf("%q counts as a temp of f", no)
		}
	}
}

// TestFaults fails every step of a write in turn.
func TestFaults(t *testing.T) {
	disk := errors.New("no space left")
	for name, break1 := range map[string]func(*ops){
		"temp": func(o *ops) { o.tempName = func(string) string { return "no/such/folder" } },
		"write": func(o *ops) {
			o.write = func(f *os.File, b []byte) (int, error) {
				n, _ := f.Write(b[:len(b)/2])
				return n, disk
			}
		},
		"sync":  func(o *ops) { o.sync = func(*os.File) error { return disk } },
		"close": func(o *ops) { o.sync = (*os.File).Close },
		"publish": func(o *ops) {
			o.rename = func(_, _ string) error { return disk }
			o.link = o.rename
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			write(t, d, "f", "old")
			good := d.ops
			break1(&d.ops)
			err := d.WriteFile("f", []byte("new contents"))
			if err == nil {
				t.Fatal("no error")
			}
			if name != "temp" && name != "close" {
				wantErr(t, err, disk)
			}
			if !strings.Contains(err.Error(), filepath.Join(d.Path(), "f")) {
				t.Errorf("%q does not name the file", err)
			}
			wantFile(t, d, "f", "old")
			wantNames(t, d, "f")
			if err := d.CreateFile("g", []byte("new contents")); err == nil {
				t.Fatal("no error")
			}
			wantNames(t, d, "f")
			d.ops = good
			write(t, d, "f", "new")
			wantFile(t, d, "f", "new")
		})
	}
}

func TestFolderSyncFails(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "old")
	disk := errors.New("I/O error")
	d.ops.syncDir = func(*os.File) error { return disk }
	err := d.WriteFile("f", []byte("new"))
	wantErr(t, err, ErrNotDurable)
	wantErr(t, err, disk)
	wantFile(t, d, "f", "new")
	wantNames(t, d, "f")
	wantErr(t, d.CreateFile("g", nil), ErrNotDurable)
	wantErr(t, d.Remove("g"), ErrNotDurable)
	_, err = d.OpenAppend("log")
	wantErr(t, err, ErrNotDurable)
}

// TestTempCollision plants something where the temporary file goes: it is neither written to nor
// removed.
func TestTempCollision(t *testing.T) {
	d := newDir(t)
	write(t, d, "victim", "precious")
	write(t, d, "f", "old")
	d.ops.tempName = func(string) string { return "victim" }
	wantErr(t, d.WriteFile("f", []byte("new")), fs.ErrExist)
	wantFile(t, d, "victim", "precious")
	wantFile(t, d, "f", "old")
}

func TestWriteOverFolder(t *testing.T) {
	d := newDir(t)
	sub := filepath.Join(d.Path(), "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile("sub", []byte("x")); err == nil {
		t.Fatal("a folder was replaced")
	}
	wantErr(t, d.CreateFile("sub", nil), fs.ErrExist)
	for op, f := range map[string]func() error{
		"read":   func() error { _, err := d.ReadFile("sub", 1<<20); return err },
		"append": func() error { _, err := d.OpenAppend("sub"); return err },
		"lock":   func() error { _, err := d.Lock(t.Context(), "sub"); return err },
		"stat":   func() error { _, err := d.Stat("sub"); return err },
	} {
		if err := f(); !errors.Is(err, ErrFileType) {
			t.Errorf("%s: %v, want %v", op, err, ErrFileType)
		}
	}
	wantNames(t, d, "sub")
}

func TestCreateDirMakesParents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c")
	_, err := OpenDir(path)
	wantErr(t, err, fs.ErrNotExist)
	write(t, openDir(t, path), "f", "x")
	wantFile(t, openDir(t, path), "f", "x") // existing: opened, not emptied
	_, err = CreateDir("")
	wantErr(t, err, fs.ErrInvalid)
	if _, err := CreateDir(filepath.Join(path, "f", "sub")); err == nil {
		t.Fatal("a folder inside a file")
	}
	_, err = CreateDir(filepath.Join(path, "f"))
	wantErr(t, err, ErrFileType)
}

func TestClosed(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := d.ReadFile("f", 10)
	wantErr(t, err, fs.ErrClosed)
	wantErr(t, d.WriteFile("f", nil), fs.ErrClosed)
	_, err = d.Lock(t.Context(), "l")
	wantErr(t, err, fs.ErrClosed)
}

// TestDirKeepsFolder moves the open folder away and puts another one in its place.
func TestDirKeepsFolder(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "ours")
	if err := os.Rename(d.Path(), d.Path()+".moved"); err != nil {
		t.Skip("an open folder cannot be moved here:", err)
	}
	other := openDir(t, d.Path())
	write(t, other, "f", "theirs")
	wantFile(t, d, "f", "ours")
	write(t, d, "f", "new")
	wantFile(t, other, "f", "theirs")
	if l, err := d.Lock(t.Context(), "l"); err == nil || errors.Is(err, ErrLocked) {
		t.Fatal("locked in another folder, or waited for one", l, err)
	}
	wantNames(t, other, "f") // the refused lock made nothing there
}

func TestDefaultDir(t *testing.T) {
	path, err := DefaultDir()
	if err != nil {
		t.Skip("no home here:", err)
	}
	if filepath.Base(path) != "sealedchat" || !filepath.IsAbs(path) {
		t.Fatal(path)
	}
}

func TestErrorsHoldNoContents(t *testing.T) {
	d := newDir(t)
	d.ops.sync = func(*os.File) error { return errors.New("x") }
	err := d.WriteFile("f", []byte("topsecret"))
	if err == nil || bytes.Contains([]byte(err.Error()), []byte("topsecret")) {
		t.Fatal(err)
	}
}

// Where a file system has no hard links, the error names that, and the way out; other errors of the
// link stay what they are.
func TestNoHardLinks(t *testing.T) {
	dir, err := CreateDir(filepath.Join(t.TempDir(), "d"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, c := range []struct {
		cause error
		named bool
	}{
		{syscall.EPERM, true}, {errors.ErrUnsupported, true}, {&os.LinkError{Op: "link", Err: syscall.EPERM}, true},
		{syscall.ENOSPC, false}, {fs.ErrExist, false},
	} {
		dir.ops.link = func(string, string) error { return c.cause }
		err := dir.CreateFile("f", []byte("x"))
		named := err != nil && strings.Contains(err.Error(), "no hard links") &&
			strings.Contains(err.Error(), "use a folder on another one")
		if !errors.Is(err, c.cause) || named != c.named {
			t.Errorf("%v: %v", c.cause, err)
		}
	}
	if names, err := os.ReadDir(dir.Path()); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
