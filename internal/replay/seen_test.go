// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import "testing"

func TestSeenAnswers(t *testing.T) {
	var s Seen
	id := func(i int) (b [32]byte) { b[0], b[1], b[2] = byte(i), byte(i>>8), byte(i>>16); return b }
	for i := range MaxSeen {
		if !s.Add(id(i)) || s.Add(id(i)) {
			t.Fatalf("%d", i)
		}
	}
	if s.Add(id(0)) || !s.Add(id(MaxSeen)) || len(s.set) != MaxSeen || len(s.ring) != MaxSeen {
		t.Error("the set is full: the oldest goes, and only that")
	}
	if !s.Add(id(0)) || s.Add(id(2)) || len(s.set) != MaxSeen {
		t.Error("the oldest was not forgotten, or another was")
	}
}
