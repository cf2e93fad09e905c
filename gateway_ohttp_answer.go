// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// begin makes the writer of the answer. Its first chunk sends the outer header along.
func (q *obliviousRequest) begin(inner int) error {
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

// chunkSink sends each chunk on its way, within the time that a client has to take it: a client that is slow slows down
// the reading from the upstream, one that has stopped ends it.
type chunkSink struct{ q *obliviousRequest }

func (s chunkSink) Write(chunk []byte) (int, error) {
	q := s.q
	q.within(q.g.cfg.BodyTimeout, writing)
	if q.status == 0 {
		q.status = http.StatusOK
		q.w.WriteHeader(http.StatusOK)
	}
	n, err := q.w.Write(chunk)
	q.bytesOut += n
	if err == nil {
		err = http.NewResponseController(q.w).Flush()
		if errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	q.stuck = err != nil
	if err == nil { // over HTTP/2 a deadline ends the stream also when nothing is being written
		q.within(unbounded, writing)
	}
	return n, err
}

// refuseInner seals a refusal.
func (q *obliviousRequest) refuseInner(p *refusal) {
	header := []bhttp.Field{{Name: "content-type", Value: ohttp.TypeProblem}}
	if p.retryAfter > 0 {
		header = append(header, bhttp.Field{Name: "retry-after", Value: httpx.WholeSeconds(p.retryAfter)})
	}
	if p.status == http.StatusUnauthorized {
		header = append(header, bhttp.Field{Name: "www-authenticate", Value: "Bearer"})
	}
	if len(p.allow) > 0 {
		header = append(header, bhttp.Field{Name: "allow", Value: p.allow})
	}
	if !q.asked && !p.forgotten && p.status != http.StatusConflict { // what was sent before may have been served then
		header = append(header, bhttp.Field{Name: ohttp.HeaderProcessed, Value: "no"})
	}
	body := p.problem()
	message, err := bhttp.AppendResponse(nil, &bhttp.Response{Status: p.status, Header: q.answerHeader(header, len(body))}, body, nil, q.g.cfg.OHTTP.Pad)
	if err == nil {
		err = q.begin(p.status)
	}
	if err == nil {
		_, err = q.writer.Write(message)
	}
	if err == nil {
		_ = q.writer.Finish() // the client may be gone
	}
}

// answerHeader adds what every inner answer says. length is -1 if it is not known.
func (q *obliviousRequest) answerHeader(header []bhttp.Field, length int) []bhttp.Field {
	header = slices.Clip(header)
	if length >= 0 {
		header = append(header, bhttp.Field{Name: "content-length", Value: strconv.Itoa(length)})
	}
	return append(header,
		bhttp.Field{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
		bhttp.Field{Name: ohttp.HeaderTier, Value: string(q.g.cfg.Tier)})
}
