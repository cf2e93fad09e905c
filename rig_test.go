// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// rig is a gateway in a test's rig.
type rig struct {
	*fakes.Rig
	g    *Gateway
	keys *KeyStore
}

// newRig makes a gateway with the stored key rsa-2048. change may be nil.
func newRig(t testing.TB, change func(*GatewayConfig)) *rig {
	t.Helper()
	r := &rig{Rig: &fakes.Rig{T: t}}
	c := GatewayConfig{
		Upstream: "https://upstream.test/v1", UpstreamTransport: r.Rig, Logger: r.Logger(),
		AllowUnauthenticated: true, Keys: storedKeys(t, "rsa-2048"),
	}
	if change != nil {
		change(&c)
	}
	r.g, r.keys = newGateway(t, c), c.Keys
	r.Handler = r.g
	return r
}
