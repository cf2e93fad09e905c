// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/limit"
)

// A body for which there is no room keeps nothing of the room while the rest of it is thrown away.
func TestGatewayRefusedBodiesHoldNoRoom(t *testing.T) {
	for i := range 2 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.g.limits.bodies = limit.New(limit.Config{Each: 20 << 10, All: 80 << 10})
			ctx, end := context.WithCancel(t.Context())
			p := r.parcels(60 << 10)[i]
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.sendParcel(p, &drip{ctx: ctx, rest: p.body, first: 40 << 10, piece: 1, after: time.Second}, "192.0.2.1")
			}()
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("%v: not what this test is for", p.protocol)
			default:
			}
			if n := r.g.limits.bodies.Taken(); n != 0 {
				t.Errorf("%v: %d bytes are held", p.protocol, n)
			}
			next := r.parcels(9 << 10)[i]
			if status, _ := r.sendParcel(next, bytes.NewReader(next.body), "192.0.2.1"); status != 200 {
				t.Errorf("%v: the next one: %d", p.protocol, status)
			}
			end()
			<-done
		})
	}
}
