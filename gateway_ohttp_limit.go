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
func remoteNetwork(r *http.Request) string { return networkOf(r.RemoteAddr) }

// AddressFromHeader makes a [GatewayOHTTP].Address for gateways behind a proxy: the last address in the header of that
// name, "X-Forwarded-For" for example; of an IPv6 address its first 64 bits. The proxy next to the gateway has to set that
// header, or to append to it: what stands last is taken at its word. Without an address in it, the request counts for
// RemoteAddr.
func AddressFromHeader(name string) func(*http.Request) string {
	return func(r *http.Request) string {
		if values := r.Header.Values(name); len(values) > 0 {
			last := values[len(values)-1]
			last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
			if network := networkOf(last); isNetwork(network) {
				return network
			}
		}
		return remoteNetwork(r)
	}
}

func isNetwork(s string) bool {
	_, err := netip.ParseAddr(s)
	if err != nil {
		_, err = netip.ParsePrefix(s)
	}
	return err == nil
}

// networkOf is the address in one that may have a port, of IPv6 its first 64 bits. What is no address stays as it is.
func networkOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
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

// widerNetwork is the /48 that an IPv6 address or network is in: what one site gets, with 65,536 networks of its own. "" for
// anything else.
func widerNetwork(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		p, err := netip.ParsePrefix(address)
		if err != nil || p.Bits() <= 48 {
			return ""
		}
		a = p.Addr()
	}
	if a = a.Unmap().WithZone(""); !a.Is6() {
		return ""
	}
	p, err := a.Prefix(48)
	if err != nil {
		return ""
	}
	return p.String()
}

const (
	mostAddresses = 1 << 14
	mostAddress   = 64 // bytes of an address that count
	wide          = 16 // how many times an address's allowance a /48 has, and all addresses for which the table has no room
)

// strangers counts, for each address, the requests that were opened for it and have not turned out to be a client's own: a
// bucket of tokens for each, and a larger one for each /48. The table is bounded. A bucket that is full again says nothing and may be
// forgotten; when there is none, addresses that are not in the table share a bucket, so that nobody gets new ones by the thousand.
type strangers struct {
	rate, burst float64 // tokens a second, and how many a bucket holds; no limit unless rate is above 0
	most        int
	now         func() time.Time

	mu      sync.Mutex
	buckets map[string]*list.Element
	recent  list.List // of *bucket, the one that was seen last in front
	others  bucket
}

type bucket struct {
	address string
	scale   float64 // of rate and burst
	tokens  float64
	at      time.Time
}

func newStrangers(rate float64, burst int, now func() time.Time) *strangers {
	return &strangers{
		rate: rate, burst: float64(burst), most: mostAddresses, now: now, buckets: make(map[string]*list.Element),
		others: bucket{scale: wide, tokens: float64(burst) * wide, at: now()},
	}
}

// take is asked before work is done for an address. It returns how long to wait if there is no token, or 0.
func (s *strangers) take(address string) time.Duration {
	if s.rate <= 0 || address == "" {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var network *bucket
	if wider := widerNetwork(address); wider != "" {
		network = s.find(wider, wide)
		if wait := s.wait(network); wait > 0 { // the table has no room for more of its addresses, either
			return wait
		}
	}
	b := s.find(address, 1)
	if wait := s.wait(b); wait > 0 {
		return wait
	}
	b.tokens--
	if network != nil && network != b {
		network.tokens--
	}
	return 0
}

func (s *strangers) wait(b *bucket) time.Duration {
	if b.tokens >= 1 {
		return 0
	}
	return max(time.Duration((1-b.tokens)/(s.rate*b.scale)*float64(time.Second)), time.Millisecond)
}

// giveBack says that the request for which a token was taken is a client's.
func (s *strangers) giveBack(address string) {
	if s.rate <= 0 || address == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.find(address, 1)
	b.tokens = min(b.tokens+1, s.burst*b.scale)
	if wider := widerNetwork(address); wider != "" {
		if network := s.find(wider, wide); network != b {
			network.tokens = min(network.tokens+1, s.burst*network.scale)
		}
	}
}

// find returns the bucket of an address as it is now. s.mu is held.
func (s *strangers) find(address string, scale float64) *bucket {
	address = address[:min(len(address), mostAddress)]
	now := s.now()
	if e := s.buckets[address]; e != nil {
		s.recent.MoveToFront(e)
		return s.fill(e.Value.(*bucket), now)
	}
	if len(s.buckets) >= s.most {
		oldest := s.recent.Back()
		if b := s.fill(oldest.Value.(*bucket), now); b.tokens < s.burst*b.scale {
			return s.fill(&s.others, now)
		}
		delete(s.buckets, s.recent.Remove(oldest).(*bucket).address)
	}
	b := &bucket{address: strings.Clone(address), scale: scale, tokens: s.burst * scale, at: now}
	s.buckets[b.address] = s.recent.PushFront(b)
	return b
}

// fill adds the tokens for the time that has gone by.
func (s *strangers) fill(b *bucket, now time.Time) *bucket {
	b.tokens = min(b.tokens+max(now.Sub(b.at).Seconds(), 0)*s.rate*b.scale, s.burst*b.scale)
	b.at = now
	return b
}

// readers bounds the requests of which the header is being read, before anybody knows whose they are: all of them, those of
// one address, and those of its /48. Each holds the header and a chunk at most, and not for longer than within.
type readers struct {
	most, each int
	within     time.Duration

	mu  sync.Mutex
	all int
	of  map[string]int // addresses and wider networks
}

// newReaders bounds them in proportion to the requests that are worked on at the same time.
func newReaders(places int) *readers {
	return &readers{most: wide * places, each: places, within: 5 * time.Second, of: make(map[string]int)}
}

// take reports whether there is a place. The empty address stands for nobody in particular.
func (r *readers) take(address string) bool {
	network := widerNetwork(address)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all >= r.most || address != "" && r.of[address] >= r.each || network != "" && r.of[network] >= 4*r.each {
		return false
	}
	r.count(address, network, 1)
	return true
}

func (r *readers) giveBack(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count(address, widerNetwork(address), -1)
}

func (r *readers) count(address, network string, n int) {
	r.all += n
	for _, of := range [...]string{address, network} {
		if r.of[of] += n; r.of[of] == 0 || of == "" {
			delete(r.of, of)
		}
	}
}

// copies counts deliveries of one request whose header was judged. Two may be read on at a time: one may be somebody's who
// does not send the rest, and has captured the header.
type copies struct {
	mu sync.Mutex
	of map[[32]byte]int
}

// take reports whether there is room for another one. It is given back in any case.
func (c *copies) take(id [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[[32]byte]int)
	}
	c.of[id]++
	return c.of[id] <= 2
}

func (c *copies) giveBack(id [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[id]--; c.of[id] <= 0 {
		delete(c.of, id)
	}
}
