// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Requests of the second protocol are not forgotten before their time, whatever else comes; without room they are refused.
func TestReplayCacheExchanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewReplayCache(3)
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
		claim(4, time.Minute, false, errReplayFull)
		claim(1, time.Minute, false, nil) // full, and still known
		for n := range uint64(10) {       // of protocol v1, with the same ids: they have a table of their own
			mustClaim(t, c, n, time.Now().Add(time.Hour), true)
		}
		claim(1, time.Minute, false, nil)
		time.Sleep(10*time.Second - time.Nanosecond)
		claim(4, time.Minute, false, errReplayFull)
		time.Sleep(time.Second)
		claim(4, time.Minute, true, nil) // 2 is over
		claim(2, time.Minute, false, errReplayFull)
		time.Sleep(time.Hour)
		claim(1, time.Minute, true, nil)
		if n := len(c.(*replayCache).exchanges.until); n != 1 {
			t.Errorf("%d entries are left of those that are over", n)
		}
	})
	c := NewReplayCache(0)
	var told atomic.Int64
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			if ok, err := c.Claim(t.Context(), replayID(1), [32]byte{}, time.Now().Add(time.Minute)); err != nil {
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
