// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
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

func TestStrangers(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newStrangers(2, 3, func() time.Time { return now })
	s.most = 3
	takes := func(address string) (n int) {
		for s.take(address) == 0 {
			n++
		}
		return n
	}
	if n := takes("a"); n != 3 {
		t.Errorf("a full bucket has %d", n)
	}
	if wait := s.take("a"); wait != 500*time.Millisecond {
		t.Errorf("wait %v", wait)
	}
	now = now.Add(time.Second)
	if n := takes("a"); n != 2 {
		t.Errorf("after a second: %d", n)
	}
	s.giveBack("a")
	if n := takes("a"); n != 1 {
		t.Errorf("given back: %d", n)
	}
	now = now.Add(-time.Hour) // a clock that goes back fills nothing, and empties nothing
	if n := takes("a"); n != 0 {
		t.Errorf("clock back: %d", n)
	}
	for range 5 {
		s.giveBack("b")
	}
	if n := takes("b"); n != 3 {
		t.Errorf("more than full: %d", n)
	}
	takes("c")
	takes("a")
	if n := takes("d"); n != 3*wide || s.buckets["d"] != nil { // none is full again: d is one of the others
		t.Errorf("others: %d", n)
	}
	if n := takes("f"); n != 0 {
		t.Errorf("another of them: %d", n)
	}
	if n := takes("b"); n != 0 {
		t.Errorf("the table was flushed: %d", n)
	}
	now = now.Add(2 * time.Second) // all are full again
	takes("d")                     // pushes out c, which was seen last longest ago
	if len(s.buckets) != 3 || s.recent.Len() != 3 || s.buckets["c"] != nil || s.buckets["d"] == nil {
		t.Errorf("%d buckets", len(s.buckets))
	}
	if n := takes(strings.Repeat("e", 1000)); n != 3 || len(s.buckets) != 3 {
		t.Errorf("a long address: %d", n)
	}
	if s.take(strings.Repeat("e", 999)) == 0 {
		t.Error("only the beginning of an address counts")
	}
	for range 100 {
		if s.take("") != 0 {
			t.Fatal("nobody is limited")
		}
	}
}

func TestAddressFromHeader(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "10.0.0.1, 192.0.2.1": "192.0.2.1", "10.0.0.1\n192.0.2.2 , 192.0.2.1 ": "192.0.2.1",
		"192.0.2.1:99": "192.0.2.1", "2001:db8::1": "2001:db8::/64", "[2001:db8::1]:99": "2001:db8::/64", "::ffff:192.0.2.1": "192.0.2.1",
		"": "203.0.113.7", "unknown": "203.0.113.7", "192.0.2.1,": "203.0.113.7", "192.0.2.1, _hidden": "203.0.113.7",
	} {
		r := &http.Request{RemoteAddr: "203.0.113.7:1", Header: http.Header{"X-Forwarded-For": strings.Split(in, "\n")}}
		if got := AddressFromHeader("x-forwarded-for")(r); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := AddressFromHeader("X-Real-Ip")(&http.Request{RemoteAddr: "203.0.113.7:1"}); got != "203.0.113.7" {
		t.Errorf("no header: %q", got)
	}
}

// However many networks a site has, they have no more than its allowance, and others keep theirs.
func TestStrangersNetwork(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newStrangers(2, 3, func() time.Time { return now })
	n := 0
	for i := range 1000 {
		if s.take(fmt.Sprintf("2001:db8:1:%x::/64", i)) == 0 {
			n++
		}
	}
	if n != 3*wide {
		t.Errorf("a /48 has %d", n)
	}
	if len(s.buckets) != 3*wide+1 {
		t.Errorf("%d buckets", len(s.buckets))
	}
	if s.take("2001:db8:2::/64") != 0 || s.take("192.0.2.1") != 0 {
		t.Error("others are told to wait")
	}
	s.giveBack("2001:db8:1:1::/64")
	if s.take("2001:db8:1:1::/64") != 0 || s.take("2001:db8:1:2::/64") == 0 {
		t.Error("one was given back")
	}
}

func TestWiderNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"2001:db8:1:2::/64": "2001:db8:1::/48", "2001:db8:1:2::3": "2001:db8:1::/48", "2001:db8::/48": "", "2001::/16": "",
		"192.0.2.1": "", "192.0.2.0/24": "", "::ffff:192.0.2.1": "", "fe80::1%eth0": "fe80::/48", "tenant-7": "", "": "",
	} {
		if got := widerNetwork(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestRemoteNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::/64", "[::ffff:192.0.2.1]:80": "192.0.2.1",
		"[fe80::1%eth0]:80": "fe80::/64", "@": "@", "pipe:x": "pipe", "": "",
	} {
		if got := remoteNetwork(&http.Request{RemoteAddr: in}); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
