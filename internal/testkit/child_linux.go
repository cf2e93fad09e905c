// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const memoryVariable = "SEALEDCHAT_TEST_MEMORY" // what the child does

// RunInChild runs a test in a child process, where it may change the process.
func RunInChild(t *testing.T, how string, run func(t *testing.T)) {
	if os.Getenv(memoryVariable) == how {
		run(t)
		if !t.Failed() {
			fmt.Println("all is as it should be")
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), memoryVariable+"="+how)
	if out, err := cmd.CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "all is as it should be") {
		t.Errorf("%v\n%s", err, out)
	}
}

// NobodysFolder gives up root's rights, in a child process, and makes a folder for the user that is
// left.
func NobodysFolder(t *testing.T) (dir string, limit unix.Rlimit) {
	t.Helper()
	// and not t.TempDir, in a folder that only root may change
	dir, err := os.MkdirTemp("", "sealedchat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		if err := errors.Join(os.Chown(dir, 65534, 65534), unix.Setgroups(nil), unix.Setgid(65534),
			unix.Setuid(65534)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	return dir, limit
}
