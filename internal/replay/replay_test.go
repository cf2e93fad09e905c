// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func replayID(n uint64) (id [32]byte) {
	binary.LittleEndian.PutUint64(id[:], n)
	return id
}

// mustClaim demands what Claim says.
func mustClaim(t *testing.T, c *Memory, n uint64, until time.Time, want bool) {
	t.Helper()
	if got, err := c.Claim(t.Context(), replayID(n), [32]byte{1}, until); got != want ||
		err != nil {
		t.Errorf("Claim(%d): %v, %v; want %v", n, got, err, want)
	}
}

func TestReplayCacheExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewMemory(100)
		until := time.Now().Add(time.Hour)
		mustClaim(t, c, 1, until, true)
		mustClaim(t, c, 1, until, false)
		mustClaim(t, c, 2, until, true)
		time.Sleep(time.Hour - time.Nanosecond)
		mustClaim(t, c, 1, until.Add(time.Hour), false) // asking does not prolong it
		time.Sleep(time.Nanosecond)
		mustClaim(t, c, 1, until.Add(time.Hour), true)
		mustClaim(t, c, 1, until.Add(time.Hour), false)
		mustClaim(t, c, 3, time.Now().Add(-time.Second), true) // over before it began
		mustClaim(t, c, 3, time.Now().Add(time.Second), true)
		mustClaim(t, c, 3, time.Now().Add(time.Second), false)
		if n := len(c.envelopes.known); n > 3 {
			t.Errorf("%d entries are held", n)
		}
	})
}

func TestReplayCacheRelease(t *testing.T) {
	c := NewMemory(0)
	until := time.Now().Add(time.Hour)
	for range 3 {
		mustClaim(t, c, 1, until, true)
		mustClaim(t, c, 1, until, false)
		for range 2 { // releasing twice, or what was never claimed, is nothing
			if c.Release(t.Context(), replayID(1)) != nil ||
				c.Release(t.Context(), replayID(9)) != nil {
				t.Error("Release failed")
			}
		}
	}
	mustClaim(t, c, 2, until, true)
	if err := c.Release(t.Context(), replayID(1)); err != nil {
		t.Error(err)
	}
	mustClaim(t, c, 2, until, false)
	// Somebody else's repeat is refused, and takes nothing from the one who may.
	if ok, err := c.Claim(t.Context(), replayID(1), [32]byte{2}, until); ok || err != nil {
		t.Errorf("another client: %v, %v", ok, err)
	}
	mustClaim(t, c, 1, until, true)
}

func TestReplayCacheForgetsTheOldest(t *testing.T) {
	const most = 8
	c := NewMemory(most)
	until := time.Now().Add(time.Hour)
	for n := range uint64(3 * most) {
		mustClaim(t, c, n, until.Add(time.Duration(n)), true)
		for old := range n {
			if remembered := n-old < most; remembered {
				mustClaim(t, c, old, until, false)
			}
		}
		if size := len(c.envelopes.known); size > most {
			t.Fatalf("%d entries, at most %d", size, most)
		}
	}
	mustClaim(t, c, 0, until, true) // forgotten long ago
	// One that was released and claimed again is as old as it was.
	c = NewMemory(3)
	mustClaim(t, c, 1, until, true)
	mustClaim(t, c, 2, until, true)
	_ = c.Release(t.Context(), replayID(1))
	mustClaim(t, c, 1, until.Add(1), true)
	mustClaim(t, c, 3, until, true)
	mustClaim(t, c, 4, until, true) // 1 goes
	mustClaim(t, c, 2, until, false)
	mustClaim(t, c, 3, until, false)
	mustClaim(t, c, 1, until, true)
}

func TestReplayCacheMemory(t *testing.T) {
	const most = 1000
	until := time.Now().Add(time.Hour)
	for name, storm := range map[string]func(c *Memory, n uint64){
		"claims": func(c *Memory, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, until)
		},
		"releases": func(c *Memory, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, until.Add(time.Duration(n)))
			_ = c.Release(t.Context(), replayID(n))
		},
		"one id": func(c *Memory, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(1), [32]byte{1}, until.Add(time.Duration(n)))
			_ = c.Release(t.Context(), replayID(1))
		},
		"one id, one time": func(c *Memory, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(1), [32]byte{1}, until)
			_ = c.Release(t.Context(), replayID(1))
			_, _ = c.Claim(t.Context(), replayID(1), [32]byte{1}, until)
			_ = c.Release(t.Context(), replayID(1))
			_, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, until)
		},
		"expired": func(c *Memory, n uint64) {
			_, _ = c.Claim(t.Context(), replayID(n), [32]byte{1}, time.Time{})
		},
	} {
		c := NewMemory(most)
		// stands at the head of the queue all the time
		_, _ = c.Claim(t.Context(), replayID(0), [32]byte{1}, until)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range uint64(50 * most) {
			storm(c, n+2)
			if len(c.envelopes.known) > most || cap(c.envelopes.queue) > 8*most {
				t.Fatalf("%s: after %d there are %d entries and a queue of %d", name, n,
					len(c.envelopes.known), cap(c.envelopes.queue))
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4000*most {
			t.Errorf("%s: %d bytes for %d entries", name, grown, most)
		}
		runtime.KeepAlive(c)
	}
}

func TestReplayCacheOneWins(t *testing.T) {
	c := NewMemory(0)
	until := time.Now().Add(time.Hour)
	var won [64]atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for n := range won {
				if ok, err := c.Claim(t.Context(), replayID(uint64(n)), [32]byte{1},
					until); err != nil {
					t.Error(err)
				} else if ok {
					won[n].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for n := range won {
		if won[n].Load() != 1 {
			t.Errorf("%d was claimed %d times", n, won[n].Load())
		}
	}
}

// TestReplayCacheModel compares with a list that is searched from end to end.
func TestReplayCacheModel(t *testing.T) {
	type entry struct {
		n        uint64
		client   byte
		released bool
		until    time.Time
	}
	for round := range 20 {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, uint64(round)))
			most := 1 + random.IntN(12)
			c := NewMemory(most)
			var model []entry // in the order of arrival
			remove := func(gone func(entry) bool) {
				kept := model[:0]
				for _, e := range model {
					if !gone(e) {
						kept = append(kept, e)
					}
				}
				model = kept
			}
			for step := range 3000 {
				n := random.Uint64N(30)
				switch random.IntN(8) {
				case 0:
					_ = c.Release(t.Context(), replayID(n))
					for i := range model {
						model[i].released = model[i].released || model[i].n == n
					}
				case 1:
					time.Sleep(time.Duration(random.IntN(5)) * time.Second)
				default:
					now := time.Now()
					remove(func(e entry) bool { return !now.Before(e.until) })
					client := byte(random.IntN(2))
					known, want := false, true
					for i, e := range model {
						if e.n == n {
							known, want = true, e.released && e.client == client
							model[i].released = e.released && !want
						}
					}
					until := now.Add(20 * time.Second) // as a gateway: one window for all
					got, err := c.Claim(t.Context(), replayID(n), [32]byte{1, client}, until)
					if err != nil || got != want {
						t.Fatalf(
							"seed %d, round %d, step %d: Claim(%d) is %v, %v; want %v, at most "+
								"%d, model %v", seed, round, step, n, got, err, want, most, model)
					}
					if !known {
						if len(model) == most {
							model = model[1:]
						}
						model = append(model, entry{n, client, false, until})
					}
				}
			}
		})
	}
}
