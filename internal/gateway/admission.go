// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/limit"
)

// This file has what a request of either protocol passes before it is worked on. A body is read
// within the bytes that bodies on the way may have, not slower than the least rate; when it is
// there, the request waits for a place. So nobody holds a place with a body that does not come.

const (
	wideStrangers = 16      // times an address's allowance, for an IPv6 /48
	wideHeads     = 4       // the same for heads
	wideBodies    = 2       // and for bodies
	strangerTable = 1 << 14 // addresses that are counted

	leastRate  = 8 << 10          // bytes a second of a body, after
	freeTime   = 10 * time.Second // in which it need not have begun
	placeWait  = time.Second      // for which a body that is there waits for a place
	firstRead  = 64 << 10         // what a body that says that it is longer gets before it comes
	firstShare = 4 << 10          // what a body has from the beginning: its buffers
)

// limits bound what strangers, addresses and all requests together may have. The lock of
// each is a leaf.
type limits struct {
	// strangers counts, by address, requests of the second protocol that were opened and have not
	// turned out to be a client's own. What does turn out so is returned.
	strangers *limit.Limiter
	// heads counts, by address, requests of which the sealed header is being read, before anybody
	// knows whose they are. Each holds the header and a chunk at most, and not for longer than
	// headTimeout.
	heads       *limit.Limiter
	headTimeout time.Duration
	// deliveries counts, by request, those whose header was judged. Two may be read on at a time:
	// one may be somebody's who does not send the rest, and has captured the header.
	deliveries *limit.Limiter
	// bodies counts, by address, the bytes that have come of bodies on the way, until their request
	// has a place.
	bodies *limit.Limiter
	// refusals counts, for all together, requests that were refused for want of a place and are
	// remembered.
	refusals *limit.Limiter
}

func newLimits(c *Config) limits {
	places := int64(c.MaxConcurrent)
	// A quarter of bodies has room for any request, and for the byte that tells that it is too large.
	largest := max(envelopeLimit(c.MaxRequestBytes), chunkedLimit(c.MaxRequestBytes)) + 1
	bodies := max(places*c.MaxRequestBytes, 4*(largest+firstShare))
	l := limits{
		heads:       limit.New(limit.Config{Each: places, Wide: wideHeads, All: 16 * places}),
		headTimeout: 5 * time.Second,
		deliveries:  limit.New(limit.Config{Each: 2}),
		bodies:      limit.New(limit.Config{Each: bodies / 4, Wide: wideBodies, All: bodies}),
		refusals:    limit.New(limit.Config{Each: 4 * places, Rate: float64(places)}),
	}
	if c.OHTTP.StrangerRate > 0 {
		l.strangers = limit.New(limit.Config{
			Each: int64(c.OHTTP.StrangerBurst), Rate: c.OHTTP.StrangerRate,
			Wide: wideStrangers, Keys: strangerTable,
		})
	}
	return l
}

// address is whom the request counts for.
func (h *request) address() string { return limit.Address(h.r, h.s.cfg.AddressHeader) }

// admitOuter looks at what is not sealed, and holds in both protocols. most is what a sealed
// request may have.
func (h *request) admitOuter(most int64) *refusal {
	switch {
	case !plainContentType(h.r.Header):
		return refuse(http.StatusBadRequest, "want one content-type field, in ASCII")
	case hasEncoding(h.r.Header):
		return refuse(http.StatusUnsupportedMediaType, "a sealed request has no content encoding")
	case h.r.ContentLength > most:
		return tooLarge()
	}
	return nil
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

// takePlace takes a place among the requests that are worked on, and gives up what the body has
// among those on the way. It waits for a place for a while, as long as the client does and the
// server is open. A request that has a place gives it back.
func (h *request) takePlace() *refusal {
	select {
	case h.s.places <- struct{}{}:
		h.share.Return()
		return nil
	default:
	}
	wait := time.NewTimer(placeWait)
	defer wait.Stop()
	select {
	case h.s.places <- struct{}{}: // the first that waits gets the first that is free
		h.share.Return()
		return nil
	case <-wait.C:
		return tooManyAtOnce()
	case <-h.s.life.Done():
		p := closing()
		p.unclaimed = true
		return p
	case <-h.r.Context().Done():
		p := refuse(statusClientGone, "the client did not wait for a place")
		p.cause, p.unclaimed = h.r.Context().Err(), true
		return p
	}
}

func (h *request) givePlace() { <-h.s.places }

// whileServed is ctx for the work on a request: until Timeout is over, or the server is closed.
func (h *request) whileServed() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(h.r.Context(), h.s.cfg.Timeout)
	stop := context.AfterFunc(h.s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// drain takes in, and forgets, the body of a request that is refused without it. Many clients look
// for an answer only when they have sent everything; on a connection that is closed before, they
// find none, and repeat the request.
func (h *request) drain() {
	// The bound holds for what net/http reads by itself, too.
	h.within(min(h.s.cfg.BodyTimeout, 10*time.Second), reading)
	if h.r.Header.Get("Expect") != "" { // these wait for a word before they send
		return
	}
	_, _ = io.CopyN(io.Discard, h.r.Body, 16<<20) // the largest request of v1, sealed, has 14 MiB
}

// authenticate has Config.Authenticate judge r, which is the request or was made of what opened.
func (h *request) authenticate(r *http.Request) *refusal {
	judge := h.s.cfg.Authenticate
	if judge == nil {
		return nil
	}
	account, retryAfter, err := judge(r)
	if err != nil {
		return authRefusal(err, retryAfter)
	}
	h.account = account
	return nil
}

// readTier reads the tier that a header asks for, and refuses one that is not provided here.
func (h *request) readTier(header http.Header) *refusal {
	tier := hybrid.Tier(header.Get(hybrid.HeaderTier))
	if len(header.Values(hybrid.HeaderTier)) > 1 || tier.Rank() < 0 {
		return refuse(http.StatusBadRequest, "X-Security-Tier is not standard, high or maximum")
	}
	h.tier = tier
	return h.checkTier()
}

func (h *request) checkTier() *refusal {
	if h.tier.Rank() > h.s.cfg.Tier.Rank() {
		return refuse(http.StatusForbidden,
			"this security tier is not available here").as(TierRefused)
	}
	return nil
}
