// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package fsafe keeps private files: a folder that only its owner may enter, files in it that are
// replaced whole or not at all, and locks between processes.
//
// # What the package checks
//
// The package never checks a path and then trusts the path. It opens the folder first and checks it
// through its handle. It opens files relative to that handle, without following symbolic links, and
// checks each one through its own handle before it reads or writes a byte: the kind (a regular
// file), the owner (the current user), and the access (nobody else). The last element of the
// folder's path must not be a symbolic link either. Links further up are followed, because an
// attacker who controls those controls the path anyway. Folders that are mounted from links, as
// Kubernetes mounts secrets, are therefore refused.
//
// # What the package does not protect against
//
// Root, and an administrator on Windows, can read everything. The package does not look at access
// control lists that macOS keeps beside the mode; on Linux they show in the group bits of the mode.
// Local file systems promise locks and atomic replacement; network file systems weaken both. The
// bytes of a removed or replaced file stay on the disk until they are overwritten, so secrets have
// to be encrypted.
//
// The package has no global state. All methods are safe for concurrent use.
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

// Dir is an open private folder. It stays the same folder when its path is renamed or replaced. The
// caller closes it.
//
// Invariant: root and handle are open on the same folder. The folder was private when it was
// opened, and every operation checks that again.
type Dir struct {
	// absolute: for messages, and for flock, which opens by path and whose result is checked
	path string
	root *os.Root // keeps names inside the folder
	// the folder itself: to check it, to open files without following links, and to fsync it
	handle *os.File
	ops    ops
}

// ops are the steps of a write that can fail half-way. Tests replace single steps in their own Dir.
type ops struct {
	tempName func(name string) string
	write    func(f *os.File, data []byte) (int, error)
	sync     func(f *os.File) error
	rename   func(from, to string) error
	link     func(from, to string) error
	syncDir  func(d *os.File) error
}

// OpenDir opens the private folder at path, which must exist. The error is a [*PermissionError] if
// the folder belongs to another user or others may enter it, and [ErrFileType] if it is a symbolic
// link or no folder.
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

// FailSyncForTest makes each later fsync of the folder fail with err; nil makes it work again. It
// is for tests of packages that handle [ErrNotDurable]. The caller must not call it while the
// folder is in use.
func (d *Dir) FailSyncForTest(err error) {
	d.ops.syncDir = func(f *os.File) error {
		if err != nil {
			return err
		}
		return syncDir(f)
	}
}

// CreateDir opens the private folder at path like [OpenDir]. If the folder does not exist, it makes
// the folder first, with any missing parents. A new folder is private from its first moment: mode
// 0700, or on Windows a protected access list for the current user alone, which files inherit.
// CreateDir never changes the mode of a folder that exists.
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
			err = errors.Join(err, rmdir(abs)) // removes only an empty folder
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

// Path returns the absolute path of the folder.
func (d *Dir) Path() string { return d.path }

// Close closes the folder. The caller unlocks its locks first.
func (d *Dir) Close() error {
	return errors.Join(d.root.Close(), d.handle.Close())
}

// absolute returns the absolute path. It refuses "", which would mean the working directory.
func absolute(path string) (string, error) {
	if path == "" {
		return "", &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid}
	}
	return filepath.Abs(path)
}

// AtPath returns nil if the path of the folder, without following a link there, still names the
// open folder. It returns an error if the folder was removed, moved or replaced since it was
// opened.
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

// ready checks a name, and checks the folder again: its mode may have changed since it was opened.
func (d *Dir) ready(op, name string) error {
	if !filepath.IsLocal(name) || name == "." || strings.ContainsAny(name, "/\\\x00") {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return checkPrivate(d.handle, d.path)
}

func (d *Dir) join(name string) string { return filepath.Join(d.path, name) }

// fail adds the operation and the full path to err, since the errors of os.Root name only the file.
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

// makeAll makes the folder and its missing parents, and makes each durable in its own parent.
func makeAll(path string) (made bool, err error) {
	err = mkdirPrivate(path)
	if parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path {
		if _, err := makeAll(parent); err != nil {
			return false, err
		}
		err = mkdirPrivate(path)
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil // OpenDir checks it
	}
	if err != nil {
		return false, err
	}
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrPermission) {
		return true, nil // without the right to read the parent there is no fsync of it either
	}
	if err != nil {
		return true, err
	}
	return true, errors.Join(syncDir(parent), parent.Close())
}

// tempName returns a fresh name that isTemp accepts for name. rand.Text has 26 characters of
// base32.
func tempName(name string) string { return "." + name + "." + rand.Text() + ".tmp" }

// isTemp reports whether tempName makes names like temp for name.
func isTemp(temp, name string) bool {
	middle, ok := strings.CutPrefix(temp, "."+name+".")
	if !ok {
		return false
	}
	middle, ok = strings.CutSuffix(middle, ".tmp")
	return ok && len(middle) == 26 && strings.Trim(middle, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// DefaultDir returns the folder for the keys of the current user: sealedchat in [os.UserConfigDir],
// or on Windows in %LocalAppData%, since the other folder there is copied between machines. It
// makes no folder.
func DefaultDir() (string, error) {
	base, err := baseDir()
	if err != nil {
		return "", fmt.Errorf("fsafe: no default folder: %w", err)
	}
	return filepath.Join(base, "sealedchat"), nil
}
