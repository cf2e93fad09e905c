// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package harden

import (
	"runtime/debug"
	"sync"
	"testing"
)

// Scrub leaves the collector's percentage as it was, however many run, and reaches every class of
// small objects.
func TestScrub(t *testing.T) {
	was := debug.SetGCPercent(77)
	defer debug.SetGCPercent(was)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(Scrub)
	}
	wg.Wait()
	if now := debug.SetGCPercent(77); now != 77 {
		t.Errorf("the percentage is %d", now)
	}
	for _, size := range []int{8, 16, 48, 6700, 10240, 19000, 32768} {
		if !coversClass(size) {
			t.Errorf("no object of %d bytes", size)
		}
	}
}

// coversClass tells whether one of scrubClasses takes the memory of objects of size bytes.
func coversClass(size int) bool {
	rounded := cap(append([]byte(nil), make([]byte, size)...))
	for _, n := range scrubClasses() {
		if cap(append([]byte(nil), make([]byte, n)...)) == rounded {
			return true
		}
	}
	return false
}
