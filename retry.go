// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

const (
	defaultRetries = 2
	// retryBase is the longest first wait; the next is up to twice as long, and so on.
	retryBase = time.Second
	// maxRetryWait: where a server wants a longer wait, the caller decides.
	maxRetryWait = 60 * time.Second
)

// retryPolicy says whether a failed attempt is worth repeating, and after which wait.
type retryPolicy struct {
	most int           // attempts after the first
	once bool          // only what cannot have been processed is repeated
	base time.Duration // retryBase, except in tests
}

// next decides about the attempt'th failure, counted from 0.
func (p retryPolicy) next(attempt int, err error) (time.Duration, bool) {
	if attempt >= p.most {
		return 0, false
	}
	wait, ok := p.wants(err)
	if !ok || wait > maxRetryWait {
		return 0, false
	}
	// Full jitter: clients that failed together do not come back together. A server's own figure is
	// a lower bound.
	window := min(p.base<<min(attempt, 16), maxRetryWait)
	return wait + rand.N(window+1), true
}

func (p retryPolicy) wants(err error) (time.Duration, bool) {
	if p.once && !unprocessed(err) {
		return 0, false
	}
	return wantsRetry(err)
}

// unprocessed tells failures of which it is certain that the server did nothing: nothing was sent,
// or the gateway said so itself, under seal: a status alone may be the upstream's. An answer in the
// clear is no *APIError.
func unprocessed(err error) bool {
	if answer, ok := errors.AsType[*APIError](err); ok {
		return answer.unprocessed
	}
	failed, ok := errors.AsType[*fault.ConnectionError](err)
	return ok && failed.Unsent
}

// wantsRetry tells failures that may pass by themselves, with the wait that the server asked for. A
// connection that broke after the answer had begun does not count, nor an attempt that used up its
// time: the work was done once.
func wantsRetry(err error) (time.Duration, bool) {
	if errors.Is(err, ErrAudit) {
		return 0, false // whatever the Auditor returned
	}
	if _, distrusted := errors.AsType[*ServerKeyError](err); distrusted {
		return 0, false // whatever it was that OnServerKey returned
	}
	if answer, ok := errors.AsType[*APIError](err); ok {
		switch answer.StatusCode {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusGatewayTimeout:
			return answer.RetryAfter, true
		case http.StatusServiceUnavailable: // a cool-down, which repeating makes worse
			return answer.RetryAfter, answer.RetryAfter > 0
		}
		return 0, false
	}
	failed, ok := errors.AsType[*fault.ConnectionError](err)
	if !ok || failed.Answered || errors.Is(err, fault.ErrAttemptTimeout) {
		return 0, false
	}
	_, distrusted := errors.AsType[*tls.CertificateVerificationError](err)
	return 0, !distrusted
}

// hasTime reports whether ctx does not end before the wait would.
func hasTime(ctx context.Context, wait time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() == nil && (!ok || time.Until(deadline) > wait)
}

// pause waits, unless ctx ends before the wait would: then it returns false at once.
func pause(ctx context.Context, wait time.Duration) bool {
	if !hasTime(ctx, wait) {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// sealAgain asks whether sealing afresh can help. A server's new key that is not trusted replaces
// the error.
func (c *SecureCompletionClient) sealAgain(ctx context.Context, r *sealedRequest,
	err error) (again bool, _ error) {
	if errors.Is(err, ErrAudit) {
		return false, err // whatever the Auditor returned
	}
	_, inner := errors.AsType[*APIError](err)
	_, outer := errors.AsType[*OuterError](err)
	if !inner && !outer {
		return false, err
	}
	renewed, refreshErr := c.wire.resealHelps(ctx, r, err)
	if _, distrust := errors.AsType[*ServerKeyError](refreshErr); distrust {
		return false, refreshErr
	}
	if errors.Is(refreshErr, ErrAudit) { // the Auditor did not take the new key
		return false, fault.Join(err, refreshErr)
	}
	return renewed, err
}
