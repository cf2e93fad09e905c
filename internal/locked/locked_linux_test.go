// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	limitVariable = "SEALEDCHAT_TEST_MEMLOCK" // bytes; in the child's environment
	// RLIMIT_MEMLOCK, the same on every architecture but MIPS, SPARC and Alpha
	rlimitMemlock = 8
	nobody        = 65534
	childBuffers  = 8 // of one page each
)

// TestLimit has a child process, without the privilege to ignore it, work under a lock limit.
func TestLimit(t *testing.T) {
	if limit := os.Getenv(limitVariable); limit != "" {
		underLimit(t, limit)
		return
	}
	var present syscall.Rlimit
	if err := syscall.Getrlimit(rlimitMemlock, &present); err != nil {
		t.Fatal(err)
	}
	page := uint64(os.Getpagesize())
	for _, c := range []struct{ limit, locked uint64 }{
		{0, 0},
		{1, 0},
		{2 * page, 2},
		{present.Cur, childBuffers},
	} {
		t.Run(strconv.FormatUint(c.limit, 10), func(t *testing.T) {
			if c.limit > present.Max || c.locked*page > c.limit {
				t.Skip("the limit of this process is too low")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestLimit$", "-test.v")
			cmd.Env = append(os.Environ(), limitVariable+"="+strconv.FormatUint(c.limit, 10),
				"GORACE=atexit_sleep_ms=0")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			want := fmt.Sprintf("locked %d of %d", c.locked, childBuffers)
			if !strings.Contains(string(out), want) {
				t.Errorf("want %q in\n%s", want, out)
			}
		})
	}
}

// underLimit runs in the child. All buffers work, and as many are locked as fit.
func underLimit(t *testing.T, text string) {
	limit, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(rlimitMemlock, &syscall.Rlimit{Cur: limit,
		Max: limit}); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 { // root's CAP_IPC_LOCK ignores the limit
		becomeNobody(t)
	}
	locked := 0
	for range 2 { // a second time: Destroy gives back what it had
		var all []*Buffer
		locked = 0
		for i := range childBuffers {
			b := makeBuffer(1 + i)
			want := bytes.Repeat([]byte{byte('a' + i)}, 1+i)
			copy(b.Bytes(), want)
			if !bytes.Equal(b.Bytes(), want) {
				t.Errorf("buffer %d does not hold what was written", i)
			}
			if b.Locked() {
				locked++
			}
			all = append(all, b)
		}
		for _, b := range all {
			b.Destroy()
		}
	}
	fmt.Printf("locked %d of %d\n", locked, childBuffers)
}

// What Locked says is what the kernel says.
func TestLockedIsTrue(t *testing.T) {
	before := lockedKB(t)
	b := makeBuffer(1)
	during := lockedKB(t)
	if b.Locked() != (during > before) {
		t.Errorf("Locked is %v; the kernel counted %d KB before, %d KB with it", b.Locked(), before,
			during)
	}
	b.Destroy()
	if after := lockedKB(t); after != before {
		t.Errorf("%d KB stay locked", after-before)
	}
}
