// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package replay remembers what was seen, so that it is not accepted again: requests that a gateway
// opened, and answers that a client opened.
package replay

import (
	"context"
	"errors"
	"math"
	"time"
)

// Entries is for how many requests of each protocol there is room when nobody says otherwise.
const Entries = 1 << 17

// ErrFull says that there is no room for a request that must not be forgotten.
var ErrFull = errors.New("full")

// Memory remembers requests for as long as the process lives. Its methods may be called from
// several goroutines.
type Memory struct {
	clock
	envelopes envelopeIDs
	exchanges exchangeIDs
}

// NewMemory makes a Memory for at most entries requests of each protocol; entries below 1 are
// [Entries].
func NewMemory(entries int) *Memory {
	if entries < 1 {
		entries = Entries
	}
	m := &Memory{clock: systemClock()}
	m.envelopes.init(entries)
	m.exchanges.init(entries)
	return m
}

// Claim remembers id until the time until, and reports whether the request may be served. A zero
// client stands for a request of the second protocol: it is never released, and never forgotten
// before its time. Without room for it the error is [ErrFull].
func (m *Memory) Claim(_ context.Context, id, client [32]byte, until time.Time) (bool, error) {
	if client == ([32]byte{}) {
		return m.exchanges.claim(id, until, m.now(), m.age())
	}
	return m.envelopes.claim(id, client, until, m.now(), m.age()), nil
}

// Release lets the client that claimed id claim it once more. An id that is not known is no error.
func (m *Memory) Release(_ context.Context, id [32]byte) error {
	m.envelopes.release(id)
	return nil
}

// Knows reports whether a request of the second protocol is remembered.
func (m *Memory) Knows(id [32]byte) bool { return m.exchanges.knows(id, m.now(), m.age()) }

// Len is how many requests are remembered.
func (m *Memory) Len() int { return m.envelopes.len() + m.exchanges.len() }

// clock tells the time, which may be set, and the time that has gone by, which no clock changes.
type clock struct {
	now func() time.Time
	age func() time.Duration
}

func systemClock() clock {
	began := time.Now()
	return clock{now: time.Now, age: func() time.Duration { return time.Since(began) }}
}

// life ends when the clock says so and when as much time has gone by: a clock that is wrong for a
// moment ends nothing.
type life struct {
	until time.Time
	age   time.Duration
}

func lifeUntil(until, now time.Time, age time.Duration) life {
	left := until.Sub(now)
	if left > math.MaxInt64-age {
		left = math.MaxInt64 - age
	}
	return life{until: until, age: age + left}
}

func (l life) over(now time.Time, age time.Duration) bool {
	return !now.Before(l.until) && age >= l.age
}
