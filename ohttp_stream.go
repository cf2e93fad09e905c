// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// This file is for answers of the second protocol that are read as they come.

// openedResponse is an answer whose header has opened, and whose content opens as it comes. The
// body has to be closed.
type openedResponse struct {
	status    int
	header    http.Header
	body      *openedBody
	payloadID string

	begun []byte // the first bytes of the content, once sniff has read them
	lead  int    // how many of them are white space and comments
	form  sse.Form
}

// sniff reads until it shows what the content is: FormUnknown if nothing but white space and
// comments came.
func (r *openedResponse) sniff() (form sse.Form, err error) {
	if r.begun != nil {
		return r.form, nil
	}
	defer func() { r.form = form }()
	var s sse.Sniffer
	r.begun = make([]byte, 0, 512)
	for form == sse.FormUnknown || !r.saysEvents() && len(r.begun)-r.lead < longestField {
		if len(r.begun) == cap(r.begun) {
			outgrown := r.begun
			r.begun = append(make([]byte, 0, 2*cap(outgrown)), outgrown...)
			clear(outgrown)
		}
		var n, at int
		n, err = r.body.Read(r.begun[len(r.begun):cap(r.begun)])
		piece := r.begun[len(r.begun) : len(r.begun)+n]
		if form == sse.FormUnknown {
			form, at = s.See(piece)
			r.lead = len(r.begun) + at
		}
		r.begun = r.begun[:len(r.begun)+n]
		if err != nil {
			break
		}
	}
	if form == sse.FormJSON && bytes.IndexByte(r.begun[:r.lead], ':') >= 0 {
		r.begun, r.lead = r.begun[r.lead:], 0 // the gateway took it for events, and padded it
	}
	if err == io.EOF || len(r.begun) > 0 {
		return form, nil // content says it again, behind what has come
	}
	return form, err
}

// longestField is more than the name of any field of an event stream has, with its colon.
const longestField = 8

// content is all of the content, also after sniff, whose part is wiped as it is read: content is
// called once.
func (r *openedResponse) content() io.Reader {
	return io.MultiReader((*wipedReader)(&r.begun), r.body)
}

// wipedReader reads bytes, and wipes what was read.
type wipedReader []byte

// Read implements [io.Reader].
func (r *wipedReader) Read(p []byte) (int, error) {
	if len(*r) == 0 {
		return 0, io.EOF
	}
	n := copy(p, *r)
	clear((*r)[:n])
	*r = (*r)[n:]
	return n, nil
}

// saysEvents tells what the media type says.
func (r *openedResponse) saysEvents() bool { return r.media() == mediaEvents }

// beginsEvents tells content that begins with a field of an event stream.
func (r *openedResponse) beginsEvents() bool {
	for _, field := range [...]string{"data", "event", "id", "retry", "error"} {
		if bytes.HasPrefix(r.begun[r.lead:], []byte(field+":")) {
			return true
		}
	}
	return false
}

// media is the content's type without its parameters.
func (r *openedResponse) media() string {
	kind, _, _ := strings.Cut(r.header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// length is how long the content is to be, as far as the server said; -1 if it did not.
func (r *openedResponse) length() int64 {
	n, err := chatjson.WholeNumber([]byte(r.header.Get("Content-Length")))
	if err != nil || n < 0 || n > math.MaxInt32 {
		return -1
	}
	return n
}

// receiveStream sends t and opens the header of its answer. finish is called when a good answer has
// been read.
func (c *SecureCompletionClient) receiveStream(ctx context.Context, t *trip,
	finish func(*openedResponse, error)) (*openedResponse, error) {
	resp, err := c.sendForHeader(ctx, t)
	if err != nil {
		return nil, c.tellRefused(ctx, t.payloadID, err, t.o.tier)
	}
	resp.body.over = func(end error) error {
		failure := errPanicked
		defer func() { finish(resp, failure) }()
		defer t.release()
		c.counts.opened.Add(resp.body.opened)
		end = c.tellStream(context.WithoutCancel(ctx), resp, t.start, end)
		t.log.DebugContext(ctx, "answer ended", "duration", time.Since(t.start), "bytes",
			resp.body.opened, "complete", end == io.EOF)
		if failure = end; end == io.EOF || end == errBodyClosed {
			failure = nil
		}
		return end
	}
	resp.body.unreported = func(err error) {
		t.log.ErrorContext(ctx, "audit failed", "cause",
			fault.Reason(err))
	}
	t.kept = true
	resp.body.watch(ctx)
	return resp, nil
}

// tellStream tells how an answer ended of which something may have been handed out; end comes back,
// or the Auditor's error.
func (c *SecureCompletionClient) tellStream(ctx context.Context, resp *openedResponse,
	start time.Time, end error) error {
	e := Event{Type: EventResponseOpened, PayloadID: resp.payloadID, Bytes: resp.body.opened,
		Duration: time.Since(start)}
	switch {
	case end == io.EOF:
	case end == errBodyClosed:
		e.Reason = "left early"
	case errors.Is(end, ErrConnection):
		e.Reason = "cut short"
	case errors.Is(end, ErrDecryption), errors.Is(end, ErrEnvelope):
		return c.tellRefusedAfter(ctx, resp.payloadID, resp.body.opened, end, "")
	default:
		e.Reason = "ended early"
	}
	if err := fault.Join(c.audit.tell(ctx, e), c.tellMemory(ctx)); err != nil {
		if end == io.EOF || end == errBodyClosed {
			return err
		}
		return fault.Join(end, err)
	}
	return end
}

// sendForHeader sends t. Statuses inside that are errors are *APIError.
func (c *SecureCompletionClient) sendForHeader(ctx context.Context, t *trip) (*openedResponse,
	error) {
	outside, err := c.sendForGood(ctx, t)
	if err != nil {
		return nil, err
	}
	opened := false
	defer func() {
		if !opened {
			_ = outside.Body.Close()
		}
	}()
	resp, err := c.wire.openHeader(ctx, t.in, t.sealedRequest, outside)
	opened = err == nil
	return resp, err
}

func (p *ohttpProtocol) openHeader(ctx context.Context, in *plainRequest, r *sealedRequest,
	outside *http.Response) (*openedResponse, error) {
	limit := p.maxAnswer
	sealed, _, err := httpx.Decoded(outside.Header, httpx.Capped(outside.Body, limit), limit)
	if err != nil || !httpx.HasType(outside.Header, ohttp.TypeResponse) {
		return nil, errNotSealed
	}
	reader, err := r.ohttp.Response(sealed, maxAnswerChunk)
	if err != nil {
		return nil, innerError(err)
	}
	b := &openedBody{ctx: ctx, what: httpx.Describe(r.http), outside: outside.Body, reader: reader}
	head, body, err := bhttp.ReadResponse(reader, bhttp.Limits{Content: limit})
	if err != nil {
		reader.Close()
		return nil, b.failure(err)
	}
	resp := &openedResponse{status: head.Status, header: httpx.HeaderOf(head.Header), body: b,
		payloadID: r.payloadID}
	path, _, _ := strings.Cut(in.path, "?")
	b.content, b.ending = body, sse.EndingOf(resp.media(), path, -1)
	if in.isChat() {
		b.ending = sse.WatchOf(resp.media())
	}
	if events, ok := b.ending.(interface{ Begun() bool }); ok {
		b.content = sse.NewIdle(body, p.idle, events.Begun, func() { _ = outside.Body.Close() })
	}
	if in.method == http.MethodHead || head.Status == http.StatusNoContent {
		b.ending = sse.Any{}
	}
	if head.Status < 200 || head.Status > 299 {
		content, err := readWords(b)
		reader.Close()
		if err != nil {
			return nil, err
		}
		return nil, r.ohttp.checkAnswer(head, content)
	}
	err = r.ohttp.checkTier(resp.header)
	if resp.header.Get("Content-Encoding") != "" && err == nil {
		err = fmt.Errorf("%w: the answer inside has a content encoding", ErrEnvelope)
	}
	if err != nil {
		reader.Close()
		return nil, err
	}
	return resp, nil
}

var errNotSealed = &OuterError{StatusCode: http.StatusOK, Detail: "not a sealed answer"}

// readWords reads the beginning of an error's content. If the rest is missing, that does not
// matter: the status is authentic.
func readWords(b *openedBody) ([]byte, error) {
	stalled := time.AfterFunc(httpx.MaxErrorWait, func() { _ = b.outside.Close() })
	defer stalled.Stop()
	words, err := io.ReadAll(io.LimitReader(b.content, httpx.MaxErrorBody))
	if cause := context.Cause(b.ctx); err != nil && cause != nil && !errors.Is(cause,
		fault.ErrAttemptTimeout) {
		return nil, fault.Ended(b.ctx)
	}
	return words, nil
}

// openedBody is the content of an answer, opened as it comes. Read returns io.EOF only after the
// final chunk has opened and the content has come to an end of its own: the closing bracket of
// JSON, the last event of a stream. Every other end is an error that stays. Close may be called at
// any time, from any goroutine.
type openedBody struct {
	ctx     context.Context // of the call
	what    string
	outside io.Closer
	over    func(error) error // called once with the end, which it may replace; may be nil
	// unreported is called by Close with an Auditor's error that no Read has returned; set with
	// over
	unreported func(error)
	unwatch    func() bool
	// Close has cut the answer: that it ends early is no fault of the server's
	gaveUp atomic.Bool

	mu       sync.Mutex
	content  io.Reader // ends an event stream that stands still
	reader   *ohttp.Reader
	ending   sse.Ending
	opened   int64
	err      error // nil until the end
	reported bool  // Read has returned err, or it was logged
}

// watch ends the body with its context, whether or not a Read waits.
func (b *openedBody) watch(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unwatch = context.AfterFunc(ctx, func() {
		_ = b.outside.Close() // a Read that waits ends
		b.mu.Lock()
		defer b.mu.Unlock()
		_ = b.end(b.failure(context.Cause(ctx)))
	})
}

// Read implements [io.Reader].
func (b *openedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		b.reported = true
		return 0, b.err
	}
	n, err := b.content.Read(p)
	b.opened += int64(n)
	b.ending.See(p[:n])
	if err == nil {
		return n, nil
	}
	b.reported = true
	return n, b.end(b.contentEnd(err))
}

// contentEnd makes of the end of the message that of the content.
func (b *openedBody) contentEnd(err error) error {
	switch {
	case err != io.EOF:
		if err = b.failure(err); b.gaveUp.Load() && errors.Is(err, ErrTruncated) {
			return errBodyClosed
		}
		return err
	case !b.ending.Ended():
		return &fault.TruncatedError{What: "its content ends early"}
	}
	return io.EOF
}

// drainTime is for what follows the last event: the final chunk. With it read, the connection
// serves the next request.
const drainTime = 50 * time.Millisecond

// Close gives the rest of the answer up. A stream whose last event was read, where SDKs stop, is
// read to its end.
func (b *openedBody) Close() error {
	if !b.drain() {
		b.giveUp() // a Read that waits ends
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.end(errBodyClosed); !b.reported && b.unreported != nil && errors.Is(err, ErrAudit) {
		b.reported = true
		b.unreported(err)
	}
	return nil
}

func (b *openedBody) giveUp() {
	b.gaveUp.Store(true)
	_ = b.outside.Close()
}

func (b *openedBody) drain() bool {
	if !b.mu.TryLock() { // a Read waits
		return false
	}
	defer b.mu.Unlock()
	s, events := b.ending.(interface{ DoneAtEnd() bool })
	if b.err != nil || !events || !s.DoneAtEnd() {
		return b.err != nil
	}
	late := time.AfterFunc(drainTime, b.giveUp)
	defer late.Stop()
	var rest [512]byte
	for n := 0; n < 16; n++ { // more than a final chunk needs
		if _, err := b.content.Read(rest[:]); err != nil {
			_ = b.end(b.contentEnd(err))
			return true
		}
	}
	return false
}

var errBodyClosed = http.ErrBodyReadAfterClose

// end wipes the keys and lets the connection go, and returns how the body ended. b.mu is held.
func (b *openedBody) end(err error) error {
	if b.err != nil {
		return b.err
	}
	b.err = err
	if b.unwatch != nil {
		b.unwatch()
	}
	b.reader.Close()
	b.ending.Wipe()
	_ = b.outside.Close()
	if b.over != nil {
		b.err = errPanicked // unless it returns: the end of what is not audited is withheld
		b.err = b.over(err)
	}
	return b.err
}

// failure gives an error of reading its type. A context that ended explains whatever else went
// wrong.
func (b *openedBody) failure(err error) error {
	if cause := context.Cause(b.ctx); cause != nil {
		return httpx.ExchangeError(b.ctx, b.what, cause, true)
	}
	if errors.Is(err, fault.ErrStalled) {
		return fault.Connection(b.what, err, true)
	}
	return innerError(err)
}
