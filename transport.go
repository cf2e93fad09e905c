// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// DefaultTransport returns a new transport with the settings that clients use when Config.Transport
// is nil: TLS 1.2 or later, HTTP/2, the proxy of the environment, up to 100 idle connections per
// host for 90 s, and pings that notice a dead HTTP/2 connection after 45 s. Change it before
// handing it over: for a private certificate authority set TLSClientConfig.RootCAs. It is the
// caller's, who closes its idle connections at the end.
func DefaultTransport() *http.Transport { return httpx.DefaultTransport() }

// HTTPClient is for OpenAI SDKs: the client seals what they POST to a path that ends in
// /chat/completions and sends it to Config.BaseURL, whichever host the SDK was given. Other
// requests are answered 404 with an explanation. Of the SDK's request only the sealed body leaves
// this machine, its tier (X-Security-Tier) and, if Config.APIKey is nil and the SDK's base URL has
// the origin of Config.BaseURL, its bearer token.
//
// Answers come in OpenAI's shapes: errors as {"error": {…}} with the server's status, and for
// "stream": true an event stream. The protocol has no streams: the events are made from the
// complete answer, so nothing arrives before everything has, and a proxy or a caller that gives up
// on an idle connection has to wait that long.
//
// The client retries by itself, so answers carry "x-should-retry: false". A failure that is no
// answer comes back as the error itself, and errors.Is finds it through the SDK: failures of
// security (ErrDecryption, *ServerKeyError, ErrReplay, ErrTierDowngrade, ErrInsecureURL, …) and of
// the connection. An SDK that repeats such a call by itself, and says so in
// X-Stainless-Retry-Count, gets the same error again, and nothing is sent; so also after an attempt
// whose context ended, unless it only read (GET and HEAD). An SDK's own error text repeats the
// server's words, also those that came sealed.
//
// With [ProtocolOHTTP] the client seals requests of any method and path and sends them to the
// gateway, which serves what it allows ([GatewayOHTTP].Allow): models, embeddings, responses. Path
// and query are those of the SDK's URL, without the path of Config.BaseURL if they begin with it,
// so give the SDK a base URL that ends in /v1. Any path that ends in /chat/completions becomes
// /v1/chat/completions, and a POST to it loses its query. Of the SDK's headers Accept,
// Content-Type, OpenAI-Beta and Traceparent are sealed with it. The query is sealed too, but
// net/http puts the SDK's URL into the [*url.Error] of a call that fails, so keep secrets out of
// it. Streams pass as they come; that
// of a chat completion is what [SecureCompletionClient.Stream] reads, in OpenAI's own form. Read
// returns [io.EOF] only if the answer was complete, down to the [DONE] of a stream and the closing
// bracket of JSON, and otherwise an error: [ErrTruncated] if it was cut. A caller that stops
// reading closes the body.
//
// Prompt and answer are in ordinary memory here, as in [SecureCompletionClient.Chat]. The
// http.Client is safe for concurrent use, and works until the client is closed. It follows no
// redirects and has no Timeout: [Config].Timeout holds.
func (c *SecureCompletionClient) HTTPClient() *http.Client {
	return &http.Client{
		Transport: &sdkTransport{client: c},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}

// sdkTransport is the RoundTripper behind HTTPClient. It never hands the SDK's request on: it sends
// a request of the client's own, whose body is ciphertext.
type sdkTransport struct {
	client *SecureCompletionClient
	errors rememberedErrors
}

const headerShouldRetry = "X-Should-Retry" // canonical, for a map literal

// RoundTrip implements [http.RoundTripper].
func (t *sdkTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		closeBody := sync.OnceFunc(func() { _ = req.Body.Close() })
		defer closeBody()
		defer context.AfterFunc(req.Context(), closeBody)() // a Read that waits ends with the call
	}
	in, refusal := t.client.wire.route(req)
	if refusal != nil {
		return sdkError(req, refusal.status, refusal.code, refusal.message, 0), nil
	}
	body, err := t.read(req, in)
	if err != nil {
		return t.fail(req, nil, err)
	}
	defer t.client.spare.bodies.Put(body) // wiped; what was sealed of it lies elsewhere
	in.content = body
	call := &chatjson.Call{}
	if in.isChat() {
		if call, err = chatjson.LookAtCall(body); err != nil {
			return t.fail(req, nil, err)
		}
		if in.whole = in.whole || !call.Stream; in.whole {
			in.content, in.clean = call.CutStream(body), true
		}
	}
	if err := t.errors.recall(req, in.content); err != nil {
		return nil, err
	}
	opts, key, err := t.callOptions(req)
	if err != nil {
		return t.fail(req, nil, err)
	}
	defer key.Destroy()
	resp, err := t.exchange(req, in, call, opts)
	if err != nil {
		return t.fail(req, in.content, err)
	}
	return resp, nil
}

// exchange has in answered: a chat completion that asks for no stream is checked as a whole before
// the SDK sees anything of it, and everything else passes as it comes, where the protocol has that.
func (t *sdkTransport) exchange(req *http.Request, in *plainRequest, call *chatjson.Call,
	opts []CallOption) (*http.Response, error) {
	ctx := req.Context()
	if in.whole {
		result, err := t.client.do(ctx, in, opts)
		if err != nil || call.Stream {
			return t.made(req, result, call, err)
		}
		return sdkWhole(req, repaired(result.plaintext), &t.client.spare.answers), nil
	}
	resp, err := t.client.stream(ctx, in, opts)
	if err != nil {
		return nil, err
	}
	if !call.Stream {
		return passOn(req, resp), nil
	}
	// what is no stream either is refused before the SDK sees anything of it
	if !resp.saysEvents() {
		if _, err := resp.sniff(); err != nil || !resp.beginsEvents() {
			result, err := t.client.readWhole(ctx, resp)
			return t.made(req, result, call, err)
		}
	}
	return t.client.passStream(req, resp, call), nil
}

// repaired is a checked answer as SDKs read it.
func repaired(answer []byte) []byte {
	as := chatjson.Repaired(answer)
	if as == nil {
		return answer
	}
	clear(answer)
	return as
}

// made makes a stream of a whole answer, which is the stream's then.
func (t *sdkTransport) made(req *http.Request, answer *completion, call *chatjson.Call,
	err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	events, err := chatjson.NewEventText(answer.plaintext, call.IncludeUsage)
	if err != nil {
		clear(answer.plaintext)
		return nil, t.client.tellSchema(req.Context(), answer.payloadID, err)
	}
	return sdkStream(req, events), nil
}

// sdkStream is an answer whose events are made while the SDK reads them.
func sdkStream(req *http.Request, events io.ReadCloser) *http.Response {
	resp := sdkResponse(req, http.StatusOK, mediaEventsUTF8, nil)
	resp.Header.Del("Content-Length")
	resp.Body, resp.ContentLength = &boundedBody{req.Context(), events}, -1
	return resp
}

// read takes the whole body, bounded. The members that ask for a stream are cut out later: they
// have no limit of their own.
func (t *sdkTransport) read(req *http.Request, in *plainRequest) ([]byte, error) {
	switch {
	case req.Body == nil && in.isChat():
		return nil, fmt.Errorf("%w: no body", ErrInvalidRequest)
	case req.Body == nil || req.Body == http.NoBody:
		return []byte{}, nil // not nil: a POST without one is remembered too
	}
	limit := t.client.cfg.MaxRequestBytes + 1024
	// the size is the SDK's own word, in this process
	room := t.client.spare.bodies.Get(int(httpx.RoomFor(req.ContentLength, limit)))
	body, err := httpx.ReadInto(room, httpx.Capped(req.Body, limit))
	if err != nil {
		defer t.client.spare.bodies.Put(body)
	}
	switch {
	case errors.Is(err, ErrTooLarge):
		return nil, fmt.Errorf("%w of more than %d bytes", errRequestTooLarge,
			t.client.cfg.MaxRequestBytes)
	case err != nil && req.Context().Err() != nil:
		return nil, fault.Ended(req.Context())
	case err != nil:
		return nil, fmt.Errorf("sealedchat: reading the request: %w", err)
	}
	return body, nil
}

// callOptions takes from the SDK's headers what may leave. The caller destroys the key, which may
// be nil.
func (t *sdkTransport) callOptions(req *http.Request) (opts []CallOption, key *Secret, err error) {
	if tier := req.Header.Get(hybrid.HeaderTier); tier != "" {
		opts = append(opts, WithTier(SecurityTier(tier)))
	}
	// An SDK reads its key from the environment unasked: the key must not travel to another server.
	if token := t.token(req); token != "" {
		// The SDK's string stays on the heap in any case.
		if key, err = t.client.cfg.Memory.NewSecret([]byte(token)); err != nil {
			return nil, nil, err
		}
		opts = append(opts, WithAPIKey(key))
	}
	return opts, key, nil
}

// noKeySent says why a server knew no key, and the two ways to send one.
const noKeySent = "; no API key was sent: set Config.APIKey, or give the SDK its key and a base " +
	"URL with the origin of Config.BaseURL"

// sendsKey reports whether a request of the SDK's goes with an API key: a key that was meant for
// another origin stays here.
func (t *sdkTransport) sendsKey(req *http.Request) bool {
	return t.client.cfg.APIKey != nil || t.token(req) != ""
}

// token is the SDK's key, if it may travel.
func (t *sdkTransport) token(req *http.Request) string {
	scheme, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	if t.client.cfg.APIKey != nil || !strings.EqualFold(scheme, "Bearer") ||
		!httpx.SameOrigin(req.URL, t.client.base) {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// fail turns an error into what an SDK understands: an OpenAI error where the request was refused,
// or the error itself. That one is remembered for the SDK's own retries of the same request, also
// when it was the SDK that gave up: its time for an attempt may be shorter than the work takes.
// body is nil where it is not known.
func (t *sdkTransport) fail(req *http.Request, body []byte, err error) (*http.Response, error) {
	// These may wrap anything that OnServerKey or the Auditor returned.
	_, stopped := errors.AsType[*ServerKeyError](err)
	stopped = stopped || errors.Is(err, ErrAudit)
	if answer, ok := errors.AsType[*APIError](err); ok && !stopped {
		sealedCode, detail := answer.Sealed()
		code := cmp.Or(answer.Code, sealedCode)
		o := &errorObject{message: sdkMessage(answer, detail), code: code}
		if answer.StatusCode == http.StatusUnauthorized && !t.sendsKey(req) {
			o.message += noKeySent
		}
		if answer.object != nil {
			o = answer.object()
		}
		return sdkAnswer(req, sdkStatus(answer.StatusCode, code), o, answer.RetryAfter), nil
	}
	switch {
	case stopped:
	case errors.Is(err, ErrInvalidRequest):
		return sdkError(req, http.StatusBadRequest, "invalid_request", err.Error(), 0), nil
	case errors.Is(err, errRequestTooLarge):
		return sdkError(req, http.StatusRequestEntityTooLarge, "request_too_large", err.Error(), 0),
			nil
	}
	t.errors.remember(req, body, err)
	return nil, err
}

// sdkMessage is what a plain OpenAI server would say: also the words that came sealed, which Error
// leaves out.
func sdkMessage(e *APIError, sealed string) string {
	if sealed != "" {
		return e.Error() + ", detail " + strconv.Quote(sealed)
	}
	return e.Error()
}

// sdkStatus is an error status: the answer's, or the code of an error that came sealed under status
// 200.
func sdkStatus(status int, code string) int {
	if status >= 400 {
		return status
	}
	if n, err := strconv.Atoi(code); err == nil && n >= 400 && n < 600 {
		return n
	}
	return http.StatusBadGateway
}

// sdkError is an answer with an error object of this package's own.
func sdkError(req *http.Request, status int, code, message string,
	retryAfter time.Duration) *http.Response {
	return sdkAnswer(req, status, &errorObject{message: message, code: code}, retryAfter)
}

// sdkAnswer is an answer with OpenAI's error object.
func sdkAnswer(req *http.Request, status int, o *errorObject,
	retryAfter time.Duration) *http.Response {
	orNull := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	// maps of strings and nils marshal
	body, _ := chatjson.Marshal(map[string]any{"error": map[string]any{
		"message": o.message, "type": cmp.Or(o.kind, chatjson.ErrorType(status)),
		"param": orNull(o.param), "code": orNull(o.code),
	}})
	resp := sdkResponse(req, status, "application/json", body)
	if retryAfter > 0 {
		resp.Header.Set("Retry-After", httpx.WholeSeconds(retryAfter))
	}
	return resp
}

func sdkResponse(req *http.Request, status int, contentType string, body []byte) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type": {contentType}, "Content-Length": {strconv.Itoa(len(body))},
			headerShouldRetry: {"false"},
		},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

const (
	maxRemembered = 256             // failed calls that an SDK may come back to
	rememberFor   = 5 * time.Minute // longer than SDKs wait between attempts
)

// rememberedErrors keeps the errors of calls that an SDK may repeat although that is of no use, or
// worse. Requests are kept as digests of method, path and body under a key of this process, at most
// maxRemembered of them. The zero value is ready.
type rememberedErrors struct {
	keyed sync.Once
	key   []byte

	mu    sync.Mutex
	calls map[[sha256.Size]byte]rememberedError
}

type rememberedError struct {
	err   error
	until time.Time
}

// recall returns the error of an earlier attempt if req says that it repeats one.
func (m *rememberedErrors) recall(req *http.Request, body []byte) error {
	if n, err := strconv.Atoi(req.Header.Get("X-Stainless-Retry-Count")); err != nil || n <= 0 {
		return nil // a call of its own
	}
	id := m.digest(req, body)
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok := m.calls[id]; ok && time.Now().Before(known.until) {
		return known.err
	}
	return nil
}

// remember keeps err for an SDK that repeats req. A request that only reads may be repeated.
func (m *rememberedErrors) remember(req *http.Request, body []byte, err error) {
	if method := methodOf(req); body == nil || method == http.MethodGet ||
		method == http.MethodHead {
		return
	}
	id := m.digest(req, body)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.calls == nil {
		m.calls = make(map[[sha256.Size]byte]rememberedError)
	}
	for old, known := range m.calls {
		if len(m.calls) >= maxRemembered || now.After(known.until) {
			delete(m.calls, old)
		}
	}
	m.calls[id] = rememberedError{err: err, until: now.Add(rememberFor)}
}

func (m *rememberedErrors) digest(req *http.Request, body []byte) (id [sha256.Size]byte) {
	m.keyed.Do(func() {
		m.key = make([]byte, 32)
		_, _ = rand.Read(m.key)
	})
	h := hmac.New(sha256.New, m.key)
	_, _ = io.WriteString(h, methodOf(req)+"\x00"+req.URL.RequestURI()+"\x00")
	h.Write(body)
	h.Sum(id[:0])
	return id
}

// sdkFields are the headers of an SDK's request that are sealed with it. The others stay here: SDKs
// tell of the machine that they run on.
var sdkFields = [...]string{"Accept", "OpenAI-Beta", "Content-Type", "Traceparent"}

// methodOf is a request's method, of which net/http takes none for GET.
func methodOf(req *http.Request) string { return cmp.Or(req.Method, http.MethodGet) }

func fieldsOfSDK(h http.Header) (fields []bhttp.Field) {
	for _, name := range sdkFields {
		if v := strings.Trim(h.Get(name), " \t"); v != "" {
			fields = append(fields, bhttp.Field{Name: strings.ToLower(name), Value: v})
		}
	}
	return fields
}

// passOn hands an answer to the SDK, which closes its body.
func passOn(req *http.Request, resp *openedResponse) *http.Response {
	h := resp.header.Clone()
	h.Del("Set-Cookie") // of whom, for what?
	h.Set(headerShouldRetry, "false")
	return &http.Response{
		Status:     strconv.Itoa(resp.status) + " " + http.StatusText(resp.status),
		StatusCode: resp.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: resp.body, ContentLength: resp.length(), Request: req,
	}
}
