// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"slices"
	"sync"
	"time"
)

// ReplayCache remembers which requests a gateway has served, so that a captured one is not served again. Gateways
// that share a key share one cache. Methods may be called from several goroutines.
type ReplayCache interface {
	// Claim remembers id until the time until, and reports whether it was not known before. It decides between
	// callers that come at the same time: one of them is told true. After an error the request is refused with 503.
	Claim(ctx context.Context, id [32]byte, until time.Time) (bool, error)
	// Release forgets id: its request failed, and its sender may repeat it.
	Release(ctx context.Context, id [32]byte) error
}

// NewReplayCache is a cache in memory for at most entries requests, about 100 bytes each; entries below 1 are 131,072.
// When it is full the oldest entry is forgotten before its time, so size it for the window and the load.
func NewReplayCache(entries int) ReplayCache {
	if entries < 1 {
		entries = 1 << 17
	}
	return &replayCache{most: entries, until: make(map[[32]byte]time.Time)}
}

type replayCache struct {
	mu    sync.Mutex
	most  int
	until map[[32]byte]time.Time
	queue []replayEntry // in the order of arrival, from head on; released entries stay in it until they come up
	head  int
}

type replayEntry struct {
	id    [32]byte
	until time.Time
}

func (c *replayCache) Claim(_ context.Context, id [32]byte, until time.Time) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if known, ok := c.until[id]; ok && now.Before(known) {
		return false, nil
	}
	for c.head < len(c.queue) {
		oldest := c.queue[c.head]
		if c.stands(oldest) {
			if len(c.until) < c.most && now.Before(oldest.until) {
				break
			}
			delete(c.until, oldest.id)
		}
		c.head++
	}
	if len(c.queue) >= 2*c.most+2 { // half of it or more is gone: keep the memory in proportion to what is alive
		c.queue = slices.DeleteFunc(c.queue[c.head:], func(e replayEntry) bool { return !c.stands(e) })
		c.head = 0
	}
	c.until[id] = until
	c.queue = append(c.queue, replayEntry{id: id, until: until})
	return true, nil
}

// stands reports whether the map's entry is the one that was queued as e, not a later claim of the same id.
func (c *replayCache) stands(e replayEntry) bool {
	until, ok := c.until[e.id]
	return ok && until.Equal(e.until)
}

func (c *replayCache) Release(_ context.Context, id [32]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.until, id)
	return nil
}
