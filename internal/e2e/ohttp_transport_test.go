// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/sse"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestOHTTPHTTPClientPaths(t *testing.T) {
	g := fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Request-Id", "r1")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("X-Should-Retry", "true")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"data":[]}`)
	})
	client := ohttpClient(t, "https://gateway.test/prefix", func(c *sealedchat.Config) {
		c.Transport = fakes.Direct(http.StripPrefix("/prefix", g))
	})
	for _, test := range []struct{ method, url, want string }{
		{"GET", "https://gateway.test/prefix/v1/models", "/v1/models"},
		{"GET", "https://api.openai.com/v1/models?limit=3", "/v1/models?limit=3"},
		{"GET", "https://gateway.test/prefixed/v1", "/prefixed/v1"},
		{"GET", "https://gateway.test", "/"},
		{"GET", "https://gateway.test/openai/chat/completions?limit=2",
			"/v1/chat/completions?limit=2"},
		{"DELETE", "https://gateway.test/v1/a%2Fb", "/v1/a%2Fb"},
		{"POST", "https://gateway.test/v1/embeddings", "/v1/embeddings"},
		{"POST", "https://gateway.test/prefix/v1/responses", "/v1/responses"},
	} {
		var body io.Reader
		if test.method == "POST" {
			body = strings.NewReader(`{"model":"m","input":"x"}`)
		}
		req, err := http.NewRequest(test.method, test.url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("OpenAI-Beta", "assistants=v2")
		req.Header.Set("Traceparent", "00-trace")
		req.Header.Set("Tracestate", "a=b")
		req.Header.Set("X-Stainless-OS", "Linux")
		req.Header.Set("User-Agent", "OpenAI/Go")
		resp, err := client.HTTPClient().Do(req)
		if err != nil {
			t.Fatalf("%s: %v", test.url, err)
		}
		content, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(content) != `{"data":[]}` || resp.StatusCode != http.StatusCreated {
			t.Errorf("%s: %d %q, %v", test.url, resp.StatusCode, content, err)
		}
		h := resp.Header
		if h.Get("X-Should-Retry") != "false" || h.Get("X-Request-Id") != "r1" ||
			h.Get("Set-Cookie") != "" {
			t.Errorf("%s: %v", test.url, h)
		}
		if g.Last.Path != test.want || g.Last.Method != test.method {
			t.Errorf("%s: inside %s %s", test.url, g.Last.Method, g.Last.Path)
		}
		inside := httpx.HeaderOf(g.Last.Header)
		if inside.Get("X-Stainless-OS") != "" || inside.Get("User-Agent") != "" ||
			inside.Get("OpenAI-Beta") != "assistants=v2" ||
			inside.Get("Traceparent") != "00-trace" || inside.Get("Tracestate") != "" {
			t.Errorf("%s: inside %v", test.url, inside)
		}
	}
}

// A query is sealed, and still in what net/http makes of an error.
func TestOHTTPHTTPClientQuery(t *testing.T) {
	const marker = "QUERY-MARKER-77c0"
	g := fakes.NewGateway(t, testkit.AnswerText("x"))
	fails := false
	client := directClient(t, g, func(c *sealedchat.Config) {
		c.Transport = testkit.RoundTrip(func(r *http.Request) (*http.Response, error) {
			var sent bytes.Buffer
			body, _ := io.ReadAll(cmp.Or[io.Reader](r.Body, http.NoBody))
			r.Body = io.NopCloser(bytes.NewReader(body))
			if _ = r.Write(&sent); bytes.Contains(sent.Bytes(), []byte(marker)) {
				t.Errorf("outside: %s", sent.Bytes())
			}
			if fails {
				return nil, io.ErrUnexpectedEOF
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			return fakes.Direct(g).RoundTrip(r)
		})
	}).HTTPClient()
	resp, err := client.Get("https://gateway.test/v1/models?q=" + marker)
	if err != nil || !strings.Contains(g.Last.Path, marker) {
		t.Fatalf("%v, inside %+v", err, g.Last)
	}
	_ = resp.Body.Close()
	fails = true
	_, err = client.Get("https://gateway.test/v1/models?q=" + marker)
	outer, ok := errors.AsType[*url.Error](err)
	if !ok || !strings.Contains(outer.URL, marker) || strings.Contains(outer.Err.Error(), marker) {
		t.Errorf("got %v", err)
	}
}

// net/http takes no method for GET.
func TestHTTPClientWithoutAMethod(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText("x"))
	req := &http.Request{URL: &url.URL{Scheme: "https", Host: "gateway.test", Path: "/v1/models"}}
	resp, err := directClient(t, g, nil).HTTPClient().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || g.Last.Method != http.MethodGet ||
		g.Last.Path != "/v1/models" || req.Method != "" {
		t.Errorf("%d, inside %+v; the request has the method %q now", resp.StatusCode, g.Last,
			req.Method)
	}
	resp, err = startClient(t, "https://server.test", func(c *sealedchat.Config) {
		c.Transport = testkit.NeverUsed(t)
	}).HTTPClient().Do(&http.Request{URL: req.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("version 1: %d", resp.StatusCode)
	}
}

// An SDK's base URL says little about where the gateway has chat completions.
func TestOHTTPHTTPClientChatPath(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText("x"))
	client := directClient(t, g, nil)
	for _, path := range []string{"/v1/chat/completions", "/chat/completions/",
		"/openai/deployments/m/chat/completions?api-version=1"} {
		resp, err := client.HTTPClient().Post("https://gateway.test"+path, "application/json",
			strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"x"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || g.Last.Path != "/v1/chat/completions" {
			t.Errorf("%s: %d, inside %s", path, resp.StatusCode, g.Last.Path)
		}
	}
}

func TestOHTTPHTTPClientRefusals(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText("x"))
	client := directClient(t, g, func(c *sealedchat.Config) { c.MaxRequestBytes = 100 })
	for name, test := range map[string]struct {
		change func(*http.Request)
		body   string
		status int
	}{
		"an encoding": {func(r *http.Request) {
			r.Header.Set("Content-Encoding", "gzip")
		}, "{}", 415},
		"too large": {nil, strings.Repeat(" ", 5000), 413},
		"no JSON":   {nil, "hello", 400},
		"an odd tier": {func(r *http.Request) {
			r.Header.Set(hybrid.HeaderTier, "odd")
		}, `{"model":"m"}`, 400},
		"spoken outside": {nil, `{"model":"m","stream":true,"api_key":"k"}`, 400},
		"CONNECT":        {func(r *http.Request) { r.Method = http.MethodConnect }, "", 400},
		"an odd query": {func(r *http.Request) {
			r.URL.Path, r.URL.RawQuery = "/v1/models", "a b"
		}, "", 400},
		"a large other": {func(r *http.Request) {
			r.URL.Path = "/v1/embeddings"
		}, strings.Repeat(" ", 500), 413},
		"an odd protocol": {func(r *http.Request) {
			r.Header.Set("Accept", "a\x00b")
		}, `{"model":"m","stream":true}`, 400},
	} {
		req, err := http.NewRequest(http.MethodPost, "https://gateway.test/v1/chat/completions",
			strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		if test.change != nil {
			test.change(req)
		}
		resp, err := client.HTTPClient().Transport.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		content, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != test.status || !strings.Contains(string(content), `{"error":{"`) ||
			resp.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%s: %d %s", name, resp.StatusCode, content)
		}
	}
	if _, posts := g.Counts(); posts != 0 {
		t.Errorf("%d requests were sent", posts)
	}
}

// Errors of the gateway come as OpenAI's; what is not its word comes as an error, and is not sent
// again for an SDK.
func TestOHTTPHTTPClientErrors(t *testing.T) {
	g := fakes.NewGateway(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "120")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"error":{"message":"slowly","code":"rate"}}`)
	})
	client := directClient(t, g, nil)
	sdk := client.HTTPClient()
	for _, body := range []string{`{"model":"m","stream":true}`, `{"model":"m"}`} {
		resp, err := sdk.Post("https://gateway.test/v1/chat/completions", "application/json",
			strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "120" ||
			!strings.Contains(string(content), `"code":"rate"`) ||
			resp.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, content)
		}
	}
	g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "relay down", http.StatusBadGateway)
		return r.Method == http.MethodPost
	}
	_, before := g.Counts()
	for attempt := range 3 {
		req, _ := http.NewRequest(http.MethodPost, "https://gateway.test/v1/embeddings",
			strings.NewReader(`{"model":"m"}`))
		if attempt > 0 {
			req.Header.Set("X-Stainless-Retry-Count", "1")
		}
		_, err := sdk.Do(req)
		if outer, ok := errors.AsType[*sealedchat.OuterError](err); !ok ||
			outer.StatusCode != 502 || outer.Detail != "relay down" {
			t.Errorf("got %v", err)
		}
	}
	if _, after := g.Counts(); after != before+1 {
		t.Errorf("sent %d times", after-before)
	}
}

// What an SDK repeats on its own is sent once, with a body and without, unless it only reads.
func TestOHTTPHTTPClientRemembersWithoutABody(t *testing.T) {
	for _, test := range []struct {
		method, path, body string
		posts              int
	}{
		{"POST", "/v1/batches/b1/cancel", "", 1},
		{"POST", "/v1/embeddings", "{}", 1},
		{"DELETE", "/v1/files/f1", "", 1},
		{"GET", "/v1/models", "", 3},
		{"HEAD", "/v1/models", "", 3},
	} {
		g := fakes.NewGateway(t, testkit.AnswerText("x"))
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				http.Error(w, "relay down", http.StatusBadGateway)
			}
			return r.Method == http.MethodPost
		}
		sdk := directClient(t, g, nil).HTTPClient()
		try := func(path, count string) {
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			req, err := http.NewRequest(test.method, "https://gateway.test"+path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Stainless-Retry-Count", count)
			_, err = sdk.Do(req)
			if outer, ok := errors.AsType[*sealedchat.OuterError](err); !ok ||
				outer.StatusCode != 502 {
				t.Errorf("%s %s: %v", test.method, path, err)
			}
		}
		for _, count := range []string{"0", "1", "2"} {
			try(test.path, count)
		}
		if _, posts := g.Counts(); posts != test.posts {
			t.Errorf("%s %s: sent %d times, want %d", test.method, test.path, posts, test.posts)
		}
		_, before := g.Counts()
		try(test.path+"/other", "1")
		try(test.path, "0")
		if _, after := g.Counts(); after != before+2 {
			t.Errorf("%s: %d of two other calls were sent", test.method, after-before)
		}
	}
}

// The SDK's own time for an attempt is over while the gateway works: its next attempt does not make
// it work again.
func TestOHTTPHTTPClientRemembersWhatItsSDKGaveUp(t *testing.T) {
	for _, body := range []string{`{"model":"m"}`, `{"model":"m","stream":true}`} {
		synctest.Test(t, func(t *testing.T) {
			ran := 0
			g := fakes.NewGateway(t, nil)
			sdk := directClient(t, g, func(c *sealedchat.Config) {
				c.Transport = testkit.RoundTrip(func(r *http.Request) (*http.Response, error) {
					if r.Method == http.MethodGet {
						return fakes.Direct(g).RoundTrip(r)
					}
					ran++
					_, _ = io.Copy(io.Discard, r.Body)
					<-r.Context().Done()
					return nil, r.Context().Err()
				})
			}).HTTPClient()
			for attempt := range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost,
					"https://gateway.test/v1/chat/completions", strings.NewReader(body))
				req.Header.Set("X-Stainless-Retry-Count", strconv.Itoa(attempt))
				resp, err := sdk.Do(req)
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("attempt %d: %v, %v", attempt, resp, err)
				}
			}
			if ran != 1 {
				t.Errorf("%s ran %d times", body, ran)
			}
		})
	}
}

func TestOHTTPHTTPClientStreams(t *testing.T) {
	testkit.NoLeaks(t)
	gate := make(chan struct{})
	gateway := startGateway(t, fakes.WordByWord(gate, "Pa", "ris"), nil)
	srv := httptest.NewUnstartedServer(gateway)
	var conns atomic.Int32
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	client := ohttpClient(t, srv.URL, nil)
	for range 3 {
		resp, err := client.HTTPClient().Post(srv.URL+"/v1/chat/completions", "application/json",
			strings.NewReader(
				`{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}`))
		if err != nil {
			t.Fatal(err)
		}
		if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") ||
			resp.ContentLength != -1 {
			t.Errorf("%s, %d bytes", kind, resp.ContentLength)
		}
		events := sse.NewReader(resp.Body, sse.MaxEvent)
		for i := range 3 {
			e, err := events.Next()
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				gate <- struct{}{}
			}
			if i == 2 && string(e.Data) != "[DONE]" {
				t.Errorf("got %q", e.Data)
			}
		}
		start := time.Now()
		resp.Body.Close() // where SDKs stop
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("closing took %v", d)
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err == nil {
			t.Error("read after Close")
		}
	}
	if s := client.Stats(); s.InFlight != 0 || s.Failures != 0 || s.Requests != 3 {
		t.Errorf("%+v", s)
	}
	if conns.Load() != 1 {
		t.Errorf("%d connections: the first one was not used again", conns.Load())
	}
}
