// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

var errDeaf = errors.New("the auditor is deaf")

func TestClientEvents(t *testing.T) {
	s := fakes.NewServer(t)
	h := &heard{}
	server, other := publicOf(t, "rsa-2048").fingerprint, publicOf(t, "server-4096").fingerprint
	c := sealedClient(t, s, func(c *Config) { c.Audit, c.MaxRetries = h.Record, 1 })
	c.retry.base = time.Microsecond
	e := h.mustHear(t, "opening", "client_opened")[0]
	if e.Server != "https://server.test" || e.Memory == nil {
		t.Errorf("%+v", e)
	}
	chat := func() error {
		_, err := c.Chat(t.Context(), ask("?"), WithTier(TierHigh))
		return err
	}
	if err := chat(); err != nil {
		t.Fatal(err)
	}
	events := h.mustHear(t, "chat", "server_key_first_seen request_sealed response_opened")
	if e := events[0]; e.Fingerprint != server || e.OldFingerprint != "" ||
		e.Server != "https://server.test" || e.Reason != "https" {
		t.Errorf("%+v", e)
	}
	q := s.Last()
	if e := events[1]; e.Fingerprint != server || e.Tier != TierHigh ||
		e.PayloadID != q.Request.Header.Get(hybrid.HeaderPayloadID) ||
		e.Bytes != int64(len(q.Plaintext)) {
		t.Errorf("%+v", e)
	}
	if e := events[2]; e.PayloadID != events[1].PayloadID ||
		e.Bytes != int64(len(fakes.FineCompletion("fine"))) || e.Duration <= 0 {
		t.Errorf("%+v", e)
	}
	if err := chat(); err != nil {
		t.Fatal(err)
	}
	h.mustHear(t, "chat again", "request_sealed response_opened")

	s.Present("server-4096")
	if err := chat(); err != nil {
		t.Fatal(err)
	}
	events = h.mustHear(t, "server key changed",
		"request_sealed server_key_changed retry request_sealed response_opened")
	if e := events[2]; e.Attempt != 1 || e.Wait != 0 || e.PayloadID != events[0].PayloadID ||
		e.Status == 0 {
		t.Errorf("%+v", e)
	}
	if e := events[1]; e.Fingerprint != other || e.OldFingerprint != server ||
		e.Severity != slog.LevelWarn {
		t.Errorf("%+v", e)
	}
	seen := ""
	for what, refused := range map[string]struct {
		answer func(q *fakes.Question) *http.Response
		types  string
	}{
		"decryption": {func(q *fakes.Question) *http.Response {
			e, _ := publicOf(t, "other-4096").seal([]byte(fakes.FineCompletion("x")))
			e.WrappedKey = e.WrappedKey[:q.Client.Size()]
			return respond(200, string(envelope.Append(nil, e)))
		}, "decryption_refused"},
		"replay": {func(q *fakes.Question) *http.Response {
			if seen == "" {
				e, _ := fakes.Seal(q.Client, []byte(fakes.FineCompletion("x")))
				seen = string(envelope.Append(nil, e))
			}
			return respond(200, seen)
		}, "response_opened request_sealed replay_refused"},
		"other id": {func(q *fakes.Question) *http.Response {
			return q.Seal(strings.Replace(fakes.FineCompletion("x"), `{`,
				`{"_metadata":{"payload_id":"`+newUUID()+`"},`, 1))
		}, "replay_refused"},
		"tier": {func(q *fakes.Question) *http.Response {
			return q.Seal(strings.Replace(fakes.FineCompletion("x"), `{`,
				`{"_metadata":{"security_tier":"standard"},`, 1))
		}, "tier_refused"},
		"schema": {func(q *fakes.Question) *http.Response { return q.Seal(`{"id":1}`) },
			"schema_refused"},
		"chat schema": {func(q *fakes.Question) *http.Response {
			return q.Seal(testkit.AnswerWith("x", strings.Repeat(`0,"x":`, chatjson.MaxWeight)+"0"))
		}, "response_opened schema_refused"},
		"envelope": {func(q *fakes.Question) *http.Response { return respond(200, "{}") },
			"schema_refused"},
		"retry": {func(q *fakes.Question) *http.Response {
			return respond(500, `{"detail":"`+leak+`"}`)
		},
			"retry request_sealed"},
	} {
		s.Answer = refused.answer
		err := chat()
		if what == "replay" && err == nil {
			err = chat()
		}
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		events := h.mustHear(t, what, "request_sealed "+refused.types)
		last := events[len(events)-1]
		if last.PayloadID != s.Last().Request.Header.Get(hybrid.HeaderPayloadID) {
			t.Errorf("%s: %+v", what, last)
		}
		if what == "retry" {
			if e := events[1]; e.Attempt != 1 || e.Status != 500 || e.Reason != "status 500" ||
				e.PayloadID != events[0].PayloadID {
				t.Errorf("%+v", e)
			}
		}
		if what == "tier" && last.Tier != TierHigh {
			t.Errorf("%+v", last)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if e := h.mustHear(t, "closing", "client_closed")[0]; e.Duration <= 0 || e.Memory == nil {
		t.Errorf("%+v", e)
	}
	if err := errors.Join(c.Close(), chat()); !errors.Is(err, ErrClosed) || len(h.take()) != 0 {
		t.Errorf("after closing: %v", err)
	}
}

func TestServerKeyEvents(t *testing.T) {
	s := fakes.NewServer(t)
	h := &heard{}
	right, wrong := publicOf(t, "rsa-2048").fingerprint, publicOf(t, "server-4096").fingerprint
	c := sealedClient(t, s, func(c *Config) { c.Audit, c.Trust = h.Record, Pin(wrong) })
	if _, err := c.Chat(t.Context(), ask("?")); !isServerKeyError(err) {
		t.Fatal(err)
	}
	e := h.mustHear(t, "wrong pin", "client_opened server_key_refused")[1]
	if e.Fingerprint != right || e.OldFingerprint != wrong || e.Reason != "pin" ||
		e.Severity != SeverityCritical {
		t.Errorf("%+v", e)
	}
	if err := c.AcceptServerKey(right); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Chat(t.Context(), ask("?")); err != nil {
		t.Fatal(err)
	}
	h.mustHear(t, "accepted",
		"server_key_accepted server_key_first_seen request_sealed response_opened")
	c = sealedClient(t, s, func(c *Config) {
		c.Audit, c.OnServerKey = h.Record, func(_, _ *PublicKey) error { return errors.New(leak) }
	})
	_, _ = c.Chat(t.Context(), ask("?"))
	if e := h.mustHear(t, "OnServerKey",
		"client_opened server_key_refused")[1]; e.Reason != "OnServerKey" ||
		e.Fingerprint != right {
		t.Errorf("%+v", e)
	}
}

// An Auditor that fails stops the call before anything comes of it.
// A retry is told of when there will be one, with the id of what failed.
func TestRetryEvents(t *testing.T) {
	s := fakes.NewServer(t)
	h := &heard{}
	c := sealedClient(t, s, func(c *Config) { c.Audit, c.MaxRetries = h.Record, 3 })
	h.take()
	s.Answer = func(*fakes.Question) *http.Response { return respond(429, "", "Retry-After", "50") }
	// less than the wait that is asked for
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := c.Chat(ctx, ask("?")); !errors.Is(err, ErrRateLimited) {
		t.Error(err)
	}
	h.mustHear(t, "no time to wait", "server_key_first_seen request_sealed")

	c.retry.base = time.Microsecond
	o, n := &callOptions{}, 0
	err := c.withRetries(t.Context(), o, func() (again bool, err error) {
		switch n++; n {
		case 1:
			o.sealed = "first"
			return true, &APIError{StatusCode: 400}
		case 2, 3: // the third does not get as far as an id
			if n == 2 {
				o.sealed = "second"
			}
			return false, &APIError{StatusCode: 500}
		}
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range h.mustHear(t, "attempts", "retry retry retry") {
		told = append(told, fmt.Sprint(e.PayloadID, e.Attempt, e.Status))
	}
	if got := strings.Join(told, ", "); got != "first1 400, second2 500, 3 500" {
		t.Errorf("told %q", got)
	}
}

func TestAuditStopsTheClient(t *testing.T) {
	s := fakes.NewServer(t)
	h := &heard{}
	stopped := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrAudit) || !errors.Is(err, errDeaf) {
			t.Errorf("%s: %v", what, err)
		}
	}
	h.failOn(errDeaf, EventClientOpened)
	_, err := NewSecureCompletionClient(Config{BaseURL: "https://server.test", Trust: TrustHTTPS(),
		Transport: neverUsed(t),
		Audit:     h.Record})
	stopped("opening", err)
	h.failOn(nil)
	c := sealedClient(t, s, func(c *Config) { c.Audit, c.MaxRetries = h.Record, 2 })
	c.retry.base = time.Microsecond

	h.failOn(errDeaf, EventServerKeyFirstSeen)
	_, err = c.Chat(t.Context(), ask("?"))
	stopped("server key", err)
	h.failOn(errDeaf, EventRequestSealed)
	_, err = c.Chat(t.Context(), ask("?"))
	stopped("request", err)
	if _, posts := s.Counts(); posts != 0 || c.Stats().Attempts != 0 || c.Stats().BytesSealed != 0 {
		t.Errorf("%d requests were sent, %+v", posts, c.Stats())
	}
	h.failOn(errDeaf, EventResponseOpened)
	answer, err := c.Complete(t.Context(), secret(t, `{"model":"m","messages":[]}`))
	stopped("answer", err)
	if _, posts := s.Counts(); posts != 1 || answer != nil {
		t.Errorf("%d requests, %v", posts, answer)
	}
	s.Answer = func(*fakes.Question) *http.Response { return respond(500, "") }
	h.failOn(errDeaf, EventRetry)
	_, err = c.Chat(t.Context(), ask("?"))
	stopped("retry", err)
	if !errors.Is(err, ErrServer) {
		t.Errorf("what it was about is lost: %v", err)
	}
	s.Present("server-4096")
	again(c)
	h.failOn(errDeaf, EventServerKeyChanged)
	_, err = c.ServerKey(t.Context())
	stopped("another server key", err)
	s.Present("rsa-2048")
	// which looks worth repeating
	h.failOn(fault.Connection("x", errDeaf, false), EventRequestSealed)
	_, before := s.Counts()
	if _, err = c.Chat(t.Context(), ask("?")); !errors.Is(err, ErrAudit) {
		t.Error(err)
	}
	if _, posts := s.Counts(); posts != before {
		t.Errorf("%d requests", posts-before)
	}
	s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(`{}`) }
	h.failOn(errDeaf, EventSchemaRefused)
	_, err = c.Chat(t.Context(), ask("?"))
	stopped("refusal", err)
	if !errors.Is(err, ErrResponseSchema) {
		t.Errorf("the refusal itself is lost: %v", err)
	}
	h.failOn(errDeaf, EventClientClosed)
	stopped("closing", c.Close())
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestMemoryLoweredEvent(t *testing.T) {
	s := fakes.NewServer(t)
	h := &heard{}
	c := sealedClient(t, s, func(c *Config) { c.Audit = h.Record })
	for i, step := range []struct {
		locked bool
		types  string
	}{
		{true, "client_opened server_key_first_seen request_sealed response_opened"},
		{false, "request_sealed response_opened memory_lowered"},
		{false, "request_sealed response_opened"},
		{true, "request_sealed response_opened"},
		{true, "request_sealed response_opened"},
		{false, "request_sealed response_opened memory_lowered"},
	} {
		c.allLocked = func() bool { return step.locked }
		if _, err := c.Chat(t.Context(), ask("?")); err != nil {
			t.Fatal(err)
		}
		h.mustHear(t, fmt.Sprint("step ", i), step.types)
	}
	c.allLocked = func() bool { return true }
	if _, err := c.Chat(t.Context(), ask("?")); err != nil {
		t.Fatal(err)
	}
	c.allLocked = func() bool { return false }
	h.failOn(errDeaf, EventMemoryLowered)
	if answer, err := c.Chat(t.Context(), ask("?")); !errors.Is(err, ErrAudit) || answer != nil {
		t.Errorf("handed out in spite of the Auditor: %v", err)
	}
	h.failOn(nil)
}

func TestGatewayEvents(t *testing.T) {
	h := &heard{}
	panics := false
	r := newRig(t, func(c *GatewayConfig) {
		c.Audit = h.Record
		c.Replay = &fakes.PanickingReplay{Replays: NewReplayCache(0), Boom: func() {
			if panics {
				panic(leak)
			}
		}}
	})
	h.mustHear(t, "opening", "gateway_opened")
	body := fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
	fakes.OpenedAnswer(t, "fine", r.Do(fakes.PostBody(t, bytes.NewReader(body), hybrid.HeaderTier,
		"standard")))
	events := h.mustHear(t, "fine", "request_opened response_sealed")
	if e := events[0]; e.PayloadID == "" || e.Tier != TierStandard ||
		e.Bytes != int64(len(fakes.FineRequest)) {
		t.Errorf("%+v", e)
	}
	if e := events[1]; e.PayloadID != events[0].PayloadID || e.Bytes <= 0 || e.Duration <= 0 {
		t.Errorf("%+v", e)
	}
	stranger, err := publicOf(t, "client-4096").seal([]byte(fakes.FineRequest))
	if err != nil {
		t.Fatal(err)
	}
	stranger.WrappedKey = stranger.WrappedKey[:256]
	for what, c := range map[string]struct {
		body   []byte
		header []string
		status int
		types  string
	}{
		"replay": {body, nil, 409, "replay_refused"},
		"tier":   {body, []string{hybrid.HeaderTier, "maximum"}, 403, "tier_refused"},
		"inner tier": {fakes.SealedBody(t, `{"security_tier":"high",`+fakes.FineRequest[1:],
			envelope.Separate), nil,
			403, "tier_refused"},
		"decryption": {envelope.Append(nil, stranger), nil, 400, "decryption_refused"},
		"envelope":   {[]byte("{}"), nil, 400, "schema_refused"},
		"schema": {fakes.SealedBody(t, `{"model":"m"}`, envelope.Separate), nil, 400,
			"schema_refused"},
		"a stranger's header is not worth an event": {body, []string{hybrid.HeaderTier, leak}, 400,
			""},
	} {
		fakes.Refused(t, what, r.Do(fakes.PostBody(t, bytes.NewReader(c.body), c.header...)),
			c.status)
		for _, e := range h.mustHear(t, what, c.types) {
			if e.PayloadID == "" || e.Status != c.status {
				t.Errorf("%s: %+v", what, e)
			}
		}
	}
	panics = true
	fakes.Refused(t, "panic", r.Do(fakes.PostBody(t,
		bytes.NewReader(fakes.SealedBody(t, fakes.FineRequest,
			envelope.Separate)))), 500)
	if e := h.mustHear(t, "panic", "panic_survived")[0]; e.PayloadID == "" ||
		e.Reason != "string" ||
		e.Severity != SeverityCritical {
		t.Errorf("%+v", e)
	}
	panics = false

	// What is not audited does not go upstream, or not back; afterwards the same request may come
	// again.
	sent := len(r.Forwarded())
	body = fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)
	h.failOn(errDeaf, EventRequestOpened)
	fakes.Refused(t, "unaudited request", r.Do(fakes.PostBody(t, bytes.NewReader(body))), 503)
	if len(r.Forwarded()) != sent {
		t.Error("it went upstream")
	}
	h.failOn(errDeaf, EventResponseSealed)
	fakes.Refused(t, "unaudited answer", r.Do(fakes.PostBody(t, bytes.NewReader(body))), 503)
	h.failOn(errDeaf, EventReplayRefused, EventGatewayClosed)
	fakes.OpenedAnswer(t, "again", r.Do(fakes.PostBody(t, bytes.NewReader(body))))
	fakes.Refused(t, "unaudited refusal", r.Do(fakes.PostBody(t, bytes.NewReader(body))), 409)
	if !strings.Contains(r.Logged(), "audit failed") {
		t.Error("nobody was told")
	}
	if err := r.g.Close(); !errors.Is(err, errDeaf) {
		t.Errorf("closing: %v", err)
	}
	h.failOn(errDeaf, EventGatewayOpened)
	if _, err := NewGateway(GatewayConfig{Upstream: "https://a.test", AllowUnauthenticated: true,
		Audit: h.Record}); !errors.Is(err, ErrAudit) {
		t.Errorf("opening: %v", err)
	}
}

// TestAuditHoldsNoContent has client and gateway write one log, with the marker in everything that
// is content, and in what a peer says.
func TestAuditHoldsNoContent(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	if err := keys.SetAuditor(t.Context(), l.Record); err != nil {
		t.Fatal(err)
	}
	key := secret(t, "key-"+leak)
	auth, err := AuthenticateKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	answers := []http.HandlerFunc{
		answerText(leak),
		func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"detail":"`+leak+`"}`, http.StatusUnprocessableEntity)
		},
		func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"` + leak + `":1}`))
		},
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	n := 0
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers[n](w,
			r)
	}), func(c *GatewayConfig) {
		c.Audit, c.Authenticate = l.Record, auth
	})
	srv := httptest.NewServer(g)
	defer srv.Close()
	c := startClient(t, srv.URL, func(c *Config) {
		c.Audit, c.APIKey, c.Trust, c.MaxRetries = l.Record, key, FirstUse(keys), 1
		c.OnServerKey = func(_, _ *PublicKey) error { return nil }
	})
	c.retry.base = time.Microsecond
	for n = range answers {
		_, err := c.Chat(t.Context(), &ChatRequest{Model: leak,
			Messages: []Message{UserMessage(leak)}})
		if (err == nil) != (n == 0) {
			t.Errorf("answer %d: %v", n, err)
		}
	}
	for range 2 {
		raw := strings.Replace(fakes.FineRequest, "hi", leak, 1)
		if w, err := http.Post(srv.URL+hybrid.PathCompletion, hybrid.ContentType,
			strings.NewReader(raw)); err == nil {
			_ = w.Body.Close()
		}
	}
	sealed, err := keys.Seal(leak, []byte(leak))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Open(leak, sealed); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Open(leak+"2", sealed); !errors.Is(err, ErrDecryption) {
		t.Fatal(err)
	}
	if err := keys.ChangePassphrase(t.Context(), secret(t, passphrase), secret(t,
		leak+leak)); err != nil {
		t.Fatal(err)
	}
	if err := keys.ChangePassphrase(t.Context(), secret(t, leak), secret(t,
		leak+leak)); !errors.Is(err, ErrPassphrase) {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), g.Close(), keys.SetAuditor(t.Context(), nil),
		l.Close()); err != nil {
		t.Fatal(err)
	}
	text := string(readLog(t, path))
	if testkit.Leaks(text) || strings.Contains(text, passphrase) {
		t.Errorf("the marker is in %s", text)
	}
	for _, name := range []EventType{EventRequestSealed, EventRequestOpened, EventResponseSealed,
		EventResponseOpened, EventSchemaRefused, EventRetry,
		EventDataSealed, EventDataOpened, EventDecryptionRefused, EventPassphraseChanged,
		EventServerKeyFirstSeen, EventClientClosed} {
		if !strings.Contains(text, `"type":"`+string(name)+`"`) {
			t.Errorf("no %s was written: this test shows less than it should", name)
		}
	}
	mustVerify(t, path, keys, "")
}
