// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// What passes between the inner messages and the upstream's, and nothing else.
var (
	headersUp   = []string{"content-type", "accept", "openai-beta"}
	headersDown = []string{"content-type", "retry-after", "x-request-id"}
)

// forward sends the request upstream and passes the answer on as it comes.
func (q *obliviousRequest) forward(ctx context.Context) *refusal {
	start := time.Now()
	defer func() { q.upstream = time.Since(start) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the upstream's work when the client takes no more
	sent := httpx.NewSent(q.content)
	defer sent.Finish()
	q.content = nil
	req, err := q.upstreamCall(ctx, sent)
	if err != nil {
		return &refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: err}
	}
	q.asked = true
	resp, err := q.g.way.transport("").RoundTrip(req) // no http.Client: redirects and cookies have no business here
	if err == nil && resp == nil {
		err = errors.New("the RoundTripper returned nothing")
	}
	if err != nil {
		return upstreamFailure(ctx, httpx.ExchangeError(ctx, "the upstream", err, false))
	}
	defer resp.Body.Close()
	switch s := resp.StatusCode; {
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusProxyAuthRequired, s < 200, s >= 300 && s < 400, s > 599:
		return &refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: fmt.Errorf("upstream status %d", s)}
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return &refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: fault.ContentEncoding}
	}
	if resp.ContentLength > q.g.cfg.MaxResponseBytes {
		return &refusal{status: http.StatusBadGateway, detail: "the upstream's answer is too large"}
	}
	if err := q.pass(ctx, resp); err != nil {
		if told, ok := errors.AsType[*lateRefusal](err); ok {
			return told.refusal
		}
		if q.stuck {
			return &refusal{status: statusClientGone, detail: "the client does not take the answer", cause: err}
		}
		return upstreamFailure(ctx, err) // for the log, when the answer has begun: it stays without an end
	}
	return nil
}

func (q *obliviousRequest) upstreamCall(ctx context.Context, sent *httpx.Sent) (*http.Request, error) {
	path := q.path
	if rest, ok := strings.CutPrefix(path, "/v1"); ok && (rest == "" || rest[0] == '/') {
		path = rest
	}
	req, err := q.g.way.request(ctx, q.head.Method, path, q.query, sent)
	if err != nil {
		return nil, err
	}
	for _, name := range headersUp {
		if v := q.inHeader.Values(name); len(v) > 0 {
			req.Header[http.CanonicalHeaderKey(name)] = v
		}
	}
	return req, nil
}

// pass seals the upstream's answer piece by piece as it comes. Memory is a chunk's: what the client does not take is not read.
func (q *obliviousRequest) pass(ctx context.Context, resp *http.Response) (err error) {
	p := q.newPasser(resp)
	defer p.wipe()
	if !p.whole.Known() && endsUnseen(resp) {
		return &lateRefusal{&refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: errNoEnd}}
	}
	early := true // also in a panic
	defer func() {
		if early && p.begun {
			q.tellCut(ctx, p.passed, err)
		}
	}()
	var body io.Reader = httpx.Capped(resp.Body, q.g.cfg.MaxResponseBytes)
	if p.events != nil {
		body = sse.NewIdle(body, q.g.cfg.IdleTimeout, p.events.Begun, func() { _ = resp.Body.Close() })
	}
	if p.live { // the client learns the status, and what kind of answer comes
		if err := p.head(resp); err != nil {
			return err
		}
	}
	for {
		n, readErr := p.read(body)
		q.g.counts.sealed.Add(int64(n))
		last := readErr == io.EOF
		if last && !p.begun { // all of it is here: what is wrong with it can still be said
			if err := q.complete(ctx, p); err != nil {
				return err
			}
			early = false // whatever comes now: it was told
		}
		checked := !p.begun
		if readErr == nil || last || p.begun {
			if err := p.send(resp, n); err != nil {
				return err
			}
		}
		switch {
		case readErr != nil && !last:
			return httpx.ExchangeError(ctx, "the upstream", readErr, true)
		case last && !checked:
			if err := q.complete(ctx, p); err != nil {
				return err
			}
			early = false
		}
		if last {
			return p.end()
		}
	}
}

// complete says whether an answer that was read to its end may have one for the client.
func (q *obliviousRequest) complete(ctx context.Context, p *passer) error {
	if !p.whole.Ended() {
		return errCutShort
	}
	if told := q.tellSealed(ctx, p.passed); told != nil {
		return &lateRefusal{told}
	}
	return nil
}

// lateRefusal is a refusal on its way through code that has errors.
type lateRefusal struct{ *refusal }

func (e *lateRefusal) Error() string { return e.detail }

// statusClientGone is for the log alone.
const statusClientGone = 499

// endsUnseen tells of an answer whose end is that of its connection, so that one that was cut looks whole. HTTP/2 and 3 have
// an end of their own.
func endsUnseen(resp *http.Response) bool {
	return resp.ProtoMajor == 1 && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
}

var errNoEnd = errors.New("the upstream's answer has neither a length nor chunks")

var errCutShort = errors.New("the upstream's answer ends before its end")

// tellCut tells of an answer that began and gets no end. An error of the Auditor's can only be logged.
func (q *obliviousRequest) tellCut(ctx context.Context, size int, err error) {
	if _, tried := errors.AsType[*lateRefusal](err); tried {
		return // it was the Auditor who ended it
	}
	e := Event{Type: EventResponseSealed, Bytes: int64(size), Duration: time.Since(q.start), Reason: "ended early"}
	switch {
	case q.stuck || q.r.Context().Err() != nil:
		e.Reason = "left early"
	case errors.Is(err, errCutShort) || errors.Is(err, ErrConnection):
		e.Reason = "cut short"
	}
	q.logAudit(q.tell(context.WithoutCancel(ctx), e))
}
