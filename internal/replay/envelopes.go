// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"slices"
	"sync"
	"time"
)

// envelopeIDs remembers requests of protocol v1, each with the client that it came from. When it is
// full, the oldest is forgotten.
type envelopeIDs struct {
	mu    sync.Mutex
	most  int
	known map[[32]byte]envelopeClaim
	queue []envelopeEntry // in the order of arrival, from head on
	head  int
	count uint64 // of claims so far
}

// envelopeClaim is what is known of an id, and which claim it was: an id whose time was over can be
// claimed again.
type envelopeClaim struct {
	client   [32]byte
	life     life
	released bool
	claim    uint64
}

type envelopeEntry struct {
	id    [32]byte
	claim uint64
}

func (c *envelopeIDs) init(most int) {
	c.most, c.known = most, make(map[[32]byte]envelopeClaim)
}

func (c *envelopeIDs) claim(id, client [32]byte, until, now time.Time, age time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known[id]; ok && !known.life.over(now, age) {
		again := known.released && known.client == client
		if again {
			known.released = false
			c.known[id] = known
		}
		return again
	}
	c.makeRoom(now, age)
	c.put(id, envelopeClaim{client: client, life: lifeUntil(until, now, age)})
	return true
}

// put remembers a claim as the youngest one.
func (c *envelopeIDs) put(id [32]byte, e envelopeClaim) {
	c.count++
	e.claim = c.count
	c.known[id] = e
	c.queue = append(c.queue, envelopeEntry{id: id, claim: e.claim})
}

func (c *envelopeIDs) makeRoom(now time.Time, age time.Duration) {
	for c.head < len(c.queue) {
		oldest := c.queue[c.head]
		if c.stands(oldest) {
			if len(c.known) < c.most && !c.known[oldest.id].life.over(now, age) {
				break
			}
			delete(c.known, oldest.id)
		}
		c.head++
	}
	// Half of it or more is gone: keep the memory in proportion to what is alive.
	if len(c.queue) >= 2*c.most+2 {
		gone := func(e envelopeEntry) bool { return !c.stands(e) }
		c.queue = slices.DeleteFunc(c.queue[c.head:], gone)
		c.head = 0
	}
}

// stands reports whether the claim that was queued as e has not been replaced by a later one.
func (c *envelopeIDs) stands(e envelopeEntry) bool {
	known, ok := c.known[e.id]
	return ok && known.claim == e.claim
}

// release reports whether it changed anything.
func (c *envelopeIDs) release(id [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.known[id]
	if !ok || known.released {
		return false
	}
	known.released = true
	c.known[id] = known
	return true
}

// hold takes back a release.
func (c *envelopeIDs) hold(id [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known[id]; ok {
		known.released = false
		c.known[id] = known
	}
}

func (c *envelopeIDs) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.known)
}

// keep takes over what another process knows.
func (c *envelopeIDs) keep(id [32]byte, e envelopeClaim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known[id]; ok {
		e.claim = known.claim
		c.known[id] = e
		return
	}
	for len(c.known) >= c.most && c.head < len(c.queue) {
		if oldest := c.queue[c.head]; c.stands(oldest) {
			delete(c.known, oldest.id)
		}
		c.head++
	}
	c.put(id, e)
}

// snapshot appends a record of each claim whose time is not over, the oldest first.
func (c *envelopeIDs) snapshot(to []record, now time.Time, age time.Duration) []record {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, at := range c.queue[c.head:] {
		if e := c.known[at.id]; c.stands(at) && !e.life.over(now, age) {
			to = append(to, record{
				kind: kindKept, id: at.id, client: e.client, released: e.released,
				until: nanoseconds(e.life.until), age: e.life.age,
			})
		}
	}
	return to
}
