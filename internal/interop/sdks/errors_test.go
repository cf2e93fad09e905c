// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	eino "github.com/cloudwego/eino-ext/components/model/openai"
	"github.com/openai/openai-go/v3"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
)

// seen is an error as an SDK gets it: a status with OpenAI's error object, whose code may be null,
// or no answer at all, but an error of the client's.
type seen struct {
	status     int
	kind, code string
	cause      error
	words      string // how the document names the cause
}

// cell is seen in the document's table.
func (s seen) cell() string {
	switch {
	case s.cause != nil:
		return s.words
	case s.kind == itsType:
		return fmt.Sprintf("%d, the upstream's", s.status)
	case s.code != "" && s.code != s.kind:
		return fmt.Sprintf("%d, code %s", s.status, s.code)
	}
	return fmt.Sprintf("%d %s", s.status, s.kind)
}

// own is an error object of the gateway's own: over Oblivious HTTP it has a code.
func own(status int, kind string) (v1, ohttp seen) {
	return seen{status: status, kind: kind}, seen{status: status, kind: kind, code: kind}
}

// failure is a kind of error.
type failure struct {
	name     string           // in the document's table
	upstream http.HandlerFunc // nil = chat
	key      string           // the SDK's; "" = the good one
	settings settings
	streams  bool // it shows in streams only
	v1, oh   seen
}

// fails is a failure of which both protocols' clients see the same.
func (f failure) fails(status int, kind string) failure {
	f.v1, f.oh = own(status, kind)
	return f
}

const (
	itsType, itsCode = "its_type", "its_code"
	short            = 200 * time.Millisecond
)

// its is the upstream's own error object.
func its(status int) seen { return seen{status: status, kind: itsType, code: itsCode} }

var (
	notChat  = seen{cause: sealedchat.ErrResponseSchema, words: "`ErrResponseSchema`"}
	cut      = seen{cause: sealedchat.ErrTruncated, words: "`ErrTruncated`"}
	late     = seen{cause: context.DeadlineExceeded, words: "`context.DeadlineExceeded`"}
	wrongPin = seen{cause: new(sealedchat.ServerKeyError), words: "`*ServerKeyError`"}
	tooLarge = seen{status: 413, kind: "invalid_request_error", code: "request_too_large"}
	noAnswer = seen{status: 424, kind: "invalid_request_error"}
	gone     = seen{status: 502, kind: "server_error"}
)

var failures = []failure{
	failure{name: "the API key is wrong", key: wrongKey}.fails(401, "authentication_error"),
	failure{name: "`Authenticate` returns `ErrPermission`",
		settings: answers(sealedchat.ErrPermission)}.fails(403, "permission_error"),
	failure{name: "`Authenticate` returns `ErrRateLimited`",
		settings: answers(sealedchat.ErrRateLimited)}.fails(429, "rate_limit_error"),
	{name: "the client's limit on requests", settings: settings{
		client: func(c *sealedchat.Config) { c.MaxRequestBytes = 16 }}, v1: tooLarge, oh: tooLarge},
	failure{name: "the gateway's limit on requests", settings: settings{
		gateway: func(c *sealedchat.GatewayConfig) { c.MaxRequestBytes = 16 }}}.
		fails(413, "invalid_request_error"),
	{name: "upstream: 400", upstream: refuse(400),
		v1: seen{status: 400, kind: "invalid_request_error"}, oh: its(400)},
	{name: "upstream: 401", upstream: refuse(401), v1: noAnswer,
		oh: seen{status: 502, kind: "server_error", code: "server_error"}},
	{name: "upstream: 403", upstream: refuse(403), v1: noAnswer,
		oh: seen{status: 502, kind: "server_error", code: "server_error"}},
	{name: "upstream: 404", upstream: refuse(404),
		v1: seen{status: 404, kind: "not_found_error"}, oh: its(404)},
	{name: "upstream: 413", upstream: refuse(413),
		v1: seen{status: 413, kind: "invalid_request_error"}, oh: its(413)},
	{name: "upstream: 429", upstream: refuse(429),
		v1: seen{status: 429, kind: "rate_limit_error"}, oh: its(429)},
	{name: "upstream: 500", upstream: refuse(500), v1: gone, oh: its(500)},
	{name: "upstream: 503", upstream: refuse(503),
		v1: seen{status: 503, kind: "server_error"}, oh: its(503)},
	failure{name: "upstream: closes the connection", upstream: abort}.fails(502, "server_error"),
	{name: "upstream: 200, but no completion", upstream: noCompletion,
		v1: seen{status: 422, kind: "invalid_request_error"}, oh: notChat},
	{name: "upstream: a stream that is cut", upstream: cutStream, streams: true, v1: gone, oh: cut},
	failure{name: "the gateway's `Timeout`", upstream: hang, settings: settings{
		gateway: func(c *sealedchat.GatewayConfig) { c.Timeout = short }}}.
		fails(504, "server_error"),
	{name: "the client's `Timeout`", upstream: hang, settings: settings{
		client: func(c *sealedchat.Config) { c.Timeout = short }}, v1: late, oh: late},
	{name: "a wrong pin", settings: settings{client: func(c *sealedchat.Config) {
		c.Trust = sealedchat.Pin(strings.Repeat("01", 32))
	}}, v1: wrongPin, oh: wrongPin},
}

// answers lets nobody in.
func answers(err error) settings {
	return settings{gateway: func(c *sealedchat.GatewayConfig) {
		c.Authenticate = func(*http.Request) (string, error) { return "", err }
	}}
}

// refuse is an upstream that answers with an error of OpenAI's shape.
func refuse(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"message":%q,"type":%q,"param":null,"code":%q}}`,
			refused, itsType, itsCode)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func abort(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

func noCompletion(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"hello":"world"}`)
}

func cutStream(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	event(w, map[string]any{"content": answer}, nil, nil)
	panic(http.ErrAbortHandler)
}

// Each kind of error as the SDKs see it, and as the table in docs/troubleshooting.md has it.
func TestErrors(t *testing.T) {
	text, err := os.ReadFile("../../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range failures {
		row := fmt.Sprintf("| %s | %s | %s |\n", f.name, f.v1.cell(), f.oh.cell())
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/troubleshooting.md lacks the row\n%s", row)
		}
		t.Run(f.name, func(t *testing.T) {
			each(t, func(t *testing.T, s sdk, protocol sealedchat.Protocol) {
				if !f.streams {
					testFailure(t, f, s, protocol, false)
				}
				testFailure(t, f, s, protocol, true)
			})
		})
	}
}

func testFailure(t *testing.T, f failure, s sdk, protocol sealedchat.Protocol, streamed bool) {
	upstream, key, want, a := f.upstream, f.key, f.v1, ask{}
	if upstream == nil {
		upstream = chat
	}
	if key == "" {
		key = goodKey
	}
	if protocol == sealedchat.ProtocolOHTTP {
		want = f.oh
	}
	var words strings.Builder
	if streamed {
		a.word = func(word string) { words.WriteString(word) }
	}
	w := newWorld(t, protocol, upstream, f.settings)
	got, err := w.open(t, s, key)(t.Context(), a)
	if err == nil || got != (reply{}) {
		t.Fatalf("stream %t: %+v, %v", streamed, got, err)
	}
	switch {
	case s.name == "langchaingo":
		checkLangchain(t, err, want, f.streams)
	case want.cause == nil:
		checkObject(t, s, err, want)
	case !isCause(err, want.cause):
		t.Errorf("%v, want %v", err, want.cause)
	}
	// the part of a stream that came before the cut is the SDK's already
	if came := words.String(); came != "" && (came != answer || !errors.Is(want.cause, cut.cause)) {
		t.Errorf("the SDK handed out %q", came)
	}
	if want == tooLarge {
		if n := len(w.witness.Bytes()); n != 0 {
			t.Errorf("%d bytes went out", n)
		}
		return
	}
	w.witness.MustNotSee(prompt, answer, refused)
}

func isCause(err, cause error) bool {
	if _, ok := cause.(*sealedchat.ServerKeyError); ok {
		_, ok = errors.AsType[*sealedchat.ServerKeyError](err)
		return ok
	}
	return errors.Is(err, cause)
}

// checkObject looks for the whole object. eino has the number 0 for a code that is null.
func checkObject(t *testing.T, s sdk, err error, want seen) {
	t.Helper()
	var got seen
	var message string
	code := any(nil)
	if e, ok := errors.AsType[*eino.APIError](err); ok {
		got, message, code = seen{status: e.HTTPStatusCode, kind: e.Type}, e.Message, e.Code
	} else if e, ok := errors.AsType[*goopenai.APIError](err); ok {
		got, message, code = seen{status: e.HTTPStatusCode, kind: e.Type}, e.Message, e.Code
	} else if e, ok := errors.AsType[*openai.Error](err); ok {
		got, message, code = seen{status: e.StatusCode, kind: e.Type}, e.Message, e.Code
	}
	null := map[string]any{"eino": 0, "go-openai": 0, "openai-go": ""}[s.name]
	if code != null {
		got.code, _ = code.(string)
	}
	if got != want || message == "" {
		t.Errorf("%v: %+v, want %+v", err, got, want)
	}
	if want.kind == itsType && message != refused {
		t.Errorf("%v without the upstream's words", err)
	}
}

// checkLangchain looks for the status and the message in langchaingo's text, since it keeps neither
// type nor code. It replaces an error of the client's, except inside of a stream.
func checkLangchain(t *testing.T, err error, want seen, insideStream bool) {
	t.Helper()
	text := "network error: failed to reach API server"
	switch {
	case want.cause == nil:
		text = fmt.Sprintf("API returned unexpected status code: %d: ", want.status)
		if want.kind == itsType {
			text += refused
		} else {
			text += "sealedchat: "
		}
	case insideStream:
		if !errors.Is(err, want.cause) {
			t.Errorf("%v, want %v", err, want.cause)
		}
		return
	case errors.Is(want.cause, context.DeadlineExceeded):
		text = "request timeout: API call exceeded deadline"
	}
	if !strings.HasPrefix(err.Error(), text) {
		t.Errorf("%v, want %q", err, text)
	}
}

// langchaingo drops the cause of a failed call; the client's log has it.
func TestLogHasTheCause(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			var log bytes.Buffer
			w := newWorld(t, protocol, http.HandlerFunc(chat), settings{
				client: func(c *sealedchat.Config) {
					c.Trust = sealedchat.Pin(strings.Repeat("01", 32))
					c.Logger = slog.New(slog.NewTextHandler(&log, nil))
				}})
			_, err := w.open(t, sdks[0], goodKey)(t.Context(), ask{})
			if err == nil || !strings.Contains(log.String(), "is not trusted") {
				t.Errorf("%v; the log:\n%s", err, log.String())
			}
		})
	}
}
