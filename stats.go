// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"log/slog"
	"sync/atomic"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// Counters are sums since the client or gateway was made: the reader takes differences. That is what metrics systems
// want, and it needs no clock and no lock here.

// Stats is what a client did since it was made, see [SecureCompletionClient.Stats]. Its numbers only grow, but for
// InFlight. It marshals to JSON and logs as a group; it holds no content and no ids.
type Stats struct {
	// Requests is the number of calls: Chat, Complete, Stream, and requests of an SDK that reached the client. Failures is
	// how many of them ended with an error, for whatever reason; Requests - Failures - InFlight succeeded.
	Requests int64 `json:"requests"`
	Failures int64 `json:"failures"`
	// InFlight is the number of calls that are under way.
	InFlight int64 `json:"in_flight"`
	// Attempts is how often a request was sealed and handed to Config.Transport; Retries is how many attempts came after
	// one that failed, those for a new server key among them.
	Attempts int64 `json:"attempts"`
	Retries  int64 `json:"retries"`
	// BytesSealed counts the JSON of requests, again for each attempt; BytesOpened the JSON of the answers that were
	// accepted. On the wire both are some hundred bytes larger, and in protocol v1 a third (base64).
	BytesSealed int64 `json:"bytes_sealed"`
	BytesOpened int64 `json:"bytes_opened"`
	// KeyRotations is how often this process replaced the key of the client's [KeyStore], also where several clients
	// share it. A first key does not count, nor what another process did.
	KeyRotations int64 `json:"key_rotations"`
	// Memory tells how the process's secrets are kept: "locked" if all protected memory in use is locked into RAM,
	// "wiped only" if some of it may be swapped out until it is wiped. [MemoryReport] has more.
	Memory string `json:"memory"`
}

// Stats returns the counters. It costs some atomic reads and a system call or two, so it may be called often, from any
// goroutine, and after Close. Calls that are under way meanwhile may be counted in one field and not yet in another.
func (c *SecureCompletionClient) Stats() Stats {
	n := &c.counts
	return Stats{
		Requests: n.requests.Load(), Failures: n.failures.Load(), InFlight: n.inFlight.Load(),
		Attempts: n.attempts.Load(), Retries: n.retries.Load(),
		BytesSealed: n.sealed.Load(), BytesOpened: n.opened.Load(),
		KeyRotations: c.cfg.Keys.store.Rotations(), Memory: locked.Report().Level.String(),
	}
}

// LogValue logs the fields as a group, under the names that they have in JSON.
func (s Stats) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Int64("requests", s.Requests), slog.Int64("failures", s.Failures), slog.Int64("in_flight", s.InFlight),
		slog.Int64("attempts", s.Attempts), slog.Int64("retries", s.Retries),
		slog.Int64("bytes_sealed", s.BytesSealed), slog.Int64("bytes_opened", s.BytesOpened),
		slog.Int64("key_rotations", s.KeyRotations), slog.String("memory", s.Memory),
	)
}

// clientCounts are a client's counters. The zero value is ready.
type clientCounts struct {
	requests, failures, inFlight, attempts, retries, sealed, opened atomic.Int64
}

// call counts a call that begins now. The result is deferred with the address of the call's error.
func (n *clientCounts) call() func(err *error) {
	n.requests.Add(1)
	n.inFlight.Add(1)
	return func(err *error) {
		if *err != nil {
			n.failures.Add(1)
		}
		n.inFlight.Add(-1)
	}
}
