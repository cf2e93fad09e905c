// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestFullDiskAndReadOnly fills a file system of 64 KiB, and makes it read-only, in a child's own
// mounts.
func TestFullDiskAndReadOnly(t *testing.T) {
	t.Logf("%s", testkit.RunWithOwnMounts(t, command(t, "full", newFolder(t).Path())))
}

func childFull(d *fsafe.Dir) error {
	mount := d.Path()
	testkit.MountSmallDisk(mount)
	d, err := fsafe.CreateDir(filepath.Join(mount, "keys"))
	if err != nil {
		return err
	}
	defer d.Close()
	f := NewFile(d, 0)
	until := time.Now().Add(time.Hour)
	claim := func(f *File, n uint64) (bool, error) {
		return f.Claim(context.Background(), replayID(n), [32]byte{byte(n % 2)}, until)
	}
	n := uint64(0)
	for ; ; n++ {
		ok, err := claim(f, n)
		if errors.Is(err, syscall.ENOSPC) && !ok {
			fmt.Println(n, "claims, then", err)
			break
		}
		if !ok || err != nil || n > 1000 {
			return fmt.Errorf("%d: %v, %v", n, ok, err)
		}
	}
	if n < 400 {
		return fmt.Errorf("full after %d", n)
	}
	other := NewFile(d, 0)
	for _, c := range []*File{f, other} { // full: nothing new is served, and nothing old
		if ok, err := claim(c, n+2); ok || !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("full: %v, %v", ok, err)
		}
		for old := range n {
			if ok, err := claim(c, old); ok || err != nil {
				return fmt.Errorf("%d, full: %v, %v", old, ok, err)
			}
		}
	}
	if err := syscall.Mount("", mount, "", syscall.MS_REMOUNT, "size=256k"); err != nil {
		return err
	}
	for _, c := range []*File{f, other} { // it goes on, with what was refused too
		if ok, err := claim(c, n); ok != (c == f) || err != nil {
			return fmt.Errorf("room again: %v, %v", ok, err)
		}
	}
	f.crash()
	other.crash()
	if err := syscall.Mount("", mount, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return err
	}
	for _, c := range []*File{f, NewFile(d, 0)} {
		if ok, err := claim(c, n+4); ok || !errors.Is(err, syscall.EROFS) {
			return fmt.Errorf("read-only: %v, %v", ok, err)
		}
	}
	return nil
}
