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

// maxLooked bounds the entries of a refused folder that ownFolder looks at. A folder with more
// counts as shared.
const maxLooked = 1000

// ownFolder reports whether a refused folder is used by the current user alone. Then a command that
// takes the folder away from all others harms nobody. It looks by name, which is good enough for
// the text of a refusal.
//
// An empty folder does not show who needs it. It counts as the user's own if the user owns it and
// it does not stand where systems have their folders, at the top or one level below, such as /mnt
// and /var/opt.
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

// depth returns how many elements an absolute path has: 0 for the top.
func depth(path string) int {
	n := 0
	for parent := filepath.Dir(path); parent != path; parent = filepath.Dir(path) {
		path = parent
		n++
	}
	return n
}

// MissingFirst returns err, the refusal of a folder, unless the file at path, which the caller
// wants from that folder, does not exist. Then it returns that error, since nobody has to fix a
// folder that was named by mistake.
func MissingFirst(path string, err error) error {
	if !errors.Is(err, ErrInsecurePermissions) {
		return err
	}
	if _, missing := os.Lstat(path); errors.Is(missing, fs.ErrNotExist) {
		return &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return err
}
