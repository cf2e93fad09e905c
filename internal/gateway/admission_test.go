// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/limit"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Bodies that do not come hold no place, however many they are.
func TestGatewayStalledBodiesHoldNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxConcurrent = 2 })
		ctx, end := context.WithCancel(t.Context())
		var stalled sync.WaitGroup
		for range 10 {
			for _, p := range r.Parcels(5000) {
				body := &fakes.Drip{Ctx: ctx, Rest: p.Body[:4000], First: 3000, Piece: 1,
					After: time.Hour}
				stalled.Go(func() { r.SendParcel(p, body, "192.0.2.1") })
				synctest.Wait()
			}
		}
		if n := r.s.limits.bodies.Taken(); n != 20*(3000+firstShare) {
			t.Errorf("%d bytes are on the way", n)
		}
		for _, from := range []string{"192.0.2.1", "192.0.2.2"} {
			for _, p := range r.Parcels(5000) {
				start := time.Now()
				if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), from); status != 200 ||
					!time.Now().Equal(start) {
					t.Errorf("%v from %s: %d after %v", p.Protocol, from, status, time.Since(start))
				}
			}
		}
		if n := r.s.Stats().InFlight; n != 0 {
			t.Errorf("%d places are taken", n)
		}
		end()
		stalled.Wait()
		if n := r.s.limits.bodies.Taken(); n != 0 {
			t.Errorf("%d bytes stayed behind", n)
		}
	})
}

// Bodies come at 8 KiB/s or faster, from ten seconds on.
func TestGatewayLeastRate(t *testing.T) {
	for name, c := range map[string]struct {
		size, piece   int
		after         time.Duration
		status        int
		least, most   time.Duration
		bodyTimeout   time.Duration
		withDeadlines bool
	}{
		"a byte a second": {
			size: 9 << 10, piece: 1, after: time.Second, status: 408, least: 10 * time.Second,
			most: 11 * time.Second,
		},
		"a byte in nine seconds": {
			size: 9 << 10, piece: 1, after: 9 * time.Second, status: 408, least: 10 * time.Second,
			most: 18 * time.Second,
		},
		"1 KiB/s": {
			size: 100 << 10, piece: 1 << 10, after: time.Second, status: 408,
			least: 10 * time.Second,
			most:  13 * time.Second,
		},
		"6 KiB/s": {
			size: 1 << 20, piece: 6 << 10, after: time.Second, status: 408, least: 38 * time.Second,
			most: 44 * time.Second,
		},
		"4 KiB/s, and soon whole": {
			size: 30 << 10, piece: 4 << 10, after: time.Second, status: 200, least: 7 * time.Second,
			most: 11 * time.Second,
		},
		"9 KiB/s": {
			size: 300 << 10, piece: 9 << 10, after: time.Second, status: 200,
			least: 30 * time.Second,
			most:  50 * time.Second,
		},
		"100 KiB/s, too long": {
			size: 8 << 20, piece: 100 << 10, after: time.Second, status: 408, least: time.Minute,
			most: 62 * time.Second,
		},
		"100 KiB/s, more time": {
			size: 7 << 20, piece: 100 << 10, after: time.Second, status: 200,
			least: 70 * time.Second,
			most:  100 * time.Second, bodyTimeout: time.Hour,
		},
		"nothing more": {
			size: 9 << 10, piece: 1, after: time.Hour, status: 408, least: 10 * time.Second,
			most: 10 * time.Second, withDeadlines: true,
		},
		"nothing more, less time": {
			size: 9 << 10, piece: 1, after: time.Hour, status: 408, least: 3 * time.Second,
			most: 3 * time.Second, bodyTimeout: 3 * time.Second, withDeadlines: true,
		},
		"a byte a second, on the wire": {
			size: 9 << 10, piece: 1, after: time.Second, status: 408, least: 10 * time.Second,
			most: 10 * time.Second, withDeadlines: true,
		},
		"9 KiB/s, on the wire": {
			size: 300 << 10, piece: 9 << 10, after: time.Second, status: 200,
			least: 30 * time.Second,
			most:  50 * time.Second, withDeadlines: true,
		},
	} {
		for i := range 2 {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(g *Config) { g.BodyTimeout = c.bodyTimeout })
				p := r.Parcels(c.size)[i]
				ctx, end := context.WithCancel(t.Context())
				body := &fakes.Drip{Ctx: ctx, Rest: p.Body, First: 4 << 10, Piece: c.piece,
					After: c.after}
				start := time.Now()
				var status int
				if c.withDeadlines {
					status = fakes.StartPiped(t, r.s.HTTPServer("")).Post(t, p, body)
				} else {
					status, _ = r.SendParcel(p, body, "192.0.2.1")
				}
				if d := time.Since(start); status != c.status || d < c.least || d > c.most {
					t.Errorf("%s, %v: %d after %v", name, p.Protocol, status, d)
				}
				end()
				time.Sleep(time.Second) // net/http lingers over a connection that it closes
				synctest.Wait()
				if n := r.s.limits.bodies.Taken(); n != 0 {
					t.Errorf("%s, %v: %d bytes stayed behind", name, p.Protocol, n)
				}
			})
		}
	}
}

// Bodies on the way have so many bytes in all, an address a quarter of them, an IPv6 site half.
func TestGatewayBytesOnTheWay(t *testing.T) {
	const each = 100 << 10
	hosts := func(format string, n int) (from []string) {
		for i := range n {
			from = append(from, fmt.Sprintf(format, i))
		}
		return from
	}
	for name, c := range map[string]struct {
		from   []string // who sends bodies that do not end
		units  int64    // of each, that fit
		next   string   // who is refused then
		others string   // who is served
	}{
		"one address": {
			from: []string{"192.0.2.1"}, units: 1, next: "192.0.2.1", others: "192.0.2.2",
		},
		"one network": {
			from: hosts("[2001:db8::%x]", 8), units: 1, next: "[2001:db8::99]",
			others: "[2001:db8:0:1::1]",
		},
		"a site": {
			from: hosts("[2001:db8:0:%x::1]", 16), units: 2, next: "[2001:db8:0:99::1]",
			others: "[2001:db8:1::1]",
		},
		"many addresses":      {from: hosts("192.0.2.%d", 40), units: 4, next: "203.0.113.1"},
		"many addresses of 6": {from: hosts("[2001:db8:%x::1]", 40), units: 4, next: "203.0.113.1"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.MaxConcurrent = 100 })
			r.s.limits.bodies = limit.New(limit.Config{Each: each, Wide: wideBodies, All: 4 * each})
			ctx, end := context.WithCancel(t.Context())
			var held sync.WaitGroup
			for i := range 80 {
				p := r.Parcels(16 << 10)[i%2]
				from := c.from[i%len(c.from)]
				held.Go(func() {
					r.SendParcel(
						p,
						&fakes.Drip{Ctx: ctx, Rest: p.Body, First: 10 << 10, Piece: 1,
							After: time.Hour},
						from,
					)
				})
				synctest.Wait()
			}
			if n := r.s.limits.bodies.Taken(); n > c.units*each || n < c.units*each*6/10 {
				t.Errorf("%s: %d bytes are on the way", name, n)
			}
			for _, p := range r.Parcels(60 << 10) {
				if status, again := r.SendParcel(p, bytes.NewReader(p.Body),
					c.next); status != 503 ||
					again != "1" {
					t.Errorf("%s, %v: more: %d, again after %q", name, p.Protocol, status, again)
				}
			}
			for _, p := range r.Parcels(60 << 10) {
				if status, _ := r.SendParcel(p, bytes.NewReader(p.Body),
					c.others); c.others != "" &&
					status != 200 {
					t.Errorf("%s, %v: somebody else: %d", name, p.Protocol, status)
				}
			}
			for _, p := range r.Parcels(3 * each) { // more than fits, when it has begun
				status, again := r.SendParcel(p, bytes.NewReader(p.Body), "198.51.100.1")
				if status != 503 || again != "1" {
					t.Errorf("%s, %v: too much: %d, again after %q", name, p.Protocol, status,
						again)
				}
			}
			end()
			held.Wait()
			if n, keys := r.s.limits.bodies.Taken(), r.s.limits.bodies.Len(); n != 0 || keys != 0 {
				t.Errorf("%s: %d bytes of %d stayed behind", name, n, keys)
			}
			for _, p := range r.Parcels(60 << 10) {
				if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), c.next); status != 200 {
					t.Errorf("%s, %v: afterwards: %d", name, p.Protocol, status)
				}
			}
		})
	}
}

// A body for which there is no room keeps nothing of the room while the rest of it is thrown away.
func TestGatewayRefusedBodiesHoldNoRoom(t *testing.T) {
	for i := range 2 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.s.limits.bodies = limit.New(limit.Config{Each: 20 << 10, All: 80 << 10})
			ctx, end := context.WithCancel(t.Context())
			p := r.Parcels(60 << 10)[i]
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.SendParcel(p, &fakes.Drip{
					Ctx: ctx, Rest: p.Body, First: 40 << 10, Piece: 1, After: time.Second,
				}, "192.0.2.1")
			}()
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("%v: not what this test is for", p.Protocol)
			default:
			}
			if n := r.s.limits.bodies.Taken(); n != 0 {
				t.Errorf("%v: %d bytes are held", p.Protocol, n)
			}
			next := r.Parcels(9 << 10)[i]
			if status, _ := r.SendParcel(next, bytes.NewReader(next.Body),
				"192.0.2.1"); status != 200 {
				t.Errorf("%v: the next one: %d", p.Protocol, status)
			}
			end()
			<-done
		})
	}
}

// What the limits are, and that a quarter has room for the largest request.
func TestGatewayBytesFit(t *testing.T) {
	for _, c := range []Config{
		{}, {MaxConcurrent: 1}, {MaxConcurrent: 1, MaxRequestBytes: 1},
		{MaxConcurrent: 5, MaxRequestBytes: 1 << 20}, {MaxRequestBytes: 1 << 28},
	} {
		c.Upstream, c.AllowUnauthenticated = "https://upstream.test", true
		if err := c.setDefaults(); err != nil {
			t.Fatal(err)
		}
		l := newLimits(&c)
		largest := firstShare + max(envelopeLimit(c.MaxRequestBytes),
			chunkedLimit(c.MaxRequestBytes)) + 1
		each := max(int64(c.MaxConcurrent)*c.MaxRequestBytes/4, largest)
		if each < largest {
			t.Errorf("%+v: the largest request does not fit", c)
		}
		if _, wait := l.bodies.Take("192.0.2.0", each+1+3); wait == 0 { // the bound is rounded
			t.Errorf("%d of %d: an address has more than %d", c.MaxConcurrent, c.MaxRequestBytes,
				each)
		}
		for i := range 4 {
			if _, wait := l.bodies.Take(fmt.Sprint("192.0.2.", i), each); wait > 0 {
				t.Errorf(
					"%d places of %d: address %d has less than %d",
					c.MaxConcurrent,
					c.MaxRequestBytes,
					i,
					each,
				)
			}
		}
		if _, wait := l.bodies.Take("192.0.2.9", 4); wait == 0 {
			t.Errorf("%d places of %d: more than four times %d", c.MaxConcurrent, c.MaxRequestBytes,
				each)
		}
	}
	r := newRig(t, func(c *Config) { c.MaxConcurrent, c.MaxRequestBytes = 1, 4<<10 })
	for _, p := range r.Parcels(2 << 20) { // as large as may be sent, and larger
		if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1"); status != 413 {
			t.Errorf("%v: too large: %d", p.Protocol, status)
		}
	}
}

// busyRig is a gateway with one place, which is taken until free is called.
func busyRig(t *testing.T) (r *rig, free func()) {
	r = newRig(t, func(c *Config) { c.MaxConcurrent = 1 })
	r.s.places <- struct{}{}
	return r, func() { <-r.s.places }
}

func TestGatewayWaitsForAPlace(t *testing.T) {
	for i := range 2 {
		synctest.Test(t, func(t *testing.T) {
			r, free := busyRig(t)
			start := time.Now()
			time.AfterFunc(900*time.Millisecond, free)
			p := r.Parcels(100)[i]
			if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1"); status != 200 ||
				time.Since(start) != 900*time.Millisecond {
				t.Errorf("%v: %d after %v", p.Protocol, status, time.Since(start))
			}
			r.s.places <- struct{}{}
			start = time.Now()
			p = r.Parcels(100)[i]
			status, again := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1")
			if status != 503 || again != "1" || time.Since(start) != placeWait {
				t.Errorf("%v: %d, again after %q, after %v", p.Protocol, status, again,
					time.Since(start))
			}
			if n := r.s.limits.bodies.Taken(); n != 0 || len(r.Forwarded()) != 1 {
				t.Errorf(
					"%v: %d bytes stayed behind, %d requests went upstream",
					p.Protocol,
					n,
					len(r.Forwarded()),
				)
			}
		})
	}
}

// Whoever waits and goes, or waits when the gateway closes, waits no longer, and nothing of his is
// served.
func TestGatewayWaitEnds(t *testing.T) {
	for i := range 2 {
		for _, close := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				r, _ := busyRig(t)
				p := r.Parcels(100)[i]
				ctx, leave := context.WithCancel(t.Context())
				start := time.Now()
				time.AfterFunc(500*time.Millisecond, func() {
					if close {
						_ = r.s.Close()
					} else {
						leave()
					}
				})
				w := r.Do(p.Request(t, bytes.NewReader(p.Body), "192.0.2.1").WithContext(ctx))
				leave()
				header := w.Header()
				status := w.Code
				if p.Sealed != nil && status == 200 {
					a := p.Sealed.Open(w)
					status, header = a.Status, a.Header
				}
				want := statusClientGone
				if close {
					want = 503
				}
				if status != want || time.Since(start) != 500*time.Millisecond ||
					header.Get(ohttp.HeaderProcessed) != "" {
					t.Errorf("%v, close %v: %d after %v, %v", p.Protocol, close, status,
						time.Since(start), header)
				}
				if n := r.s.limits.bodies.Taken(); n != 0 || len(r.s.places) != 1 ||
					len(r.Forwarded()) != 0 {
					t.Errorf(
						"%v, close %v: %d bytes, %d places, %d sent",
						p.Protocol,
						close,
						n,
						len(r.s.places),
						len(r.Forwarded()),
					)
				}
			})
		}
	}
}

// The header that names addresses counts in both protocols.
func TestGatewayAddressHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.AddressHeader = "X-Forwarded-For" })
		r.s.limits.bodies = limit.New(limit.Config{Each: 50 << 10, All: 200 << 10})
		for _, c := range []struct {
			from   string
			status int
		}{{"192.0.2.1", 503}, {"10.0.0.1, 192.0.2.1", 503}, {"192.0.2.1, 192.0.2.2", 200},
			{"", 200}} {
			taken, _ := r.s.limits.bodies.Take("192.0.2.1", 45<<10)
			for _, p := range r.Parcels(9 << 10) {
				p.Header.Set("X-Forwarded-For", c.from)
				if status, _ := r.SendParcel(p, bytes.NewReader(p.Body),
					"203.0.113.1"); status != c.status {
					t.Errorf("%v from %q: %d, want %d", p.Protocol, c.from, status, c.status)
				}
			}
			taken.Return()
		}
	})
	for _, name := range []string{"X Y", "X:", "é", "X-Forwarded-For,"} {
		_, err := New(Config{Upstream: "https://a.test", AllowUnauthenticated: true,
			AddressHeader: name})
		if c, ok := errors.AsType[*OptionError](err); !ok || c.Field != "AddressHeader" {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A server's WriteTimeout does not cut an answer that takes longer, and Timeout does.
func TestGatewayWriteTimeout(t *testing.T) {
	certificates := testkit.ServerTLS(t).Certificates
	for _, version := range []int{1, 2} {
		for i := range 2 {
			for timeout, want := range map[time.Duration]int{0: 200, time.Minute: 504} {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, func(c *Config) { c.Timeout = timeout })
					r.Answer = func(req *http.Request, _ []byte) (*http.Response, error) {
						select {
						case <-time.After(2 * time.Minute):
							return testkit.Respond(200, testkit.FineAnswer), nil
						case <-req.Context().Done():
							return nil, req.Context().Err()
						}
					}
					server := r.s.HTTPServer("")
					server.WriteTimeout = 10 * time.Second
					if version == 2 {
						server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12,
							Certificates: certificates}
					}
					p := r.Parcels(100)[i]
					if status := fakes.StartPiped(t, server).Post(t, p,
						bytes.NewReader(p.Body)); status != want {
						t.Errorf("HTTP/%d, %v, Timeout %v: %d", version, p.Protocol, timeout,
							status)
					}
				})
			}
		}
	}
}

// Content types that the next reader may take for others are refused, inside and outside.
func TestGatewayContentTypes(t *testing.T) {
	r := newRig(t, nil)
	for name, c := range map[string]struct {
		values []string
		ok     bool
	}{
		"none":           {nil, true},
		"one":            {[]string{"application/json"}, true},
		"parameters":     {[]string{`application/json; charset="utf-8"`}, true},
		"two":            {[]string{"application/json", "text/plain"}, false},
		"two alike":      {[]string{"application/json", "application/json"}, false},
		"two, one short": {[]string{"application/json", "x"}, false},
		"UTF-8":          {[]string{"application/jsön"}, false},
		"a single byte":  {[]string{"application/json\xa0"}, false},
		"the last byte":  {[]string{"application/json;\xff"}, false},
	} {
		p := r.Parcels(100)[0]
		p.Header["Content-Type"] = c.values
		want := map[bool]int{true: 200, false: 400}[c.ok]
		if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1"); status != want {
			t.Errorf("%s, outside, v1: %d", name, status)
		}
		m := fakes.Inner{}
		for _, v := range c.values {
			m.Header = append(m.Header, bhttp.Field{Name: "content-type", Value: v})
		}
		s := r.Seal(m)
		if a := s.Open(r.Send(s)); a.Status != want {
			t.Errorf("%s, inside: %+v", name, a)
		}
		if c.ok {
			continue
		}
		s = r.Seal(fakes.Inner{})
		req := fakes.OHTTPPost(t, bytes.NewReader(s.Body))
		req.Header["Content-Type"] = slices.Concat(
			[]string{ohttp.TypeRequest + c.values[0][len("application/js"):]},
			c.values[1:],
		)
		if w := r.Do(req); w.Code != 400 {
			t.Errorf("%s, outside, the second protocol: %d", name, w.Code)
		}
	}
	for name, fields := range map[string][]bhttp.Field{
		"accept":      {{Name: "accept", Value: "text/\xe9"}},
		"openai-beta": {{Name: "openai-beta", Value: "\xff"}},
		"two tiers": {
			{Name: "x-security-tier", Value: "standard"},
			{Name: "x-security-tier", Value: "maximum"},
		},
	} {
		s := r.Seal(fakes.Inner{Header: fields})
		if a := s.Open(r.Send(s)); a.Status != 400 {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
