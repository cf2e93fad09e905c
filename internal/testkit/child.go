// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Child returns a command that runs the test binary again, with the given variables added to the
// environment. It is killed when the test ends, and after two minutes. It writes its standard error
// to that of the test.
func Child(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// StartChild starts cmd with pipes for its standard input and output. The caller waits for it.
func StartChild(t testing.TB, cmd *exec.Cmd) (in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("testkit: %v", err)
	}
	return in, bufio.NewReader(pipe)
}
