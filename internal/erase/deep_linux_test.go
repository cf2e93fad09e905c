// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build gc && (amd64 || arm64) && !race

package erase

import "testing"

// The runtime says how large a stack is, as it did when this was written.
func TestStack(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, kib := range []int{0, 1, 100, 1000} {
			var grown int
			deeper(kib, func() { grown, _ = stack() })
			used, free := stack()
			if size := used + free; size < 2048 || size&(size-1) != 0 || size < grown {
				t.Errorf("after %d KiB: a stack of %d bytes", kib, size)
			}
			if used <= 0 || used > 2048 || free < 0 {
				t.Errorf("after %d KiB: %d bytes in use, %d free", kib, used, free)
			}
			if more := grown - used; more < kib<<10 || more > (kib+2)<<11 {
				t.Errorf("%d bytes in use with %d KiB more", more, kib)
			}
		}
	}()
	<-done
}
