// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Whoever only makes the gateway work, from one address, is told to wait before any work is done;
// clients are not.
func TestObliviousStrangers(t *testing.T) {
	keys := onlyKey("key-of-the-client")
	r := newRig(t, func(c *Config) {
		c.Authenticate = keys
		c.OHTTP.StrangerRate, c.OHTTP.StrangerBurst = 0.001, 3
	})
	for range 10 {
		s := r.Seal(fakes.Inner{})
		if a := s.Open(r.Send(s)); a.Status != 200 {
			t.Fatalf("a client: %+v", a)
		}
	}
	bad := r.Seal(fakes.Inner{}).Body
	bad[len(bad)-1] ^= 1
	wrong := r.Seal(fakes.Inner{Header: []bhttp.Field{{Name: "authorization",
		Value: "Bearer other"}}})
	codes := []int{}
	for _, b := range [][]byte{bad, wrong.Body, bad, bad} {
		codes = append(codes, r.Do(fakes.OHTTPPost(t, bytes.NewReader(b))).Code)
	}
	if codes[0] != 422 || codes[1] != 200 || codes[2] != 422 || codes[3] != 429 {
		t.Errorf("%v", codes)
	}
	req := fakes.OHTTPPost(t, fakes.Untouchable{T: t})
	if w := r.Do(req); w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	req = fakes.OHTTPPost(t, bytes.NewReader(bad))
	req.RemoteAddr = "192.0.2.77:1"
	if w := r.Do(req); w.Code != 422 {
		t.Errorf("from elsewhere: %d", w.Code)
	}
}

// What was captured, or is old, or comes to a gateway that knows nobody, counts as a stranger's
// however well it opens.
func TestObliviousReplaysCount(t *testing.T) {
	keys := onlyKey("key-of-the-client")
	old := fakes.Inner{Header: []bhttp.Field{dated(time.Now().Add(-time.Hour))}}
	for name, c := range map[string]struct {
		authenticate Authenticate
		m            fakes.Inner
		again        bool
		codes        []int
	}{
		// the first was the client's
		"sent again":     {authenticate: keys, again: true, codes: []int{200, 200, 200, 200, 429}},
		"dated":          {authenticate: keys, m: old, codes: []int{200, 200, 200, 429}},
		"nobody's":       {codes: []int{200, 200, 200, 429}},
		"a client's own": {authenticate: keys, codes: []int{200, 200, 200, 200, 200}},
	} {
		r := newRig(t, func(g *Config) {
			g.Authenticate = c.authenticate
			g.OHTTP.StrangerRate, g.OHTTP.StrangerBurst = 0.001, 3
		})
		s := r.Seal(c.m)
		for i, want := range c.codes {
			if !c.again {
				s = r.Seal(c.m)
			}
			if got := r.Send(s).Code; got != want {
				t.Errorf("%s, request %d: %d, want %d", name, i, got, want)
			}
		}
	}
}
