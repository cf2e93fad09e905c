// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// This file carries one call to the server and back, in as many attempts as that takes.

// do carries one request to the server and back. plaintext is left as it is; the answer's is the caller's.
func (c *SecureCompletionClient) do(ctx context.Context, plaintext []byte, opts []CallOption) (_ *completion, err error) {
	defer c.counts.call()(&err)
	o, err := c.options(opts)
	if err != nil {
		return nil, err
	}
	if err := c.checkSize(len(plaintext)); err != nil {
		return nil, err
	}
	if !o.checked {
		erase.Do(func() { err = chatjson.CheckRequest(plaintext) }) // what looks at many bytes at once leaves some in registers
		if err != nil {
			return nil, err
		}
	}
	ctx, done, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var result *completion
	err = c.persist(ctx, o, func() (again bool, err error) {
		result, again, err = c.attempt(ctx, plaintext, o)
		return again, err
	})
	return result, err
}

// persist makes attempts until one succeeds or another one is not worth making. An attempt that failed says whether the
// server's key has changed meanwhile.
func (c *SecureCompletionClient) persist(ctx context.Context, o *callOptions, attempt func() (again bool, err error)) error {
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
		if again && !renewed { // the key has changed: no fault of the request, and no reason to wait
			renewed = true
			if told := c.tellRetry(ctx, o.sealed, attempts, 0, err); told != nil {
				return fault.Join(err, told)
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
		if told := c.tellRetry(ctx, o.sealed, attempts, wait, err); told != nil {
			return fault.Join(err, told)
		}
		c.log.InfoContext(ctx, "attempt failed, trying again", "failures", failures, "wait", wait, "error", logText(err))
		if !pause(ctx, wait) {
			return ended(err)
		}
		c.counts.retries.Add(1)
	}
}

func (c *SecureCompletionClient) checkSize(n int) error {
	if int64(n) > c.cfg.MaxRequestBytes {
		return fmt.Errorf("%w of %d bytes, limit %d", errRequestTooLarge, n, c.cfg.MaxRequestBytes)
	}
	return nil
}

var errRequestTooLarge = fmt.Errorf("%w: request", ErrTooLarge)

func limiterError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.Ended(ctx)
	}
	return fmt.Errorf("sealedchat: limiter: %w", err)
}

// attempt seals, sends and opens once. again reports that the server refused the request because its key has changed,
// and that the new one is trusted.
func (c *SecureCompletionClient) attempt(ctx context.Context, plaintext []byte, o *callOptions) (_ *completion, again bool, err error) {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, fault.AttemptTimeout)
	defer cancel()
	r, err := c.wire.seal(ctx, plaintext, o)
	if err != nil {
		return nil, false, waitError(ctx, err)
	}
	defer r.release()
	o.sealed = r.payloadID
	if err := c.tellSealed(ctx, r, len(plaintext), o); err != nil {
		return nil, false, err
	}
	c.counts.attempts.Add(1)
	c.counts.sealed.Add(int64(len(plaintext)))
	log := c.log.With("payload_id", r.payloadID)
	log.DebugContext(ctx, "request sealed", "bytes", len(plaintext), "server_key", r.server.fingerprint)

	a, err := httpx.Exchange(c.http, r.http, c.cfg.MaxResponseBytes)
	if err == nil && a.Status != http.StatusOK {
		err = c.wire.failure(a)
	}
	var result *completion
	if err == nil {
		result, err = c.open(r, a, o)
		err = c.tellAnswer(ctx, r.payloadID, result, err, start, o)
	}
	if err != nil {
		log.DebugContext(ctx, "request failed", "duration", time.Since(start), "error", logText(err))
		again, err = c.refused(ctx, r, err)
		return nil, again, err
	}
	c.counts.opened.Add(int64(len(result.plaintext)))
	log.DebugContext(ctx, "answer opened", "duration", time.Since(start), "bytes", len(result.plaintext))
	return result, false, nil
}

// refused asks whether sealing afresh can help. A server's new key that is not trusted replaces the error.
func (c *SecureCompletionClient) refused(ctx context.Context, r *sealedRequest, err error) (again bool, _ error) {
	if errors.Is(err, ErrAudit) {
		return false, err // whatever the Auditor returned
	}
	_, inner := errors.AsType[*APIError](err)
	_, outer := errors.AsType[*OuterError](err)
	if !inner && !outer {
		return false, err
	}
	renewed, refreshErr := c.wire.refused(ctx, r, err)
	if _, distrust := errors.AsType[*ServerKeyError](refreshErr); distrust {
		return false, refreshErr
	}
	if errors.Is(refreshErr, ErrAudit) { // the Auditor did not take the new key
		return false, fault.Join(err, refreshErr)
	}
	return renewed, err
}

// open decrypts and checks an answer. Nothing of it leaves here unless all of it is right.
func (c *SecureCompletionClient) open(r *sealedRequest, a *httpx.Answer, o *callOptions) (*completion, error) {
	plain, err := c.wire.open(r, a, o.into)
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
		if errors.Is(cause, fault.AttemptTimeout) {
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

func (c *SecureCompletionClient) tellSealed(ctx context.Context, r *sealedRequest, size int, o *callOptions) error {
	return c.audit.tell(ctx, Event{
		Type: EventRequestSealed, PayloadID: r.payloadID, Fingerprint: r.server.fingerprint, Tier: o.tier, Bytes: int64(size),
	})
}

// tellAnswer tells what became of an answer. When the Auditor fails, the answer is wiped.
func (c *SecureCompletionClient) tellAnswer(ctx context.Context, id string, answer *completion, err error, start time.Time, o *callOptions) error {
	if err != nil {
		return c.tellRefused(ctx, id, err, o.tier)
	}
	err = c.audit.tell(ctx, Event{
		Type: EventResponseOpened, PayloadID: id, Bytes: int64(len(answer.plaintext)), Duration: time.Since(start),
	})
	if err = fault.Join(err, c.tellMemory(ctx)); err != nil {
		clear(answer.plaintext)
	}
	return err
}

// tellRefused tells of an answer that was refused; err comes back.
func (c *SecureCompletionClient) tellRefused(ctx context.Context, id string, err error, tier SecurityTier) error {
	return c.tellRefusedAfter(ctx, id, 0, err, tier)
}

// tellRefusedAfter is tellRefused for an answer of which so many bytes were handed out before.
func (c *SecureCompletionClient) tellRefusedAfter(ctx context.Context, id string, out int64, err error, tier SecurityTier) error {
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
	now := c.stats()
	rank := int32(memoryRanks[now.Level])
	before := c.memoryRank.Swap(rank)
	if rank == 0 || rank >= before {
		return nil
	}
	return c.audit.tell(ctx, Event{Type: EventMemoryLowered, Memory: now})
}

func (c *SecureCompletionClient) tellRetry(ctx context.Context, id string, attempt int, wait time.Duration, err error) error {
	e := Event{Type: EventRetry, PayloadID: id, Attempt: attempt, Wait: wait, Reason: auditReason(err)}
	if answer, ok := errors.AsType[*APIError](err); ok {
		e.Status = answer.StatusCode
	}
	return c.audit.tell(ctx, e)
}
