// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

const mountFailed = 3 // exit code of a child that may not mount

// RunWithOwnMounts runs a child process in a mount namespace of its own, where it may call
// MountSmallDisk. That works for an ordinary user, too, if the kernel allows it. It returns the
// output of the child. It skips the test, with the reason, if there is no such namespace, and fails
// the test if the child fails.
func RunWithOwnMounts(t testing.TB, cmd *exec.Cmd) []byte {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(),
			Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(),
			Size: 1}}
	}
	cmd.Stderr = nil
	out, err := cmd.CombinedOutput()
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err != nil && !exited:
		t.Skip("no mount namespace of its own here:", err)
	case exited && exit.ExitCode() == mountFailed:
		t.Skipf("cannot mount a tmpfs here: %s", out)
	case err != nil:
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// MountSmallDisk mounts a file system of 64 KiB over a folder. Only children of RunWithOwnMounts
// call it. It ends the child if mounting is not allowed.
func MountSmallDisk(path string) {
	const flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	if err := syscall.Mount("tmpfs", path, "tmpfs", flags, "size=64k,mode=0700"); err != nil {
		fmt.Println(err)
		os.Exit(mountFailed)
	}
}
