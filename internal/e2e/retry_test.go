// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// bubble runs f with a client of p under the clock of testing/synctest. Keys are made before it
// begins.
func bubble(t *testing.T, p *peer, change func(*sealedchat.Config),
	f func(t *testing.T, c *sealedchat.SecureCompletionClient)) {
	t.Helper()
	cfg := sealedchat.Config{BaseURL: peerURL, Trust: sealedchat.TrustHTTPS(), Transport: p,
		Keys: storedKeys(t, "rsa-2048")}
	if change != nil {
		change(&cfg)
	}
	synctest.Test(t, func(t *testing.T) {
		c, err := sealedchat.NewSecureCompletionClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f(t, c)
	})
}

// waits are the times between the posts that p got.
func (p *peer) waits() (waits []time.Duration) {
	posts := p.sent()
	for i := 1; i < len(posts); i++ {
		waits = append(waits, posts[i].at.Sub(posts[i-1].at))
	}
	return waits
}

// failing answers the nth POST with the nth of these statuses, and all later ones with sdkAnswer.
func (p *peer) failing(statuses ...int) *peer {
	p.answer = func(n int, _ *http.Request) (*http.Response, error) {
		if n < len(statuses) {
			return testkit.Respond(statuses[n], ""), nil
		}
		return p.sealed(testkit.CompletionJSON(sdkAnswer, "")), nil
	}
	return p
}

func TestRetriedStatuses(t *testing.T) {
	for _, c := range []struct {
		status     int
		retryAfter string
		attempts   int
	}{
		{429, "", 3}, {500, "", 3}, {502, "", 3}, {504, "", 3}, {429, "2", 3}, {500, "60", 3},
		{502, "soon", 3}, {503, "1", 3},
		{503, "", 1}, {503, "1800", 1}, {503, "later", 1}, {503, "-5", 1}, {429, "61", 1},
		{500, "3600", 1}, {504, "99999999999999999999", 1},
		{400, "", 1}, {401, "", 1}, {402, "", 1}, {403, "1", 1}, {404, "", 1}, {405, "", 1},
		{408, "1", 1}, {409, "", 1}, {413, "", 1},
		{422, "", 1}, {425, "", 1}, {501, "", 1}, {505, "", 1}, {507, "1", 1}, {529, "1", 1},
		{201, "", 1}, {204, "", 1}, {304, "", 1}, {307, "", 1},
	} {
		p := newPeer(t)
		p.always(func() *http.Response {
			return testkit.Respond(c.status, "", "Retry-After", c.retryAfter)
		})
		bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			begin := time.Now()
			_, err := client.Chat(t.Context(), ask(sdkPrompt))
			answer, ok := errors.AsType[*sealedchat.APIError](err)
			if !ok || answer.StatusCode != c.status || len(p.sent()) != c.attempts {
				t.Errorf("%+v: %v after %d attempts", c, err, len(p.sent()))
			}
			if c.attempts == 1 && time.Since(begin) != 0 {
				t.Errorf("%+v: it slept %v", c, time.Since(begin))
			}
		})
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	for name, c := range map[string]struct {
		header func() string
		least  time.Duration
	}{
		"none":     {func() string { return "" }, 0},
		"zero":     {func() string { return "0" }, 0},
		"seconds":  {func() string { return "5" }, 5 * time.Second},
		"the most": {func() string { return "60" }, time.Minute},
		"a date": {func() string {
			return time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat)
		}, 20 * time.Second},
		"RFC 850": {func() string {
			return time.Now().Add(9 * time.Second).UTC().Format("Monday, 02-Jan-06 15:04:05 GMT")
		}, 9 * time.Second},
		"in the past": {func() string {
			return time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
		}, 0},
	} {
		p := newPeer(t)
		p.always(func() *http.Response {
			return testkit.Respond(429, "", "Retry-After", c.header())
		})
		bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			_, err := client.Chat(t.Context(), ask(sdkPrompt))
			if !errors.Is(err, sealedchat.ErrRateLimited) {
				t.Errorf("%s: %v", name, err)
			}
			waits := p.waits()
			if len(waits) != 2 {
				t.Fatalf("%s: waits %v", name, waits)
			}
			for i, wait := range waits {
				// A date has no fractions of a second.
				if wait < c.least-time.Second && name != "seconds" ||
					wait > c.least+time.Second<<i {
					t.Errorf("%s: wait %d was %v", name, i, wait)
				}
				if name == "seconds" && wait < c.least {
					t.Errorf("%s: wait %d was %v", name, i, wait)
				}
			}
		})
	}
}

func TestRetryWaitsOnTheWire(t *testing.T) {
	var longest [2]time.Duration
	different := make(map[time.Duration]bool)
	for range 40 {
		p := newPeer(t).failing(500, 502)
		bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			answer, err := client.Chat(t.Context(), ask(sdkPrompt))
			if err != nil || answer.Text() != sdkAnswer {
				t.Fatal(err)
			}
			for i, wait := range p.waits() {
				if wait < 0 || wait > time.Second<<i {
					t.Errorf("wait %d was %v", i, wait)
				}
				longest[i] = max(longest[i], wait)
				different[wait] = true
			}
		})
	}
	if longest[0] < 500*time.Millisecond || longest[1] < time.Second || len(different) < 70 {
		t.Errorf("the longest waits of 40 calls are %v, %d of 80 differ", longest, len(different))
	}
}

// A wait that would end after the deadline is not begun: the caller gets the real error, and the
// time that is left.
func TestRetryNoSleepThatCannotSucceed(t *testing.T) {
	for _, deadline := range []time.Duration{time.Second, 4 * time.Second, 5 * time.Second} {
		p := newPeer(t)
		p.always(func() *http.Response { return testkit.Respond(429, "", "Retry-After", "5") })
		bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			_, err := client.Chat(ctx, ask(sdkPrompt))
			if answer, ok := errors.AsType[*sealedchat.APIError](err); !ok ||
				answer.RetryAfter != 5*time.Second || time.Since(begin) != 0 || len(p.sent()) != 1 {
				t.Errorf("deadline %v: %v after %v, %d attempts", deadline, err, time.Since(begin),
					len(p.sent()))
			}
		})
	}
	for range 30 { // jitter: some waits fit and some do not
		p := newPeer(t).failing(500, 500, 500, 500)
		bubble(t, p, func(c *sealedchat.Config) {
			c.MaxRetries = 3
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			if _, err := client.Chat(ctx, ask(sdkPrompt)); !errors.Is(err, sealedchat.ErrServer) ||
				ctx.Err() != nil {
				t.Errorf("%v, context %v", err, ctx.Err())
			}
		})
	}
}

func TestRetryEndsWhileSleeping(t *testing.T) {
	cause := errors.New("the user went away")
	for name, c := range map[string]struct {
		end  func(client *sealedchat.SecureCompletionClient, cancel context.CancelCauseFunc)
		want []error
	}{
		"cancel": {func(_ *sealedchat.SecureCompletionClient, cancel context.CancelCauseFunc) {
			cancel(nil)
		}, []error{context.Canceled}},
		"cause": {func(_ *sealedchat.SecureCompletionClient, cancel context.CancelCauseFunc) {
			cancel(cause)
		}, []error{context.Canceled, cause}},
		"Close": {func(client *sealedchat.SecureCompletionClient, _ context.CancelCauseFunc) {
			client.Close()
		}, []error{sealedchat.ErrClosed}},
	} {
		p := newPeer(t)
		p.always(func() *http.Response { return testkit.Respond(429, "", "Retry-After", "30") })
		bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			begin := time.Now()
			go func() {
				time.Sleep(3 * time.Second)
				c.end(client, cancel)
			}()
			_, err := client.Chat(ctx, ask(sdkPrompt))
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("%s: %v is not %v", name, err, want)
				}
			}
			if time.Since(begin) != 3*time.Second || len(p.sent()) != 1 {
				t.Errorf("%s: after %v and %d attempts", name, time.Since(begin), len(p.sent()))
			}
		})
	}
}

func TestMaxRetries(t *testing.T) {
	for most, attempts := range map[int]int{-1: 1, -100: 1, 0: 3, 1: 2, 5: 6} {
		p := newPeer(t)
		p.always(func() *http.Response { return testkit.Respond(502, "") })
		bubble(t, p, func(c *sealedchat.Config) {
			c.MaxRetries = most
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			if _, err := client.Chat(t.Context(), ask(sdkPrompt)); !errors.Is(err,
				sealedchat.ErrServer) || len(p.sent()) != attempts {
				t.Errorf("MaxRetries %d: %v after %d attempts, want %d", most, err, len(p.sent()),
					attempts)
			}
		})
	}
}

// What an attempt was sealed with never comes again, and what was sealed stays the same.
func TestEveryAttemptIsSealedAfresh(t *testing.T) {
	body := sdkBody("")
	request := secret(t, body)
	for name, call := range map[string]func(ctx context.Context,
		c *sealedchat.SecureCompletionClient) error{
		"Chat": func(ctx context.Context, c *sealedchat.SecureCompletionClient) error {
			_, err := c.Chat(ctx, ask(sdkPrompt))
			return err
		},
		"Complete": func(ctx context.Context, c *sealedchat.SecureCompletionClient) error {
			answer, err := c.Complete(ctx, request)
			if err == nil {
				answer.Body.Destroy()
			}
			return err
		},
		"HTTPClient": func(ctx context.Context, c *sealedchat.SecureCompletionClient) error {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, sdkURL,
				strings.NewReader(body))
			resp, err := c.HTTPClient().Do(req)
			if err == nil && resp.StatusCode != 200 {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
			return err
		},
	} {
		p := newPeer(t).failing(500, 429, 502, 504, 0)
		failing := p.answer
		p.answer = func(n int, req *http.Request) (*http.Response, error) {
			if n == 4 {
				return nil, io.EOF
			}
			return failing(n, req)
		}
		bubble(t, p, func(c *sealedchat.Config) {
			c.MaxRetries = 5
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			if err := call(t.Context(), client); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		posts, seen := p.sent(), make(map[string]bool)
		for _, post := range posts {
			for _, once := range []string{post.wrapped, post.nonce, post.header.Get("X-Payload-Id"),
				post.body} {
				if once == "" || seen[once] {
					t.Errorf("%s: %.60q was sent before", name, once)
				}
				seen[once] = true
			}
			if post.plaintext != posts[0].plaintext ||
				!strings.Contains(post.plaintext, sdkPrompt) {
				t.Errorf("%s: another request was sealed: %s", name, post.plaintext)
			}
			if post.header.Get("X-Public-Key") != posts[0].header.Get("X-Public-Key") {
				t.Errorf("%s: another key to answer to", name)
			}
		}
		if len(posts) != 6 {
			t.Errorf("%s: %d attempts", name, len(posts))
		}
	}
}

// brokenBody fails after its first bytes; with err nil it waits for the request to end.
type brokenBody struct {
	io.Reader
	req *http.Request
	err error
}

func (b *brokenBody) Read(p []byte) (int, error) {
	if n, _ := b.Reader.Read(p); n > 0 {
		return n, nil
	}
	if b.err != nil {
		return 0, b.err
	}
	<-b.req.Context().Done()
	return 0, context.Cause(b.req.Context())
}

func (b *brokenBody) Close() error { return nil }

func TestRetriedConnectionFailures(t *testing.T) {
	const timeout = 10 * time.Second
	cut := func(err error) func(*http.Request) (*http.Response, error) {
		return func(req *http.Request) (*http.Response, error) {
			resp := testkit.Respond(200, "")
			resp.ContentLength, resp.Body = 1000, &brokenBody{strings.NewReader(`{"version":`), req,
				err}
			return resp, nil
		}
	}
	fails := func(err error) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return nil, err }
	}
	for name, c := range map[string]struct {
		do       func(req *http.Request) (*http.Response, error)
		attempts int
		slept    time.Duration // exactly, for one attempt
	}{
		"EOF":               {fails(io.EOF), 3, 0},
		"reset":             {fails(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), 3, 0},
		"refused":           {fails(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), 3, 0},
		"no such host":      {fails(&net.DNSError{Err: "no such host", IsNotFound: true}), 3, 0},
		"a dial's timeout":  {fails(&net.OpError{Op: "dial", Err: context.DeadlineExceeded}), 3, 0},
		"truncated":         {cut(io.ErrUnexpectedEOF), 1, 0},
		"reset in the body": {cut(syscall.ECONNRESET), 1, 0},
		"hangs": {func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		}, 1, timeout},
		"hangs in the body": {cut(nil), 1, timeout},
		"certificate": {
			fails(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), 1, 0},
		"host name": {fails(fmt.Errorf("wrapped: %w",
			&tls.CertificateVerificationError{Err: x509.HostnameError{
				Certificate: &x509.Certificate{}, Host: "peer.example"}})), 1, 0},
	} {
		for _, keyFetch := range []bool{false, true} {
			p := newPeer(t)
			attempts := func() int { return len(p.sent()) }
			if keyFetch {
				p.key = func(_ int, req *http.Request) (*http.Response, error) { return c.do(req) }
				attempts = func() int { return p.fetches }
			} else {
				p.answer = func(_ int, req *http.Request) (*http.Response, error) {
					return c.do(req)
				}
			}
			bubble(t, p, func(c *sealedchat.Config) {
				c.Timeout = timeout
			}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
				begin := time.Now()
				_, err := client.Chat(t.Context(), ask(sdkPrompt))
				if !errors.Is(err, sealedchat.ErrConnection) || attempts() != c.attempts {
					t.Errorf("%s, key fetch %v: %v after %d attempts", name, keyFetch, err,
						attempts())
				}
				if slept := time.Since(begin); c.attempts == 1 && slept != c.slept ||
					slept > 3*time.Second+c.slept {
					t.Errorf("%s, key fetch %v: %v passed", name, keyFetch, slept)
				}
			})
		}
	}
}

// countingLimiter lets everything pass, a second later, up to a number of times.
type countingLimiter struct {
	waits int
	most  int // 0 = no end
	slow  time.Duration
}

func (l *countingLimiter) Wait(ctx context.Context) error {
	if l.waits++; l.most > 0 && l.waits > l.most {
		return errLimiter
	}
	select {
	case <-time.After(l.slow):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestLimiter(t *testing.T) {
	for name, c := range map[string]struct {
		limiter *countingLimiter
		fail    int // attempts
		timeout time.Duration
		posts   int
		err     error
	}{
		"lets all pass":  {&countingLimiter{}, 2, time.Hour, 3, nil},
		"slow":           {&countingLimiter{slow: time.Minute}, 2, time.Hour, 3, nil},
		"stops a retry":  {&countingLimiter{most: 1}, 2, time.Hour, 1, errLimiter},
		"stops the last": {&countingLimiter{most: 2}, 2, time.Hour, 2, errLimiter},
		"beyond the deadline": {&countingLimiter{slow: time.Minute}, 0, time.Second, 0,
			context.DeadlineExceeded},
		"deadline in a retry": {&countingLimiter{slow: time.Minute}, 2, 90 * time.Second, 1,
			context.DeadlineExceeded},
	} {
		p := newPeer(t).failing([]int{500, 500, 500}[:c.fail]...)
		bubble(t, p, func(cfg *sealedchat.Config) {
			cfg.Limiter = c.limiter
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
			defer cancel()
			_, err := client.Chat(ctx, ask(sdkPrompt))
			if !errors.Is(err, c.err) || c.err == nil && err != nil || len(p.sent()) != c.posts {
				t.Errorf("%s: %v after %d posts", name, err, len(p.sent()))
			}
			if c.posts > 0 && p.sent()[0].at.Sub(begin) != c.limiter.slow {
				t.Errorf("%s: the first attempt came after %v", name, p.sent()[0].at.Sub(begin))
			}
			for _, wait := range p.waits() {
				if wait < c.limiter.slow {
					t.Errorf("%s: the limiter was not waited on: %v", name, wait)
				}
			}
			if c.err == context.DeadlineExceeded && time.Since(begin) != c.timeout {
				t.Errorf("%s: it ended after %v", name, time.Since(begin))
			}
		})
	}
}

func TestTheLastErrorCounts(t *testing.T) {
	for _, statuses := range [][]int{{500, 429, 502}, {429, 500, 401}, {502, 404}, {500, 503}} {
		p := newPeer(t).failing(statuses...)
		bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			_, err := client.Chat(t.Context(), ask(sdkPrompt))
			if last, ok := errors.AsType[*sealedchat.APIError](err); !ok ||
				last.StatusCode != statuses[len(statuses)-1] || len(p.sent()) != len(statuses) {
				t.Errorf("%v: %v after %d posts", statuses, err, len(p.sent()))
			}
		})
	}
	p := newPeer(t)
	p.answer = func(n int, _ *http.Request) (*http.Response, error) {
		if n == 0 {
			return testkit.Respond(500, ""), nil
		}
		return nil, io.EOF
	}
	bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
		if _, err := client.Chat(t.Context(), ask(sdkPrompt)); !errors.Is(err,
			sealedchat.ErrConnection) || errors.Is(err, sealedchat.ErrServer) {
			t.Error(err)
		}
	})
}

// An answer that is wrong is not asked for again: whoever sent it would get another prompt sealed.
func TestFailuresOfSecurityAreNotRetried(t *testing.T) {
	for name, c := range sdkFailures(t) {
		if name == "ErrConnection" {
			continue
		}
		p := c.peer()
		bubble(t, p, func(cfg *sealedchat.Config) {
			cfg.MaxRetries = 5
			if c.change != nil {
				c.change(cfg)
			}
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			begin := time.Now()
			_, err := client.Chat(t.Context(), ask(sdkPrompt))
			if !errors.Is(err, c.is) || len(p.sent()) > 1 || p.fetches > 1 ||
				time.Since(begin) != 0 {
				t.Errorf("%s: %v after %d posts, %d fetches and %v", name, err, len(p.sent()),
					p.fetches, time.Since(begin))
			}
		})
	}
}
