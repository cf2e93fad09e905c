// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long goroutines have to end after the test: closing a connection ends its
// goroutines a little later.
const leakPatience = 30 * time.Second

// NoLeaks fails the test if goroutines that began during the test still run when the test and its
// other cleanups have ended. Call it first, so that its cleanup runs last. It sees the whole
// process. So it is not for tests that run in parallel with others, nor for the inside of a
// testing/synctest bubble, which has a check of its own.
func NoLeaks(t testing.TB) {
	t.Helper()
	noLeaks(t, leakPatience)
}

func noLeaks(t testing.TB, patience time.Duration) {
	t.Helper()
	before := goroutines()
	t.Cleanup(func() {
		var left []string
		for wait, deadline := time.Millisecond, time.Now().Add(patience); ; wait = min(2*wait,
			100*time.Millisecond) {
			left = left[:0]
			for id, stack := range goroutines() {
				if _, ok := before[id]; !ok {
					left = append(left, stack)
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				break
			}
			time.Sleep(wait)
		}
		t.Errorf("testkit: %d goroutines stayed behind:\n\n%s", len(left),
			strings.Join(left, "\n\n"))
	})
}

// goroutines returns the stack of every goroutine but the calling one, by "goroutine N".
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for i, stack := range strings.Split(strings.TrimSpace(string(buf)), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		// the first is the caller; signal.Notify starts one forever
		if i > 0 && !strings.Contains(stack, "os/signal.loop") {
			all[id] = stack
		}
	}
	return all
}
