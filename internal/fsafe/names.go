// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"io/fs"
	"os"
)

// This file is for files that grow and are renamed when they are large: logs.

// OpenRead opens an existing file to be read while others append to it. The handle is the caller's.
func (d *Dir) OpenRead(name string) (*os.File, error) {
	if err := d.ready("open", name); err != nil {
		return nil, err
	}
	f, err := d.openPrivate(name, os.O_RDONLY)
	if err != nil {
		return nil, d.fail("open", name, err)
	}
	return f, nil
}

// IsNamed reports whether name still names the file that is open as f: false when it was renamed,
// removed or replaced.
func (d *Dir) IsNamed(f *os.File, name string) (bool, error) {
	if err := d.ready("stat", name); err != nil {
		return false, err
	}
	mine, err := f.Stat()
	if err != nil {
		return false, d.fail("stat", name, err)
	}
	named, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), d.fail("stat", name, err)
}

// Rename gives a file another name in the folder, and replaces what has that name already.
// [ErrNotDurable] says that it was renamed all the same.
func (d *Dir) Rename(from, to string) error {
	for _, name := range []string{from, to} {
		if err := d.ready("rename", name); err != nil {
			return err
		}
	}
	if err := d.ops.rename(from, to); err != nil {
		return d.fail("rename", from, err)
	}
	return d.fail("rename", from, d.settle())
}

// Names lists what is in the folder, of whatever kind, in no order.
func (d *Dir) Names() ([]string, error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return nil, d.fail("list", ".", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return names, d.fail("list", ".", err)
}
