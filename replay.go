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

// NewReplayCache is a cache in memory for at most entries requests, about 200 bytes each; entries below 1 are 131,072.
// When it is full the oldest entry is forgotten before its time, so size it for the window and the load.
func NewReplayCache(entries int) ReplayCache {
	if entries < 1 {
		entries = 1 << 17
	}
	return &replayCache{most: entries, known: make(map[[32]byte]replayClaim)}
}

type replayCache struct {
	mu    sync.Mutex
	most  int
	known map[[32]byte]replayClaim
	queue []replayEntry // in the order of arrival, from head on; released entries stay in it until they come up
	head  int
	count uint64 // of claims so far
}

// replayClaim is what is known of an id, and which claim it was: an id that was released can be claimed again.
type replayClaim struct {
	until time.Time
	claim uint64
}

type replayEntry struct {
	id    [32]byte
	claim uint64
}

func (c *replayCache) Claim(_ context.Context, id [32]byte, until time.Time) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if known, ok := c.known[id]; ok && now.Before(known.until) {
		return false, nil
	}
	for c.head < len(c.queue) {
		oldest := c.queue[c.head]
		if c.stands(oldest) {
			if len(c.known) < c.most && now.Before(c.known[oldest.id].until) {
				break
			}
			delete(c.known, oldest.id)
		}
		c.head++
	}
	if len(c.queue) >= 2*c.most+2 { // half of it or more is gone: keep the memory in proportion to what is alive
		c.queue = slices.DeleteFunc(c.queue[c.head:], func(e replayEntry) bool { return !c.stands(e) })
		c.head = 0
	}
	c.count++
	c.known[id] = replayClaim{until: until, claim: c.count}
	c.queue = append(c.queue, replayEntry{id: id, claim: c.count})
	return true, nil
}

// stands reports whether the claim that was queued as e has been neither released nor replaced.
func (c *replayCache) stands(e replayEntry) bool {
	known, ok := c.known[e.id]
	return ok && known.claim == e.claim
}

func (c *replayCache) Release(_ context.Context, id [32]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, id)
	return nil
}
