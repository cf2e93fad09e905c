// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/replay"
)

// ReplayCache remembers which requests a gateway has opened, so that a captured one is not served
// again. Gateways that share a key share one cache. Its methods are called from several goroutines.
// Ids and client keys are SHA-256 sums, and tell nothing of the content.
//
// A gateway without one makes its own, for 131,072 requests of each protocol. Where
// GatewayConfig.Keys are a folder, it is the file "replays" there, which the gateways of one
// machine share: a request that was served before a restart, a crash or a kill is refused after it.
// A power cut may lose the last second of it. While the file cannot be written, requests get 503
// and GatewayConfig.Logger says why; set Replay then, or make the folder writable. Where keys are
// in memory alone, it is [NewReplayCache], which forgets with the process. Gateways on several
// machines need a cache that all of them reach, also when they see one folder:
// examples/gateway has one, in Redis.
//
// Two methods may stand beside these: Ready(context.Context) error, which [Gateway.Ready] asks, and
// Len() int, which is GatewayStats.Remembered.
type ReplayCache interface {
	// Claim remembers id, with the client key that it came with, until the time until, and reports
	// whether the request may be served: when id was not known before, or was released and comes
	// with the same client key again. It decides between callers that come at the same time: one of
	// them is told true. After an error the request is refused with 503. ctx is the request's.
	//
	// client is zero for a request of the second protocol. Such an id is never released, and must
	// not be forgotten before until: without room for it, Claim returns an error.
	Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error)
	// Release says that the request of id failed, or that its answer could not be delivered: the
	// same client may repeat it. Nobody else may, or else whoever cuts connections could have a
	// captured request answered to himself. An id that is not known is no error; any error is
	// ignored, and the id then stays claimed. ctx ends after 5 s, not with the request.
	Release(ctx context.Context, id [32]byte) error
}

// NewReplayCache makes a cache in memory for at most entries requests of each protocol, about 200
// bytes each; entries below 1 are 131,072. When it is full, the oldest request of protocol v1 is
// forgotten before its time; requests of the second protocol are refused until there is room. Size
// it for the window and the load.
func NewReplayCache(entries int) ReplayCache { return replay.NewMemory(entries) }
