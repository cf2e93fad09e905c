// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// exchangeIDs remembers requests of the second protocol until their time is over. They all live
// about equally long.
type exchangeIDs struct {
	mu    sync.Mutex
	most  int
	lives map[[32]byte]life
	swept time.Duration // the age at which those whose time is over were taken out last; 0 = never
	gone  []timeSpan    // ends of what was taken out, in order: the clock may be set back
}

type timeSpan struct{ from, to time.Time }

func (c *exchangeIDs) init(most int) { c.most, c.lives = most, make(map[[32]byte]life) }

// claim takes the clock's time, and the time that has gone by, which no clock changes.
func (c *exchangeIDs) claim(id [32]byte, until, now time.Time, age time.Duration) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.lives[id]
	if ok && !known.over(now, age) || c.mayBeGone(until) {
		return false, nil
	}
	since := age - c.swept
	if c.swept == 0 || since >= time.Minute || len(c.lives) >= c.most && since >= time.Second {
		c.sweep(now, age)
	}
	if _, ok := c.lives[id]; !ok && len(c.lives) >= c.most {
		return false, ErrFull
	}
	c.lives[id] = lifeUntil(until, now, age)
	return true, nil
}

func (c *exchangeIDs) knows(id [32]byte, now time.Time, age time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.lives[id]
	return ok && !e.over(now, age)
}

func (c *exchangeIDs) sweep(now time.Time, age time.Duration) {
	var gone timeSpan
	maps.DeleteFunc(c.lives, func(_ [32]byte, e life) bool {
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
	if !gone.from.IsZero() {
		c.addGone(gone)
	}
}

func (c *exchangeIDs) addGone(gone timeSpan) {
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

// mayBeGone tells of a request that may have been served and forgotten. With a clock that is never
// set back there is none.
func (c *exchangeIDs) mayBeGone(until time.Time) bool {
	return slices.ContainsFunc(c.gone, func(s timeSpan) bool {
		return !until.Before(s.from) && !until.After(s.to)
	})
}

func (c *exchangeIDs) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lives)
}

func (c *exchangeIDs) forget(id [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.lives, id)
}

// keep takes over what another process knows, also where there is no room for it.
func (c *exchangeIDs) keep(id [32]byte, l life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lives[id] = l
}

func (c *exchangeIDs) keepGone(gone timeSpan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.gone, gone) {
		c.addGone(gone)
	}
}

// snapshot takes out what is over, and appends a record of each span that is gone and of each
// claim.
func (c *exchangeIDs) snapshot(to []record, now time.Time, age time.Duration) []record {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep(now, age)
	for _, s := range c.gone {
		to = append(to, record{kind: kindGone, until: nanoseconds(s.from), now: nanoseconds(s.to)})
	}
	for id, l := range c.lives {
		to = append(to, record{kind: kindKept, id: id, until: nanoseconds(l.until), age: l.age})
	}
	return to
}
