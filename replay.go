// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// ReplayCache remembers which requests a gateway has opened, so that a captured one is not served again. Gateways that
// share a key share one cache: [NewReplayCache] is for one process, examples/gateway-redis has one for several. Methods are
// called from several goroutines. Ids and client keys are SHA-256 sums, and tell nothing of the content.
type ReplayCache interface {
	// Claim remembers id, with the client key that it came with, until the time until, and reports whether the request
	// may be served: when id was not known before, or was released and comes with the same client key again. It decides
	// between callers that come at the same time: one of them is told true. After an error the request is refused with
	// 503. ctx is the request's.
	//
	// client is zero for a request of the second protocol. Such an id is never released, and must not be forgotten before
	// until: without room for it, Claim returns an error.
	Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error)
	// Release says that the request of id failed, or that its answer could not be delivered: the same client may repeat
	// it. Nobody else may, or else whoever cuts connections could have a captured request answered to himself. An id that is
	// not known is no error; any error is ignored, and the id then stays claimed. ctx ends after 5 s, not with the request.
	Release(ctx context.Context, id [32]byte) error
}

// NewReplayCache makes a cache in memory for at most entries requests of each protocol, about 200 bytes each; entries below
// 1 are 131,072. When it is full, the oldest request of protocol v1 is forgotten before its time; requests of the second
// protocol are refused until there is room. Size it for the window and the load.
func NewReplayCache(entries int) ReplayCache {
	if entries < 1 {
		entries = 1 << 17
	}
	return &replayCache{
		most: entries, known: make(map[[32]byte]replayClaim),
		exchanges: exchangeIDs{most: entries, until: make(map[[32]byte]exchangeClaim), began: time.Now()},
	}
}

type replayCache struct {
	mu    sync.Mutex
	most  int
	known map[[32]byte]replayClaim
	queue []replayEntry // in the order of arrival, from head on
	head  int
	count uint64 // of claims so far

	exchanges exchangeIDs
}

// exchangeIDs remembers the requests of the second protocol until their time is over. They all live about equally long.
type exchangeIDs struct {
	mu    sync.Mutex
	most  int
	until map[[32]byte]exchangeClaim
	swept time.Duration // when those whose time is over were taken out last; 0 = never
	gone  []timeSpan    // ends of what was taken out, in order: the clock may be set back to before them
	began time.Time
}

// exchangeClaim ends when the clock says so and when as much time has gone by: a clock that is wrong for a moment ends nothing.
type exchangeClaim struct {
	until time.Time
	lives time.Duration // since began
}

func (e exchangeClaim) over(now time.Time, age time.Duration) bool {
	return !now.Before(e.until) && age >= e.lives
}

type timeSpan struct{ from, to time.Time }

var errReplayFull = errors.New("full")

// claim takes the clock's time, and the time that has gone by since began, which no clock changes.
func (c *exchangeIDs) claim(id [32]byte, until, now time.Time, age time.Duration) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.until[id]
	if ok && !known.over(now, age) || c.mayBeGone(until) {
		return false, nil
	}
	if since := age - c.swept; c.swept == 0 || since >= time.Minute || len(c.until) >= c.most && since >= time.Second {
		c.sweep(now, age)
	}
	if _, ok := c.until[id]; !ok && len(c.until) >= c.most {
		return false, errReplayFull
	}
	c.until[id] = exchangeClaim{until: until, lives: age + until.Sub(now)}
	return true, nil
}

func (c *exchangeIDs) knows(id [32]byte, now time.Time, age time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.until[id]
	return ok && !e.over(now, age)
}

func (c *exchangeIDs) sweep(now time.Time, age time.Duration) {
	var gone timeSpan
	maps.DeleteFunc(c.until, func(_ [32]byte, e exchangeClaim) bool {
		over := e.over(now, age)
		if over && (gone.from.IsZero() || e.until.Before(gone.from)) {
			gone.from = e.until
		}
		if over && e.until.After(gone.to) {
			gone.to = e.until
		}
		return over
	})
	c.swept = max(age, 1)
	if gone.from.IsZero() {
		return
	}
	c.gone = append(c.gone, gone)
	slices.SortFunc(c.gone, func(a, b timeSpan) int { return a.from.Compare(b.from) })
	if len(c.gone) > 16 { // the oldest become one: what lies between them is over, too
		c.gone[1].from = c.gone[0].from
		if c.gone[0].to.After(c.gone[1].to) {
			c.gone[1].to = c.gone[0].to
		}
		c.gone = slices.Delete(c.gone, 0, 1)
	}
}

// mayBeGone tells of a request that may have been served and forgotten. With a clock that is never set back there is none.
func (c *exchangeIDs) mayBeGone(until time.Time) bool {
	return slices.ContainsFunc(c.gone, func(s timeSpan) bool { return !until.Before(s.from) && !until.After(s.to) })
}

// replayClaim is what is known of an id, and which claim it was: an id whose time was over can be claimed again.
type replayClaim struct {
	client   [32]byte
	until    time.Time
	released bool
	claim    uint64
}

type replayEntry struct {
	id    [32]byte
	claim uint64
}

func (c *replayCache) Claim(_ context.Context, id, client [32]byte, until time.Time) (bool, error) {
	if client == [32]byte{} {
		return c.exchanges.claim(id, until, time.Now(), time.Since(c.exchanges.began))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if known, ok := c.known[id]; ok && now.Before(known.until) {
		again := known.released && known.client == client
		if again {
			known.released = false
			c.known[id] = known
		}
		return again, nil
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
	c.known[id] = replayClaim{client: client, until: until, claim: c.count}
	c.queue = append(c.queue, replayEntry{id: id, claim: c.count})
	return true, nil
}

// stands reports whether the claim that was queued as e has not been replaced by a later one.
func (c *replayCache) stands(e replayEntry) bool {
	known, ok := c.known[e.id]
	return ok && known.claim == e.claim
}

func (c *replayCache) Release(_ context.Context, id [32]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known[id]; ok {
		known.released = true
		c.known[id] = known
	}
	return nil
}
