// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

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
	return c.audit.tell(ctx, Event{
		Type: EventRequestSealed, PayloadID: r.payloadID, Fingerprint: r.server.fingerprint,
		Tier: o.tier, Bytes: int64(size),
	})
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
