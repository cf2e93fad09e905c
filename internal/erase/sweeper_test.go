// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package erase

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSweeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		swept := 0
		s := &Sweeper{collect: func() { swept++ }}
		check := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if swept != want {
				t.Errorf("%s: %d collections, want %d", when, swept, want)
			}
		}
		time.Sleep(time.Minute)
		check("nobody asked", 0)
		for range 1000 {
			s.Soon()
		}
		check("at once", 0)
		time.Sleep(sweepDelay - 1)
		check("just before", 0)
		s.Soon()
		time.Sleep(time.Nanosecond)
		check("in time", 1)
		time.Sleep(time.Minute)
		check("no more than asked for", 1)
		s.Soon()
		time.Sleep(sweepDelay / 2)
		s.Close()
		check("at the end", 2)
		s.Soon()
		s.Close()
		time.Sleep(time.Minute)
		check("after the end", 2)
	})
}

// A collection that takes long is waited for.
func TestSweeperCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		s := &Sweeper{collect: func() {
			busy.Store(true)
			time.Sleep(time.Second)
			busy.Store(false)
		}}
		s.Soon()
		time.Sleep(sweepDelay + time.Millisecond)
		synctest.Wait()
		if !busy.Load() {
			t.Fatal("no collection")
		}
		s.Close()
		if busy.Load() {
			t.Error("Close left a collection running")
		}
	})
}

// Without runtime/secret there is nothing to gain.
func TestSweeperElsewhere(t *testing.T) {
	if RuntimeSecret {
		t.Skip("this build has runtime/secret")
	}
	s := &Sweeper{}
	s.Soon()
	if s.timer != nil {
		t.Error("a timer runs")
	}
	s.Close()
}
