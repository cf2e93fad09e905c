// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package fsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockFlag are the flags with which flock opens lock files: it makes no file, follows no link and
// does not wait for a pipe.
const lockFlag = os.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK

// openRoot adds a slash to the path, so that the system refuses a pipe there instead of waiting for
// it.
func openRoot(path string) (*os.Root, error) {
	root, err := os.OpenRoot(path + "/")
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrFileType}
	case errors.Is(err, fs.ErrPermission):
		return nil, explain(err, path, func() (fs.FileInfo, error) { return os.Lstat(path) })
	}
	return root, err
}

// inUse is for Windows, where a file that another process has open may be out of reach.
func inUse(error) bool { return false }

func renameIn(root *os.Root) func(from, to string) error { return root.Rename }

func mkdirPrivate(path string) error { return os.Mkdir(path, dirMode) }

func rmdir(path string) error { return unix.Rmdir(path) }

func baseDir() (string, error) { return os.UserConfigDir() }

// openRegular opens a regular file in the folder. It does not use os.Root, which follows links
// inside the folder. A checked name of one element, relative to the handle of the folder, needs no
// more confinement.
func (d *Dir) openRegular(name string, flag int) (*os.File, error) {
	conn, err := d.handle.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := conn.Control(func(dir uintptr) {
		for {
			fd, err = unix.Openat(int(dir), name,
				flag|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, uint32(fileMode))
			if err != unix.EINTR {
				return
			}
		}
	})
	switch {
	case cerr != nil:
		return nil, cerr
	// link, link (BSD), folder, socket
	case err == unix.ELOOP, err == unix.EMLINK, err == unix.EISDIR, err == unix.ENXIO:
		return nil, ErrFileType
	case err == unix.EACCES, err == unix.EPERM:
		return nil, explain(err, d.join(name), func() (fs.FileInfo, error) {
			return d.root.Lstat(name)
		})
	case err != nil:
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = ErrFileType
	}
	if err == nil {
		err = unix.SetNonblock(fd, false) // otherwise os.NewFile would poll it
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.join(name)), nil
}

// checkPrivate checks the owner and the mode of an open file or folder.
func checkPrivate(f *os.File, path string) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return checkInfo(fi, path)
}

// explain returns why the system refused to open something, if the reason is its owner or its mode.
// It looks by name, which is good enough for the text of a refusal.
func explain(denied error, path string, stat func() (fs.FileInfo, error)) error {
	if fi, err := stat(); err == nil && (fi.Mode().IsRegular() || fi.IsDir()) {
		if err := checkInfo(fi, path); err != nil {
			return err
		}
	}
	return denied
}

// checkInfo checks an owner and a mode.
func checkInfo(fi fs.FileInfo, path string) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return &fs.PathError{Op: "stat", Path: path, Err: errors.ErrUnsupported}
	}
	uid := os.Geteuid()
	want := fileMode
	if fi.IsDir() {
		want = dirMode
	}
	e := &PermissionError{Path: path}
	switch mode := fi.Mode().Perm(); {
	case int64(st.Uid) != int64(uid):
		e.Reason = fmt.Sprintf("belongs to user %d, want %d", st.Uid, uid)
		e.Fix = "sudo chown " + strconv.Itoa(uid) + " " + shellQuote(path)
	case mode&0o077 != 0:
		e.Reason = fmt.Sprintf("mode is %04o, want %04o", mode, want)
		e.Fix = fmt.Sprintf("chmod %o %s", want, shellQuote(path))
	default:
		return nil
	}
	switch {
	case fi.IsDir() && !(fi.Mode()&(fs.ModeSticky|fs.ModeSetgid|fs.ModeSetuid) == 0 &&
		ownFolder(path, int64(st.Uid) == int64(uid), ownEntry)):
		e.Fix, e.Advice = "", adviceFolder
	case !fi.IsDir() && st.Nlink > 1:
		e.Fix, e.Advice = "", adviceFile
	}
	return e
}

// ownEntry reports whether an entry of a folder belongs to the current user and is closed to
// others.
func ownEntry(_ string, fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int64(st.Uid) == int64(os.Geteuid()) && fi.Mode().Perm()&0o077 == 0
}

// checkCreated notices a umask that takes rights from the owner. A chmod afterwards would only hide
// that.
func checkCreated(f *os.File, want fs.FileMode) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if mode := fi.Mode().Perm(); mode != want {
		return fmt.Errorf("fsafe: made with mode %04o instead of %04o: the umask takes rights "+
			"from the owner", mode, want)
	}
	return nil
}

// syncDir makes renames in the folder durable. Some file systems have nothing to sync and return an
// error that says so.
func syncDir(dir *os.File) error {
	err := dir.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// shellQuote quotes s as one word of a POSIX shell.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,:@%="
	if strings.Trim(s, plain) == "" && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
