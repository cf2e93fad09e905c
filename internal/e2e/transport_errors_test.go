// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestHTTPClientErrorsAreOpenAIs(t *testing.T) {
	p := newPeer(t)
	client := peerClient(t, p, nil).HTTPClient()
	for _, c := range []struct {
		status     int
		body       string
		retryAfter string
		want       int
		kind       string
		code       string
		words      string // part of the message
		wantAfter  string
	}{
		{400, `{"detail":"no model"}`, "", 400, "invalid_request_error", "", "no model", ""},
		{401, `{"detail":"Invalid API key"}`, "", 401, "authentication_error", "",
			"Invalid API key", ""},
		{402, ``, "", 402, "invalid_request_error", "", "402", ""},
		{403, `{"error":{"message":"not for you","type":"t","code":"tier"}}`, "", 403,
			"permission_error", "tier", "not for you", ""},
		{404, `<html>nothing</html>`, "", 404, "not_found_error", "", "404 Not Found", ""},
		{409, `{}`, "", 409, "invalid_request_error", "", "409", ""},
		{422, `{"detail":[{"loc":["body"],"msg":"field required"}]}`, "", 422,
			"invalid_request_error", "", "field required", ""},
		{429, `{"detail":"slow down"}`, "7", 429, "rate_limit_error", "", "slow down", "7"},
		{429, ``, "Fri, 31 Dec 2099 23:59:59 GMT", 429, "rate_limit_error", "", "429", "31536000"},
		{429, ``, "soon", 429, "rate_limit_error", "", "429", ""},
		{500, `{"detail":"boom"}`, "", 500, "server_error", "", "boom", ""},
		{501, ``, "", 501, "server_error", "", "501", ""},
		{502, `Bad Gateway`, "", 502, "server_error", "", "Bad Gateway", ""},
		{503, ``, "1800", 503, "server_error", "", "503", "1800"},
		{504, ``, "", 504, "server_error", "", "504", ""},
		{599, ``, "", 599, "server_error", "", "599", ""},
		{204, ``, "", 502, "server_error", "", "204", ""},
		{206, `{}`, "", 502, "server_error", "", "206", ""},
		{301, ``, "", 502, "server_error", "", "redirects are not followed", ""},
		{304, ``, "", 502, "server_error", "", "304", ""},
	} {
		p.always(func() *http.Response {
			return testkit.Respond(c.status, c.body, "Retry-After", c.retryAfter, "X-Should-Retry",
				"true", "Set-Cookie", "a=b", "Location", "https://evil.example/")
		})
		for _, stream := range []string{"", `,"stream":true`} {
			req, _ := sdkRequest(t, sdkBody(stream))
			resp, body, err := sdkTrip(t, client.Transport, req)
			if err != nil {
				t.Fatalf("%d: %v", c.status, err)
			}
			message, kind, code := openAIError(t, resp, body)
			if resp.StatusCode != c.want || kind != c.kind || code != c.code ||
				!strings.Contains(message, c.words) {
				t.Errorf("%d %q became %d %s", c.status, c.body, resp.StatusCode, body)
			}
			if got := resp.Header.Get("Retry-After"); got != c.wantAfter {
				t.Errorf("%d: Retry-After %q, want %q", c.status, got, c.wantAfter)
			}
			if resp.Header.Get("Set-Cookie")+resp.Header.Get("Location") != "" {
				t.Errorf("%d: the server's headers came through: %v", c.status, resp.Header)
			}
		}
	}
}

// An error that came sealed under status 200 is an error all the same, with the status that it
// names.
func TestHTTPClientSealedErrors(t *testing.T) {
	p := newPeer(t)
	client := peerClient(t, p, nil).HTTPClient()
	for text, status := range map[string]int{
		`{"error":{"message":"m","code":429}}`:                     429,
		`{"error":{"message":"m","code":"context_length"}}`:        502,
		`{"error":{"message":"m","code":200}}`:                     502,
		`{"error":{"message":"m","code":"404"},"choices":null}`:    404,
		`{"error":"plain words"}`:                                  502,
		`{"error":{"message":"m","code":99999999999999999999999}}`: 502,
	} {
		p.always(func() *http.Response { return p.sealed(text) })
		req, _ := sdkRequest(t, sdkBody(`,"stream":true`))
		resp, body, err := sdkTrip(t, client.Transport, req)
		if err != nil {
			t.Fatal(err)
		}
		if openAIError(t, resp, body); resp.StatusCode != status {
			t.Errorf("%s became %d %s", text, resp.StatusCode, body)
		}
	}
}

// sdkFailures are failures that are no answer, with the server that causes each.
func sdkFailures(t *testing.T) map[string]struct {
	peer   func() *peer
	change func(*sealedchat.Config)
	is     error
} {
	other := publicOf(t, "rsa-3072")
	answering := func(response func(*peer) *http.Response) func() *peer {
		return func() *peer {
			p := newPeer(t)
			return p.always(func() *http.Response { return response(p) })
		}
	}
	sealed := func(text string) func() *peer {
		return answering(func(p *peer) *http.Response { return p.sealed(text) })
	}
	type failure = struct {
		peer   func() *peer
		change func(*sealedchat.Config)
		is     error
	}
	return map[string]failure{
		"ErrDecryption": {peer: answering(func(p *peer) *http.Response {
			resp := p.sealed(testkit.CompletionJSON(sdkAnswer, ""))
			body, _ := io.ReadAll(resp.Body)
			at := strings.Index(string(body), `"tag":"`) + len(`"tag":"`)
			body[at] = map[bool]byte{true: 'B', false: 'A'}[body[at] == 'A']
			return testkit.Respond(200, string(body))
		}), is: sealedchat.ErrDecryption},
		"another modulus": {peer: answering(func(p *peer) *http.Response {
			return (&peer{t: t, client: other}).sealed(testkit.CompletionJSON(sdkAnswer, ""))
		}), is: sealedchat.ErrEnvelope},
		"ErrReplay": {peer: sealed(testkit.CompletionJSON(sdkAnswer,
			`,"_metadata":{"payload_id":"00000000-0000-4000-8000-000000000000"}`)),
			is: sealedchat.ErrReplay},
		"ErrTierDowngrade": {peer: sealed(testkit.CompletionJSON(sdkAnswer,
			`,"_metadata":{"security_tier":"standard"}`)), change: func(c *sealedchat.Config) {
			c.Tier = sealedchat.TierHigh
		}, is: sealedchat.ErrTierDowngrade},
		"ErrEnvelope": {peer: answering(func(*peer) *http.Response {
			return testkit.Respond(200, testkit.CompletionJSON(sdkAnswer, ""))
		}), is: sealedchat.ErrEnvelope},
		"ErrResponseSchema": {peer: sealed(`{"object":"chat.completion"}`),
			is: sealedchat.ErrResponseSchema},
		"ErrTooLarge": {peer: sealed(testkit.CompletionJSON(sdkAnswer, "")),
			change: func(c *sealedchat.Config) {
				c.MaxResponseBytes = 500
			}, is: sealedchat.ErrTooLarge},
		"ErrPublicKey": {peer: func() *peer {
			p := newPeer(t)
			p.key = func(int, *http.Request) (*http.Response, error) {
				return testkit.Respond(200, "<html>"), nil
			}
			return p
		}, is: sealedchat.ErrPublicKey},
		"ErrConnection": {peer: func() *peer {
			p := newPeer(t)
			p.answer = func(int, *http.Request) (*http.Response, error) {
				return nil, net.ErrClosed
			}
			return p
		}, is: sealedchat.ErrConnection},
		"limiter": {peer: func() *peer {
			return newPeer(t)
		}, change: func(c *sealedchat.Config) { c.Limiter = failingLimiter{} }, is: errLimiter},
	}
}

var errLimiter = errors.New("no tokens left")

type failingLimiter struct{}

func (failingLimiter) Wait(context.Context) error { return errLimiter }

// What is not an answer comes back as the error itself, through http.Client's *url.Error. The SDK's
// own retry of that call is answered from memory, and the caller's next call is sent.
func TestHTTPClientFailuresAreErrors(t *testing.T) {
	for name, c := range sdkFailures(t) {
		for _, stream := range []string{"", `,"stream":true`} {
			p := c.peer()
			client := peerClient(t, p, c.change).HTTPClient()
			do := func(count string, body string) error {
				req, watched := sdkRequest(t, body)
				if count != "" {
					req.Header.Set("X-Stainless-Retry-Count", count)
				}
				resp, err := client.Do(req)
				if err == nil {
					text, _ := io.ReadAll(resp.Body)
					t.Fatalf("%s: status %d, %s", name, resp.StatusCode, text)
				}
				if watched.closes() == 0 {
					t.Errorf("%s: the body was not closed", name)
				}
				return err
			}
			first := do("0", sdkBody(stream))
			if outer, ok := errors.AsType[*url.Error](first); !errors.Is(first, c.is) || !ok ||
				!errors.Is(outer.Err, c.is) {
				t.Errorf("%s: error %v", name, first)
			}
			if strings.Contains(first.Error(), sdkAnswer) ||
				strings.Contains(first.Error(), sdkPrompt) {
				t.Errorf("%s: content in %q", name, first)
			}
			fetches, posts := p.fetches, len(p.sent())
			for _, count := range []string{"1", "2", "17"} {
				again := do(count, sdkBody(stream))
				if errors.Unwrap(again) != errors.Unwrap(first) {
					t.Errorf("%s: retry %s: %v instead of the same error", name, count, again)
				}
			}
			if p.fetches != fetches || len(p.sent()) != posts {
				t.Errorf("%s: retries of the SDK's went out: %d more fetches, %d more posts", name,
					p.fetches-fetches, len(p.sent())-posts)
			}
			if name == "limiter" { // nothing ever goes out
				continue
			}
			for _, count := range []string{"", "0", "x", "-1"} { // calls of their own
				fetches, posts = p.fetches, len(p.sent())
				do(count, sdkBody(stream))
				if p.fetches == fetches && len(p.sent()) == posts {
					t.Errorf("%s: a call with retry count %q was not sent", name, count)
				}
			}
			fetches, posts = p.fetches, len(p.sent())
			do("1", sdkBody(stream+`,"seed":1`)) // another body
			if p.fetches == fetches && len(p.sent()) == posts {
				t.Errorf("%s: a retry with another body was not sent", name)
			}
		}
	}
}

func TestHTTPClientServerKeyError(t *testing.T) {
	p := newPeer(t)
	pinned := publicOf(t, "other-4096").Fingerprint()
	client := peerClient(t, p, func(c *sealedchat.Config) {
		c.Trust = sealedchat.Pin(pinned)
	}).HTTPClient()
	for count := range 3 {
		req, _ := sdkRequest(t, sdkBody(""))
		req.Header.Set("X-Stainless-Retry-Count", strconv.Itoa(count))
		_, err := client.Do(req) //nolint:bodyclose // it fails
		wrong, ok := errors.AsType[*sealedchat.ServerKeyError](err)
		if !ok || wrong.Got != p.server.Public().Fingerprint() || len(wrong.Want) != 1 ||
			wrong.Want[0] != pinned {
			t.Fatalf("attempt %d: %v", count, err)
		}
	}
	if p.fetches != 1 || len(p.sent()) != 0 {
		t.Errorf("%d key fetches, %d posts", p.fetches, len(p.sent()))
	}
}

// A name that leads out of the machine is found only when it is dialled.
func TestHTTPClientInsecureURL(t *testing.T) {
	dials := 0
	outside := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn,
		error) {
		dials++
		ours, theirs := net.Pipe()
		_ = theirs.Close()
		return ours, nil
	}}
	client := startClient(t, "http://localhost:9", func(c *sealedchat.Config) {
		c.Transport, c.MaxRetries = outside, 3
	}).HTTPClient()
	for count := range 3 {
		req, _ := sdkRequest(t, sdkBody(""))
		req.Header.Set("X-Stainless-Retry-Count", strconv.Itoa(count))
		//nolint:bodyclose // it fails
		if _, err := client.Do(req); !errors.Is(err, sealedchat.ErrInsecureURL) {
			t.Errorf("attempt %d: %v", count, err)
		}
	}
	if dials != 1 {
		t.Errorf("%d dials", dials)
	}
}

// A service often says the same thing twice at once. The second call must not make the first one's
// retries go out.
func TestHTTPClientRemembersBesideEqualCalls(t *testing.T) {
	p := newPeer(t)
	p.always(func() *http.Response { return testkit.Respond(200, "{}") })
	client := peerClient(t, p, nil).HTTPClient()
	req, _ := sdkRequest(t, sdkBody(""))
	//nolint:bodyclose // it fails
	if _, err := client.Do(req); !errors.Is(err, sealedchat.ErrEnvelope) {
		t.Fatal(err)
	}
	p.answer = nil
	equal, _ := sdkRequest(t, sdkBody("")) // by somebody else, with the same words, and it succeeds
	if resp, _, err := sdkTrip(t, client.Transport, equal); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	again, _ := sdkRequest(t, sdkBody(""))
	again.Header.Set("X-Stainless-Retry-Count", "1")
	//nolint:bodyclose // it fails
	if _, err := client.Do(again); !errors.Is(err, sealedchat.ErrEnvelope) || len(p.sent()) != 2 {
		t.Errorf("error %v, %d posts", err, len(p.sent()))
	}
}

// Answers are not remembered: they carry x-should-retry, and an SDK that repeats one all the same
// is sent.
func TestHTTPClientDoesNotRememberAnswers(t *testing.T) {
	p := newPeer(t)
	p.always(func() *http.Response { return testkit.Respond(500, "") })
	client := peerClient(t, p, nil).HTTPClient()
	for count := range 3 {
		req, _ := sdkRequest(t, sdkBody(""))
		req.Header.Set("X-Stainless-Retry-Count", strconv.Itoa(count))
		if resp, _, err := sdkTrip(t, client.Transport, req); err != nil ||
			resp.StatusCode != 500 || len(p.sent()) != count+1 {
			t.Errorf("attempt %d: %v, %v, %d posts", count, resp, err, len(p.sent()))
		}
	}
}
