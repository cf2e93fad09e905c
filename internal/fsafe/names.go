// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import "os"

// This file has the methods for files that grow and are renamed when they are large: logs.

// OpenRead opens an existing file for reading while others append to it. The caller owns the
// handle.
func (d *Dir) OpenRead(name string) (*os.File, error) {
	return d.open("open", name, os.O_RDONLY, d.openPrivate)
}

// IsNamed reports whether name still names the file that is open as f. It does not if the file was
// renamed, removed or replaced.
func (d *Dir) IsNamed(f *os.File, name string) (bool, error) {
	if err := d.ready("stat", name); err != nil {
		return false, err
	}
	_, named, err := d.Current(f, name)
	return named, err
}

// Rename gives a file another name in the folder, and replaces a file that has that name.
// [ErrNotDurable] says that the file was renamed all the same.
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

// Names lists the names in the folder, of any kind and in no order.
func (d *Dir) Names() ([]string, error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return nil, d.fail("list", ".", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return names, d.fail("list", ".", err)
}
