// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// check judges a request by its header, before the rest of it is read.
func (q *ohttpRequest) check(ctx context.Context) *refusal {
	q.inHeader = make(http.Header, len(q.head.Header))
	for _, f := range q.head.Header {
		q.inHeader.Add(f.Name, f.Value)
	}
	if hasEncoding(q.inHeader) {
		return refuse(http.StatusBadRequest, "the inner request has a content encoding")
	}
	if !plainContentType(q.inHeader) {
		return refuse(http.StatusBadRequest, "want one content-type field, in ASCII")
	}
	for _, name := range headersUp {
		if slices.ContainsFunc(q.inHeader.Values(name), notASCII) {
			return refuse(http.StatusBadRequest, "a field for the upstream is not in ASCII")
		}
	}
	for _, step := range []func(context.Context) *refusal{
		q.checkDate, q.authenticateInner, q.checkPath, q.checkInnerTier,
	} {
		if p := step(ctx); p != nil {
			return p
		}
	}
	return nil
}

// authenticateInner has Config.Authenticate judge a request that is made from the inner one.
func (q *ohttpRequest) authenticateInner(ctx context.Context) *refusal {
	path, query, _ := strings.Cut(q.head.Path, "?")
	unescaped, err := url.PathUnescape(path)
	if err != nil {
		return refuse(http.StatusBadRequest, "the path is not percent-encoded")
	}
	q.path, q.query = path, query
	inner := (&http.Request{
		Method: q.head.Method,
		URL: &url.URL{
			Scheme: q.head.Scheme, Host: q.head.Authority, Path: unescaped, RawPath: path,
			RawQuery: query,
		},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: q.inHeader.Clone(),
		Body: http.NoBody,
		Host: q.head.Authority, RemoteAddr: q.r.RemoteAddr, RequestURI: q.head.Path, TLS: q.r.TLS,
	}).WithContext(ctx)
	return q.request.authenticate(inner)
}

// checkDate asks for an inner Date that is near this clock.
func (q *ohttpRequest) checkDate(context.Context) *refusal {
	dates := q.inHeader.Values("Date")
	wrong := wrongDate()
	if len(dates) != 1 {
		return wrong
	}
	date, err := http.ParseTime(dates[0])
	if err != nil {
		return wrong
	}
	if off := time.Since(date); off > q.s.cfg.OHTTP.DateWindow || off < -q.s.cfg.OHTTP.DateWindow {
		return wrong
	}
	q.date = date
	return nil
}

func wrongDate() *refusal {
	p := refuse(http.StatusBadRequest, "the request has no Date that is near the gateway's clock")
	p.kind = ohttp.ProblemDate
	return p
}

// checkPath allows what is on the list. Paths are compared as they stand: no two spellings are one
// path here.
func (q *ohttpRequest) checkPath(context.Context) *refusal {
	var methods []string
	for _, entry := range q.s.cfg.OHTTP.Allow {
		if method, path, _ := strings.Cut(entry, " "); path == q.path {
			methods = append(methods, method)
		}
	}
	switch {
	case len(methods) == 0:
		return refuse(http.StatusNotFound, "no such endpoint")
	case !slices.Contains(methods, q.head.Method):
		p := refuse(http.StatusMethodNotAllowed, "method not allowed")
		p.allow = strings.Join(methods, ", ")
		return p
	}
	return nil
}

func (q *ohttpRequest) checkInnerTier(context.Context) *refusal { return q.readTier(q.inHeader) }

// replaySlack is how much longer a request is remembered than its Date is accepted, for what is
// accepted at the last moment and still has to be read.
const replaySlack = time.Minute

// claimExchange refuses a request that was sent before. Here nothing is ever released: a client
// seals anew when it tries again, so the same bytes come from an attacker, or from a network that
// sent them twice.
func (q *ohttpRequest) claimExchange(ctx context.Context) *refusal {
	until := q.date.Add(q.s.cfg.OHTTP.DateWindow + replaySlack)
	fresh, err := q.s.cfg.Replay.Claim(ctx, q.exchange.ID(), [32]byte{}, until)
	if err != nil {
		return unavailable("the replay cache is unavailable", err).soon()
	}
	if !fresh {
		return sentBefore()
	}
	if !time.Now().Before(until) { // it may have been forgotten when it was claimed
		return wrongDate()
	}
	if q.s.cfg.Authenticate != nil {
		q.stranger.Return()
	}
	return nil
}
