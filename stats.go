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
