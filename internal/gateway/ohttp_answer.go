// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// startAnswer makes the writer of the answer. Its first chunk sends the outer header along.
func (q *ohttpRequest) startAnswer(inner int) error {
	w, err := q.exchange.Response(chunkSink{q})
	if err != nil {
		return err
	}
	q.writer, q.inner = w, inner
	q.header("Content-Type", ohttp.TypeResponse)
	q.header("Incremental", "?1")       // proxies are asked to pass chunks on as they come
	q.header("X-Accel-Buffering", "no") // and nginx is asked in its own words
	return nil
}

// chunkSink sends each chunk on its way, within the time that a client has to take it: a client
// that is slow slows down the reading from the upstream, one that has stopped ends it.
type chunkSink struct{ q *ohttpRequest }

func (s chunkSink) Write(chunk []byte) (int, error) {
	q := s.q
	// Over HTTP/2 the end of the stream comes in a frame of its own behind what is flushed. An
	// answer that is in one piece goes with the end, in one record, when the handler returns.
	withEnd := q.inOne && q.r.ProtoMajor == 2
	if withEnd {
		q.withinAfter(q.s.cfg.BodyTimeout, writing)
	} else {
		q.within(q.s.cfg.BodyTimeout, writing)
	}
	if q.status == 0 {
		if q.inOne {
			q.header("Content-Length", strconv.Itoa(len(chunk)))
		}
		q.status = http.StatusOK
		q.w.WriteHeader(http.StatusOK)
	}
	q.writing = true
	n, err := q.w.Write(chunk)
	q.bytesOut += n
	if err == nil && !withEnd {
		err = q.flush()
	}
	q.clientGone, q.writing = err != nil, err != nil
	// Over HTTP/2 a deadline ends the stream also when nothing is being written.
	if err == nil && !withEnd {
		q.within(unbounded, writing)
	}
	return n, err
}

// refuseInner seals a refusal.
func (q *ohttpRequest) refuseInner(p *refusal) {
	header := []bhttp.Field{
		{Name: "content-type", Value: ohttp.TypeProblem},
		{Name: ohttp.HeaderRefusedBy, Value: "gateway"},
	}
	add := func(name, value string) {
		header = append(header, bhttp.Field{Name: name, Value: value})
	}
	if p.retryAfter > 0 {
		add("retry-after", httpx.WholeSeconds(p.retryAfter))
	}
	if p.status == http.StatusUnauthorized {
		add("www-authenticate", "Bearer")
	}
	if p.allow != "" {
		add("allow", p.allow)
	}
	// A request that was sent before may have been served then.
	if !q.forwarded && !p.unclaimed && p.status != http.StatusConflict {
		add(ohttp.HeaderProcessed, "no")
	}
	body := p.document()
	message, err := bhttp.AppendResponse(nil, &bhttp.Response{
		Status: p.status, Header: q.answerHeader(header, len(body)),
	}, body, nil, q.s.cfg.OHTTP.Padding)
	if err == nil {
		err = q.startAnswer(p.status)
	}
	if err == nil {
		_, err = q.writer.Write(message)
	}
	if err == nil {
		_ = q.writer.Finish() // the client may be gone
	}
}

// answerHeader adds what every inner answer says. length is -1 if it is not known.
func (q *ohttpRequest) answerHeader(header []bhttp.Field, length int) []bhttp.Field {
	header = slices.Clip(header)
	if length >= 0 {
		header = append(header, bhttp.Field{Name: "content-length", Value: strconv.Itoa(length)})
	}
	return append(header,
		bhttp.Field{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
		bhttp.Field{Name: ohttp.HeaderTier, Value: string(q.s.cfg.Tier)})
}

// Headers that pass between the inner messages and the upstream's. No others do. Never changed.
var (
	headersUp   = []string{"content-type", "accept", "openai-beta"}
	headersDown = []string{"content-type", "retry-after", "x-request-id"}
)

// forward sends the request upstream and passes the answer on as it comes.
func (q *ohttpRequest) forward(ctx context.Context) *refusal {
	defer q.timeUpstream()()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the upstream's work when the client takes no more
	sent := httpx.NewSent(q.s.buffers.put, q.content...)
	defer sent.Finish()
	q.content = nil
	req, p := q.s.upstream.request(ctx, q.upstreamCall(sent))
	if p != nil {
		return p
	}
	q.forwarded = true
	resp, p := q.askUpstream(req)
	if p != nil {
		return p
	}
	defer resp.Body.Close()
	if p := sealable(resp, q.s.cfg.MaxResponseBytes); p != nil {
		return p
	}
	err := q.relay(ctx, resp, sent)
	if err == nil {
		return nil
	}
	if told, ok := errors.AsType[*refusalError](err); ok {
		return told.refusal
	}
	if q.clientGone {
		p := refuse(statusClientGone, "the client does not take the answer")
		p.cause = err
		return p
	}
	return upstreamFailure(ctx, err) // for the log, where the answer has begun: it has no end
}

func (q *ohttpRequest) upstreamCall(content *httpx.Sent) *upstreamCall {
	path := q.path
	if rest, ok := strings.CutPrefix(path, "/v1"); ok && (rest == "" || rest[0] == '/') {
		path = rest
	}
	header := make(http.Header)
	for _, name := range headersUp {
		if v := q.inHeader.Values(name); len(v) > 0 {
			header[http.CanonicalHeaderKey(name)] = v
		}
	}
	q.trace(header, q.inHeader) // the outer header is anybody's on the way
	return &upstreamCall{
		method: q.head.Method, path: path, query: q.query, header: header, content: content,
	}
}

// choicesOf is how many choices a request asks a completion for; 1, if it is none, or says nothing
// of them.
func choicesOf(request *httpx.Sent) (choices int) {
	choices = 1
	request.Look(func(body []byte) {
		if chatjson.ValidObject(body) {
			choices = chatjson.CallOf(body).Choices
		}
	})
	return choices
}

// relay seals the upstream's answer piece by piece as it comes. Its memory is that of four chunks
// at most: it reads only what the client takes.
func (q *ohttpRequest) relay(ctx context.Context, resp *http.Response, request *httpx.Sent) (
	err error) {
	limit := q.s.cfg.MaxResponseBytes
	body, encoded, err := httpx.Decoded(resp.Header, httpx.Capped(resp.Body, limit), limit)
	if err != nil {
		return err
	}
	if encoded {
		resp.ContentLength = -1 // is that of what came
	}
	e := newAnswerEncoder(q, resp)
	defer e.wipe()
	if asked, ok := e.ending.(interface{ Asked(choices func() int) }); ok {
		asked.Asked(sync.OnceValue(func() int { return choicesOf(request) }))
	}
	e.unseen = e.unseen && !encoded // gzip has an end of its own
	if !e.ending.Known() && e.unseen {
		return &refusalError{upstreamFailed(errNoEnd)}
	}
	audited := false // the Auditor was told of the answer's end
	defer func() {
		if e.started && !audited { // also in a panic
			q.tellCut(ctx, e.taken, err)
		}
	}()
	if events, ok := e.ending.(interface{ Begun() bool }); ok {
		end := func() { _ = resp.Body.Close() }
		body = sse.NewIdle(body, q.s.cfg.IdleTimeout, events.Begun, end)
	}
	if err := e.encodeHead(); err != nil {
		return err
	}
	// the client learns the status, and what kind of answer comes
	if e.unknownLength() && !encoded {
		if err := e.start(); err != nil {
			return err
		}
	}
	for {
		readErr := e.read(body)
		q.s.counts.sealed.Add(int64(len(e.piece)))
		if readErr == io.EOF {
			return q.endAnswer(ctx, e, &audited)
		}
		if e.ending.Done() && e.unknownLength() {
			err := q.endAnswer(ctx, e, &audited)
			if err == nil && readErr == nil {
				linger(resp.Body)
			}
			return err
		}
		if readErr == nil || e.started {
			if err := e.send(); err != nil {
				return err
			}
		}
		if readErr != nil {
			return httpx.ExchangeError(ctx, theUpstream, readErr, true)
		}
	}
}

// lingerTime is how long an upstream may take to end its answer behind the last event. With its end
// read, the connection serves the next request.
const lingerTime = 50 * time.Millisecond

// linger reads on to the end of an answer that has said that it ended. The caller closes it.
func linger(body io.ReadCloser) {
	late := time.AfterFunc(lingerTime, func() { _ = body.Close() })
	defer late.Stop()
	_, _ = io.CopyN(io.Discard, body, 1<<10)
}

// endAnswer sends what was read last, and the end. An answer that has not started is checked before
// it does, while a refusal can still take its place.
func (q *ohttpRequest) endAnswer(ctx context.Context, e *answerEncoder, audited *bool) error {
	check := func() error {
		err := q.checkEnd(ctx, e)
		*audited = err == nil
		return err
	}
	steps := []func() error{check, e.end}
	if e.started {
		steps = []func() error{e.send, check, e.end}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// checkEnd says whether an answer that was read to its end may have one for the client.
func (q *ohttpRequest) checkEnd(ctx context.Context, e *answerEncoder) error {
	ended := e.ending.Ended()
	if said, ok := e.ending.(interface{ EndedUnseen() bool }); ok && e.unseen {
		ended = said.EndedUnseen()
	}
	if !ended {
		return errCutShort
	}
	if p := q.tellSealed(ctx, e.taken); p != nil {
		return &refusalError{p}
	}
	return nil
}

// refusalError is a refusal on its way through code that has errors.
type refusalError struct{ *refusal }

func (e *refusalError) Error() string { return e.detail }

// endsUnseen tells of an answer whose end is that of its connection, so that one that was cut looks
// whole. HTTP/2 and 3 have an end of their own.
func endsUnseen(resp *http.Response) bool {
	return resp.ProtoMajor == 1 && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
}

var (
	errNoEnd    = errors.New("the upstream's answer has neither a length nor chunks")
	errCutShort = errors.New("the upstream's answer ends before its end")
)

// tellCut tells of an answer that began and gets no end. An error of the Auditor's can only be
// logged.
func (q *ohttpRequest) tellCut(ctx context.Context, size int, err error) {
	if _, tried := errors.AsType[*refusalError](err); tried {
		return // it was the Auditor who ended it
	}
	e := Event{
		Type: ResponseSealed, Bytes: int64(size), Duration: time.Since(q.start),
		Reason: "ended early",
	}
	switch {
	case q.clientGone || q.r.Context().Err() != nil:
		e.Reason = "left early"
	case errors.Is(err, errCutShort) || errors.Is(err, fault.ErrConnection):
		e.Reason = "cut short"
	}
	q.logAudit(q.tell(context.WithoutCancel(ctx), e))
}
