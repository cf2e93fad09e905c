// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"runtime"
	"slices"
	"time"
)

// Allocated is the number of allocations and bytes of one f, at the least of some rounds: the
// runtime allocates too.
func Allocated(f func()) (allocs, size float64) {
	const rounds, runs = 3, 4
	f()
	for round := range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			f()
		}
		runtime.ReadMemStats(&after)
		a, s := float64(after.Mallocs-before.Mallocs)/runs,
			float64(after.TotalAlloc-before.TotalAlloc)/runs
		if round == 0 || a < allocs {
			allocs = a
		}
		if round == 0 || s < size {
			size = s
		}
	}
	return allocs, size
}

// Median sorts d.
func Median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
