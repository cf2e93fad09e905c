// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// remoteNetwork is the default of GatewayOHTTP.Address.
func remoteNetwork(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if a = a.Unmap().WithZone(""); a.Is6() {
		if network, err := a.Prefix(64); err == nil { // one customer has all of it
			return network.String()
		}
	}
	return a.String()
}

const (
	mostAddresses = 1 << 14
	mostAddress   = 64 // bytes of an address that count
)

// strangers counts, for each address, the requests that were opened for it and have not turned out to be a client's own: a
// bucket of tokens for each. The table is bounded; the address that was seen last longest ago is forgotten first, which
// fills its bucket.
type strangers struct {
	rate, burst float64 // tokens a second, and how many a bucket holds; no limit unless rate is above 0
	most        int
	now         func() time.Time

	mu      sync.Mutex
	buckets map[string]*list.Element
	recent  list.List // of *bucket, the one that was seen last in front
}

type bucket struct {
	address string
	tokens  float64
	at      time.Time
}

func newStrangers(rate float64, burst int, now func() time.Time) *strangers {
	return &strangers{rate: rate, burst: float64(burst), most: mostAddresses, now: now, buckets: make(map[string]*list.Element)}
}

// take is asked before work is done for an address. It returns how long to wait if there is no token, or 0.
func (s *strangers) take(address string) time.Duration {
	if s.rate <= 0 || address == "" {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.find(address)
	if b.tokens < 1 {
		return max(time.Duration((1-b.tokens)/s.rate*float64(time.Second)), time.Millisecond)
	}
	b.tokens--
	return 0
}

// giveBack says that the request for which a token was taken is a client's.
func (s *strangers) giveBack(address string) {
	if s.rate <= 0 || address == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.find(address)
	b.tokens = min(b.tokens+1, s.burst)
}

// find returns the bucket of an address as it is now. s.mu is held.
func (s *strangers) find(address string) *bucket {
	address = address[:min(len(address), mostAddress)]
	now := s.now()
	if e := s.buckets[address]; e != nil {
		b := e.Value.(*bucket)
		b.tokens = min(b.tokens+max(now.Sub(b.at).Seconds(), 0)*s.rate, s.burst)
		b.at = now
		s.recent.MoveToFront(e)
		return b
	}
	if len(s.buckets) >= s.most {
		oldest := s.recent.Back()
		delete(s.buckets, s.recent.Remove(oldest).(*bucket).address)
	}
	b := &bucket{address: strings.Clone(address), tokens: s.burst, at: now}
	s.buckets[b.address] = s.recent.PushFront(b)
	return b
}

// readers bounds the requests of which the header is being read, before anybody knows whose they are: all of them, and those of
// one address. Each holds the header and a chunk at most, and not for longer than within.
type readers struct {
	most, each int
	within     time.Duration

	mu  sync.Mutex
	all int
	of  map[string]int
}

// newReaders bounds them in proportion to the requests that are worked on at the same time.
func newReaders(places int) *readers {
	return &readers{most: 16 * places, each: places, within: 5 * time.Second, of: make(map[string]int)}
}

// take reports whether there is a place. The empty address stands for nobody in particular.
func (r *readers) take(address string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all >= r.most || address != "" && r.of[address] >= r.each {
		return false
	}
	r.all++
	r.of[address]++
	return true
}

func (r *readers) giveBack(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all--
	if r.of[address]--; r.of[address] == 0 {
		delete(r.of, address)
	}
}
