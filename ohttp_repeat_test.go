// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What the upstream says of itself comes sealed as well, when it has had the request.
func TestUpstreamRefusalsAreNotRepeated(t *testing.T) {
	for _, status := range []int{400, 429, 500, 502, 503, 504} {
		for _, processed := range []string{"", "yes", "NO"} {
			synctest.Test(t, func(t *testing.T) {
				ran := 0
				g := newTiny(t, func(w http.ResponseWriter, _ *http.Request) {
					ran++
					w.Header().Set("Retry-After", "1")
					w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
					if processed != "" {
						w.Header().Set(headerProcessed, processed)
					}
					w.WriteHeader(status)
					_, _ = io.WriteString(w, `{"type":"`+problemDate+`","detail":"date"}`)
				})
				client := directClient(t, g, func(c *Config) { c.MaxRetries = 5 })
				for name, call := range callsOf(client) {
					ran = 0
					err := call(t.Context())
					answer, ok := errors.AsType[*APIError](err)
					if !ok || answer.StatusCode != status || answer.RetryAfter != time.Second {
						t.Errorf("%s, %d: %v", name, status, err)
					}
					if ran != 1 || client.oblivious.ahead.Load() != 0 {
						t.Errorf("%s, %d with %q: ran %d times, the clock is %v ahead", name, status, processed, ran, client.oblivious.ahead.Load())
					}
				}
			})
		}
	}
}

func TestOHTTPRetriesWhatWasNotSent(t *testing.T) {
	g := startTiny(t, answerText("late"))
	var dials atomic.Int32
	client := ohttpClient(t, g.url, func(c *Config) {
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
	g := startTiny(t, nil)
	g.inner = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) } // after the request was read
	client := ohttpClient(t, g.url, func(c *Config) { c.MaxRetries = 3 })
	client.retry.base = time.Millisecond
	for name, call := range callsOf(client) {
		_, before := g.counts()
		err := call(t.Context())
		_, after := g.counts()
		if !errors.Is(err, ErrConnection) || after-before != 1 {
			t.Errorf("%s: %v, sent %d times", name, err, after-before)
		}
	}
}

// Whoever ends TLS lets a request through, withholds its answer, and says that the key is unknown, after a genuine rotation.
func TestForgedUnknownKeyRunsNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran int
		g := newTiny(t, func(w http.ResponseWriter, r *http.Request) {
			ran++
			answerText("x")(w, r)
		})
		pass := false
		g.outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet || pass {
				return false
			}
			pass = true
			g.ServeHTTP(httptest.NewRecorder(), r)
			pass = false
			g.rotate()
			unknownKey(w)
			return true
		}
		client := directClient(t, g, func(c *Config) { c.MaxRetries = 5 })
		calls := callsOf(client)
		calls["HTTPClient"] = func(ctx context.Context) error {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://gateway.test/v1/embeddings", strings.NewReader(`{}`))
			resp, err := client.HTTPClient().Do(req)
			if err == nil {
				defer resp.Body.Close()
				if resp.StatusCode == http.StatusOK || resp.Header.Get("X-Should-Retry") != "false" {
					t.Errorf("an SDK gets %d and %v", resp.StatusCode, resp.Header)
				}
				return &OuterError{StatusCode: 422, KeyChanged: true} // which an SDK gets as an answer
			}
			return err
		}
		for name, call := range calls {
			ran = 0
			err := call(t.Context())
			if outer, ok := errors.AsType[*OuterError](err); !ok || !outer.KeyChanged || !strings.Contains(err.Error(), "try again") {
				t.Errorf("%s: %v", name, err)
			}
			if ran != 1 {
				t.Errorf("%s ran %d times", name, ran)
			}
		}

		// What only reads is sealed again.
		g.inner = func(w http.ResponseWriter, _ *http.Request) { ran++; _, _ = io.WriteString(w, "models") }
		outer := g.outer
		answered := false
		g.outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet || pass || answered {
				return false
			}
			answered = true
			return outer(w, r)
		}
		ran = 0
		resp, err := client.HTTPClient().Get("https://gateway.test/v1/models")
		if err != nil || resp.StatusCode != http.StatusOK || ran != 2 {
			t.Fatalf("%v, %v, ran %d times", resp, err, ran)
		}
		_ = resp.Body.Close()
	})
}

// Whoever ends TLS has a request served, withholds the answer, and sends it once more when its date is over.
func TestHeldBackCopyRunsNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := 0
		g := newTiny(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
			if sent, err := http.ParseTime(r.Header.Get("Date")); err != nil || time.Since(sent).Abs() > 2*time.Minute {
				w.Header().Set(headerProcessed, "no")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"`+problemDate+`"}`)
				return
			}
			ran++
			answerText("x")(w, r)
		})
		pass := false
		g.outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet || pass {
				return false
			}
			pass = true
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			g.ServeHTTP(httptest.NewRecorder(), r)
			time.Sleep(3 * time.Minute)
			refusal := httptest.NewRecorder()
			r.Body = io.NopCloser(bytes.NewReader(body))
			g.ServeHTTP(refusal, r)
			pass = false
			time.Sleep(5 * time.Second) // so that the gateway's clock seems to be another one
			w.Header().Set("Content-Type", refusal.Header().Get("Content-Type"))
			_, _ = w.Write(refusal.Body.Bytes())
			return true
		}
		client := directClient(t, g, func(c *Config) { c.MaxRetries = 5 })
		for name, call := range callsOf(client) {
			ran = 0
			if err := call(t.Context()); !errors.Is(err, ErrInvalidRequest) || ran != 1 {
				t.Errorf("%s: %v, ran %d times", name, err, ran)
			}
		}
	})
}
