// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"net/http"
	"sync/atomic"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// Counters are sums since the client or gateway was made: the reader takes differences. That is what metrics systems
// want, and it needs no clock and no lock here.

// Stats is what a client did since it was made, see [SecureCompletionClient.Stats]. Its numbers only grow, but for
// InFlight. It has JSON names; it holds no content and no ids.
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

// GatewayStats is what a gateway did since it was made, see [Gateway.Stats]. Its numbers only grow, but for InFlight. It
// has JSON names; it holds no content and no ids.
type GatewayStats struct {
	// Requests is the number of requests that were dealt with, of either protocol: Answered were sent a sealed answer,
	// Refused a status from 400 to 499, Failed any other, or an answer that was cut or that the client did not take. In the
	// second protocol the status is the sealed one, where there is one, and Answered is from 200 to 299. Fetched public keys
	// and health checks are not among them.
	Requests int64 `json:"requests"`
	Answered int64 `json:"answered"`
	Refused  int64 `json:"refused"`
	Failed   int64 `json:"failed"`
	// InFlight is the number of requests that hold one of GatewayConfig.MaxConcurrent places.
	InFlight int64 `json:"in_flight"`
	// BytesOpened counts the content of requests, BytesSealed that of answers.
	BytesOpened int64 `json:"bytes_opened"`
	BytesSealed int64 `json:"bytes_sealed"`
	// KeyRotations and Memory are as in [Stats].
	KeyRotations int64  `json:"key_rotations"`
	Memory       string `json:"memory"`
}

// Stats returns the counters. It costs some atomic reads and a system call or two, so it may be called often, from any
// goroutine, and after Close.
func (g *Gateway) Stats() GatewayStats {
	n := &g.counts
	s := GatewayStats{
		Answered: n.answered.Load(), Refused: n.refused.Load(), Failed: n.failed.Load(), InFlight: int64(len(g.slots)),
		BytesOpened: n.opened.Load(), BytesSealed: n.sealed.Load(),
		KeyRotations: g.cfg.Keys.store.Rotations(), Memory: locked.Report().Level.String(),
	}
	s.Requests = s.Answered + s.Refused + s.Failed
	return s
}

// gatewayCounts are a gateway's counters. The zero value is ready.
type gatewayCounts struct {
	answered, refused, failed, opened, sealed atomic.Int64
}

// done counts a request by the status that it was answered with, and whether an answer was cut.
func (n *gatewayCounts) done(status int, cut bool) {
	switch {
	case cut:
		n.failed.Add(1)
	case status >= 200 && status < 300:
		n.answered.Add(1)
	case status >= 400 && status < http.StatusInternalServerError:
		n.refused.Add(1)
	default:
		n.failed.Add(1)
	}
}
