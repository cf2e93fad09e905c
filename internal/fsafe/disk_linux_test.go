// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const mountFailed = 3 // exit code of the child that may not mount

// TestFullDisk fills a file system of 64 KiB, which a child mounts where nobody else sees it.
func TestFullDisk(t *testing.T) {
	cmd := command(t, "full", newDir(t).Path())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.Stderr = nil
	out, err := cmd.CombinedOutput()
	exit, exited := err.(*exec.ExitError)
	switch {
	case err != nil && !exited:
		t.Skip("no mount namespace of its own here:", err)
	case exited && exit.ExitCode() == mountFailed:
		t.Skipf("cannot mount a tmpfs here: %s", out)
	case err != nil:
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

func childFull(d *Dir) error {
	path := d.Path()
	if err := syscall.Mount("tmpfs", path, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, "size=64k,mode=0700"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(mountFailed)
	}
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
