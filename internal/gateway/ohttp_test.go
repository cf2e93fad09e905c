// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// The tests of the gateway's end of the second protocol bring a client of their own, which does
// what the real one would not.

func TestOblivious(t *testing.T) {
	r := newRig(t, func(c *Config) { c.UpstreamKey = secret(t, "upstream-key") })
	s := r.Seal(fakes.Inner{})
	w := r.Send(s)
	a := s.Open(w)
	if a.Err != nil || a.Status != 200 || a.Body != testkit.FineAnswer ||
		a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v", a)
	}
	sent := r.Forwarded()
	if len(sent) != 1 || sent[0].URL != "https://upstream.test/v1/chat/completions" ||
		sent[0].Body != fakes.FineRequest ||
		sent[0].Header.Get("Authorization") != "Bearer upstream-key" {
		t.Errorf("upstream got %+v", sent)
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Incremental") != "?1" ||
		w.Header().Get("X-Accel-Buffering") != "no" {
		t.Errorf("outer header: %v", w.Header())
	}
}
