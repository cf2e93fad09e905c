// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// flaky is a transport whose first trips fail.
type flaky struct {
	to    http.RoundTripper
	fail  func(trip int) error // counted from 1; nil: it is made
	trips atomic.Int32
}

func (f *flaky) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := f.fail(int(f.trips.Add(1))); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return f.to.RoundTrip(req)
}

// withSDK is callsOf with HTTPClient: a chat completion, and one that streams.
func withSDK(c *sealedchat.SecureCompletionClient) map[string]func(context.Context) error {
	calls := callsOf(c)
	for name, body := range map[string]string{"HTTPClient": `{"model":"m"}`,
		"HTTPClient with a stream": `{"model":"m","stream":true}`} {
		calls[name] = func(ctx context.Context) error {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost,
				"https://gateway.test/v1/chat/completions", strings.NewReader(body))
			resp, err := c.HTTPClient().Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.ReadAll(resp.Body)
			return err
		}
	}
	return calls
}

// While the keys are fetched nothing of the request is sent, so a connection that fails then is
// tried again.
func TestOHTTPRepeatsTheKeyFetch(t *testing.T) {
	cut := &net.OpError{Op: "read", Err: syscall.ECONNRESET}
	first := func(n int) func(int) error {
		return func(trip int) error {
			if trip <= n {
				return cut
			}
			return nil
		}
	}
	untrusted := &tls.CertificateVerificationError{Err: errors.New("unknown authority")}
	for what, test := range map[string]struct {
		fail    func(int) error
		retries int
		timeout time.Duration // of the call
		want    error
		trips   int32
	}{
		"the first fails": {first(1), 2, 0, nil, 3},
		"two fail":        {first(2), 2, 0, nil, 4},
		"all fail":        {first(9), 2, 0, sealedchat.ErrConnection, 3},
		"no retries":      {first(1), -1, 0, sealedchat.ErrConnection, 1},
		"no time":         {first(1 << 20), 1 << 20, 10 * time.Second, sealedchat.ErrConnection, 0},
		"a certificate": {func(int) error {
			return untrusted
		}, 2, 0, sealedchat.ErrConnection, 1},
		"http at a distance": {func(int) error {
			return httpx.ErrNotLoopback
		}, 2, 0, sealedchat.ErrInsecureURL, 1},
		"the attempt's time is out": {func(int) error {
			time.Sleep(2 * time.Minute)
			return cut
		}, 2, 0, fault.ErrAttemptTimeout, 1},
		"the call's time is out": {func(int) error {
			time.Sleep(30 * time.Second)
			return cut
		}, 2, 20 * time.Second, context.DeadlineExceeded, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			for _, name := range []string{"Chat", "Stream", "HTTPClient",
				"HTTPClient with a stream"} {
				g := fakes.NewGateway(t, testkit.AnswerText("x"))
				if strings.Contains(strings.ToLower(name), "stream") {
					g.Inner = fakes.WordByWord(nil, "x")
				}
				trips := &flaky{to: fakes.Direct(g), fail: test.fail}
				client := directClient(t, g, func(c *sealedchat.Config) {
					c.Transport, c.MaxRetries, c.Timeout = trips, test.retries, time.Minute
				})
				ctx, cancel := context.WithCancel(t.Context())
				if test.timeout > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), test.timeout)
				}
				begin := time.Now()
				err := withSDK(client)[name](ctx)
				cancel()
				if what == "no time" { // what would come too late is not waited for
					if !errors.Is(err, test.want) || trips.trips.Load() < 2 ||
						time.Since(begin) > test.timeout {
						t.Errorf("%s, %s: %v after %v and %d trips", what, name, err,
							time.Since(begin), trips.trips.Load())
					}
					continue
				}
				if !errors.Is(err, test.want) || trips.trips.Load() != test.trips {
					t.Errorf("%s, %s: %v after %d trips, want %v after %d", what, name, err,
						trips.trips.Load(), test.want, test.trips)
				}
			}
		})
	}
}

// Those who wait for the same fetch share its error.
func TestOHTTPKeyFetchFailsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fakes.NewGateway(t, testkit.AnswerText("x"))
		trips := &flaky{to: fakes.Direct(g), fail: func(trip int) error {
			time.Sleep(time.Second)
			if trip == 1 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}}
		client := directClient(t, g, func(c *sealedchat.Config) {
			c.Transport, c.MaxRetries = trips, 2
		})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if _, err := client.Chat(t.Context(), ask("x")); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if fetches, posts := g.Counts(); fetches != 1 || posts != 8 || trips.trips.Load() != 10 {
			t.Errorf("%d fetches, %d posts, %d trips", fetches, posts, trips.trips.Load())
		}
	})
}

// Whoever ends TLS lets a request through, withholds its answer, and says that the key is unknown,
// after a genuine rotation.
func TestForgedUnknownKeyRunsNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran int
		g := fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
			ran++
			testkit.AnswerText("x")(w, r)
		})
		pass := false
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet || pass {
				return false
			}
			pass = true
			g.ServeHTTP(httptest.NewRecorder(), r)
			pass = false
			g.Rotate()
			fakes.UnknownKey(w)
			return true
		}
		client := directClient(t, g, func(c *sealedchat.Config) { c.MaxRetries = 5 })
		calls := callsOf(client)
		calls["HTTPClient"] = func(ctx context.Context) error {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost,
				"https://gateway.test/v1/embeddings", strings.NewReader(`{}`))
			resp, err := client.HTTPClient().Do(req)
			if err == nil {
				defer resp.Body.Close()
				if resp.StatusCode == http.StatusOK ||
					resp.Header.Get("X-Should-Retry") != "false" {
					t.Errorf("an SDK gets %d and %v", resp.StatusCode, resp.Header)
				}
				// which an SDK gets as an answer
				return &sealedchat.OuterError{StatusCode: 422, KeyChanged: true}
			}
			return err
		}
		for name, call := range calls {
			ran = 0
			err := call(t.Context())
			if outer, ok := errors.AsType[*sealedchat.OuterError](err); !ok || !outer.KeyChanged ||
				!strings.Contains(err.Error(), "try again") {
				t.Errorf("%s: %v", name, err)
			}
			if ran != 1 {
				t.Errorf("%s ran %d times", name, ran)
			}
		}

		// What only reads is sealed again.
		g.Inner = func(w http.ResponseWriter, _ *http.Request) {
			ran++
			_, _ = io.WriteString(w, "models")
		}
		outer := g.Outer
		answered := false
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
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

// Whoever ends TLS has a request served, withholds the answer, and sends it once more when its date
// is over.
func TestHeldBackCopyRunsNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := 0
		g := fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
			if sent, err := http.ParseTime(r.Header.Get("Date")); err != nil ||
				time.Since(sent).Abs() > 2*time.Minute {
				w.Header().Set(ohttp.HeaderProcessed, "no")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`"}`)
				return
			}
			ran++
			testkit.AnswerText("x")(w, r)
		})
		pass := false
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
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
		client := directClient(t, g, func(c *sealedchat.Config) { c.MaxRetries = 5 })
		for name, call := range callsOf(client) {
			ran = 0
			if err := call(t.Context()); !errors.Is(err, sealedchat.ErrInvalidRequest) || ran != 1 {
				t.Errorf("%s: %v, ran %d times", name, err, ran)
			}
		}
	})
}
