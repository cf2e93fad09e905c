// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

const wide = 16

// takes is how many units a key gets one by one.
func takes(l *Limiter, key string) (n int) {
	for {
		if _, wait := l.Take(key, 1); wait > 0 {
			return n
		}
		n++
	}
}

func TestRate(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := New(Config{Rate: 2, Each: 3, Wide: wide, Keys: 3, Now: func() time.Time { return now }})
	if n := takes(l, "a"); n != 3 {
		t.Errorf("a full bucket has %d", n)
	}
	if _, wait := l.Take("a", 1); wait != 500*time.Millisecond {
		t.Errorf("wait %v", wait)
	}
	now = now.Add(time.Second)
	last, _ := l.Take("a", 1)
	if n := takes(l, "a"); n != 1 {
		t.Errorf("after a second: %d more", n)
	}
	last.Return()
	last.Return()
	if n := takes(l, "a"); n != 1 {
		t.Errorf("returned: %d", n)
	}
	now = now.Add(-time.Hour) // a clock that goes back fills nothing, and empties nothing
	if n := takes(l, "a"); n != 0 {
		t.Errorf("clock back: %d", n)
	}
	b, _ := l.Take("b", 1)
	now = now.Add(time.Minute)
	b.Return()
	if n := takes(l, "b"); n != 3 {
		t.Errorf("more than full: %d", n)
	}
	takes(l, "c")
	takes(l, "a")
	// none is full again: d is one of the others
	if n := takes(l, "d"); n != 3*wide || l.keys["d"] != nil {
		t.Errorf("others: %d", n)
	}
	if n := takes(l, "f"); n != 0 {
		t.Errorf("another of them: %d", n)
	}
	if n := takes(l, "b"); n != 0 {
		t.Errorf("the table was flushed: %d", n)
	}
	now = now.Add(2 * time.Second) // all are full again
	takes(l, "d")                  // pushes out c, which was seen last longest ago
	if l.Len() != 3 || l.recent.Len() != 3 || l.keys["c"] != nil || l.keys["d"] == nil {
		t.Errorf("%d keys", l.Len())
	}
	if n := takes(l, strings.Repeat("e", 1000)); n != 3 || l.Len() != 3 {
		t.Errorf("a long key: %d", n)
	}
	if _, wait := l.Take(strings.Repeat("e", 999), 1); wait == 0 {
		t.Error("only the beginning of a key counts")
	}
	for range 100 {
		if _, wait := l.Take("", 1); wait != 0 {
			t.Fatal("nobody in particular is limited")
		}
	}
}

// What was taken of a key that the table forgot meanwhile comes back to nobody: it had come back
// with time.
func TestReturnAfterForgetting(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := New(Config{Rate: 1, Each: 2, Keys: 1, Now: func() time.Time { return now }})
	old, _ := l.Take("a", 2)
	now = now.Add(time.Minute)
	takes(l, "b") // pushes out a
	now = now.Add(time.Minute)
	takes(l, "a") // pushes out b
	old.Return()
	if n := takes(l, "a"); n != 0 {
		t.Errorf("%d came back a second time", n)
	}
}

// However many networks a site has, they have no more than its allowance, and others keep theirs.
func TestNetworks(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := New(Config{Rate: 2, Each: 3, Wide: wide, Keys: 1 << 14, Now: func() time.Time {
		return now
	}})
	var leases []*Lease
	for i := range 1000 {
		if s, wait := l.Take(fmt.Sprintf("2001:db8:1:%x::/64", i), 1); wait == 0 {
			leases = append(leases, s)
		}
	}
	if len(leases) != 3*wide {
		t.Errorf("a /48 has %d", len(leases))
	}
	if l.Len() != 3*wide+1 {
		t.Errorf("%d keys", l.Len())
	}
	for _, other := range []string{"2001:db8:2::/64", "192.0.2.1"} {
		if _, wait := l.Take(other, 1); wait != 0 {
			t.Errorf("%s is told to wait", other)
		}
	}
	leases[1].Return()
	if _, wait := l.Take("2001:db8:1:1::/64", 1); wait != 0 {
		t.Error("one was returned")
	}
	if _, wait := l.Take("2001:db8:1:2::/64", 1); wait == 0 {
		t.Error("one alone was returned")
	}
}

func TestPlaces(t *testing.T) {
	l := New(Config{Each: 2, Wide: 4, All: 32})
	take := func(key string) *Lease {
		s, wait := l.Take(key, 1)
		if (s == nil) != (wait > 0) || wait > 0 && wait != time.Second {
			t.Fatalf("%v, %v", s, wait)
		}
		return s
	}
	first, second := take("a"), take("a")
	if first == nil || second == nil || take("a") != nil {
		t.Error("one key has two places")
	}
	for i := range 30 {
		if take("") == nil {
			t.Fatalf("nobody in particular: %d", i)
		}
	}
	if take("b") != nil || take("") != nil || l.Len() != 1 {
		t.Error("more than all")
	}
	first.Return()
	first.Return()
	one := take("b")
	if one == nil || take("b") != nil {
		t.Error("a place was returned")
	}
	one.Return()
	second.Return()
	if l.Len() != 0 || l.Taken() != 30 {
		t.Errorf("%d keys, %d taken", l.Len(), l.Taken())
	}
	l = New(Config{Each: 2, Wide: 4, All: 32})
	n := 0
	for i := range 32 {
		if take(fmt.Sprintf("2001:db8:1:%x::/64", i)) != nil {
			n++
		}
	}
	if n != 8 {
		t.Errorf("a /48 has %d places", n)
	}
}

// Without a Rate, time gives nothing back, and keys that the table has no room for give back what
// they took.
func TestPlacesInASmallTable(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := New(Config{Each: 1, Keys: 1, Now: func() time.Time { return now }})
	a, _ := l.Take("a", 1)
	now = now.Add(time.Hour)
	if n := takes(l, "a"); n != 0 {
		t.Errorf("%d came back by themselves", n)
	}
	b, _ := l.Take("b", 1)
	if _, wait := l.Take("c", 1); b == nil || wait == 0 {
		t.Error("all for whom there is no room have one place")
	}
	a.Return()
	b.Return()
	if n := takes(l, "c"); n != 1 {
		t.Errorf("c has %d", n)
	}
	if n := takes(l, "d"); n != 1 {
		t.Errorf("d has %d: b's place was lost", n)
	}
}

func TestGrow(t *testing.T) {
	l := New(Config{Each: 10, Wide: 2, All: 25})
	a, wait := l.Take("2001:db8::/64", 4)
	if wait != 0 || a.Grow(6) != 0 || a.Grow(1) == 0 || a.Grow(0) != 0 {
		t.Error("one key has ten")
	}
	b, wait := l.Take("2001:db8:0:1::/64", 10)
	if _, w := l.Take("2001:db8:0:2::/64", 1); wait != 0 || w == 0 {
		t.Error("a network has twenty")
	}
	c, _ := l.Take("c", 1)
	if c.Grow(4) != 0 || c.Grow(1) == 0 || l.Taken() != 25 {
		t.Errorf("all have 25; %d are taken", l.Taken())
	}
	b.Return()
	if c.Grow(6) == 0 || c.Grow(5) != 0 {
		t.Error("what did not fit was taken")
	}
	a.Return()
	c.Return()
	if l.Taken() != 0 || l.Len() != 0 || l.all.units != 25 {
		t.Errorf("%d are taken, %d keys, %v", l.Taken(), l.Len(), l.all.units)
	}
	if _, wait := l.Take("d", 11); wait == 0 || l.Len() != 0 {
		t.Error("more than one key can have")
	}
}

func TestNoLimit(t *testing.T) {
	var l *Limiter
	for range 3 {
		s, wait := l.Take("a", 1<<40)
		if wait != 0 || s.Grow(1<<40) != 0 {
			t.Error("limited")
		}
		s.Return()
	}
}

func TestConcurrentLeases(t *testing.T) {
	l := New(Config{Each: 8, Wide: 4, All: 20})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 500 {
				if s, wait := l.Take(fmt.Sprintf("2001:db8:%x:%x::/64", i%2, j%3),
					int64(1+j%4)); wait == 0 {
					_ = s.Grow(int64(j % 3))
					s.Return()
				}
			}
		})
	}
	wg.Wait()
	if l.Taken() != 0 || l.Len() != 0 || l.recent.Len() != 0 || l.all.units != 20 {
		t.Errorf("%d are taken, %d keys", l.Taken(), l.Len())
	}
}
