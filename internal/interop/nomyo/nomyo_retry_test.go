// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// nomyo seals once and repeats the same bytes, as an attacker would. Each case checks that it does.
func sameRequest(t *testing.T, posts []arrival) {
	t.Helper()
	for _, p := range posts {
		if !bytes.Equal(p.body, posts[0].body) {
			t.Error("a repeated request was sealed afresh")
		}
		for name := range posts[0].header {
			if p.header.Get(name) != posts[0].header.Get(name) {
				t.Errorf("%s of a repeated request differs", name)
			}
		}
		if len(p.header) != len(posts[0].header) {
			t.Errorf("a repeated request has other headers: %v", p.header)
		}
	}
}

// A request that failed may be repeated as it is: the replay check accepts it.
func TestNomyoFailures(t *testing.T) {
	needPython(t)
	certs, dir := newCertificates(t), keyDir(t, "rsa-2048")
	never := 0
	var panics atomic.Int32
	limited := func(c *sealedchat.GatewayConfig) {
		c.AllowUnauthenticated = false
		c.Authenticate = func(*http.Request) (string, error) {
			return "", &sealedchat.APIError{StatusCode: http.StatusTooManyRequests,
				RetryAfter: 30 * time.Second}
		}
	}
	broken := func(most int32) func(*sealedchat.GatewayConfig) {
		return func(c *sealedchat.GatewayConfig) {
			c.AllowUnauthenticated = false
			c.Authenticate = func(r *http.Request) (string, error) {
				if most == 0 || panics.Add(1) <= most {
					panic("a bug")
				}
				return "", nil
			}
		}
	}
	cases := []struct {
		name     string
		fail     []int // of the upstream
		change   func(*sealedchat.GatewayConfig)
		retries  *int
		class    string // "" = served
		status   int
		message  string
		posts    int
		upstream int
	}{
		{"500 twice", []int{500, 500}, nil, nil, "", 0, "", 3, 3},
		{"502 once", []int{502}, nil, nil, "", 0, "", 2, 2},
		{"503 twice", []int{503, 503}, nil, nil, "", 0, "", 3, 3},
		{"504 twice", []int{504, 504}, nil, nil, "", 0, "", 3, 3},
		{"429 twice", []int{429, 429}, nil, nil, "", 0, "", 3, 3},
		{"429, 502, then served", []int{429, 502}, nil, nil, "", 0, "", 3, 3},
		{"a bug twice", nil, broken(2), nil, "", 0, "", 3, 1},

		{"500 for good", []int{500, 500, 500}, nil, nil, "APIError", 502,
			"Unexpected status code: 502 the upstream failed", 3, 3},
		{"502 for good", []int{502, 502, 502}, nil, nil, "APIError", 502,
			"Unexpected status code: 502 the upstream failed", 3, 3},
		{"503 for good", []int{503, 503, 503}, nil, nil, "ServiceUnavailableError", 503,
			"Service unavailable: the upstream is unavailable", 3, 3},
		{"504 for good", []int{504, 504, 504}, nil, nil, "APIError", 504,
			"Unexpected status code: 504 the upstream did not answer in time", 3, 3},
		{"429 for good", []int{429, 429, 429}, nil, nil, "RateLimitError", 429,
			"Rate limit exceeded: the upstream is rate limited", 3, 3},
		{"429 of the gateway", nil, limited, nil, "RateLimitError", 429,
			"Rate limit exceeded: rate limited", 3, 0},
		{"a bug for good", nil, broken(0), nil, "ServerError", 500, "Server error: internal error",
			3, 0},
		{"no retries", []int{503}, nil, &never, "ServiceUnavailableError", 503,
			"Service unavailable: the upstream is unavailable", 1, 1},

		{"400", []int{400}, nil, nil, "InvalidRequestError", 400,
			"Bad request: the upstream refused the request as invalid", 1, 1},
		{"401 of the upstream", []int{401, 401, 401}, nil, nil, "APIError", 424,
			"Unexpected status code: 424 the gateway's key is refused upstream", 1, 1},
		{"404", []int{404}, nil, nil, "APIError", 404,
			"Endpoint not found: the upstream answered 404: unknown model, or Upstream does not " +
				"end in /v1", 1, 1},
		{"413", []int{413}, nil, nil, "APIError", 413,
			"Unexpected status code: 413 the request is too large for the upstream", 1, 1},
	}
	var sites []*site
	var jobs []job
	for _, c := range cases {
		s := newSite(t, certs, &upstream{fail: c.fail, retryAfter: "30"}, c.change, nil)
		sites = append(sites, s)
		jobs = append(jobs, job{BaseURL: s.url, KeyDir: dir, MaxRetries: c.retries,
			Requests: []map[string]any{say("a")}})
	}
	for i, o := range runNomyo(t, certs.authority, jobs...) {
		c, s := cases[i], sites[i]
		t.Run(c.name, func(t *testing.T) {
			if c.class != "" {
				raised(t, o[0], c.class, c.status, c.message)
			} else if got := served(t, o[0]).text(); got != "a" {
				t.Errorf("answer %q", got)
			}
			posts := s.wire.arrivals(http.MethodPost)
			if len(posts) != c.posts || len(s.wire.arrivals(http.MethodGet)) != 1 ||
				len(s.upstream.requests()) != c.upstream {
				t.Fatalf("%d POSTs, %d GETs, %d requests upstream", len(posts),
					len(s.wire.arrivals(http.MethodGet)), len(s.upstream.requests()))
			}
			sameRequest(t, posts)
			for n := 1; n < len(posts); n++ { // 1 s and 2 s: nomyo ignores Retry-After
				least := time.Duration(n) * time.Second * 9 / 10
				if gap := posts[n].at.Sub(posts[n-1].at); gap < least || gap > 25*time.Second {
					t.Errorf("attempt %d came after %v", n, gap)
				}
			}
		})
	}
}

// A connection breaks. The gateway serves the repeated request if it did not serve the first one.
// If the answer was on its way when the connection broke, the gateway cannot tell the repetition
// from a replay, and refuses it. nomyo raises the status, and the next call is served.
func TestNomyoBrokenConnections(t *testing.T) {
	needPython(t)
	certs, dir := newCertificates(t), keyDir(t, "rsa-2048")
	const (
		again   = "served by the second attempt"
		replay  = "refused as a replay"
		gaveUp  = "given up without a second attempt"
		sentAgo = "Unexpected status code: 409 this request was sent before"
		failed  = "Request failed due to an unexpected error"
	)
	want := map[[2]string]string{
		{beforeGateway, byReset}: again, {beforeGateway, byClose}: gaveUp,
		{beforeGateway, byTruncate}: gaveUp, {beforeGateway, by504}: again,
		{whileWorking, byReset}: again, {whileWorking, byClose}: gaveUp,
		{whileWorking, byTruncate}: gaveUp, {whileWorking, by504}: again,
		{beforeAnswer, byReset}: replay, {beforeAnswer, byClose}: gaveUp,
		{beforeAnswer, byTruncate}: gaveUp, {beforeAnswer, by504}: replay,
		{withinAnswer, byReset}: replay, {withinAnswer, byClose}: gaveUp,
		{withinAnswer, byTruncate}: gaveUp,
	}
	type broken struct {
		name, want string
		when       string
		site       *site
	}
	var cases []broken
	var jobs []job
	for how, want := range want {
		for scheme, c := range map[string]*certificates{"http": nil, "https": certs} {
			up, proxy := &upstream{}, &cutter{when: how[0], how: how[1]}
			if proxy.when == whileWorking {
				up.hang = make(chan struct{})
				proxy.working = up.hang
			}
			s := newSite(t, c, up, nil, proxy.front(t))
			cases = append(cases, broken{scheme + ", " + how[1] + " " + how[0], want, how[0], s})
			jobs = append(jobs, job{BaseURL: s.url, KeyDir: dir,
				Requests: []map[string]any{say("first"), say("next")}})
		}
	}
	for i, o := range runNomyo(t, certs.authority, jobs...) {
		c := cases[i]
		t.Run(c.name, func(t *testing.T) {
			attempts := 2
			switch c.want {
			case again:
				if got := served(t, o[0]).text(); got != "first" {
					t.Errorf("answer %q", got)
				}
			case replay:
				raised(t, o[0], "APIError", 409, sentAgo)
			case gaveUp:
				raised(t, o[0], "APIConnectionError", 0, failed)
				attempts = 1
			}
			if got := served(t, o[1]).text(); got != "next" {
				t.Errorf("the next answer is %q", got)
			}
			posts := c.site.wire.arrivals(http.MethodPost)
			if len(posts) != attempts+1 {
				t.Fatalf("%d POSTs for both calls", len(posts))
			}
			sameRequest(t, posts[:attempts])
			if bytes.Equal(posts[attempts].body, posts[0].body) {
				t.Error("the next call sent the same envelope")
			}
			// The gateway does not run a request again that it has answered.
			work := 0
			for _, body := range c.site.upstream.requests() {
				work += bytes.Count(body, []byte(`"first"`))
			}
			most := 1
			if c.when == whileWorking {
				most = attempts
			}
			if c.when == beforeGateway {
				most = attempts - 1
			}
			if work != most {
				t.Errorf("the upstream worked %d times on the first call, want %d", work, most)
			}
		})
	}
}

// The gateway refuses a request that an attacker captured from the real client, whichever key they
// want the answer for.
func TestNomyoCaptured(t *testing.T) {
	needPython(t)
	certs := newCertificates(t)
	s := newSite(t, certs, &upstream{}, nil, nil)
	served(t, runNomyo(t, certs.authority, job{BaseURL: s.url, KeyDir: keyDir(t, "rsa-2048"),
		Requests: []map[string]any{say("a")}})[0][0])
	captured := s.wire.arrivals(http.MethodPost)[0]
	client := trusting(t, certs.pool)
	escape := func(key []byte) string {
		return strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "=",
			"%3D").Replace(string(key))
	}
	for name, change := range map[string]func(http.Header){
		"as it was": func(http.Header) {},
		"another payload id": func(h http.Header) {
			h.Set("X-Payload-ID", "00000000-0000-4000-8000-000000000000")
		},
		"another key": func(h http.Header) {
			h.Set("X-Public-Key", escape(testkit.PublicPEM(t, "other-4096")))
		},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+captured.path,
			bytes.NewReader(captured.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = captured.header.Clone()
		change(req.Header)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusConflict ||
			string(body) != `{"detail":"this request was sent before"}` {
			t.Errorf("%s: %d %s %v", name, resp.StatusCode, body, err)
		}
	}
	if n := len(s.upstream.requests()); n != 1 {
		t.Errorf("the upstream got %d requests", n)
	}
}

// trusting is an HTTP client that trusts pool alone.
func trusting(t *testing.T, pool *x509.CertPool) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool,
		MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: scriptDeadline}
}
