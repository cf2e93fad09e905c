// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
)

// This file carries one call to the server and back, in as many attempts as that takes.

// protocol is one way to carry sealed requests over HTTP, and the only way from the client to it.
// The client above it knows requests, answers and errors; keys, ciphers and paths are below.
type protocol interface {
	// warm does ahead of time what the first call would otherwise wait for.
	warm(ctx context.Context) error
	// fetchKeys asks the server for its keys over rt, best first.
	fetchKeys(ctx context.Context, rt http.RoundTripper) ([]*PublicKey, error)
	// route says as what an SDK's request is sealed, all but its content, or with which answer it
	// is refused.
	route(req *http.Request) (*plainRequest, *unrouted)
	// streams reports whether answers are opened as they come. Otherwise every answer comes whole.
	streams() bool
	// seal encrypts in, which it leaves as it is, with fresh keys into an HTTP request that is
	// ready to go.
	seal(ctx context.Context, in *plainRequest, o *callOptions) (*sealedRequest, error)
	// openAnswer reads and decrypts a whole answer to r whose status is 200, into the memory that
	// into returned last, or ordinary memory when into is nil. The caller closes the body.
	openAnswer(ctx context.Context, r *sealedRequest, outside *http.Response,
		into hybrid.Alloc) (*opened, error)
	// openHeader opens the header of an answer that is read as it comes. Without an error the
	// response owns the body. It is only called where streams is true.
	openHeader(ctx context.Context, in *plainRequest, r *sealedRequest,
		outside *http.Response) (*openedResponse, error)
	// failure is the error of an answer whose status is not 200.
	failure(a *httpx.Answer) error
	// resealHelps gets the error of failure, and an *APIError of openAnswer. It reports whether
	// sealing afresh can help: the server has another key.
	resealHelps(ctx context.Context, r *sealedRequest, err error) (bool, error)
}

// plainRequest is what is sealed, except for Date and Authorization. content stays the caller's.
type plainRequest struct {
	method, path string
	header       []bhttp.Field
	content      []byte
	unchecked    bool // content is a caller's JSON that was not checked yet
	whole        bool // the answer is wanted whole: whatever asks for a stream is not sealed
	clean        bool // content asks for no stream
}

// chatRequest is a chat completion whose answer is wanted whole, or as a stream.
func chatRequest(content []byte, whole bool) *plainRequest {
	accept := mediaEvents
	if whole {
		accept = mediaJSON
	}
	return &plainRequest{method: http.MethodPost, path: pathChat, header: jsonFields(accept),
		content: content, whole: whole}
}

// isChat tells the requests that are checked before they are sealed.
func (in *plainRequest) isChat() bool { return in.path == pathChat && in.method == http.MethodPost }

// unrouted is the answer to a request of an SDK that the protocol does not carry.
type unrouted struct {
	status        int
	code, message string
}

// sealedRequest is one attempt. The caller of seal calls release when the answer has been opened or
// given up.
type sealedRequest struct {
	http      *http.Request
	payloadID string
	server    *PublicKey // sealed to
	keys      *KeyStore
	key       *keystore.Key // of keys; opens the answer in version 1
	ohttp     *ohttpCall
	sent      *httpx.Sent // the body of http; nil in version 1
}

func (r *sealedRequest) release() {
	if r.key != nil {
		r.key.Release()
	}
	if r.ohttp != nil {
		r.ohttp.Close()
	}
	if r.sent != nil {
		r.sent.Finish()
	}
	r.keys.store.Sweep()
}

// opened is an answer's plaintext, and what the outside of its envelope said.
type opened struct {
	plaintext   []byte
	processedAt float64 // Unix seconds, unauthenticated; 0 when absent
}

// do carries one request to the server and back, and returns the whole of its answer, which is the
// caller's.
func (c *SecureCompletionClient) do(ctx context.Context, in *plainRequest,
	opts []CallOption) (result *completion, err error) {
	defer c.counts.call()(&err)
	o, err := c.checkCall(in, opts)
	if err != nil {
		return nil, err
	}
	ctx, done, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	start := time.Now()
	defer func() {
		switch {
		case err != nil:
			c.logCall(ctx, in, o, start, 0, 0, err)
		case result == nil:
			c.logCall(ctx, in, o, start, 0, 0, errPanicked)
		default:
			c.logCall(ctx, in, o, start, http.StatusOK, int64(len(result.plaintext)), nil)
		}
	}()
	err = c.withRetries(ctx, o, func() (again bool, err error) {
		return c.attempt(ctx, in, o, func(ctx context.Context, t *trip) (err error) {
			result, err = c.receiveWhole(ctx, t)
			return err
		})
	})
	return result, err
}

// stream carries one request to the server and returns as soon as the header of a good answer has
// come. Other answers are errors: those of do. The response counts as a running call until its body
// is closed or has been read to its end.
func (c *SecureCompletionClient) stream(ctx context.Context, in *plainRequest,
	opts []CallOption) (resp *openedResponse, err error) {
	o, err := c.checkCall(in, opts)
	if err != nil {
		return nil, err
	}
	counted := c.counts.call()
	ctx, done, err := c.enter(ctx)
	if err != nil {
		counted(&err)
		return nil, err
	}
	start := time.Now()
	// it may run before this function has returned: the end of ctx ends a body at any time
	finish := func(of *openedResponse, err error) {
		defer counted(&err)
		defer done() // after the line: Close waits for it
		if of == nil {
			c.logCall(ctx, in, o, start, 0, 0, err)
		} else {
			c.logCall(ctx, in, o, start, of.status, of.body.opened, err)
		}
	}
	failure := errPanicked
	defer func() {
		if failure != nil {
			finish(nil, failure) // or else Close waits for this call for good
		}
	}()
	failure = c.withRetries(ctx, o, func() (again bool, err error) {
		return c.attempt(ctx, in, o, func(ctx context.Context, t *trip) (err error) {
			resp, err = c.receiveStream(ctx, t, finish)
			return err
		})
	})
	return resp, failure
}

// errPanicked is the end of what a callback of the caller's ended by panicking.
var errPanicked = errors.New("sealedchat: a callback panicked")

// checkCall says with which options in is sent, if it may be. Only content that came from outside
// is looked at, once.
func (c *SecureCompletionClient) checkCall(in *plainRequest, opts []CallOption) (*callOptions,
	error) {
	o, err := c.options(opts)
	if err != nil {
		return nil, err
	}
	if n := len(in.content); int64(n) > c.cfg.MaxRequestBytes {
		return nil, fmt.Errorf("%w of %d bytes, limit %d", errRequestTooLarge, n,
			c.cfg.MaxRequestBytes)
	}
	if in.unchecked {
		// what looks at many bytes leaves some in registers
		erase.Do(func() { err = chatjson.CheckRequest(in.content) })
	}
	return o, err
}

// withRetries makes attempts until one succeeds or another one is not worth making. An attempt that
// failed says whether the server's key has changed meanwhile.
func (c *SecureCompletionClient) withRetries(ctx context.Context, o *callOptions,
	attempt func() (again bool, err error)) error {
	renewed := false
	ended := func(err error) error {
		if ctx.Err() != nil {
			return fault.Ended(ctx)
		}
		return err // there is not time enough to wait
	}
	for failures, attempts := 0, 1; ; attempts++ {
		if c.cfg.Limiter != nil {
			if err := c.cfg.Limiter.Wait(ctx); err != nil {
				return limiterError(ctx, err)
			}
		}
		o.sealed = ""
		again, err := attempt()
		if err == nil {
			return nil
		}
		// the key has changed: no fault of the request, and no reason to wait
		if again && !renewed {
			renewed = true
			if auditErr := c.tellRetry(ctx, o.sealed, attempts, 0, err); auditErr != nil {
				return fault.Join(err, auditErr)
			}
			c.counts.retries.Add(1)
			continue
		}
		wait, ok := c.retry.next(failures, err)
		if !ok {
			return err
		}
		if !hasTime(ctx, wait) {
			return ended(err)
		}
		failures++
		if auditErr := c.tellRetry(ctx, o.sealed, attempts, wait, err); auditErr != nil {
			return fault.Join(err, auditErr)
		}
		c.log.InfoContext(ctx, "attempt failed, trying again", "failures", failures, "wait", wait,
			"error", logText(err))
		if !pause(ctx, wait) {
			return ended(err)
		}
		c.counts.retries.Add(1)
	}
}

var errRequestTooLarge = fmt.Errorf("%w: request", ErrTooLarge)

func limiterError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.Ended(ctx)
	}
	return fmt.Errorf("sealedchat: limiter: %w", err)
}

// trip is one attempt: a request on its way, and its answer.
type trip struct {
	*sealedRequest
	in      *plainRequest
	o       *callOptions
	start   time.Time
	log     *slog.Logger
	release func() // gives back what the attempt holds
	kept    bool   // the answer lives on, and calls release
}

// attempt seals in, sends it, and has receive take the answer, once. again reports that the server
// refused the request because its key has changed, and that the new one is trusted.
func (c *SecureCompletionClient) attempt(ctx context.Context, in *plainRequest, o *callOptions,
	receive func(context.Context, *trip) error) (again bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, fault.ErrAttemptTimeout)
	t := &trip{in: in, o: o, start: time.Now(), release: cancel}
	defer func() {
		if !t.kept {
			t.release()
		}
	}()
	r, err := c.wire.seal(ctx, in, o)
	if err != nil {
		return false, waitError(ctx, err)
	}
	t.sealedRequest, t.release = r, func() {
		r.release()
		cancel()
	}
	o.sealed = r.payloadID
	if err := c.tellSealed(ctx, r, len(in.content), o); err != nil {
		return false, err
	}
	o.attempts++
	c.counts.attempts.Add(1)
	if r.server.usesAES128() {
		c.counts.aes128.Add(1)
	}
	c.counts.sealed.Add(int64(len(in.content)))
	t.log = c.log.With("payload_id", r.payloadID)
	t.log.DebugContext(ctx, "request sealed", "bytes", len(in.content), "server_key",
		r.server.fingerprint)
	if err := receive(ctx, t); err != nil {
		t.log.DebugContext(ctx, "request failed", "duration", time.Since(t.start), "error",
			logText(err))
		return c.sealAgain(ctx, r, err)
	}
	return false, nil
}

// receiveWhole sends t, and opens and checks the whole of its answer.
func (c *SecureCompletionClient) receiveWhole(ctx context.Context, t *trip) (*completion, error) {
	outside, err := c.sendForGood(ctx, t)
	if err != nil {
		return nil, err
	}
	result, err := c.openCompletion(ctx, t.sealedRequest, outside, t.o)
	if err := c.tellAnswer(ctx, t.payloadID, result, err, t.start, t.o); err != nil {
		return nil, err
	}
	c.counts.opened.Add(int64(len(result.plaintext)))
	t.log.DebugContext(ctx, "answer opened", "duration", time.Since(t.start), "bytes",
		len(result.plaintext))
	return result, nil
}

// sendForGood sends t, and returns its answer if the status is 200. The caller closes the body.
func (c *SecureCompletionClient) sendForGood(ctx context.Context, t *trip) (*http.Response, error) {
	outside, err := httpx.Send(c.http, t.http)
	if t.sent != nil {
		t.sent.Finish() // nobody sends it again; the transport may be sending it still
	}
	if err != nil || outside.StatusCode == http.StatusOK {
		return outside, err
	}
	defer outside.Body.Close()
	a, err := httpx.ReadFailure(ctx, outside)
	if err != nil {
		return nil, err
	}
	return nil, c.wire.failure(a)
}

// openCompletion reads, decrypts and checks an answer, and closes its body. Nothing of it leaves
// here unless all of it is right.
func (c *SecureCompletionClient) openCompletion(ctx context.Context, r *sealedRequest,
	outside *http.Response, o *callOptions) (*completion, error) {
	defer outside.Body.Close()
	plain, err := c.wire.openAnswer(ctx, r, outside, o.into)
	if err != nil {
		return nil, err
	}
	erase.Do(func() { err = checkCompletion(plain.plaintext, r.payloadID, o.tier) })
	if err != nil {
		clear(plain.plaintext)
		return nil, err
	}
	return &completion{opened: *plain, payloadID: r.payloadID}, nil
}

// completion is a checked answer.
type completion struct {
	opened
	payloadID string
}

// waitError gives an error of something that was waited for under ctx the shape of a call's error.
func waitError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
		if errors.Is(cause, fault.ErrAttemptTimeout) {
			return fault.Connection("before anything was sent", cause, false)
		}
		return fault.Ended(ctx)
	}
	return err
}

func apiErrorFrom(a *httpx.Answer) *APIError {
	return newAPIError(a.Status, a.Header, a.Body, time.Now())
}

// refusals are the errors that are events of their own, and why, in words of this package.
var refusals = []struct {
	err    error
	event  EventType
	reason string
}{
	{ErrDecryption, EventDecryptionRefused, "it does not open"},
	{ErrReplay, EventReplayRefused, "seen before, or another request's"},
	{ErrTierDowngrade, EventTierRefused, ""},
	{ErrResponseSchema, EventSchemaRefused, "not a chat completion"},
	{ErrEnvelope, EventSchemaRefused, "malformed envelope"},
}

// auditReason is an error in a few words that never hold a peer's.
func auditReason(err error) string {
	if answer, ok := errors.AsType[*APIError](err); ok {
		return "status " + strconv.Itoa(answer.StatusCode)
	}
	if errors.Is(err, ErrConnection) {
		return "connection failed"
	}
	return "failed"
}

func (c *SecureCompletionClient) tellSealed(ctx context.Context, r *sealedRequest, size int,
	o *callOptions) error {
	e := Event{
		Type: EventRequestSealed, PayloadID: r.payloadID, Fingerprint: r.server.fingerprint,
		Tier: o.tier, Bytes: int64(size),
	}
	if r.server.usesAES128() {
		e.Reason = "AES-128-GCM"
	}
	return c.audit.tell(ctx, e)
}

// tellAnswer tells what became of an answer. When the Auditor fails, the answer is wiped.
func (c *SecureCompletionClient) tellAnswer(ctx context.Context, id string, answer *completion,
	err error, start time.Time, o *callOptions) error {
	if err != nil {
		return c.tellRefused(ctx, id, err, o.tier)
	}
	err = c.audit.tell(ctx, Event{
		Type: EventResponseOpened, PayloadID: id, Bytes: int64(len(answer.plaintext)),
		Duration: time.Since(start),
	})
	if err = fault.Join(err, c.tellMemory(ctx)); err != nil {
		clear(answer.plaintext)
	}
	return err
}

// tellRefused tells of an answer that was refused; err comes back.
func (c *SecureCompletionClient) tellRefused(ctx context.Context, id string, err error,
	tier SecurityTier) error {
	return c.tellRefusedAfter(ctx, id, 0, err, tier)
}

// tellRefusedAfter is tellRefused for an answer of which so many bytes were handed out before.
func (c *SecureCompletionClient) tellRefusedAfter(ctx context.Context, id string, out int64,
	err error, tier SecurityTier) error {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			e := Event{Type: r.event, PayloadID: id, Bytes: out, Reason: r.reason}
			if r.event == EventTierRefused {
				e.Tier = tier
			}
			return c.audit.failed(ctx, err, e)
		}
	}
	return err
}

// tellMemory tells once when less is locked than was.
func (c *SecureCompletionClient) tellMemory(ctx context.Context) error {
	if c.audit.to.Load() == nil {
		return nil
	}
	now := c.allLocked()
	if before := c.wasLocked.Swap(now); now || !before {
		return nil
	}
	return c.audit.tell(ctx, Event{Type: EventMemoryLowered, Memory: memoryNow()})
}

func (c *SecureCompletionClient) tellRetry(ctx context.Context, id string, attempt int,
	wait time.Duration, err error) error {
	e := Event{Type: EventRetry, PayloadID: id, Attempt: attempt, Wait: wait,
		Reason: auditReason(err)}
	if answer, ok := errors.AsType[*APIError](err); ok {
		e.Status = answer.StatusCode
	}
	return c.audit.tell(ctx, e)
}
