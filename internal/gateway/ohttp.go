// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/limit"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// ohttpRequest is one request of Oblivious HTTP. It goes through these states, and only forward:
//
//	outside    nothing has opened; a refusal is in the clear, and may be anybody's
//	opened     a chunk has opened, so the sender can open what is sealed; a refusal is sealed
//	judged     the header passed every check, so the client is known
//	whole      the final chunk has opened; nothing acts on a request before that
//	claimed    no copy of it is served later on
//	forwarded  the upstream may have seen it; a refusal no longer says that it was not processed
//	answering  writer is set, and chunks may be with the client; the answer can only be cut
//
// Invariant: from whole on until forwarded, content is the request's, and close wipes it; then the
// Sent that has it does. The request holds a place from before claimed until the end.
type ohttpRequest struct {
	*request
	arriving *arrivingBody
	exchange *ohttp.Exchange
	writer   *ohttp.Writer // the answer's; nil before it has begun
	sealed   []byte        // memory of the writer's; may be nil
	opened   bool          // a chunk of the request has opened

	head        *bhttp.Request
	body        *bhttp.Body
	inHeader    http.Header
	path, query string // as they stood, escaped
	content     [][]byte
	size        int // of content
	date        time.Time
	stranger    *limit.Lease // what it took as one that may be a stranger's
	forwarded   bool         // something of the request may have reached the upstream
	inOne       bool         // the whole answer is written at once
	writing     bool         // a write to the client has not returned, or failed
	clientGone  bool         // the client did not take a chunk
}

// endpoint serves the only path of Oblivious HTTP.
func (q *ohttpRequest) endpoint() {
	switch {
	case q.r.Method == http.MethodPost:
		q.post()
	case q.r.Method == http.MethodGet, q.r.Method == http.MethodHead:
		q.keyList()
	default:
		q.header("Allow", "GET, HEAD, POST")
		q.refuseOuter(refuse(http.StatusMethodNotAllowed, "method not allowed"))
	}
}

// keyList serves the list of configurations.
func (q *ohttpRequest) keyList() {
	keys := q.s.cfg.Keys
	configs, err := keys.Configs(q.r.Context())
	var signature string
	list := ohttp.AppendConfigs(nil, configs...)
	if err == nil {
		signature, err = keys.SignList(list, time.Now())
	}
	if err != nil {
		q.refuseOuter(unavailable("no key", err).soon())
		return
	}
	q.header("Content-Type", ohttp.TypeKeys)
	q.header(ohttp.HeaderSignature, signature)
	_ = q.write(http.StatusOK, list)
}

// post serves a sealed request.
func (q *ohttpRequest) post() {
	defer q.close()
	defer q.survive()
	q.within(min(q.s.cfg.BodyTimeout, q.s.limits.headTimeout), reading)
	if p := q.admit(); p != nil {
		if p.status != http.StatusTooManyRequests { // a stranger is not worth the bytes
			q.drain()
		}
		q.refuseOuter(p)
		return
	}
	ctx, cancel := q.whileServed()
	defer cancel()
	if p := q.serve(ctx); p != nil {
		q.refuse(p)
	}
}

// serve works on a request that may be a stranger's. It takes a place among those that are worked
// on when the client is known and the request is whole.
func (q *ohttpRequest) serve(ctx context.Context) *refusal {
	if p := q.readHead(ctx); p != nil {
		if q.opened {
			q.drain()
		}
		return p
	}
	id := q.exchange.ID()
	if q.s.knows(id) { // copies must not take what others need; claimExchange decides
		q.drain()
		return sentBefore()
	}
	delivery, wait := q.s.limits.deliveries.Take(string(id[:]), 1)
	if wait > 0 {
		q.drain()
		return sentBefore()
	}
	defer delivery.Return()
	if p := q.readContent(ctx); p != nil {
		return p
	}
	if p := q.takePlace(); p != nil {
		return q.turnAway(ctx, p)
	}
	defer q.givePlace()
	for _, step := range []func(context.Context) *refusal{q.claimExchange, q.tellWhole, q.forward} {
		if p := step(ctx); p != nil {
			return p
		}
	}
	return nil
}

// readHead reads the head of a request, and judges it, in a place among the readers.
func (q *ohttpRequest) readHead(ctx context.Context) *refusal {
	head, wait := q.s.limits.heads.Take(q.address(), 1)
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

// turnAway refuses a request for which there is no place. No copy of it is served later on, so the
// refusal may say that it was not processed. Beyond so many a second it says nothing, or else a
// busy gateway would fill its memory of replays.
func (q *ohttpRequest) turnAway(ctx context.Context, busy *refusal) *refusal {
	if busy.unclaimed {
		return busy
	}
	if _, wait := q.s.limits.refusals.Take("all", 1); wait > 0 {
		busy.unclaimed = true
		return busy
	}
	if p := q.claimExchange(ctx); p != nil {
		return p
	}
	return busy
}

func (q *ohttpRequest) tellWhole(ctx context.Context) *refusal {
	return q.tellOpened(ctx, q.size)
}

// close wipes what the request leaves. An answer that has not been finished has no end.
func (q *ohttpRequest) close() {
	if q.writer != nil {
		q.writer.Close()
	}
	if q.sealed != nil && !q.writing { // or net/http may read it still
		q.s.sealed.wipe([][]byte{q.sealed})
	}
	if q.exchange != nil {
		q.exchange.Close()
	}
	q.s.buffers.wipe(q.content)
}

// admit looks at what is not sealed.
func (q *ohttpRequest) admit() *refusal {
	if p := q.admitOuter(q.limit()); p != nil {
		return p
	}
	if !httpx.HasType(q.r.Header, ohttp.TypeRequest) {
		return refuse(http.StatusUnsupportedMediaType, "want "+ohttp.TypeRequest)
	}
	var wait time.Duration
	if q.stranger, wait = q.s.limits.strangers.Take(q.address(), 1); wait > 0 {
		p := refuse(http.StatusTooManyRequests, "too many requests that cannot be attributed")
		p.retryAfter = wait
		return p
	}
	return nil
}

// limit is the most bytes of a sealed request: content, fields, padding, and what sealing in chunks
// of a KiB or more adds.
func (q *ohttpRequest) limit() int64 { return chunkedLimit(q.s.cfg.MaxRequestBytes) }

func chunkedLimit(content int64) int64 {
	return content + content/32 + maxInnerHead + maxInnerPadding
}

const (
	maxInnerHead    = 64 << 10
	maxSealedHead   = 128 << 10 // of what holds the header, with its chunk's rest
	maxInnerPadding = 1 << 20
)

// open reads the request until its header is there.
func (q *ohttpRequest) open(ctx context.Context) *refusal {
	keys := q.s.cfg.Keys
	if _, err := keys.Configs(ctx); err != nil {
		return unavailable("no key", err).soon()
	}
	limit := q.limit()
	q.arriving = &arrivingBody{h: q.request}
	// A chunk of one byte costs 18 bytes, and work. The rest of the limit is for clients that are
	// known by then.
	capped := httpx.CappedAt(q.arriving, maxSealedHead, limit)
	x, err := ohttp.Open(capped, keyFinder{ctx, keys}, ohttp.MaxChunk)
	if err != nil {
		return q.openRefusal(err)
	}
	q.exchange = x
	id := x.ID()
	q.payloadID = chatjson.UUID([16]byte(id[:16])) // the client calls it the same
	src := &openedSource{Reader: x.Request(), opened: &q.opened}
	q.head, q.body, err = bhttp.ReadRequest(src, bhttp.Limits{
		Head: maxInnerHead, Content: q.s.cfg.MaxRequestBytes, Padding: maxInnerPadding,
	})
	if err != nil {
		return q.openRefusal(err)
	}
	capped.AllowRest()
	// Authenticate may take its time: a deadline that passes would end the request.
	q.within(unbounded, reading)
	return nil
}

// readContent reads on to the final chunk.
func (q *ohttpRequest) readContent(ctx context.Context) *refusal {
	err := q.arriving.charge()
	if err == nil {
		q.content, err = q.s.buffers.readPieces(q.body)
	}
	for _, piece := range q.content {
		q.size += len(piece)
	}
	if errors.Is(err, errNoShare) {
		q.drain()
		return q.turnAway(ctx, tooManyAtOnce())
	}
	if err != nil {
		return q.openRefusal(err)
	}
	q.within(unbounded, reading) // from here on Timeout holds
	q.s.counts.opened.Add(int64(q.size))
	if len(q.body.Trailer()) > 0 {
		return refuse(http.StatusBadRequest, "a request with trailers")
	}
	if q.size > 0 && slices.Contains(withoutContent, q.head.Method) {
		return refuse(http.StatusBadRequest, "content with "+q.head.Method)
	}
	return nil
}

// withoutContent are the methods for which content has no meaning (RFC 9110, section 9.3). An
// upstream may leave it on the connection.
var withoutContent = []string{
	http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodOptions,
}

// keyFinder looks once more for a key that another process may have made a moment ago.
type keyFinder struct {
	ctx  context.Context
	keys *keystore.Store
}

func (f keyFinder) Key(id uint8, kem uint16) *ohttp.PrivateKey {
	return f.keys.ConfigKey(f.ctx, id, kem)
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

func (q *ohttpRequest) openRefusal(err error) *refusal {
	switch {
	case errors.Is(err, fault.ErrTooLarge),
		errors.Is(err, ohttp.ErrTooLarge),
		errors.Is(err, bhttp.ErrTooLarge):
		return tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return notInTime()
	case errors.Is(err, ohttp.ErrUnknownKey), errors.Is(err, ohttp.ErrDecryption) && !q.opened:
		p := refuse(http.StatusUnprocessableEntity,
			"the request cannot be decrypted; fetch the key configurations again")
		p.kind = ohttp.ProblemKey
		return p
	case errors.Is(err, ohttp.ErrDecryption):
		return refuse(http.StatusBadRequest, "a chunk of the request does not open")
	case errors.Is(err, ohttp.ErrTruncated),
		errors.Is(err, ohttp.ErrEmptyChunk),
		errors.Is(err, ohttp.ErrTooMany):
		return notWhole(err)
	}
	return &refusal{status: http.StatusBadRequest, detail: "not a binary HTTP request", cause: err}
}

// refuse seals a refusal where the client can open it, and sends it in the clear where not.
func (q *ohttpRequest) refuse(p *refusal) {
	q.problem = p
	q.tellRefused(p)
	switch {
	case q.writer != nil: // the answer has begun: it stays without an end
		q.cut = true
		if q.status == 0 {
			// sends what there is of it, so that the status is a sealed answer's
			_ = q.writer.Flush()
		}
	case q.opened:
		q.refuseInner(p)
	default:
		q.refuseOuter(p)
	}
}

// refuseOuter answers in the clear: a client cannot tell who has written it.
func (q *ohttpRequest) refuseOuter(p *refusal) {
	q.problem = p
	body := p.document()
	q.header("Content-Type", ohttp.TypeProblem)
	if p.retryAfter > 0 {
		q.header("Retry-After", httpx.WholeSeconds(p.retryAfter))
	}
	_ = q.write(p.status, body) // the client may be gone
}

// survive is for a panic on the way. An answer that has begun stays without a final chunk, so
// no client takes it for whole; there is no need to break the connection for that.
func (q *ohttpRequest) survive() {
	p := recover()
	if p == nil {
		return
	}
	q.logPanic(p)
	// net/http reads what is left of the body
	q.within(min(q.s.cfg.BodyTimeout, 10*time.Second), reading)
	if q.writer == nil && q.status == 0 {
		q.refuse(refuse(http.StatusInternalServerError, "internal error"))
		return
	}
	q.cut = true
	q.problem = &refusal{
		status: http.StatusInternalServerError,
		detail: "internal error",
		cause:  fmt.Errorf("panic of type %T", p),
	}
}
