// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestHTTPClientAnswer(t *testing.T) {
	completion := testkit.CompletionJSON(sdkAnswer, ` , "extra" : [ 1.50 ]`)
	p := newPeer(t)
	p.always(func() *http.Response { return p.sealed(completion) })
	client := peerClient(t, p, nil).HTTPClient()
	req, _ := sdkRequest(t, sdkBody(""))
	resp, body, err := sdkTrip(t, client.Transport, req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" ||
		body != completion {
		t.Errorf("status %d, %s, body %s", resp.StatusCode, resp.Header.Get("Content-Type"), body)
	}
	if p.fetches != 1 || len(p.sent()) != 1 {
		t.Errorf("%d key fetches, %d posts", p.fetches, len(p.sent()))
	}
}

func TestHTTPClientSealsTheSDKsBytes(t *testing.T) {
	for sdk, sealed := range map[string]string{
		sdkBody(""):                sdkBody(""),
		sdkBody(`,"stream":false`): sdkBody(""),
		sdkBody(`,"stream":true,"stream_options":{"include_usage":true}`): sdkBody(""),
		sdkBody(`,"stre\u0061m":true,"seed":1e3,"Stream":true`): sdkBody(
			`,"seed":1e3,"Stream":true`),
		" {\n \"stream\" : null , \"model\" : \"m\\/1\" , " +
			"\"temperature\":0.70}": " {\n  \"model\" : \"m\\/1\" , \"temperature\":0.70}",
		`{"model":"a","n":1,"n":2,"x":{"stream":true}}`: `{"model":"a","n":1,"n":2,"x":{"stream":true}}`,
	} {
		p := newPeer(t)
		req, _ := sdkRequest(t, sdk)
		if _, _, err := sdkTrip(t, peerClient(t, p, nil).HTTPClient().Transport, req); err != nil {
			t.Fatal(err)
		}
		sent := p.sent()
		// Where a member was taken out, white space may stay or go.
		if len(sent) != 1 || strings.ReplaceAll(sent[0].plaintext, " ",
			"") != strings.ReplaceAll(sealed, " ", "") {
			t.Errorf("SDK's %s\nsealed as %+v\nwant      %q", sdk, sent, sealed)
		}
	}
}

// SDKs say a lot about themselves and their machine. This is all that leaves.
func TestHTTPClientHeaders(t *testing.T) {
	p := newPeer(t)
	client := peerClient(t, p, nil).HTTPClient()
	for _, fromOrigin := range []string{sdkURL, peerURL + "/v1/chat/completions"} {
		req, _ := sdkRequest(t, sdkBody(""))
		req.URL, _ = url.Parse(fromOrigin + "?api-version=" + sdkPrompt)
		for _, name := range []string{
			"X-Stainless-Lang", "X-Stainless-Os", "X-Stainless-Retry-Count", "OpenAI-Organization",
			"OpenAI-Project", "Cookie",
			"Idempotency-Key", "X-Idempotency-Key", "Referer", "X-Forwarded-For", "Api-Key",
			"X-Payload-Id", "X-Public-Key", "Accept",
			"Accept-Encoding", "Content-Encoding", "Traceparent", "Proxy-Authorization", "X-Custom",
		} {
			req.Header.Set(name, "0")
		}
		req.Header.Set("User-Agent", "OpenAI/Go 9.9.9")
		req.Header.Set("Authorization", "Bearer sk-from-the-environment")
		req.Host = "other.example"
		req.AddCookie(&http.Cookie{Name: "session", Value: "c00kie"})
		if _, _, err := sdkTrip(t, client.Transport, req); err != nil {
			t.Fatal(err)
		}
	}
	sent := p.sent()
	want := []string{"Accept-Encoding", "Content-Type", "User-Agent", "X-Payload-Id",
		"X-Public-Key"}
	if got := slices.Sorted(maps.Keys(sent[0].header)); !slices.Equal(got, want) {
		t.Errorf("headers that left: %v, want %v", got, want)
	}
	if got := slices.Sorted(maps.Keys(sent[1].header)); !slices.Equal(got,
		append([]string{"Accept-Encoding", "Authorization"}, want[1:]...)) {
		t.Errorf("headers that left to the SDK's own origin: %v", got)
	}
	for _, post := range sent {
		if post.url != peerURL+hybrid.PathCompletion {
			t.Errorf("went to %s", post.url)
		}
		h := post.header
		if h.Get("User-Agent") != "sealedchat" || h.Get("Content-Type") != hybrid.ContentType ||
			h.Get("Accept-Encoding") != "identity" || !chatjson.IsUUID(h.Get("X-Payload-Id")) {
			t.Errorf("headers %v", h)
		}
	}
}

func TestHTTPClientBearerToken(t *testing.T) {
	for _, c := range []struct {
		base, sdk string
		own       bool
		auth      string
		want      string // "" = none leaves; "400" = refused
	}{
		{"https://peer.example", "https://peer.example/v1", false, "Bearer sk-1", "Bearer sk-1"},
		{"https://peer.example", "https://peer.example:443/v1", false, "Bearer sk-1",
			"Bearer sk-1"},
		{"https://peer.example:443", "https://PEER.example/v1", false, "bearer sk-1",
			"Bearer sk-1"},
		{"https://peer.example:8443/pre", "https://peer.example:8443/v1", false, "Bearer sk-1",
			"Bearer sk-1"},
		{"https://peer.example", "https://peer.example/v1", true, "Bearer sk-1", "Bearer own-key"},
		{"https://peer.example", "https://api.openai.com/v1", true, "Bearer sk-1",
			"Bearer own-key"},
		{"https://peer.example", "https://api.openai.com/v1", false, "Bearer sk-1", ""},
		{"https://peer.example", "http://peer.example/v1", false, "Bearer sk-1", ""},
		{"https://peer.example", "http://peer.example:443/v1", false, "Bearer sk-1", ""},
		{"https://peer.example", "https://peer.example:8443/v1", false, "Bearer sk-1", ""},
		{"https://peer.example:8443", "https://peer.example/v1", false, "Bearer sk-1", ""},
		{"https://peer.example", "https://peer.example.evil.example/v1", false, "Bearer sk-1", ""},
		{"https://peer.example", "https://sub.peer.example/v1", false, "Bearer sk-1", ""},
		{"https://peer.example", "https://peer.example/v1", false, "Basic dXNlcjpwYXNz", ""},
		{"https://peer.example", "https://peer.example/v1", false, "Bearer", ""},
		{"https://peer.example", "https://peer.example/v1", false, "", ""},
		{"https://peer.example", "https://peer.example/v1", false, "Bearer two words", "400"},
		{"https://peer.example", "https://peer.example/v1", false,
			"Bearer " + strings.Repeat("k", 5000), "400"},
	} {
		p := newPeer(t)
		client := peerClient(t, p, func(cfg *sealedchat.Config) {
			cfg.BaseURL = c.base
			if c.own {
				cfg.APIKey = secret(t, "own-key")
			}
		})
		req, _ := sdkRequest(t, sdkBody(""))
		req.URL, _ = url.Parse(c.sdk + "/chat/completions")
		req.Header.Set("Authorization", c.auth)
		resp, _, err := sdkTrip(t, client.HTTPClient().Transport, req)
		if err != nil {
			t.Fatal(err)
		}
		sent := p.sent()
		if c.want == "400" {
			if resp.StatusCode != 400 || len(sent) != 0 {
				t.Errorf("%+v: status %d, %d sent", c, resp.StatusCode, len(sent))
			}
			continue
		}
		if got := sent[0].header.Get("Authorization"); got != c.want {
			t.Errorf("%+v: %q left", c, got)
		}
	}
}

func TestHTTPClientTier(t *testing.T) {
	for _, c := range []struct {
		own, sdk sealedchat.SecurityTier
		want     string
		status   int
	}{
		{"", "", "", 200},
		{"", sealedchat.TierHigh, "high", 200},
		{sealedchat.TierStandard, sealedchat.TierMaximum, "maximum", 200},
		{sealedchat.TierMaximum, "", "maximum", 200},
		{"", "HIGH", "", 400},
		{"", "highest\r\n", "", 400},
	} {
		p := newPeer(t)
		client := peerClient(t, p, func(cfg *sealedchat.Config) { cfg.Tier = c.own })
		req, _ := sdkRequest(t, sdkBody(""))
		if c.sdk != "" {
			req.Header.Set("X-Security-Tier", string(c.sdk))
		}
		resp, _, err := sdkTrip(t, client.HTTPClient().Transport, req)
		if err != nil || resp.StatusCode != c.status {
			t.Fatalf("%+v: %v %v", c, resp, err)
		}
		if sent := p.sent(); c.status == 200 && sent[0].header.Get("X-Security-Tier") != c.want ||
			c.status != 200 && len(sent) != 0 {
			t.Errorf("%+v: sent %v", c, sent)
		}
	}
}

func TestHTTPClientOtherEndpoints(t *testing.T) {
	p := newPeer(t)
	client := peerClient(t, p, nil).HTTPClient()
	for _, c := range [][2]string{
		{"GET", "/v1/chat/completions"}, {"DELETE", "/v1/chat/completions"},
		{"", "/v1/chat/completions"}, {"post", "/v1/chat/completions"},
		{"POST", "/v1/responses"}, {"POST", "/v1/embeddings"}, {"POST", "/v1/completions"},
		{"GET", "/v1/models"}, {"POST", "/"},
		{"POST", "/v1/chat/completions/chatcmpl-1"}, {"POST", "/v1/xchat/completion"}, {"POST", ""},
	} {
		req, _ := sdkRequest(t, sdkBody(""))
		req.Method, req.URL.Path = c[0], c[1]
		resp, body, err := sdkTrip(t, client.Transport, req)
		if err != nil {
			t.Fatal(err)
		}
		message, kind, code := openAIError(t, resp, body)
		if resp.StatusCode != 404 || kind != "not_found_error" || code != "unsupported_endpoint" ||
			!strings.Contains(message, "/chat/completions") {
			t.Errorf("%v: %d %s", c, resp.StatusCode, body)
		}
	}
	if p.fetches != 0 || len(p.sent()) != 0 {
		t.Errorf("something was sent: %d fetches, %v", p.fetches, p.sent())
	}
	for _, path := range []string{"/chat/completions", "/v1/chat/completions/",
		"/openai/deployments/d/chat/completions"} {
		req, _ := sdkRequest(t, sdkBody(""))
		req.URL.Path = path
		if resp, body, err := sdkTrip(t, client.Transport, req); err != nil ||
			resp.StatusCode != 200 {
			t.Errorf("%s: %v, %v, %s", path, resp, err, body)
		}
	}
}

func TestHTTPClientRefusals(t *testing.T) {
	p := newPeer(t)
	client := peerClient(t, p, func(c *sealedchat.Config) { c.MaxRequestBytes = 1000 }).HTTPClient()
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"empty":         {"", 400},
		"not JSON":      {"model=x", 400},
		"array":         {"[" + sdkBody("") + "]", 400},
		"string":        {`"x"`, 400},
		"two values":    {sdkBody("") + sdkBody(""), 400},
		"cut":           {sdkBody("")[:50], 400},
		"invalid UTF-8": {sdkBody(",\"x\":\"\xff\""), 400},
		"too deep": {sdkBody(`,"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 100)),
			400},
		"api_key inside": {sdkBody(`,"api_key":"sk-1"`), 400},
		"tier inside":    {sdkBody(`,"security_tier":"high"`), 400},
		"too large":      {sdkBody(`,"x":"` + strings.Repeat("x", 1000) + `"`), 413},
		"much too large": {sdkBody(`,"x":"` + strings.Repeat("x", 1<<20) + `"`), 413},
	} {
		for _, chunked := range []bool{false, true} {
			req, _ := sdkRequest(t, c.body)
			if chunked {
				req.ContentLength = -1
			}
			resp, body, err := sdkTrip(t, client.Transport, req)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, kind, _ := openAIError(t, resp, body); resp.StatusCode != c.status ||
				kind != "invalid_request_error" {
				t.Errorf("%s: %d %s", name, resp.StatusCode, body)
			}
			if strings.Contains(body, sdkPrompt) || strings.Contains(body, "sk-1") {
				t.Errorf("%s: the error quotes the request: %s", name, body)
			}
		}
	}
	for _, none := range []io.ReadCloser{nil, http.NoBody} {
		req, _ := sdkRequest(t, "")
		req.Body, req.ContentLength = none, 0
		if resp, _, err := sdkTrip(t, client.Transport, req); err != nil || resp.StatusCode != 400 {
			t.Errorf("no body: %v, %v", resp, err)
		}
	}
	if p.fetches != 0 || len(p.sent()) != 0 {
		t.Errorf("something was sent: %d fetches, %v", p.fetches, p.sent())
	}
}

// What stream members take up is not counted.
func TestHTTPClientLimitIsOnWhatIsSealed(t *testing.T) {
	p := newPeer(t)
	limit := int64(len(sdkBody("")))
	client := peerClient(t, p, func(c *sealedchat.Config) {
		c.MaxRequestBytes = limit
	}).HTTPClient()
	req, _ := sdkRequest(t, sdkBody(`,"stream":true,"stream_options":{"include_usage":true}`))
	if resp, body, err := sdkTrip(t, client.Transport, req); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v, %v, %s", resp, err, body)
	}
}

func TestHTTPClientBodyThatFails(t *testing.T) {
	p := newPeer(t)
	client := peerClient(t, p, nil).HTTPClient()
	failure := errors.New("the disk is gone")
	for range 2 {
		req, body := sdkRequest(t, "")
		body.Reader = io.MultiReader(strings.NewReader(sdkBody("")[:20]), &failingReader{failure})
		req.Header.Set("X-Stainless-Retry-Count", "1")
		if _, _, err := sdkTrip(t, client.Transport, req); !errors.Is(err, failure) {
			t.Errorf("error %v", err)
		}
	}
	req, _ := sdkRequest(t, sdkBody("")[:20])
	req.Header.Set("X-Stainless-Retry-Count", "1")
	if resp, _, err := sdkTrip(t, client.Transport, req); err != nil || resp.StatusCode != 400 {
		t.Errorf("a body that was never read whole is remembered: %v, %v", resp, err)
	}
	if p.fetches != 0 {
		t.Error("the key was fetched")
	}
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// A body that does not come ends with the call, as it does in net/http.
func TestHTTPClientContextEndsReadingTheBody(t *testing.T) {
	client := peerClient(t, newPeer(t), nil).HTTPClient()
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, sdkURL, r)
	done := make(chan error, 1)
	go func() {
		_, err := client.Transport.RoundTrip(req)
		done <- err
	}()
	_, _ = w.Write([]byte("{")) // it is reading now
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the call did not end with its context")
		w.Close()
		<-done
	}
}

func TestHTTPClientContextEndsTheCall(t *testing.T) {
	for name, hang := range map[string]func(p *peer, started chan<- struct{}){
		"key fetch": func(p *peer, started chan<- struct{}) {
			p.key = func(_ int, req *http.Request) (*http.Response, error) {
				return hangUntilDone(req, started)
			}
		},
		"answer": func(p *peer, started chan<- struct{}) {
			p.answer = func(_ int, req *http.Request) (*http.Response, error) {
				return hangUntilDone(req, started)
			}
		},
	} {
		for _, deadline := range []bool{false, true} {
			p := newPeer(t)
			started := make(chan struct{}, 1)
			hang(p, started)
			client := peerClient(t, p, func(c *sealedchat.Config) { c.MaxRetries = 5 }).HTTPClient()
			ctx, cancel := context.WithCancel(t.Context())
			want := context.Canceled
			if deadline {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
				want = context.DeadlineExceeded
			} else {
				go func() { <-started; cancel() }()
			}
			req, body := sdkRequest(t, sdkBody(""))
			begin := time.Now()
			_, err := client.Do(req.WithContext(ctx)) //nolint:bodyclose // it fails
			cancel()
			if !errors.Is(err, want) || time.Since(begin) > time.Minute || body.closes() == 0 {
				t.Errorf("%s: %v after %v, body closed %d times", name, err, time.Since(begin),
					body.closes())
			}
			// The SDK's own time for an attempt was over, but the work may have been done. The next
			// call is another one.
			p.key, p.answer = nil, nil
			fetches, posts := p.fetches, len(p.sent())
			again, _ := sdkRequest(t, sdkBody(""))
			again.Header.Set("X-Stainless-Retry-Count", "1")
			if resp, _, err := sdkTrip(t, client.Transport, again); !errors.Is(err, want) ||
				p.fetches != fetches || len(p.sent()) != posts {
				t.Errorf("%s: the SDK's retry: %v, %v, %d more posts", name, resp, err,
					len(p.sent())-posts)
			}
			next, _ := sdkRequest(t, sdkBody(""))
			next.Header.Set("X-Stainless-Retry-Count", "0")
			if resp, _, err := sdkTrip(t, client.Transport, next); err != nil ||
				resp.StatusCode != 200 {
				t.Errorf("%s: the next call: %v, %v", name, resp, err)
			}
		}
	}
}

func hangUntilDone(req *http.Request, started chan<- struct{}) (*http.Response, error) {
	select {
	case started <- struct{}{}:
	default:
	}
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

func TestHTTPClientIsSafeForConcurrentUse(t *testing.T) {
	p := newPeer(t)
	p.answer = func(_ int, req *http.Request) (*http.Response, error) {
		if req.Header.Get("X-Security-Tier") == "high" {
			return nil, io.ErrUnexpectedEOF
		}
		return p.sealed(testkit.CompletionJSON(sdkAnswer, "")), nil
	}
	client := peerClient(t, p, nil).HTTPClient()
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			req, _ := sdkRequest(t, sdkBody(`,"seed":`+strconv.Itoa(i%4)))
			if i%2 == 1 {
				req.Header.Set("X-Security-Tier", "high")
			}
			resp, err := client.Do(req)
			if (err == nil) != (i%2 == 0) {
				t.Errorf("call %d: %v", i, err)
			}
			if err == nil {
				body, _ := io.ReadAll(resp.Body)
				if !bytes.Contains(body, []byte(sdkAnswer)) {
					t.Errorf("call %d: %s", i, body)
				}
			}
		})
	}
	wg.Wait()
}

func TestHTTPClientStreams(t *testing.T) {
	for options, usage := range map[string]bool{
		``: false,
		`,"stream_options":{"include_usage":true}`:                   true,
		`,"stream_options":{"include_usage":false}`:                  false,
		`,"stream_options":{"include_usage":"true"}`:                 false,
		`,"stream_options":{}`:                                       false,
		`,"stream_options":null`:                                     false,
		`,"stream_options":true`:                                     false,
		`,"stream_options":{ "x":[] , "include_us\u0061ge" : true }`: true,
	} {
		p := newPeer(t)
		req, _ := sdkRequest(t, sdkBody(`,"stream": true `+options))
		resp, body, err := sdkTrip(t, peerClient(t, p, nil).HTTPClient().Transport, req)
		if err != nil {
			t.Fatal(err)
		}
		if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 ||
			ct != "text/event-stream; charset=utf-8" {
			t.Errorf("status %d, Content-Type %q", resp.StatusCode, ct)
		}
		chunks := testkit.StreamEvents(t, []byte(body))
		choice := testkit.Reassemble(t, chunks)["0"]
		if choice.Message["content"] != sdkAnswer || choice.Finish != "stop" {
			t.Errorf("put together: %v", choice)
		}
		last := chunks[len(chunks)-1]
		if got := last["usage"] != nil; got != usage || usage && len(last["choices"].([]any)) != 0 {
			t.Errorf("%s: last chunk %v", options, last)
		}
		for _, chunk := range chunks[:len(chunks)-1] {
			if v, ok := chunk["usage"]; ok != usage || v != nil {
				t.Errorf("%s: usage %v in %v", options, v, chunk)
			}
		}
	}
}
