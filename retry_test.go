// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"testing"
	"time"
)

func TestRetryJitterIsFull(t *testing.T) {
	policy := retryPolicy{most: 100, base: retryBase}
	for attempt, window := range map[int]time.Duration{
		0: time.Second, 1: 2 * time.Second, 2: 4 * time.Second, 5: 32 * time.Second, 6: time.Minute, 7: time.Minute, 40: time.Minute, 99: time.Minute,
	} {
		const runs = 2000
		var quarters [4]int
		for range runs {
			wait, ok := policy.next(attempt, &APIError{StatusCode: 500})
			if !ok || wait < 0 || wait > window {
				t.Fatalf("attempt %d: %v, %v", attempt, wait, ok)
			}
			quarters[min(int(4*wait/window), 3)]++
		}
		for _, n := range quarters { // 500 each; 20 standard deviations off is no chance
			if n < runs/4-400 || n > runs/4+400 {
				t.Errorf("attempt %d: the quarters of %v got %v", attempt, window, quarters)
			}
		}
	}
	if wait, ok := policy.next(100, &APIError{StatusCode: 500}); ok {
		t.Errorf("one attempt too many, after %v", wait)
	}
}
