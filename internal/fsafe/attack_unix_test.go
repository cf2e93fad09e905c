// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package fsafe

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// accesses opens "f" in every way that looks at its contents or locks it.
func accesses(t *testing.T, d *Dir) map[string]func() error {
	return map[string]func() error{
		"read":   func() error { _, err := d.ReadFile("f", 1<<20); return err },
		"append": func() error { _, err := d.OpenAppend("f"); return err },
		"shared": func() error { _, err := d.OpenShared("f"); return err },
		"lock":   func() error { _, err := d.Lock(t.Context(), "f"); return err },
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode().Perm()
}

func wantPermission(t *testing.T, err error, path, fix string) {
	t.Helper()
	var pe *PermissionError
	if !errors.As(err, &pe) || !errors.Is(err, ErrInsecurePermissions) {
		t.Fatalf("got %v, want a *PermissionError", err)
	}
	if pe.Path != path || !strings.Contains(pe.Fix, fix) ||
		!strings.Contains(err.Error(), pe.Fix) || !strings.Contains(err.Error(), path) {
		t.Fatalf("%q: want it to name %s and a command with %q", err, path, fix)
	}
}

func TestSymlinks(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"outside": outside, "relative": "../outside", "inside": "real", "dangling": "nowhere",
		"dangling outside": outside + ".new", "itself": "f", "folder": ".",
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			write(t, d, "real", "precious")
			link := filepath.Join(d.Path(), "f")
			if err := os.Symlink(target, link); err != nil {
				t.Fatal(err)
			}
			for op, f := range accesses(t, d) {
				if err := f(); !errors.Is(err, ErrFileType) {
					t.Errorf("%s: %v, want %v", op, err, ErrFileType)
				}
			}
			_, err := d.Stat("f")
			wantErr(t, err, ErrFileType)
			wantErr(t, d.CreateFile("f", []byte("x")), fs.ErrExist)

			// a link where the temporary file goes
			d.ops.tempName = func(string) string { return "f" }
			wantErr(t, d.WriteFile("g", []byte("x")), fs.ErrExist)
			d.ops.tempName = tempName
			if got, err := os.Readlink(link); err != nil || got != target {
				t.Fatal("the link was touched", got, err)
			}

			write(t, d, "f", "new") // replaces the link, not what it names
			wantFile(t, d, "f", "new")
			wantFile(t, d, "real", "precious")
			if got, err := os.ReadFile(outside); err != nil || string(got) != "precious" {
				t.Fatal("the file outside was written to", err)
			}
			if _, err := os.Lstat(outside + ".new"); err == nil {
				t.Fatal("a file was made outside")
			}
			if err := d.Remove("f"); err != nil {
				t.Fatal(err)
			}
			wantNames(t, d, "real")
		})
	}
}

func TestSymlinkedFolder(t *testing.T) {
	d := newDir(t)
	base := t.TempDir()
	link := filepath.Join(base, "link")
	if err := os.Symlink(d.Path(), link); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDir(link)
	wantErr(t, err, ErrFileType)
	_, err = CreateDir(link)
	wantErr(t, err, ErrFileType)
	_, err = OpenDir(link + "/")
	wantErr(t, err, ErrFileType)
	if err := os.Symlink(filepath.Dir(d.Path()), filepath.Join(base, "above")); err != nil {
		t.Fatal(err)
	}
	openDir(t, filepath.Join(base, "above", "keys")) // links further up are followed
}

// TestPipes would hang where an open waits for the pipe's other end.
func TestPipes(t *testing.T) {
	d := newDir(t)
	if err := unix.Mkfifo(filepath.Join(d.Path(), "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for op, f := range accesses(t, d) {
			if err := f(); !errors.Is(err, ErrFileType) {
				t.Errorf("%s: %v, want %v", op, err, ErrFileType)
			}
		}
		if _, err := OpenDir(filepath.Join(d.Path(), "f")); !errors.Is(err, ErrFileType) {
			t.Errorf("OpenDir: %v, want %v", err, ErrFileType)
		}
		if _, err := CreateDir(filepath.Join(d.Path(), "f")); !errors.Is(err, ErrFileType) {
			t.Errorf("CreateDir: %v, want %v", err, ErrFileType)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("waits for a pipe")
	}
	write(t, d, "f", "x")
	wantFile(t, d, "f", "x")
}

func TestSockets(t *testing.T) {
	d := newDir(t)
	t.Chdir(d.Path()) // socket paths are short
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "f"}); err != nil {
		t.Fatal(err)
	}
	for op, f := range accesses(t, d) {
		if err := f(); !errors.Is(err, ErrFileType) {
			t.Errorf("%s: %v, want %v", op, err, ErrFileType)
		}
	}
}

func TestFileModes(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	path := filepath.Join(d.Path(), "f")
	for _, bad := range []fs.FileMode{0o640, 0o604, 0o660, 0o606, 0o620, 0o602, 0o610, 0o601, 0o777,
		0o644} {
		if err := os.Chmod(path, bad); err != nil {
			t.Fatal(err)
		}
		for _, f := range accesses(t, d) {
			wantPermission(t, f(), path, "chmod 600 "+path)
		}
		if got := mode(t, path); got != bad {
			t.Fatalf("mode is %04o: it was changed", got)
		}
	}
	for _, good := range []fs.FileMode{0o600, 0o400, 0o700} {
		if err := os.Chmod(path, good); err != nil {
			t.Fatal(err)
		}
		wantFile(t, d, "f", "x")
	}
	// A rewrite does not inherit a mode.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, d, "f", "x")
	if got := mode(t, path); got != 0o600 {
		t.Fatalf("mode is %04o, want 0600", got)
	}
}

func TestDirModes(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	for _, bad := range []fs.FileMode{0o750, 0o705, 0o770, 0o701, 0o710, 0o777, 0o755} {
		if err := os.Chmod(d.Path(), bad); err != nil {
			t.Fatal(err)
		}
		_, err := OpenDir(d.Path())
		wantPermission(t, err, d.Path(), "chmod 700 "+d.Path())
		_, err = CreateDir(d.Path())
		wantPermission(t, err, d.Path(), "chmod 700 "+d.Path())
		for _, f := range accesses(t, d) { // opened before the mode changed
			wantPermission(t, f(), d.Path(), "chmod 700 "+d.Path())
		}
		wantPermission(t, d.WriteFile("f", nil), d.Path(), "chmod 700")
		if got := mode(t, d.Path()); got != bad {
			t.Fatalf("mode is %04o: it was changed", got)
		}
	}
}

func TestOtherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	d := newDir(t)
	write(t, d, "f", "x")
	path := filepath.Join(d.Path(), "f")
	if err := os.Chown(path, 65534, -1); err != nil {
		t.Fatal(err)
	}
	for _, f := range accesses(t, d) {
		wantPermission(t, f(), path, "chown 0 "+path)
	}
	write(t, d, "f", "y")
	if err := os.Chown(d.Path(), 65534, -1); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDir(d.Path())
	wantPermission(t, err, d.Path(), "chown 0 "+d.Path())
}

// TestForeignFolder needs no root: a folder of root's that an ordinary user may not open, or may.
func TestForeignFolder(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may open everything")
	}
	_, err := OpenDir("/")
	wantAdvice(t, err, "/", adviceFolder)
	if fi, err := os.Lstat("/root"); err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o700 {
		t.Skip("no closed /root here")
	}
	_, err = OpenDir("/root")
	wantAdvice(t, err, "/root", adviceFolder)
}

func TestFixIsOneShellWord(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, `it's a "$(folder)"; #`)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDir(path)
	var pe *PermissionError
	if !errors.As(err, &pe) {
		t.Fatal(err)
	}
	if out, err := exec.Command("/bin/sh", "-c", pe.Fix).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v, %s", pe.Fix, err, out)
	}
	openDir(t, path)
}

// TestUmask changes the process's umask; no test of this package runs beside another.
func TestUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o077} {
		path := filepath.Join(t.TempDir(), "a", "keys")
		func() {
			defer syscall.Umask(syscall.Umask(mask))
			d := openDir(t, path)
			write(t, d, "f", "x")
			if err := d.CreateFile("g", nil); err != nil {
				t.Fatal(err)
			}
			f, err := d.OpenAppend("h")
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			l, err := d.Lock(t.Context(), "l")
			if err != nil {
				t.Fatal(err)
			}
			l.Unlock()
		}()
		for _, name := range []string{"f", "g", "h", "l"} {
			if got := mode(t, filepath.Join(path, name)); got != 0o600 {
				t.Errorf("umask %03o: %s has mode %04o, want 0600", mask, name, got)
			}
		}
		for _, dir := range []string{path, filepath.Dir(path)} {
			if got := mode(t, dir); got != 0o700 {
				t.Errorf("umask %03o: %s has mode %04o, want 0700", mask, dir, got)
			}
		}
	}
}

// TestUmaskAgainstOwner has umasks that leave the owner too little: an error, and nothing left
// behind.
func TestUmaskAgainstOwner(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "old")
	for _, mask := range []int{0o200, 0o400, 0o700, 0o777} {
		path := filepath.Join(t.TempDir(), "keys")
		var errs []error
		func() {
			defer syscall.Umask(syscall.Umask(mask))
			_, err := CreateDir(path)
			errs = append(errs, err, d.WriteFile("f", []byte("new")), d.CreateFile("g", nil))
			_, err = d.OpenAppend("h")
			errs = append(errs, err)
			_, err = d.Lock(t.Context(), "l")
			errs = append(errs, err)
		}()
		for i, err := range errs {
			if err == nil {
				t.Errorf("umask %03o: no error from %d", mask, i)
			}
		}
		wantFile(t, d, "f", "old")
		wantNames(t, d, "f")
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("umask %03o: the folder is still there", mask)
		}
	}
}

func TestLockThatIsNoLongerPrivate(t *testing.T) {
	d := newDir(t)
	l, err := d.Lock(t.Context(), "l")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "l")
	if err := os.Chmod(path, 0o666); err != nil { // anybody could hold it forever
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = d.Lock(ctx, "l")
	wantPermission(t, err, path, "chmod 600")
}
