// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrAttemptTimeout is the cause with which an attempt's own clock ends it.
var ErrAttemptTimeout = fmt.Errorf("no complete answer within the time for one attempt: %w",
	context.DeadlineExceeded)

// ErrStalled is the cause of a stream that was ended because no piece of it came for too long.
var ErrStalled = errors.New("the event stream stood still for longer than IdleTimeout")

// Causes of a failed exchange that hold none of the peer's words.
var (
	ErrGzip            = errors.New("damaged gzip")
	ErrContentEncoding = errors.New("unknown content encoding")
)

// ConnectionError hides the text that a failed exchange left in its error behind words of our own,
// and keeps the cause for errors.As. It is an [ErrConnection]; an answer that had begun and was cut
// short is an [ErrTruncated], too.
type ConnectionError struct {
	What     string // the exchange: method and path
	Answered bool   // an answer had begun
	Unsent   bool   // nothing of the request's body was asked for, or it was not its turn yet

	err error // the cause; not exported, since encoding/json writes exported fields
}

// Connection is the failure of the exchange what, whose cause is err.
func Connection(what string, err error, answered bool) *ConnectionError {
	return &ConnectionError{What: what, Answered: answered, err: err}
}

func (e *ConnectionError) Error() string {
	return ErrConnection.Error() + ": " + e.What + ": " + transportReason(e.err)
}

// GoString keeps %#v, which spells out the cause, to the same words.
func (e *ConnectionError) GoString() string { return e.Error() }

// Timeout reports whether the time for the exchange ended it, as errors of net/http do.
func (e *ConnectionError) Timeout() bool {
	if errors.Is(e.err, ErrStalled) {
		return true
	}
	cause, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](e.err)
	return ok && cause.Timeout()
}

func (e *ConnectionError) Unwrap() []error {
	if e.Answered && errors.Is(e.err, io.ErrUnexpectedEOF) {
		return []error{ErrTruncated, ErrConnection, e.err}
	}
	return []error{ErrConnection, e.err}
}

// transportReason gives the reason of a failed exchange. net/http quotes the peer's bytes in its
// own errors, and an upstream's bytes can be a prompt: only causes that are known to hold none are
// repeated.
func transportReason(err error) string {
	for _, known := range []error{
		ErrAttemptTimeout, ErrStalled, http.ErrSchemeMismatch, io.ErrUnexpectedEOF, io.EOF, ErrGzip,
		ErrContentEncoding,
	} {
		if errors.Is(err, known) {
			return Reason(known)
		}
	}
	if cause, ok := errors.AsType[*ProxyError](err); ok {
		return cause.Error()
	}
	if cause, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return Reason(cause)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the port does not speak TLS: the URL says https, the server http"
	}
	if cause, ok := errors.AsType[tls.AlertError](err); ok {
		return Reason(cause)
	}
	if cause, ok := errors.AsType[*net.OpError](err); ok {
		return Reason(cause)
	}
	if cause, ok := errors.AsType[net.Error](err); ok && cause.Timeout() {
		return "timeout"
	}
	return kindOf(err)
}

// kindOf names the kind of an error of net/http's that has no type, by words of net/http's own that
// it contains, and repeats nothing of it.
func kindOf(err error) string {
	for ; err != nil; err = errors.Unwrap(err) {
		text := err.Error()
		// HTTP/2's types are http.http2StreamError and the like until Go 1.26, and http2.StreamError
		// in Go 1.27 and golang.org/x/net.
		kind := strings.TrimLeft(fmt.Sprintf("%T", err), "*")
		kind, isHTTP2 := strings.CutPrefix(strings.Replace(kind, "http.http2", "http2.", 1),
			"http2.")
		switch {
		// of a transport of the caller's
		case text == http.StatusText(http.StatusProxyAuthRequired):
			return (&ProxyError{http.StatusProxyAuthRequired}).Error()
		case isHTTP2 && kind == "StreamError":
			return "an HTTP/2 error: the other end reset the stream"
		case isHTTP2 && kind == "GoAwayError",
			strings.HasPrefix(text, "http2: server sent GOAWAY"):
			return "an HTTP/2 error: the other end gave up the connection"
		case isHTTP2, strings.HasPrefix(text, "http2: "):
			return "an HTTP/2 error"
		case strings.HasPrefix(text, "malformed HTTP "):
			return "the answer is not HTTP/1: does a server for something else listen there?"
		case strings.HasPrefix(text, "tls: "):
			return "the TLS handshake failed"
		}
	}
	return "the HTTP exchange failed"
}

// ProxyError is a proxy's refusal to connect to a server.
type ProxyError struct{ Status int }

func (e *ProxyError) Error() string {
	s := "the proxy refused the connection with status " + strconv.Itoa(e.Status)
	if e.Status == http.StatusProxyAuthRequired {
		s += ": it wants a user and a password, which stand in its URL (HTTPS_PROXY)"
	}
	return s
}

// CheckProxy is for http.Transport's OnProxyConnectResponse, so that the proxy's status is known
// without its words.
func CheckProxy(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	return &ProxyError{answer.StatusCode}
}

// TruncatedError is an answer that ended before its end, although the transport did not notice.
type TruncatedError struct{ What string }

func (e *TruncatedError) Error() string   { return ErrTruncated.Error() + ": " + e.What }
func (e *TruncatedError) Unwrap() []error { return []error{ErrTruncated, ErrConnection} }

// EndedError is the error of a call that its caller's context, or Close, ended.
type EndedError struct {
	err, cause error // the context's
}

// Ended is the error of a call that ctx ended.
func Ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, ErrClosed) || cause == err {
		return &EndedError{err: cause}
	}
	return &EndedError{err: err, cause: cause}
}

func (e *EndedError) Error() string {
	s := "sealedchat: call ended: " + e.err.Error()
	if e.cause != nil {
		s += " (" + e.cause.Error() + ")"
	}
	return s
}

// Timeout reports whether a deadline ended the call, as errors of net/http do.
func (e *EndedError) Timeout() bool {
	return errors.Is(e.err, context.DeadlineExceeded)
}

// Unwrap returns the context's error and its cause.
func (e *EndedError) Unwrap() []error {
	if e.cause == nil {
		return []error{e.err}
	}
	return []error{e.err, e.cause}
}

// Join is err and the error that came on top of it, in one line. Either may be nil.
func Join(err, second error) error {
	switch {
	case err == nil:
		return second
	case second == nil:
		return err
	}
	return fmt.Errorf("%w (and %w)", err, second)
}

// Reason is an error's text without the package's prefix, printable and bounded, so that it can end
// another error's text.
func Reason(err error) string {
	return Sanitise(strings.TrimPrefix(err.Error(), "sealedchat: "), 300)
}

// Sanitise keeps at most n printable characters of s. Runs of anything else become one space.
func Sanitise(s string, n int) string {
	var b strings.Builder
	space := false
	for count := 0; s != "" && count < n; {
		r, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		if (r == utf8.RuneError && size == 1) || r == ' ' || !unicode.IsPrint(r) {
			space = b.Len() > 0
			continue
		}
		if space {
			b.WriteByte(' ')
			count++
			space = false
			if count == n {
				break
			}
		}
		b.WriteRune(r)
		count++
	}
	return b.String()
}
