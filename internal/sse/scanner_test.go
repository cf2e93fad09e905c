// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"testing"
)

// A line ends where its first CR or LF stands, wherever that is.
func TestLineEnd(t *testing.T) {
	for size := range 3*stretch + 2 {
		line := bytes.Repeat([]byte{'x'}, size)
		if got := lineEnd(line); got != -1 {
			t.Fatalf("%d bytes without an end: %d", size, got)
		}
		for _, end := range []string{"\n", "\r", "\r\n", "\n\r", "\nx\r", "\rx\n"} {
			if got := lineEnd(append(bytes.Clone(line), end...)); got != size {
				t.Fatalf("%d bytes and %q: %d", size, end, got)
			}
		}
	}
}
