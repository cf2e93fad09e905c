// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package fsafe keeps private files: a folder that only its owner may enter, files in it that are
// replaced whole or not at all, and locks between processes.
//
// # What is checked
//
// Nothing is checked by path and then trusted by path. The folder is opened first and then checked
// through its handle; files are opened relative to that handle, without following symbolic links,
// and checked through their own handle before a byte is read or written: kind (a regular file),
// owner (the current user), access (nobody else). The folder's last path element may not be a
// symbolic link either; links further up are followed, since whoever controls those controls the
// path anyway. Folders that are mounted from links, as Kubernetes mounts secrets, are therefore
// refused.
//
// # What is not
//
// Root, and an administrator on Windows, can read everything. Access control lists that macOS keeps
// beside the mode are not looked at (on Linux they show in the mode's group bits). Locks and atomic
// replacement are promises of local file systems; network file systems weaken both. What a removed
// or replaced file held stays on the disk until it is overwritten, so secrets belong in here
// encrypted.
//
// The package has no global state; all methods are safe for concurrent use.
package fsafe

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// Dir is an open private folder. It stays the same folder when its path is renamed or replaced.
// Close it.
type Dir struct {
	// absolute; for messages and for flock, which opens by path and is checked afterwards
	path string
	root *os.Root // confines names to the folder
	// the folder itself: to check it, to open files without following links, to fsync it
	handle *os.File
	ops    ops
}

// ops are the steps of a write that can fail half-way. Tests replace single ones in their own Dir.
type ops struct {
	tempName func(name string) string
	write    func(f *os.File, data []byte) (int, error)
	sync     func(f *os.File) error
	rename   func(from, to string) error
	link     func(from, to string) error
	syncDir  func(d *os.File) error
}

// OpenDir opens the private folder at path, which must exist. A folder that belongs to another
// user, or that others may enter, is a [*PermissionError]; a symbolic link or anything else that is
// no folder is [ErrFileType].
func OpenDir(path string) (*Dir, error) {
	abs, err := absolute(path)
	if err != nil {
		return nil, err
	}
	root, err := openRoot(abs)
	if err != nil {
		return nil, err
	}
	handle, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	d := &Dir{path: abs, root: root, handle: handle, ops: ops{
		tempName: tempName,
		write:    (*os.File).Write,
		sync:     (*os.File).Sync,
		rename:   renameIn(root),
		link:     root.Link,
		syncDir:  syncDir,
	}}
	err = d.AtPath()
	if err == nil {
		err = checkPrivate(handle, abs)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// FailSyncForTest makes each later fsync of the folder fail with err; nil mends it. It is for tests
// of packages that have to show what they make of [ErrNotDurable], and must not be called while the
// folder is in use.
func (d *Dir) FailSyncForTest(err error) {
	d.ops.syncDir = func(f *os.File) error {
		if err != nil {
			return err
		}
		return syncDir(f)
	}
}

// CreateDir opens the private folder at path as [OpenDir] does, and makes it first, with any
// missing parents, where it does not exist. What it makes is private from its first moment: mode
// 0700, on Windows a protected access list for the current user alone, which files inherit. It
// never changes the mode of what it finds.
func CreateDir(path string) (*Dir, error) {
	abs, err := absolute(path)
	if err != nil {
		return nil, err
	}
	made, err := makeAll(abs)
	if err != nil {
		return nil, err
	}
	d, err := OpenDir(abs)
	if err != nil {
		if made {
			err = errors.Join(err, rmdir(abs)) // takes nothing but an empty folder
		}
		return nil, err
	}
	if made {
		if err := checkCreated(d.handle, dirMode); err != nil {
			return nil, errors.Join(&fs.PathError{Op: "mkdir", Path: abs, Err: err}, d.Close(),
				rmdir(abs))
		}
	}
	return d, nil
}

// Path returns the folder's absolute path.
func (d *Dir) Path() string { return d.path }

// Close closes the folder. Unlock its locks first.
func (d *Dir) Close() error {
	return errors.Join(d.root.Close(), d.handle.Close())
}

// absolute refuses "", which would mean the working directory.
func absolute(path string) (string, error) {
	if path == "" {
		return "", &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid}
	}
	return filepath.Abs(path)
}

// AtPath returns nil if the open folder is what its path names, without following a link there. A
// folder that was removed, moved away or replaced since it was opened is an error.
func (d *Dir) AtPath() error {
	mine, err := d.handle.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(d.path)
	if err != nil {
		return err
	}
	if !named.IsDir() {
		return &fs.PathError{Op: "open", Path: d.path, Err: ErrFileType}
	}
	if !os.SameFile(mine, named) {
		return &fs.PathError{Op: "open", Path: d.path,
			Err: errors.New("the folder was moved or replaced")}
	}
	return nil
}

// ready checks a name and, again, the folder: its mode may have changed since it was opened.
func (d *Dir) ready(op, name string) error {
	if !filepath.IsLocal(name) || name == "." || strings.ContainsAny(name, "/\\\x00") {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return checkPrivate(d.handle, d.path)
}

func (d *Dir) join(name string) string { return filepath.Join(d.path, name) }

// fail gives err the operation and the full path; os.Root's errors name only the file.
func (d *Dir) fail(op, name string, err error) error {
	switch e := err.(type) {
	case nil:
		return nil
	case *PermissionError:
		return err // names the file already
	case *fs.PathError:
		err = e.Err
	case *os.LinkError:
		err = e.Err
	}
	return &fs.PathError{Op: op, Path: d.join(name), Err: err}
}

// makeAll makes the folder and its missing parents, each durable in its own parent.
func makeAll(path string) (made bool, err error) {
	err = mkdirPrivate(path)
	if parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path {
		if _, err := makeAll(parent); err != nil {
			return false, err
		}
		err = mkdirPrivate(path)
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil // what it is, OpenDir finds out
	}
	if err != nil {
		return false, err
	}
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrPermission) {
		return true, nil // we may write there but not read: then we cannot fsync it either
	}
	if err != nil {
		return true, err
	}
	return true, errors.Join(syncDir(parent), parent.Close())
}

// tempName returns a fresh name that isTemp knows as name's; rand.Text has 26 characters of base32.
func tempName(name string) string { return "." + name + "." + rand.Text() + ".tmp" }

// isTemp reports whether temp is a name that tempName makes for name.
func isTemp(temp, name string) bool {
	middle, ok := strings.CutPrefix(temp, "."+name+".")
	if !ok {
		return false
	}
	middle, ok = strings.CutSuffix(middle, ".tmp")
	return ok && len(middle) == 26 && strings.Trim(middle, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// DefaultDir returns the folder for the current user's keys: sealedchat in [os.UserConfigDir], on
// Windows in %LocalAppData%, since the other one roams between machines. It makes nothing.
func DefaultDir() (string, error) {
	base, err := baseDir()
	if err != nil {
		return "", fmt.Errorf("fsafe: no default folder: %w", err)
	}
	return filepath.Join(base, "sealedchat"), nil
}
