// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/limit"
)

// A body is read within the bytes that bodies on the way may have, not slower than the least rate.
// When it is there, the request waits for a place. So no client holds a place with a body that does
// not come.

const (
	wideStrangers = 16      // times an address's allowance, for an IPv6 /48
	wideHeads     = 4       // the same for heads, and for evidence
	wideBodies    = 2       // and for bodies
	strangerTable = 1 << 14 // addresses that are counted

	leastRate  = 8 << 10          // bytes a second of a body, after
	freeTime   = 10 * time.Second // in which it need not have begun
	placeWait  = time.Second      // for which a body that is there waits for a place
	firstRead  = 64 << 10         // what a body that says that it is longer gets before it comes
	firstShare = 4 << 10          // what a body has from the beginning: its buffers
)

// limits bound what strangers, addresses and all requests together may have.
type limits struct {
	// strangers counts, by address, requests of Oblivious HTTP that were opened and have not
	// turned out to be a client's own. What does turn out so is returned.
	strangers *limit.Limiter
	// heads counts, by address, requests of which the sealed header is being read, before anybody
	// knows whose they are. Each holds the header and two chunks at most, and not for longer than
	// headTimeout.
	heads       *limit.Limiter
	headTimeout time.Duration
	// deliveries counts, by request, those whose header was judged. Two may be read on at a time:
	// an attacker may have captured the header of one, and does not send the rest.
	deliveries *limit.Limiter
	// bodies counts, by address, the bytes that have come of bodies on the way, until their request
	// has a place.
	bodies *limit.Limiter
	// attesting counts, by address, requests for evidence.
	attesting *limit.Limiter
	// unread counts, by address, evidence that is on its way to a client.
	unread *limit.Limiter
	// refusals counts, for all together, requests that were refused for want of a place and are
	// remembered.
	refusals *limit.Limiter
	// accounts counts, by account, requests that have a place or wait for one. nil sets no limit.
	accounts *limit.Limiter
}

func newLimits(c *Config) limits {
	places := int64(c.MaxConcurrent)
	// A quarter of bodies has room for any request, and for the byte that tells that it is too
	// large.
	largest := max(envelopeLimit(c.MaxRequestBytes), chunkedLimit(c.MaxRequestBytes)) + 1
	bodies := max(places*c.MaxRequestBytes, 4*(largest+firstShare))
	l := limits{
		heads:       limit.New(limit.Config{Each: places, Wide: wideHeads, All: 16 * places}),
		headTimeout: 5 * time.Second,
		deliveries:  limit.New(limit.Config{Each: 2}),
		bodies:      limit.New(limit.Config{Each: bodies / 4, Wide: wideBodies, All: bodies}),
		attesting:   limit.New(limit.Config{Each: 1, Wide: wideHeads, All: maxAttesting}),
		unread:      limit.New(limit.Config{Each: maxUnread, Wide: wideHeads, All: allUnread}),
		refusals:    limit.New(limit.Config{Each: 4 * places, Rate: float64(places)}),
	}
	if c.AccountPlaces > 0 {
		l.accounts = limit.New(limit.Config{Each: int64(c.AccountPlaces)})
	}
	if c.OHTTP.StrangerRate > 0 {
		l.strangers = limit.New(limit.Config{
			Each: int64(c.OHTTP.StrangerBurst), Rate: c.OHTTP.StrangerRate,
			Wide: wideStrangers, Keys: strangerTable,
		})
	}
	return l
}

// plainContentType tells whether there is one content type at most, in ASCII: the next reader may
// take another for it.
func plainContentType(header http.Header) bool {
	values := header.Values("Content-Type")
	return len(values) < 2 && !slices.ContainsFunc(values, notASCII)
}

func notASCII(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c > 0x7f })
}

// hasEncoding tells whether a content encoding is stated.
func hasEncoding(header http.Header) bool {
	values := header.Values("Content-Encoding")
	return slices.ContainsFunc(values, func(v string) bool { return v != "" })
}

// errNoShare says that the bodies on the way have all the bytes that they may have.
var errNoShare = errors.New("too many bytes of requests are on the way")

// arrivingBody reads the body of a request as it comes. Once it is charged, what comes is counted
// among the bytes of all bodies on the way, and has to come at the least rate: until freeTime and a
// second more for each leastRate bytes, or BodyTimeout if that is sooner.
type arrivingBody struct {
	h       *request
	charged bool
	start   time.Time
	before  int // bytes that had come when it was charged
	until   time.Time
}

// charge has what came already, and what comes from now on, counted.
func (b *arrivingBody) charge() error {
	share, wait := b.h.s.limits.bodies.Take(b.h.address(), int64(b.h.bytesIn+firstShare))
	if wait > 0 {
		return errNoShare
	}
	b.h.share, b.charged, b.start, b.before = share, true, time.Now(), b.h.bytesIn
	b.extend()
	return nil
}

func (b *arrivingBody) Read(p []byte) (int, error) {
	n, err := b.h.r.Body.Read(p)
	b.h.bytesIn += n
	switch {
	case !b.charged || n == 0:
		return n, err
	case b.h.share.Grow(int64(n)) > 0:
		return 0, errNoShare
	case err == nil && time.Now().After(b.until): // where a server knows no deadlines
		return 0, os.ErrDeadlineExceeded
	}
	if err == nil {
		b.extend()
	}
	return n, err
}

// extend moves the deadline to where the bytes that have come put it. It moves in whole seconds:
// over HTTP/2 each move is a message to the connection's loop.
func (b *arrivingBody) extend() {
	earned := time.Duration((b.h.bytesIn-b.before)/leastRate) * time.Second
	until := b.start.Add(min(freeTime+earned, b.h.s.cfg.BodyTimeout))
	if until.After(b.until) {
		b.until = until
		b.h.within(max(time.Until(until), 0), reading)
	}
}
