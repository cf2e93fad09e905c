// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// directClient is a client of g's without a network between them.
func directClient(t testing.TB, g *fakes.Gateway,
	change func(*sealedchat.Config)) *sealedchat.SecureCompletionClient {
	t.Helper()
	return ohttpClient(t, "https://gateway.test", func(c *sealedchat.Config) {
		c.Transport = fakes.Direct(g)
		if change != nil {
			change(c)
		}
	})
}

func TestOuterAnswersProveNothing(t *testing.T) {
	for _, status := range []int{200, 201, 204, 301, 307, 400, 401, 403, 404, 408, 409, 413, 422,
		425, 429, 500, 502, 503, 504, 599} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := fakes.NewGateway(t, testkit.AnswerText("never"))
				g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
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
				var log bytes.Buffer
				client := directClient(t, g, func(c *sealedchat.Config) {
					c.MaxRetries = 5
					c.Logger = slog.New(slog.NewTextHandler(&log,
						&slog.HandlerOptions{Level: slog.LevelDebug}))
				})
				if err := client.Warm(t.Context()); err != nil {
					t.Fatal(err)
				}
				g.Rotate() // there is another key, but nobody whose word counts said so
				for name, call := range callsOf(client) {
					before := g.Posts
					err := call(t.Context())
					if g.Fetches != 1 {
						t.Errorf("%s: the list was asked for", name)
					}
					outer, ok := errors.AsType[*sealedchat.OuterError](err)
					if !ok || outer.StatusCode != status {
						t.Fatalf("%s: got %v", name, err)
					}
					if _, inner := errors.AsType[*sealedchat.APIError](err); inner ||
						!errors.Is(err, sealedchat.ErrConnection) {
						t.Errorf("%s: taken for the gateway's word: %v", name, err)
					}
					for _, sentinel := range []error{sealedchat.ErrInvalidRequest,
						sealedchat.ErrAuthentication, sealedchat.ErrPermission,
						sealedchat.ErrNotFound, sealedchat.ErrRateLimited, sealedchat.ErrServer,
						sealedchat.ErrUnavailable, sealedchat.ErrTruncated} {
						if errors.Is(err, sentinel) {
							t.Errorf("%s: is %v", name, sentinel)
						}
					}
					if g.Posts != before+1 {
						t.Errorf("%s: sent %d times", name, g.Posts-before)
					}
					if strings.Contains(err.Error(), "\x1b") ||
						strings.Contains(log.String(), "thing") {
						t.Errorf("%s: %q, logged as %q", name, err, log.String())
					}
				}
			})
		})
	}
}

// callsOf are the ways to ask a client.
func callsOf(c *sealedchat.SecureCompletionClient) map[string]func(context.Context) error {
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
		{400, "", sealedchat.ErrInvalidRequest, 1},
		{401, "", sealedchat.ErrAuthentication, 1},
		{403, "", sealedchat.ErrPermission, 1},
		{404, "", sealedchat.ErrNotFound, 1},
		{409, "", sealedchat.ErrInvalidRequest, 1},
		{422, "", sealedchat.ErrInvalidRequest, 1},
		{429, "", sealedchat.ErrRateLimited, 3},
		{429, "7", sealedchat.ErrRateLimited, 3},
		{429, "300", sealedchat.ErrRateLimited, 1},
		{500, "", sealedchat.ErrServer, 3},
		{503, "", sealedchat.ErrUnavailable, 1},
		{503, "2", sealedchat.ErrUnavailable, 3},
	} {
		t.Run(strconv.Itoa(test.status)+" "+test.retryAfter, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := fakes.NewGateway(t, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/problem+json")
					w.Header().Set(ohttp.HeaderProcessed, "no")
					if test.retryAfter != "" {
						w.Header().Set("Retry-After", test.retryAfter)
					}
					w.WriteHeader(test.status)
					_, _ = io.WriteString(w,
						`{"type":"about:blank","detail":"words","error":{"message":"words","code":"c"}}`)
				})
				client := directClient(t, g, func(c *sealedchat.Config) { c.MaxRetries = 2 })
				for name, call := range callsOf(client) {
					before := g.Posts
					err := call(t.Context())
					answer, ok := errors.AsType[*sealedchat.APIError](err)
					if !ok || answer.StatusCode != test.status || !errors.Is(err, test.want) ||
						answer.Detail != "words" || answer.Code != "c" {
						t.Errorf("%s: got %v", name, err)
					}
					if g.Posts-before != test.posts {
						t.Errorf("%s: sent %d times, want %d", name, g.Posts-before, test.posts)
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
				g := fakes.NewGateway(t, testkit.AnswerText("new"))
				client := directClient(t, g, nil)
				if err := client.Warm(t.Context()); err != nil {
					t.Fatal(err)
				}
				if rotated {
					g.Rotate()
				} else {
					g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
						if r.Method == http.MethodGet {
							return false
						}
						fakes.UnknownKey(w)
						return true
					}
				}
				_, err := client.Chat(t.Context(), ask("x"))
				if outer, ok := errors.AsType[*sealedchat.OuterError](err); !ok ||
					outer.StatusCode != 422 || outer.KeyChanged != rotated {
					t.Fatalf("got %v", err)
				}
				if fetches, posts := g.Counts(); fetches != 2 || posts != 1 {
					t.Errorf("%d fetches, %d posts", fetches, posts)
				}
				if rotated { // the caller's next call uses the new key
					if answer, err := client.Chat(t.Context(), ask("x")); err != nil ||
						answer.Text() != "new" {
						t.Errorf("%v, %v", answer, err)
					}
					if fetches, posts := g.Counts(); fetches != 2 || posts != 2 {
						t.Errorf("%d fetches, %d posts", fetches, posts)
					}
				} else { // a forger cannot have the list asked for again and again
					for range 3 {
						_, _ = client.Chat(t.Context(), ask("x"))
					}
					if fetches, _ := g.Counts(); fetches != 2 {
						t.Errorf("%d fetches", fetches)
					}
				}
			})
		})
	}
}

func TestOHTTPListIsCachedForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fakes.NewGateway(t, testkit.AnswerText("x"))
		client := directClient(t, g, nil)
		for i, wait := range []time.Duration{0, 59 * time.Minute, 2 * time.Minute} {
			time.Sleep(wait)
			if _, err := client.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
			if fetches, _ := g.Counts(); fetches != 1+i/2 {
				t.Errorf("%d fetches after %d calls", fetches, i+1)
			}
		}
	})
}

// A gateway that says that the date is wrong says what time it is, under seal.
func TestOHTTPFollowsTheGatewaysClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 42 * time.Minute
		g := fakes.NewGateway(t, nil)
		g.Inner = func(w http.ResponseWriter, r *http.Request) {
			now := time.Now().Add(ahead)
			w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
			sent, err := http.ParseTime(r.Header.Get("Date"))
			if err != nil || now.Sub(sent).Abs() > 2*time.Minute {
				w.Header().Set(ohttp.HeaderProcessed, "no")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`","detail":"date"}`)
				return
			}
			testkit.AnswerText("on time")(w, r)
		}
		client := directClient(t, g, nil)
		for range 2 {
			if _, err := client.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
		}
		if _, posts := g.Counts(); posts != 3 {
			t.Errorf("%d posts: one to learn the time, then one for each call", posts)
		}
		// A gateway that is never content is asked twice.
		g.Set(func() {
			g.Inner = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
				w.Header().Set(ohttp.HeaderProcessed, "no")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`"}`)
			}
		})
		if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err,
			sealedchat.ErrInvalidRequest) {
			t.Errorf("got %v", err)
		}
		if _, posts := g.Counts(); posts != 5 {
			t.Errorf("%d posts", posts)
		}
	})
}

func TestOHTTPTier(t *testing.T) {
	for stated, want := range map[string]error{"high": nil, "maximum": nil,
		"standard": sealedchat.ErrTierDowngrade, "": sealedchat.ErrTierDowngrade,
		"odd": sealedchat.ErrTierDowngrade} {
		g := fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(hybrid.HeaderTier) != "high" {
				t.Errorf("asked for %q", r.Header.Get(hybrid.HeaderTier))
			}
			if stated != "" {
				w.Header().Set(hybrid.HeaderTier, stated)
			}
			if strings.Contains(r.Header.Get("Accept"), "event-stream") {
				fakes.WordByWord(nil, "x")(w, r)
				return
			}
			testkit.AnswerText("x")(w, r)
		})
		client := directClient(t, g, func(c *sealedchat.Config) { c.Tier = sealedchat.TierHigh })
		for name, call := range callsOf(client) {
			if err := call(t.Context()); !errors.Is(err, want) {
				t.Errorf("%s with tier %q: %v", name, stated, err)
			}
		}
	}
}

func TestOHTTPChatTakesOutStream(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText("whole"))
	client := directClient(t, g, nil)
	r := ask("x")
	r.Extra = map[string]any{"stream": true,
		"stream_options": map[string]bool{"include_usage": true}, "top_k": 4}
	if _, err := client.Chat(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if s := string(g.Content); strings.Contains(s, "stream") || !strings.Contains(s, "top_k") {
		t.Errorf("sent %s", s)
	}
}

func TestOHTTPLimits(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText(strings.Repeat("x", 5000)))
	client := directClient(t, g, func(c *sealedchat.Config) {
		c.MaxRequestBytes, c.MaxResponseBytes = 500, 4000
	})
	for name, call := range callsOf(client) {
		if err := call(t.Context()); !errors.Is(err, sealedchat.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, before := g.Counts()
	if _, err := client.Chat(t.Context(), ask(strings.Repeat("y", 600))); !errors.Is(err,
		sealedchat.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if _, after := g.Counts(); after != before {
		t.Error("too large a request was sent")
	}
	for _, bad := range []sealedchat.Config{
		{Protocol: "7"}, {Protocol: sealedchat.ProtocolOHTTP,
			OHTTP: sealedchat.OHTTPOptions{Padding: -1}},
		{Protocol: sealedchat.ProtocolOHTTP, OHTTP: sealedchat.OHTTPOptions{Padding: 1<<20 + 1}},
		{OHTTP: sealedchat.OHTTPOptions{Padding: 256}},
	} {
		bad.BaseURL, bad.Trust = "https://server.test", sealedchat.TrustHTTPS()
		if _, err := sealedchat.NewSecureCompletionClient(bad); err == nil {
			t.Errorf("taken: %v, padding %d", bad.Protocol, bad.OHTTP.Padding)
		}
	}
}

// Outside there is nothing but what the protocol needs.
func TestOHTTPOutside(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText("x"))
	client := directClient(t, g, func(c *sealedchat.Config) {
		c.APIKey, c.Tier = secret(t, "sk-never-outside"), ""
	})
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Content-Type": ohttp.TypeRequest, "Accept": ohttp.TypeResponse,
		"Cache-Control": "no-store", "Incremental": "?1",
		"Accept-Encoding": "identity", "User-Agent": "",
	}
	for name, values := range g.Outside {
		if v, ok := want[name]; !ok || len(values) != 1 || values[0] != v {
			t.Errorf("%s: %q", name, values)
		}
	}
	if len(g.Outside) != len(want) {
		t.Errorf("%d headers outside: %v", len(g.Outside), g.Outside)
	}
}
