// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	sdkPrompt = "PROMPT-MARKER-5b1f0c"
	sdkAnswer = "ANSWER-MARKER-e27d94"
	sdkURL    = "https://api.openai.com/v1/chat/completions"
	peerURL   = "https://peer.example"
)

// sealedPost is a request as it left, and what it opened to.
type sealedPost struct {
	url       string
	header    http.Header
	body      string
	wrapped   string
	nonce     string
	plaintext string
	at        time.Time
}

func (p sealedPost) String() string { return fmt.Sprintf("{%s %q %q}", p.url, p.header, p.plaintext) }

// peer is a server without sockets: a RoundTripper that opens what it gets and answers as a test
// says. The time of testing/synctest runs on behind it.
type peer struct {
	t      testing.TB
	server *hybrid.PrivateKey
	client *sealedchat.PublicKey
	// answer is asked for the nth POST, counted from 0; nil answers sdkAnswer.
	answer func(n int, req *http.Request) (*http.Response, error)
	// key is asked for the nth key fetch; nil gives the server's key.
	key func(n int, req *http.Request) (*http.Response, error)

	mu      sync.Mutex
	posts   []sealedPost
	fetches int
}

func newPeer(t testing.TB) *peer {
	server, err := hybrid.NewPrivateKey(storedKey(t, "rsa-2048"))
	if err != nil {
		t.Fatal(err)
	}
	return &peer{t: t, server: server, client: publicOf(t, "rsa-2048")}
}

func (p *peer) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet && req.URL.Path == ohttp.Path { // it speaks version 1 alone
		return testkit.Respond(404, ""), nil
	}
	if req.Method == http.MethodGet {
		p.mu.Lock()
		n := p.fetches
		p.fetches++
		p.mu.Unlock()
		if p.key != nil {
			return p.key(n, req)
		}
		return p.keyResponse(), nil
	}
	body, err := io.ReadAll(req.Body)
	_ = req.Body.Close()
	if err != nil {
		return nil, err
	}
	post := sealedPost{url: req.URL.String(), header: req.Header.Clone(), body: string(body), at: time.Now()}
	e, err := envelope.Parse(body, 64<<20)
	if err != nil {
		p.t.Errorf("not an envelope left: %v", err)
		return nil, err
	}
	post.wrapped, post.nonce = string(e.WrappedKey), string(e.Sealed[:envelope.NonceSize])
	if plain, err := p.server.Open(&e, nil); err == nil { // or else it was sealed to another key
		post.plaintext = string(plain)
	}
	p.mu.Lock()
	n := len(p.posts)
	p.posts = append(p.posts, post)
	p.mu.Unlock()
	if p.answer == nil {
		return p.sealed(testkit.CompletionJSON(sdkAnswer, "")), nil
	}
	return p.answer(n, req)
}

func (p *peer) sent() []sealedPost {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.posts)
}

func (p *peer) keyResponse() *http.Response {
	return testkit.Respond(200, string(p.server.Public().PEM()))
}

// sealed is an answer sealed to the client.
func (p *peer) sealed(completion string) *http.Response {
	e, err := sealTo(p.client, []byte(completion))
	if err != nil {
		p.t.Error(err)
		return nil
	}
	return testkit.Respond(200, string(envelope.Append(nil, e)))
}

// always answers every POST with response(), made anew each time.
func (p *peer) always(response func() *http.Response) *peer {
	p.answer = func(int, *http.Request) (*http.Response, error) { return response(), nil }
	return p
}

// peerClient is a client whose server is p. change may be nil.
func peerClient(t testing.TB, p http.RoundTripper, change func(*sealedchat.Config)) *sealedchat.SecureCompletionClient {
	t.Helper()
	return startClient(t, peerURL, func(c *sealedchat.Config) {
		c.Transport, c.Keys, c.InsecureAllowHTTP = p, storedKeys(t, "rsa-2048"), false
		if change != nil {
			change(c)
		}
	})
}

// sdkBody is a request as SDKs write it; more is put behind its members.
func sdkBody(more string) string {
	return `{"model":"test-model","messages":[{"role":"user","content":"` + sdkPrompt + `"}]` + more + `}`
}

// watchedBody counts how often it was closed, and can be read only until then.
type watchedBody struct {
	io.Reader
	mu     sync.Mutex
	closed int
}

func (b *watchedBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed++
	return nil
}

func (b *watchedBody) closes() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// sdkRequest is a request as an SDK makes it, with a GetBody that hands out the plaintext.
func sdkRequest(t testing.TB, body string) (*http.Request, *watchedBody) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, sdkURL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	watched := &watchedBody{Reader: req.Body}
	req.Body = watched
	req.Header.Set("Content-Type", "application/json")
	return req, watched
}

// sdkTrip hands req to the client's transport, as http.Client does, and checks what holds for every
// outcome: the request is as it was, its body is closed, and a response is complete and says that
// it must not be retried.
func sdkTrip(t testing.TB, rt http.RoundTripper, req *http.Request) (*http.Response, string, error) {
	t.Helper()
	before, header, headerMap := *req, req.Header.Clone(), reflect.ValueOf(req.Header).Pointer()
	target := *req.URL
	resp, err := rt.RoundTrip(req)
	after := *req
	before.GetBody, after.GetBody = nil, nil // functions do not compare
	if !reflect.DeepEqual(before, after) || !reflect.DeepEqual(header, req.Header) || target != *req.URL ||
		headerMap != reflect.ValueOf(req.Header).Pointer() {
		t.Errorf("the caller's request was changed: %+v, was %+v, header %v", after, before, header)
	}
	if b, ok := req.Body.(*watchedBody); ok && b.closes() == 0 {
		t.Error("the request's body was not closed")
	}
	if (resp == nil) == (err == nil) {
		t.Fatalf("response %v and error %v", resp, err)
	}
	if err != nil {
		return nil, "", err
	}
	body, readErr := io.ReadAll(resp.Body)
	if readErr != nil || resp.Body.Close() != nil {
		t.Errorf("reading the response: %v", readErr)
	}
	if got := resp.Header.Get("x-should-retry"); got != "false" {
		t.Errorf("x-should-retry: %q", got)
	}
	if resp.Request != req {
		t.Error("resp.Request is not the caller's request")
	}
	// Events are made while they are read: how long they are is not known before.
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		if len(resp.Header.Values("Content-Length")) > 0 || resp.ContentLength != -1 {
			t.Errorf("Content-Length %q and %d of events", resp.Header.Get("Content-Length"), resp.ContentLength)
		}
	} else if n := strconv.Itoa(len(body)); resp.Header.Get("Content-Length") != n || resp.ContentLength != int64(len(body)) {
		t.Errorf("Content-Length %q and %d of %s bytes", resp.Header.Get("Content-Length"), resp.ContentLength, n)
	}
	if want := fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)); resp.Status != want || resp.ProtoMajor != 1 {
		t.Errorf("status line %q, protocol %s", resp.Status, resp.Proto)
	}
	return resp, string(body), nil
}

// openAIError reads OpenAI's error object and demands all four members, and no others.
func openAIError(t testing.TB, resp *http.Response, body string) (message, kind, code string) {
	t.Helper()
	var doc map[string]map[string]any
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	if got := slices.Sorted(maps.Keys(doc["error"])); len(doc) != 1 || !slices.Equal(got, []string{"code", "message", "param", "type"}) {
		t.Errorf("not OpenAI's error: %s", body)
	}
	if resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type %q", resp.Header.Get("Content-Type"))
	}
	if doc["error"]["param"] != nil {
		t.Errorf("param %v", doc["error"]["param"])
	}
	message, _ = doc["error"]["message"].(string)
	kind, _ = doc["error"]["type"].(string)
	code, _ = doc["error"]["code"].(string)
	if message == "" || kind == "" {
		t.Errorf("empty message or type in %s", body)
	}
	return message, kind, code
}
