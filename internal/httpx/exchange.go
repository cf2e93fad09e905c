// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Limits for the words of an error whose status is known.
const (
	MaxErrorBody = 1 << 16         // bytes that are looked at
	MaxErrorWait = 5 * time.Second // until they have come
)

// Answer is what is left of an HTTP response after reading it.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // owned by the receiver
}

// Exchange sends req and reads its answer: at most limit bytes of a 200, before and after
// decompression, more is fault.ErrTooLarge; of anything else only the beginning. A caller's ended
// context comes back as its cause, every other failure as ErrConnection.
func Exchange(rt http.RoundTripper, req *http.Request, limit int64) (*Answer, error) {
	resp, err := Send(rt, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return ReadAnswer(req.Context(), Describe(req), resp, limit)
}

// ReadAnswer reads the answer of the exchange what, as Exchange does. The caller closes its body.
func ReadAnswer(
	ctx context.Context, what string, resp *http.Response, limit int64,
) (_ *Answer, err error) {
	if resp.StatusCode != http.StatusOK {
		return ReadFailure(ctx, resp)
	}
	return ReadWhole(ctx, what, resp, limit)
}

// ReadWhole is ReadAnswer for an answer that is good, whatever its status.
func ReadWhole(
	ctx context.Context, what string, resp *http.Response, limit int64,
) (_ *Answer, err error) {
	a := &Answer{Status: resp.StatusCode, Header: resp.Header}
	if a.Body, err = readBody(resp, limit); err != nil {
		clear(a.Body[:cap(a.Body)])
		if errors.Is(err, fault.ErrTooLarge) {
			return nil, err
		}
		return nil, ExchangeError(ctx, what, err, true)
	}
	return a, nil
}

// RoundTrip makes an error of a RoundTripper that returns nothing. There is no http.Client around
// it: redirects and cookies have no business here.
func RoundTrip(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	returned := false
	defer func() {
		if !returned && req.Body != nil { // a panic: nobody else closes, and Sent waits for it
			_ = req.Body.Close()
		}
	}()
	resp, err := rt.RoundTrip(req)
	returned = true
	if err == nil && resp == nil {
		return nil, errors.New("the RoundTripper returned nothing")
	}
	return resp, err
}

// Send returns when the header of the answer has come. The caller closes its body.
func Send(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	req.Header.Set("Accept-Encoding", "identity") // ciphertext does not compress
	resp, err := RoundTrip(rt, req)
	if err != nil {
		return nil, unsentError(req, ExchangeError(req.Context(), Describe(req), err, false))
	}
	return resp, nil
}

// Describe names a request in errors.
func Describe(req *http.Request) string { return req.Method + " " + req.URL.Path }

// ReadFailure reads the beginning of an answer that is none of those that were hoped for.
func ReadFailure(ctx context.Context, resp *http.Response) (*Answer, error) {
	stalled := time.AfterFunc(MaxErrorWait, func() { _ = resp.Body.Close() })
	defer stalled.Stop()
	body, err := readBody(resp, MaxErrorBody) // an error without words is still an error
	cause := context.Cause(ctx)
	if err != nil && cause != nil && !errors.Is(cause, fault.ErrAttemptTimeout) {
		return nil, fault.Ended(ctx)
	}
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// CountedBody knows whether anybody has read of a request's body: if not, the request cannot have
// been served.
type CountedBody struct {
	io.ReadCloser
	read *atomic.Bool // also by what GetBody returned
}

// Count makes req's body, which it has, a CountedBody, also for a transport that sends it again.
func Count(req *http.Request) {
	body, counted := req.GetBody, &CountedBody{req.Body, new(atomic.Bool)}
	req.Body = counted
	req.GetBody = func() (io.ReadCloser, error) {
		b, err := body()
		return &CountedBody{b, counted.read}, err
	}
}

func (b *CountedBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.ReadCloser.Read(p)
}

// unsentError marks the error of a request of which nothing was sent, as far as that is known.
func unsentError(req *http.Request, err error) error {
	failed, ok := errors.AsType[*fault.ConnectionError](err)
	if body, counted := req.Body.(*CountedBody); ok && counted {
		failed.Unsent = !body.read.Load()
	}
	return err
}

// NeverSent marks the error of an exchange that comes before the request, of which nothing was sent
// then, whatever became of the exchange. Others may have err as soon as it is handed on.
func NeverSent(err error) error {
	if failed, ok := errors.AsType[*fault.ConnectionError](err); ok {
		failed.Unsent = true
	}
	return err
}

// ExchangeError is the error of an exchange that failed with err: the cause of the caller's ended
// context, or an ErrConnection. answered tells that an answer had begun.
func ExchangeError(ctx context.Context, what string, err error, answered bool) error {
	if errors.Is(err, fault.ErrInsecureURL) {
		return ErrNotLoopback
	}
	if cause := context.Cause(ctx); cause != nil {
		if !errors.Is(cause, fault.ErrAttemptTimeout) {
			return fault.Ended(ctx)
		}
		err = fault.ErrAttemptTimeout
	}
	return fault.Connection(what, err, answered)
}
