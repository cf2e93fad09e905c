// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxLooked is how many entries of a refused folder are looked at; one with more counts as shared.
const maxLooked = 1000

// ownFolder reports whether a refused folder is the current user's alone, so that a command which
// takes it away from all others harms nobody: nothing is in it that others may use. It looks by
// name, which is good enough for the words of a refusal.
//
// An empty folder says nothing about who needs it. It counts as the user's own if he owns it and it
// does not stand where systems have theirs, at the top or one level below, such as /mnt and
// /var/opt.
func ownFolder(path string, owned bool, ownEntry func(path string, fi fs.FileInfo) bool) bool {
	if depth(path) < 2 {
		return false
	}
	dir, err := os.Open(path)
	if err != nil {
		return false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxLooked + 1)
	if len(names) == 0 {
		return owned && errors.Is(err, io.EOF) && depth(path) > 2
	}
	if len(names) > maxLooked {
		return false
	}
	for _, name := range names {
		entry := filepath.Join(path, name)
		fi, err := os.Lstat(entry)
		if err != nil || !ownEntry(entry, fi) {
			return false
		}
	}
	return true
}

// depth is how many folders lead to an absolute path, with itself: 0 for the top.
func depth(path string) int {
	n := 0
	for parent := filepath.Dir(path); parent != path; parent = filepath.Dir(path) {
		path = parent
		n++
	}
	return n
}

// MissingFirst is err, the refusal of a folder, unless the file at path, which the caller wants
// from that folder, does not exist: then that is the error, since nobody has to fix a folder that
// was named by mistake.
func MissingFirst(path string, err error) error {
	if !errors.Is(err, ErrInsecurePermissions) {
		return err
	}
	if _, missing := os.Lstat(path); errors.Is(missing, fs.ErrNotExist) {
		return &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return err
}
