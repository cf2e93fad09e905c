// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// Whoever only makes the gateway work, from one address, is told to wait before any work is done; clients are not.
func TestObliviousStrangers(t *testing.T) {
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *GatewayConfig) {
		c.Authenticate = keys
		c.OHTTP.StrangerRate, c.OHTTP.StrangerBurst = 0.001, 3
	})
	for range 10 {
		s := r.seal(innerRequest{})
		if a := s.open(r.send(s)); a.status != 200 {
			t.Fatalf("a client: %+v", a)
		}
	}
	bad := r.seal(innerRequest{}).body
	bad[len(bad)-1] ^= 1
	wrong := r.seal(innerRequest{header: []bhttp.Field{{Name: "authorization", Value: "Bearer other"}}})
	codes := []int{}
	for _, b := range [][]byte{bad, wrong.body, bad, bad} {
		codes = append(codes, r.do(obliviousPost(t, bytes.NewReader(b))).Code)
	}
	if codes[0] != 422 || codes[1] != 200 || codes[2] != 422 || codes[3] != 429 {
		t.Errorf("%v", codes)
	}
	req := obliviousPost(t, untouchable{t})
	if w := r.do(req); w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	req = obliviousPost(t, bytes.NewReader(bad))
	req.RemoteAddr = "192.0.2.77:1"
	if w := r.do(req); w.Code != 422 {
		t.Errorf("from elsewhere: %d", w.Code)
	}
}

// What was captured, or is old, or comes to a gateway that knows nobody, counts as a stranger's however well it opens.
func TestObliviousReplaysCount(t *testing.T) {
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	old := innerRequest{header: []bhttp.Field{dated(time.Now().Add(-time.Hour))}}
	for name, c := range map[string]struct {
		authenticate func(*http.Request) error
		m            innerRequest
		again        bool
		codes        []int
	}{
		"sent again":     {authenticate: keys, again: true, codes: []int{200, 200, 200, 200, 429}}, // the first was the client's
		"dated":          {authenticate: keys, m: old, codes: []int{200, 200, 200, 429}},
		"nobody's":       {codes: []int{200, 200, 200, 429}},
		"a client's own": {authenticate: keys, codes: []int{200, 200, 200, 200, 200}},
	} {
		r := newRig(t, func(g *GatewayConfig) {
			g.Authenticate = c.authenticate
			g.OHTTP.StrangerRate, g.OHTTP.StrangerBurst = 0.001, 3
		})
		s := r.seal(c.m)
		for i, want := range c.codes {
			if !c.again {
				s = r.seal(c.m)
			}
			if got := r.send(s).Code; got != want {
				t.Errorf("%s, request %d: %d, want %d", name, i, got, want)
			}
		}
	}
}
