// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"mime"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/limit"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file has the outside of the second protocol: the list of configurations, and a request's way from ciphertext to a
// message that is whole. Its header says who sends it, when, and what for; nothing else acts on a request before its final chunk has
// opened.

// GatewayOHTTP is the part of [GatewayConfig] for the second protocol, Oblivious HTTP in chunks (RFC 9458; SPEC.md,
// chapter 11). Zero values are defaults.
type GatewayOHTTP struct {
	// Allow lists what inner requests may ask for, as method and path: "POST /v1/chat/completions". Paths are compared as
	// they are; a query goes along. What follows /v1 is asked of Upstream: GET /v1/models is {Upstream}/models. A path outside
	// /v1 is asked below Upstream as well, all of it: GET /health is {Upstream}/health, and so /v1/health of a server whose
	// Upstream ends in /v1. nil = POST /v1/chat/completions,
	// /v1/completions, /v1/embeddings and /v1/responses, and GET /v1/models.
	Allow []string
	// DateWindow is how far a request's inner Date may be from this machine's clock, either way. A request is remembered
	// until its Date, a window and a minute more; one that takes longer to arrive is refused. Gateways that share Keys must have the same. 0 = 2 minutes; at most 24 h.
	DateWindow time.Duration
	// Pad makes the plaintext of every answer, and of every chunk of it, a multiple of so many bytes, so that lengths say
	// less. Event streams get comment lines for it, which readers skip, and an event travels when it is complete; other
	// answers of unknown length no longer travel as they come. A power of two, at most 16,384. 0 = none.
	Pad int
	// StrangerRate is how many requests a second from one address are opened without turning out to be a client's:
	// opening costs work before anybody is known. StrangerBurst is how many may come at once. More are answered 429. What
	// Authenticate lets in does not count, if it arrives whole and was not sent before. Without Authenticate everything
	// counts. The networks of an IPv6 /48 have 16 times as much together; so have, once 16,384 addresses are being counted,
	// all others. 0 = 20 and 200; at most 1,000,000; a negative rate sets no limit.
	StrangerRate  float64
	StrangerBurst int
}

var defaultAllow = []string{
	"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/responses", "GET /v1/models",
}

func (c *GatewayOHTTP) setDefaults() error {
	if c.Allow == nil {
		c.Allow = defaultAllow
	}
	for _, entry := range c.Allow {
		method, path, _ := strings.Cut(entry, " ")
		q := bhttp.Request{Method: method, Scheme: "https", Path: path}
		if _, err := bhttp.AppendRequest(nil, &q, nil, nil, 0); err != nil || strings.ContainsAny(path, "?*") {
			return configError("GatewayConfig.OHTTP.Allow", "want a method and a path, like \"POST /v1/chat/completions\"")
		}
	}
	if c.DateWindow < 0 || c.DateWindow > 24*time.Hour {
		return configError("GatewayConfig.OHTTP.DateWindow", "out of range")
	}
	if c.DateWindow == 0 {
		c.DateWindow = 2 * time.Minute
	}
	if c.Pad < 0 || c.Pad > ohttp.MaxChunk || bits.OnesCount(uint(c.Pad)) > 1 { // so that full chunks are multiples, too
		return configError("GatewayConfig.OHTTP.Pad", "want a power of two up to %d, or 0", ohttp.MaxChunk)
	}
	if math.IsNaN(c.StrangerRate) || c.StrangerRate > 1e6 || c.StrangerBurst < 0 || c.StrangerBurst > 1e6 {
		return configError("GatewayConfig.OHTTP.StrangerRate", "out of range")
	}
	if c.StrangerRate == 0 {
		c.StrangerRate = 20
	}
	if c.StrangerBurst == 0 {
		c.StrangerBurst = 200
	}
	return nil
}

// ohttp serves the second protocol's only path.
func (h *gatewayRequest) ohttp() {
	switch {
	case h.r.Method == http.MethodPost:
		h.oblivious()
	case h.r.Method == http.MethodGet, h.r.Method == http.MethodHead:
		h.keyList()
	default:
		h.header("Allow", "GET, HEAD, POST")
		h.refuseOuter(refuse(http.StatusMethodNotAllowed, "method not allowed"))
	}
}

// keyList serves the list of configurations.
func (h *gatewayRequest) keyList() {
	keys := h.g.cfg.Keys
	configs, err := keys.store.Configs(h.r.Context())
	var signature string
	list := ohttp.AppendConfigs(nil, configs...)
	if err == nil {
		signature, err = keys.store.SignList(list, time.Now())
	}
	if err != nil {
		h.refuseOuter(&refusal{status: http.StatusServiceUnavailable, detail: "no key", retryAfter: time.Second, cause: err})
		return
	}
	h.header("Content-Type", ohttp.TypeKeys)
	h.header(ohttp.HeaderSignature, signature)
	_ = h.write(http.StatusOK, list)
}

// obliviousRequest is one request of the second protocol.
type obliviousRequest struct {
	*gatewayRequest
	arriving *arrivingBody
	exchange *ohttp.Exchange
	writer   *ohttp.Writer // the answer's; nil before it has begun
	opened   bool          // a chunk of the request has opened: whoever sent it can read what is sealed for him

	head        *bhttp.Request
	body        *bhttp.Body
	inHeader    http.Header
	path, query string // as they stood, escaped
	content     []byte
	date        time.Time
	stranger    *limit.Lease // what it took as one that may be a stranger's
	asked       bool         // something of the request may have reached the upstream
	stuck       bool         // the client did not take a chunk
}

// oblivious serves POST /.well-known/ohttp-gateway.
func (h *gatewayRequest) oblivious() {
	q := &obliviousRequest{gatewayRequest: h}
	defer q.close()
	defer q.survive()
	q.within(min(q.g.cfg.BodyTimeout, q.g.limits.headTimeout), reading)
	if p := q.admit(); p != nil {
		if p.status != http.StatusTooManyRequests { // a stranger is not worth the bytes
			q.drain()
		}
		q.refuseOuter(p)
		return
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), q.g.cfg.Timeout)
	defer cancel()
	defer context.AfterFunc(q.g.life, cancel)()
	if p := q.serve(ctx); p != nil {
		q.refuse(p)
	}
}

// serve works on a request that may be a stranger's. A place among those that are worked on is for whoever is let in.
func (q *obliviousRequest) serve(ctx context.Context) *refusal {
	if p := q.begins(ctx); p != nil {
		if q.opened {
			q.drain()
		}
		return p
	}
	id := q.exchange.ID()
	if q.g.knows(id) { // so that copies of one request do not take what others need; claimExchange decides
		q.drain()
		return sentBefore()
	}
	delivery, wait := q.g.limits.deliveries.Take(string(id[:]), 1)
	if wait > 0 {
		q.drain()
		return sentBefore()
	}
	defer delivery.Return()
	if p := q.readContent(ctx); p != nil {
		return p
	}
	if p := q.enter(); p != nil {
		return q.turnAway(ctx, p)
	}
	defer q.leave()
	for _, step := range []func(context.Context) *refusal{q.claimExchange, q.tellWhole, q.forward} {
		if p := step(ctx); p != nil {
			return p
		}
	}
	return nil
}

// begins reads the head of a request, and judges it, in a place among the readers.
func (q *obliviousRequest) begins(ctx context.Context) *refusal {
	head, wait := q.g.limits.heads.Take(q.address(), 1)
	if wait > 0 {
		q.drain()
		return tooManyAtOnce()
	}
	defer head.Return()
	if p := q.open(ctx); p != nil {
		return p
	}
	return q.check(ctx)
}

// turnAway refuses a request for which there is no place. No copy of it is served later on, so the refusal may say that it was
// not processed. Beyond so many a second it says nothing, or else a busy gateway would fill its memory of replays.
func (q *obliviousRequest) turnAway(ctx context.Context, busy *refusal) *refusal {
	if busy.forgotten {
		return busy
	}
	if _, wait := q.g.limits.refusals.Take("all", 1); wait > 0 {
		busy.forgotten = true
		return busy
	}
	if p := q.claimExchange(ctx); p != nil {
		return p
	}
	return busy
}

func (q *obliviousRequest) tellWhole(ctx context.Context) *refusal {
	return q.tellOpened(ctx, len(q.content))
}

// close wipes what the request leaves. An answer that has not been finished has no end.
func (q *obliviousRequest) close() {
	if q.writer != nil {
		q.writer.Close()
	}
	if q.exchange != nil {
		q.exchange.Close()
	}
	clear(q.content)
}

// admit looks at what is not sealed.
func (q *obliviousRequest) admit() *refusal {
	if p := q.admitOuter(q.limit()); p != nil {
		return p
	}
	if kind, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type")); err != nil || kind != ohttp.TypeRequest {
		return refuse(http.StatusUnsupportedMediaType, "want "+ohttp.TypeRequest)
	}
	var wait time.Duration
	if q.stranger, wait = q.g.limits.strangers.Take(q.address(), 1); wait > 0 {
		return &refusal{status: http.StatusTooManyRequests, detail: "too many requests that cannot be attributed", retryAfter: wait}
	}
	return nil
}

// limit is the most bytes of a sealed request: content, fields, padding, and what sealing in chunks of a KiB or more adds.
func (q *obliviousRequest) limit() int64 { return chunkedLimit(q.g.cfg.MaxRequestBytes) }

func chunkedLimit(content int64) int64 { return content + content/32 + maxInnerHead + maxInnerPadding }

const (
	maxInnerHead    = 64 << 10
	maxSealedHead   = 128 << 10 // of what holds the header, with its chunk's rest
	maxInnerPadding = 1 << 20
)

// open reads the request until its header is there.
func (q *obliviousRequest) open(ctx context.Context) *refusal {
	keys := q.g.cfg.Keys
	if _, err := keys.store.Configs(ctx); err != nil {
		return &refusal{status: http.StatusServiceUnavailable, detail: "no key", retryAfter: time.Second, cause: err}
	}
	limit := q.limit()
	q.arriving = &arrivingBody{h: q.gatewayRequest}
	capped := httpx.CappedAt(q.arriving, maxSealedHead, limit) // the rest is for whoever is known by then: chunks of a byte cost 18 bytes, and work, each
	x, err := ohttp.Open(capped, keyFinder{ctx, keys}, ohttp.MaxChunk)
	if err != nil {
		return q.openRefusal(err)
	}
	q.exchange = x
	id := x.ID()
	q.payloadID = formatUUID([16]byte(id[:16])) // the client calls it the same
	src := &openedSource{Reader: x.Request(), opened: &q.opened}
	q.head, q.body, err = bhttp.ReadRequest(src, bhttp.Limits{
		Head: maxInnerHead, Content: q.g.cfg.MaxRequestBytes, Padding: maxInnerPadding,
	})
	if err != nil {
		return q.openRefusal(err)
	}
	capped.AllowRest()
	q.within(unbounded, reading) // Authenticate may take its time: a deadline that passes would end the request
	return nil
}

// readContent reads on to the final chunk.
func (q *obliviousRequest) readContent(ctx context.Context) *refusal {
	err := q.arriving.charge()
	if err == nil {
		q.content, err = q.body.ReadAll()
	}
	if errors.Is(err, errNoRoom) {
		q.drain()
		return q.turnAway(ctx, tooManyAtOnce())
	}
	if err != nil {
		return q.openRefusal(err)
	}
	q.within(unbounded, reading) // from here on Timeout holds
	q.g.counts.opened.Add(int64(len(q.content)))
	if len(q.body.Trailer()) > 0 {
		return refuse(http.StatusBadRequest, "a request with trailers")
	}
	if len(q.content) > 0 && slices.Contains(withoutContent, q.head.Method) {
		return refuse(http.StatusBadRequest, "content with "+q.head.Method)
	}
	return nil
}

// withoutContent are the methods for which content has no meaning (RFC 9110, section 9.3). An upstream may leave it on the
// connection.
var withoutContent = []string{http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodOptions}

// keyFinder looks once more for a key that another process may have made a moment ago.
type keyFinder struct {
	ctx  context.Context
	keys *KeyStore
}

func (f keyFinder) Key(id uint8, kem uint16) *ohttp.PrivateKey {
	return f.keys.store.ConfigKey(f.ctx, id, kem)
}

// openedSource notes that something has opened.
type openedSource struct {
	*ohttp.Reader
	opened *bool
}

func (s *openedSource) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	*s.opened = *s.opened || n > 0
	return n, err
}

func (s *openedSource) ReadByte() (byte, error) {
	b, err := s.Reader.ReadByte()
	*s.opened = *s.opened || err == nil
	return b, err
}

func (q *obliviousRequest) openRefusal(err error) *refusal {
	switch {
	case errors.Is(err, ErrTooLarge), errors.Is(err, ohttp.ErrTooLarge), errors.Is(err, bhttp.ErrTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "the request is too large")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusRequestTimeout, "the request did not arrive in time")
	case errors.Is(err, ohttp.ErrUnknownKey), errors.Is(err, ohttp.ErrDecryption) && !q.opened:
		p := refuse(http.StatusUnprocessableEntity, "the request cannot be decrypted; fetch the key configurations again")
		p.kind = ohttp.ProblemKey
		return p
	case errors.Is(err, ohttp.ErrDecryption):
		return refuse(http.StatusBadRequest, "a chunk of the request does not open")
	case errors.Is(err, ohttp.ErrTruncated), errors.Is(err, ohttp.ErrEmptyChunk), errors.Is(err, ohttp.ErrTooMany):
		return &refusal{status: http.StatusBadRequest, detail: "the request did not arrive whole", cause: err}
	}
	return &refusal{status: http.StatusBadRequest, detail: "not a binary HTTP request", cause: err}
}

// refuse seals a refusal where the client can open it, and sends it in the clear where not.
func (q *obliviousRequest) refuse(p *refusal) {
	q.problem = p
	q.tellRefused(p)
	switch {
	case q.writer != nil: // the answer has begun: it stays without an end
		q.cut = true
		if q.status == 0 {
			_ = q.writer.Flush() // but what there is of it is sealed, and not nothing
		}
	case q.opened:
		q.refuseInner(p)
	default:
		q.refuseOuter(p)
	}
}

// refuseOuter answers in the clear. Nobody vouches for what it says.
func (h *gatewayRequest) refuseOuter(p *refusal) {
	h.problem = p
	body := p.problem()
	h.header("Content-Type", ohttp.TypeProblem)
	if p.retryAfter > 0 {
		h.header("Retry-After", httpx.WholeSeconds(p.retryAfter))
	}
	_ = h.write(p.status, body) // the client may be gone
}

// survive is for a panic on the way. An answer that has begun stays without a final chunk, so nobody takes it for whole;
// there is no need to break the connection for that.
func (q *obliviousRequest) survive() {
	p := recover()
	if p == nil {
		return
	}
	q.logPanic(p)
	q.within(min(q.g.cfg.BodyTimeout, 10*time.Second), reading) // net/http reads what is left of the body
	if q.writer == nil && q.status == 0 {
		q.refuse(refuse(http.StatusInternalServerError, "internal error"))
		return
	}
	q.cut = true
	q.problem = &refusal{status: http.StatusInternalServerError, detail: "internal error", cause: fmt.Errorf("panic of type %T", p)}
}
