// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestFullDisk fills a file system of 64 KiB, which a child mounts where nobody else sees it.
func TestFullDisk(t *testing.T) {
	cmd := command(t, "full", newDir(t).Path())
	t.Logf("%s", testkit.RunWithOwnMounts(t, cmd))
}

func childFull(d *Dir) error {
	path := d.Path()
	testkit.MountSmallDisk(path)
	d, err := CreateDir(filepath.Join(path, "keys"))
	if err != nil {
		return err
	}
	old, big := strings.Repeat("o", 16<<10), strings.Repeat("n", 56<<10)
	if err := d.WriteFile("f", []byte(old)); err != nil {
		return err
	}
	full := func(op string, err error) error {
		if pe, ok := err.(*os.PathError); !ok || pe.Err != syscall.ENOSPC {
			return fmt.Errorf("%s: %v, want %v", op, err, syscall.ENOSPC)
		}
		fmt.Println(err)
		got, err := d.ReadFile("f", 1<<20)
		if err != nil || string(got) != old {
			return fmt.Errorf("%s: the old file has %d bytes, %v", op, len(got), err)
		}
		if entries, err := os.ReadDir(d.Path()); err != nil || len(entries) != 1 {
			return fmt.Errorf("%s: %v is left, %v", op, entries, err)
		}
		return nil
	}
	if err := full("write", d.WriteFile("f", []byte(big))); err != nil {
		return err
	}
	if err := full("create", d.CreateFile("g", []byte(big))); err != nil {
		return err
	}
	return d.WriteFile("f", []byte("it goes on")) // the failures took no room
}
