// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bytes"
	"sync"
	"testing"
)

// Whoever gets memory finds nothing of whoever had it before.
func TestSpareIsWiped(t *testing.T) {
	var s Spare
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 200 {
				size := (n*200 + i) % 97 * 50
				b := s.Get(size)
				if len(b) != 0 || cap(b) < size {
					t.Errorf("%d of %d bytes, want room for %d", len(b), cap(b), size)
				}
				if len(bytes.Trim(b[:cap(b)], "\x00")) > 0 {
					t.Error("something was left")
				}
				b = append(b, bytes.Repeat([]byte("x"), size)...)
				s.Put(b[:size/2])
			}
		})
	}
	wg.Wait()
	kept := append(s.Get(100), "secret"...)
	if s.Put(kept); bytes.Contains(kept[:cap(kept)], []byte("secret")) {
		t.Error("it was not wiped")
	}
}
