// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package fsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// wantAdvice expects a refusal that gives advice and no command.
func wantAdvice(t *testing.T, err error, path, advice string) {
	t.Helper()
	pe, ok := errors.AsType[*PermissionError](err)
	if !ok || !errors.Is(err, ErrInsecurePermissions) {
		t.Fatalf("got %v, want a *PermissionError", err)
	}
	if pe.Path != path || pe.Fix != "" || pe.Advice != advice || !strings.HasSuffix(err.Error(),
		advice) ||
		!strings.Contains(err.Error(), path) {
		t.Errorf("%q: want it to name %s and to say %q", err, path, advice)
	}
	for _, harm := range []string{"chmod", "chown", "fix it with"} {
		if strings.Contains(err.Error(), harm) {
			t.Errorf("%q advises %s", err, harm)
		}
	}
}

// TestAdviceForFolders: a command is advised only for a folder that is the user's alone.
func TestAdviceForFolders(t *testing.T) {
	file := func(mode fs.FileMode, uid int) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, "f")
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				return err
			}
			if uid >= 0 {
				if err := os.Chown(path, uid, -1); err != nil {
					return err
				}
			}
			return os.Chmod(path, mode)
		}
	}
	sub := func(mode fs.FileMode) func(string) error {
		return func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o700),
				os.Chmod(filepath.Join(dir, "d"),
					mode))
		}
	}
	nothing := func(string) error { return nil }
	many := func(dir string) (err error) {
		for n := range maxLooked + 1 {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600))
		}
		return err
	}
	for what, c := range map[string]struct {
		mode   fs.FileMode
		fill   func(dir string) error
		owner  int  // -1: the user
		root   bool // only root can set it up
		shared bool
	}{
		"empty":                          {0o755, nothing, -1, false, false},
		"a file of its own":              {0o755, file(0o600, -1), -1, false, false},
		"a folder of its own":            {0o775, sub(0o700), -1, false, false},
		"a file that others may read":    {0o755, file(0o644, -1), -1, false, true},
		"a file of the group":            {0o750, file(0o640, -1), -1, false, true},
		"a file that others may write":   {0o777, file(0o602, -1), -1, false, true},
		"a folder that others may enter": {0o755, sub(0o755), -1, false, true},
		"a folder that others may pass":  {0o755, sub(0o711), -1, false, true},
		"a link": {0o755, func(dir string) error {
			return os.Symlink("x",
				filepath.Join(dir, "l"))
		}, -1, false, true},
		"sticky": {0o777 | fs.ModeSticky, nothing, -1, false, true},
		"sticky, with a file of its own": {0o777 | fs.ModeSticky, file(0o600, -1), -1, false,
			true},
		"for a group": {0o775 | fs.ModeSetgid, file(0o600, -1), -1, false,
			true},
		"more files than are looked at":     {0o755, many, -1, false, true},
		"another user's file":               {0o755, file(0o600, 65534), -1, true, true},
		"another user's, empty":             {0o755, nothing, 65534, true, true},
		"another user's, with his file":     {0o700, file(0o600, 65534), 65534, true, true},
		"another user's, with only my file": {0o700, file(0o600, -1), 65534, true, false},
		"another user's, sticky": {0o777 | fs.ModeSticky, file(0o600, -1), 65534, true,
			true},
	} {
		t.Run(what, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				t.Skip("only root can give files away")
			}
			path := filepath.Join(t.TempDir(), "folder")
			if err := errors.Join(os.Mkdir(path, 0o700), c.fill(path), os.Chown(path, c.owner, -1),
				os.Chmod(path, c.mode)); err != nil {
				t.Fatal(err)
			}
			for _, open := range []func(string) (*Dir, error){OpenDir, CreateDir} {
				_, err := open(path)
				switch {
				case c.shared:
					wantAdvice(t, err, path, adviceFolder)
				case c.owner < 0:
					wantPermission(t, err, path, "chmod 700 "+path)
				default:
					wantPermission(t, err, path, "chown 0 "+path)
				}
			}
		})
	}
}

// TestAdviceForSystemFolders: what stands at the top, or one level below and empty, is not one's
// own.
func TestAdviceForSystemFolders(t *testing.T) {
	for _, path := range []string{"/", "/tmp", "/var", "/usr", "/etc", "/var/log", "/var/tmp",
		"/mnt",
		"/srv", "/opt", "/dev", "/var/opt", "/usr/src"} {
		fi, err := os.Lstat(path)
		if err != nil || !fi.IsDir() {
			continue
		}
		if _, err := OpenDir(path); !errors.Is(err, fs.ErrPermission) || errors.Is(err,
			ErrInsecurePermissions) {
			wantAdvice(t, err, path, adviceFolder)
		}
	}
	for path, want := range map[string]int{"/": 0, "/a": 1, "/a/b": 2, "/a/b/c": 3} {
		if got := depth(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

// TestAdviceForFilesWithOtherNames: a mode belongs to the file, and so to each of its names.
func TestAdviceForFilesWithOtherNames(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	path, other := filepath.Join(d.Path(), "f"), filepath.Join(t.TempDir(), "shared")
	if err := errors.Join(os.Link(path, other), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, f := range accesses(t, d) {
		wantAdvice(t, f(), path, adviceFile)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	for _, f := range accesses(t, d) {
		wantPermission(t, f(), path, "chmod 600 "+path)
	}
}
