// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// What the upstream says of itself comes sealed as well, when it has had the request.
func TestUpstreamRefusalsAreNotRepeated(t *testing.T) {
	for _, status := range []int{400, 429, 500, 502, 503, 504} {
		for _, processed := range []string{"", "yes", "NO"} {
			synctest.Test(t, func(t *testing.T) {
				ran := 0
				g := fakes.NewGateway(t, func(w http.ResponseWriter, _ *http.Request) {
					ran++
					w.Header().Set("Retry-After", "1")
					w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
					if processed != "" {
						w.Header().Set(ohttp.HeaderProcessed, processed)
					}
					w.WriteHeader(status)
					_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`","detail":"date"}`)
				})
				client := directClient(t, g, func(c *Config) { c.MaxRetries = 5 })
				for name, call := range callsOf(client) {
					ran = 0
					err := call(t.Context())
					answer, ok := errors.AsType[*APIError](err)
					if !ok || answer.StatusCode != status || answer.RetryAfter != time.Second {
						t.Errorf("%s, %d: %v", name, status, err)
					}
					if ran != 1 || client.wire.(*obliviousHTTP).ahead.Load() != 0 {
						t.Errorf("%s, %d with %q: ran %d times, the clock is %v ahead", name, status, processed, ran, client.wire.(*obliviousHTTP).ahead.Load())
					}
				}
			})
		}
	}
}

func TestOHTTPRetriesWhatWasNotSent(t *testing.T) {
	g := fakes.StartGateway(t, answerText("late"))
	var dials atomic.Int32
	client := ohttpClient(t, g.URL, func(c *Config) {
		c.MaxRetries = 3
		c.Transport = &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if n := dials.Add(1); n == 2 || n == 3 { // the first one is for the keys
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}, DisableKeepAlives: true}
	})
	client.retry.base = time.Millisecond
	if err := client.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer, err := client.Chat(t.Context(), ask("x"))
	if err != nil || answer.Text() != "late" || dials.Load() != 4 {
		t.Fatalf("%v after %d dials", err, dials.Load())
	}
}

func TestOHTTPDoesNotRepeatWhatMayHaveArrived(t *testing.T) {
	g := fakes.StartGateway(t, nil)
	g.Inner = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) } // after the request was read
	client := ohttpClient(t, g.URL, func(c *Config) { c.MaxRetries = 3 })
	client.retry.base = time.Millisecond
	for name, call := range callsOf(client) {
		_, before := g.Counts()
		err := call(t.Context())
		_, after := g.Counts()
		if !errors.Is(err, ErrConnection) || after-before != 1 {
			t.Errorf("%s: %v, sent %d times", name, err, after-before)
		}
	}
}
