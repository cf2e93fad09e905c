// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Requests of the second protocol are not forgotten before their time, whatever else comes; without
// room they are refused.
func TestReplayCacheExchanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewMemory(3)
		claim := func(n uint64, life time.Duration, want bool, wantErr error) {
			t.Helper()
			got, err := c.Claim(t.Context(), replayID(n), [32]byte{}, time.Now().Add(life))
			if got != want || !errors.Is(err, wantErr) {
				t.Errorf("Claim(%d): %v, %v; want %v, %v", n, got, err, want, wantErr)
			}
		}
		claim(1, time.Minute, true, nil)
		claim(1, time.Minute, false, nil)
		_ = c.Release(t.Context(), replayID(1)) // has no meaning here
		claim(1, time.Minute, false, nil)
		claim(2, 10*time.Second, true, nil)
		claim(3, time.Minute, true, nil)
		claim(4, time.Minute, false, ErrFull)
		claim(1, time.Minute, false, nil) // full, and still known
		// of protocol v1, with the same ids: they have a table of their own
		for n := range uint64(10) {
			mustClaim(t, c, n, time.Now().Add(time.Hour), true)
		}
		claim(1, time.Minute, false, nil)
		time.Sleep(10*time.Second - time.Nanosecond)
		claim(4, time.Minute, false, ErrFull)
		time.Sleep(time.Second)
		claim(4, time.Minute, true, nil) // 2 is over
		claim(2, time.Minute, false, ErrFull)
		time.Sleep(time.Hour)
		claim(1, time.Minute, true, nil)
		if n := len(c.exchanges.lives); n != 1 {
			t.Errorf("%d entries are left of those that are over", n)
		}
	})
	c := NewMemory(0)
	var told atomic.Int64
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			if ok, err := c.Claim(t.Context(), replayID(1), [32]byte{},
				time.Now().Add(time.Minute)); err != nil {
				t.Error(err)
			} else if ok {
				told.Add(1)
			}
		})
	}
	all.Wait()
	if told.Load() != 1 {
		t.Errorf("%d of those who came at once were told true", told.Load())
	}
}

// A clock that is wrong for some time, and set right, has nothing served twice, and honest requests
// only wait where they must.
func TestReplayCacheClockSetBack(t *testing.T) {
	start := time.Now().Round(0)
	for name, c := range map[string]struct {
		claims []clockedClaim
	}{
		"ahead for a moment": {[]clockedClaim{
			{id: 1, clock: 0, age: 0, life: 3 * time.Minute, want: true},
			{id: 2, clock: 6 * time.Minute, age: 61 * time.Second, life: 3 * time.Minute,
				want: true},
			{id: 1, clock: 62 * time.Second, age: 62 * time.Second, life: 118 * time.Second,
				want: false},
			// nobody else has to wait
			{id: 3, clock: 62 * time.Second, age: 62 * time.Second, life: 118 * time.Second,
				want: true},
			{id: 2, clock: 62 * time.Second, age: 62 * time.Second, life: 8 * time.Minute,
				want: false},
			// when the clock gets there
			{id: 2, clock: 8 * time.Minute, age: 8 * time.Minute, life: time.Minute, want: false},
		}},
		"ahead for long": {[]clockedClaim{
			{id: 1, clock: time.Hour, age: 0, life: 3 * time.Minute, want: true},
			// 1 is forgotten
			{id: 2, clock: time.Hour + 10*time.Minute, age: 10 * time.Minute, life: 3 * time.Minute,
				want: true},
			{id: 3, clock: 11 * time.Minute, age: 11 * time.Minute, life: 3 * time.Minute,
				want: true},
			{id: 1, clock: time.Hour + time.Minute, age: time.Hour + time.Minute,
				life: 2 * time.Minute, want: false},
			{id: 4, clock: time.Hour + time.Minute, age: time.Hour + time.Minute,
				life: 3 * time.Minute, want: true},
		}},
		"set back": {[]clockedClaim{
			{id: 1, clock: time.Hour, age: 0, life: 3 * time.Minute, want: true},
			// 1 is forgotten
			{id: 2, clock: time.Hour + 4*time.Minute, age: 4 * time.Minute, life: 3 * time.Minute,
				want: true},
			{id: 1, clock: time.Hour + time.Minute, age: 5 * time.Minute, life: 2 * time.Minute,
				want: false},
			{id: 3, clock: time.Hour + time.Minute, age: 5 * time.Minute, life: 3 * time.Minute,
				want: true},
		}},
	} {
		cache := NewMemory(0)
		for i, a := range c.claims {
			now := start.Add(a.clock)
			if got, err := cache.exchanges.claim(replayID(a.id), now.Add(a.life), now,
				a.age); got != a.want || err != nil {
				t.Errorf("%s, claim %d: %v, %v", name, i, got, err)
			}
		}
	}
	cache := NewMemory(0)
	for i := range uint64(100) { // a clock that is never wrong refuses nobody, and keeps little
		age := time.Duration(i) * 10 * time.Minute
		if ok, err := cache.exchanges.claim(replayID(i), start.Add(age+time.Minute), start.Add(age),
			age); !ok || err != nil {
			t.Fatalf("%d: %v, %v", i, ok, err)
		}
	}
	if n := len(cache.exchanges.gone); n > 16 {
		t.Errorf("%d spans", n)
	}
	if ok, _ := cache.exchanges.claim(replayID(1), start.Add(11*time.Minute),
		start.Add(10*time.Minute), 1000*time.Minute); ok {
		t.Error("one of the oldest was served again")
	}
}

type clockedClaim struct {
	id               uint64
	clock, age, life time.Duration
	want             bool
}
