// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// direct is a transport without a network: it asks h, and waits for nothing but h itself.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	w := httptest.NewRecorder()
	r := req.Clone(req.Context())
	if r.Body == nil {
		r.Body = http.NoBody
	}
	d.h.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

// directClient is a client of g's without a network between them.
func directClient(t testing.TB, g *tinyGateway, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return ohttpClient(t, "https://gateway.test", func(c *Config) {
		c.Transport = direct{g}
		if change != nil {
			change(c)
		}
	})
}

func TestOuterAnswersProveNothing(t *testing.T) {
	for _, status := range []int{200, 201, 204, 301, 307, 400, 401, 403, 404, 408, 409, 413, 422, 425, 429, 500, 502, 503, 504, 599} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newTiny(t, answerText("never"))
				g.outer = func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method == http.MethodGet {
						return false
					}
					w.Header().Set("Content-Type", "application/json")
					w.Header().Set("Retry-After", "1")
					w.Header().Set("Location", "https://elsewhere.test")
					w.WriteHeader(status)
					if status != http.StatusNoContent {
						_, _ = io.WriteString(w, `{"detail":"no\u001b[31m such thing"}`)
					}
					return true
				}
				client := directClient(t, g, func(c *Config) { c.MaxRetries = 5 })
				if err := client.Warm(t.Context()); err != nil {
					t.Fatal(err)
				}
				g.rotate() // there is another key, but nobody whose word counts said so
				for name, call := range callsOf(client) {
					before := g.posts
					err := call(t.Context())
					if g.fetches != 1 {
						t.Errorf("%s: the list was asked for", name)
					}
					outer, ok := errors.AsType[*OuterError](err)
					if !ok || outer.StatusCode != status {
						t.Fatalf("%s: got %v", name, err)
					}
					if _, inner := errors.AsType[*APIError](err); inner || !errors.Is(err, ErrConnection) {
						t.Errorf("%s: taken for the gateway's word: %v", name, err)
					}
					for _, sentinel := range []error{ErrInvalidRequest, ErrAuthentication, ErrPermission, ErrNotFound, ErrRateLimited, ErrServer, ErrUnavailable, ErrTruncated} {
						if errors.Is(err, sentinel) {
							t.Errorf("%s: is %v", name, sentinel)
						}
					}
					if g.posts != before+1 {
						t.Errorf("%s: sent %d times", name, g.posts-before)
					}
					if strings.Contains(err.Error(), "\x1b") || strings.Contains(logText(err), "thing") {
						t.Errorf("%s: %q, logged as %q", name, err, logText(err))
					}
				}
			})
		})
	}
}

// callsOf are the ways to ask a client.
func callsOf(c *SecureCompletionClient) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Chat": func(ctx context.Context) error {
			_, err := c.Chat(ctx, ask("x"))
			return err
		},
		"Stream": func(ctx context.Context) error {
			for _, err := range c.Stream(ctx, ask("x")) {
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func TestInnerRefusalsAreAuthentic(t *testing.T) {
	for _, test := range []struct {
		status     int
		retryAfter string
		want       error
		posts      int
	}{
		{400, "", ErrInvalidRequest, 1},
		{401, "", ErrAuthentication, 1},
		{403, "", ErrPermission, 1},
		{404, "", ErrNotFound, 1},
		{409, "", ErrInvalidRequest, 1},
		{422, "", ErrInvalidRequest, 1},
		{429, "", ErrRateLimited, 3},
		{429, "7", ErrRateLimited, 3},
		{429, "300", ErrRateLimited, 1},
		{500, "", ErrServer, 3},
		{503, "", ErrUnavailable, 1},
		{503, "2", ErrUnavailable, 3},
	} {
		t.Run(strconv.Itoa(test.status)+" "+test.retryAfter, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newTiny(t, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/problem+json")
					w.Header().Set(ohttp.HeaderProcessed, "no")
					if test.retryAfter != "" {
						w.Header().Set("Retry-After", test.retryAfter)
					}
					w.WriteHeader(test.status)
					_, _ = io.WriteString(w, `{"type":"about:blank","detail":"words","error":{"message":"words","code":"c"}}`)
				})
				client := directClient(t, g, func(c *Config) { c.MaxRetries = 2 })
				for name, call := range callsOf(client) {
					before := g.posts
					err := call(t.Context())
					answer, ok := errors.AsType[*APIError](err)
					if !ok || answer.StatusCode != test.status || !errors.Is(err, test.want) || answer.Detail != "words" || answer.Code != "c" {
						t.Errorf("%s: got %v", name, err)
					}
					if g.posts-before != test.posts {
						t.Errorf("%s: sent %d times, want %d", name, g.posts-before, test.posts)
					}
				}
			})
		})
	}
}

func TestUnknownKeyIsRefreshedOnce(t *testing.T) {
	for name, rotated := range map[string]bool{"rotated": true, "the same list": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newTiny(t, answerText("new"))
				client := directClient(t, g, nil)
				if err := client.Warm(t.Context()); err != nil {
					t.Fatal(err)
				}
				if rotated {
					g.rotate()
				} else {
					g.outer = func(w http.ResponseWriter, r *http.Request) bool {
						if r.Method == http.MethodGet {
							return false
						}
						unknownKey(w)
						return true
					}
				}
				_, err := client.Chat(t.Context(), ask("x"))
				if outer, ok := errors.AsType[*OuterError](err); !ok || outer.StatusCode != 422 || outer.KeyChanged != rotated {
					t.Fatalf("got %v", err)
				}
				if fetches, posts := g.counts(); fetches != 2 || posts != 1 {
					t.Errorf("%d fetches, %d posts", fetches, posts)
				}
				if rotated { // the caller's next call uses the new key
					if answer, err := client.Chat(t.Context(), ask("x")); err != nil || answer.Text() != "new" {
						t.Errorf("%v, %v", answer, err)
					}
					if fetches, posts := g.counts(); fetches != 2 || posts != 2 {
						t.Errorf("%d fetches, %d posts", fetches, posts)
					}
				} else { // a forger cannot have the list asked for again and again
					for range 3 {
						_, _ = client.Chat(t.Context(), ask("x"))
					}
					if fetches, _ := g.counts(); fetches != 2 {
						t.Errorf("%d fetches", fetches)
					}
				}
			})
		})
	}
}

func TestOHTTPListIsCachedForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTiny(t, answerText("x"))
		client := directClient(t, g, nil)
		for i, wait := range []time.Duration{0, 59 * time.Minute, 2 * time.Minute} {
			time.Sleep(wait)
			if _, err := client.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
			if fetches, _ := g.counts(); fetches != 1+i/2 {
				t.Errorf("%d fetches after %d calls", fetches, i+1)
			}
		}
	})
}

// A gateway that says that the date is wrong says what time it is, under seal.
func TestOHTTPFollowsTheGatewaysClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 42 * time.Minute
		g := newTiny(t, nil)
		g.inner = func(w http.ResponseWriter, r *http.Request) {
			now := time.Now().Add(ahead)
			w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
			sent, err := http.ParseTime(r.Header.Get("Date"))
			if err != nil || now.Sub(sent).Abs() > 2*time.Minute {
				w.Header().Set(ohttp.HeaderProcessed, "no")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`","detail":"date"}`)
				return
			}
			answerText("on time")(w, r)
		}
		client := directClient(t, g, nil)
		for range 2 {
			if _, err := client.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
		}
		if _, posts := g.counts(); posts != 3 {
			t.Errorf("%d posts: one to learn the time, then one for each call", posts)
		}
		// A gateway that is never content is asked twice.
		g.set(func() {
			g.inner = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
				w.Header().Set(ohttp.HeaderProcessed, "no")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`"}`)
			}
		})
		if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("got %v", err)
		}
		if _, posts := g.counts(); posts != 5 {
			t.Errorf("%d posts", posts)
		}
	})
}

func TestOHTTPTier(t *testing.T) {
	for stated, want := range map[string]error{"high": nil, "maximum": nil, "standard": ErrTierDowngrade, "": ErrTierDowngrade, "odd": ErrTierDowngrade} {
		g := newTiny(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(hybrid.HeaderTier) != "high" {
				t.Errorf("asked for %q", r.Header.Get(hybrid.HeaderTier))
			}
			if stated != "" {
				w.Header().Set(hybrid.HeaderTier, stated)
			}
			if strings.Contains(r.Header.Get("Accept"), "event-stream") {
				wordByWord(nil, "x")(w, r)
				return
			}
			answerText("x")(w, r)
		})
		client := directClient(t, g, func(c *Config) { c.Tier = TierHigh })
		for name, call := range callsOf(client) {
			if err := call(t.Context()); !errors.Is(err, want) {
				t.Errorf("%s with tier %q: %v", name, stated, err)
			}
		}
	}
}

func TestOHTTPChatTakesOutStream(t *testing.T) {
	g := newTiny(t, answerText("whole"))
	client := directClient(t, g, nil)
	r := ask("x")
	r.Extra = map[string]any{"stream": true, "stream_options": map[string]bool{"include_usage": true}, "top_k": 4}
	if _, err := client.Chat(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if s := string(g.content); strings.Contains(s, "stream") || !strings.Contains(s, "top_k") {
		t.Errorf("sent %s", s)
	}
}

func TestOHTTPLimits(t *testing.T) {
	g := newTiny(t, answerText(strings.Repeat("x", 5000)))
	client := directClient(t, g, func(c *Config) { c.MaxRequestBytes, c.MaxResponseBytes = 500, 4000 })
	for name, call := range callsOf(client) {
		if err := call(t.Context()); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, before := g.counts()
	if _, err := client.Chat(t.Context(), ask(strings.Repeat("y", 600))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if _, after := g.counts(); after != before {
		t.Error("too large a request was sent")
	}
	for _, bad := range []Config{
		{Protocol: "7"}, {Protocol: ProtocolOHTTP, OHTTP: OHTTPOptions{Padding: -1}},
		{Protocol: ProtocolOHTTP, OHTTP: OHTTPOptions{Padding: maxPadding + 1}}, {OHTTP: OHTTPOptions{Padding: 256}},
	} {
		bad.BaseURL, bad.Trust = "https://server.test", TrustHTTPS()
		if _, err := NewSecureCompletionClient(bad); err == nil {
			t.Errorf("taken: %v, padding %d", bad.Protocol, bad.OHTTP.Padding)
		}
	}
}

// Outside there is nothing but what the protocol needs.
func TestOHTTPOutside(t *testing.T) {
	g := newTiny(t, answerText("x"))
	client := directClient(t, g, func(c *Config) {
		c.APIKey, c.Tier = secret(t, "sk-never-outside"), ""
	})
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Content-Type": ohttp.TypeRequest, "Accept": ohttp.TypeResponse, "Cache-Control": "no-store", "Incremental": "?1",
		"Accept-Encoding": "identity", "User-Agent": "",
	}
	for name, values := range g.outside {
		if v, ok := want[name]; !ok || len(values) != 1 || values[0] != v {
			t.Errorf("%s: %q", name, values)
		}
	}
	if len(g.outside) != len(want) {
		t.Errorf("%d headers outside: %v", len(g.outside), g.outside)
	}
}
