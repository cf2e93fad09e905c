// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestOHTTPChat(t *testing.T) {
	g := startTiny(t, answerText("Paris"))
	client := ohttpClient(t, g.url, func(c *Config) {
		c.Trust = Pin(g.key().Fingerprint())
		c.APIKey = secret(t, "sk-inner-5b1f")
	})
	answer, err := client.Chat(t.Context(), ask("What is the capital of France?"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Text() != "Paris" || !chatjson.IsUUID(answer.PayloadID) {
		t.Errorf("got %q, id %q", answer.Text(), answer.PayloadID)
	}
	h := httpx.HeaderOf(g.last.Header)
	if g.last.Method != "POST" || g.last.Path != "/v1/chat/completions" || h.Get("Authorization") != "Bearer sk-inner-5b1f" {
		t.Errorf("inside: %+v", g.last)
	}
}

func TestOHTTPComplete(t *testing.T) {
	g := startTiny(t, answerText(strings.Repeat("Paris ", 20000)))
	client := ohttpClient(t, g.url, nil)
	body, _ := ask("x").encode()
	r, err := client.Complete(t.Context(), secret(t, string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Destroy()
	if err := r.Body.Use(func(b []byte) error { return checkCompletion(b, "", "") }); err != nil {
		t.Error(err)
	}
}

// wordByWord is an upstream that streams them, one event each, and waits for gate before each but the first, if gate is not nil.
func wordByWord(gate <-chan struct{}, texts ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i, text := range texts {
			if gate != nil && i > 0 {
				select {
				case <-gate:
				case <-r.Context().Done():
					return
				}
			}
			chunk, _ := chatjson.Marshal(map[string]any{
				"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1765250382, "model": "test-model",
				"choices": []any{map[string]any{"index": 0, "delta": map[string]any{"content": text}, "finish_reason": nil}},
			})
			_, _ = fmt.Fprintf(w, "data: %s\n\n", chunk)
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	}
}

func TestOHTTPStream(t *testing.T) {
	testkit.NoLeaks(t)
	gate := make(chan struct{})
	g := startTiny(t, wordByWord(gate, "Pa", "ris", "!"))
	client := ohttpClient(t, g.url, nil)
	var all ChatAccumulator
	var got []string
	for chunk, err := range client.Stream(t.Context(), ask("x")) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, chunk.Text())
		all.Add(chunk)
		if len(got) < 3 {
			gate <- struct{}{} // only now does the next one exist
		}
	}
	if !slices.Equal(got, []string{"Pa", "ris", "!"}) || all.Response().Text() != "Paris!" {
		t.Errorf("got %q", got)
	}
	if s := client.Stats(); s.InFlight != 0 || s.Failures != 0 || s.Requests != 1 {
		t.Errorf("%+v", s)
	}
}

// closeRecorder is a transport whose bodies tell whether they were closed.
type closeRecorder struct {
	direct
	open atomic.Int32
}

func (c *closeRecorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.direct.RoundTrip(req)
	if err == nil {
		c.open.Add(1)
		resp.Body = &recordedBody{resp.Body, sync.OnceFunc(func() { c.open.Add(-1) })}
	}
	return resp, err
}

type recordedBody struct {
	io.ReadCloser
	closed func()
}

func (b *recordedBody) Close() error {
	b.closed()
	return b.ReadCloser.Close()
}

// However an answer ends, its body is closed and its keys are gone.
func TestOHTTPNothingStaysOpen(t *testing.T) {
	g := newTiny(t, wordByWord(nil, "a", "b", "c"))
	rt := &closeRecorder{direct: direct{g}}
	client := ohttpClient(t, "https://gateway.test", func(c *Config) { c.Transport = rt })
	body, _ := ask("x").encode()
	in := chatRequest(body, false)
	for name, end := range map[string]func(*openedBody){
		"closed":      func(b *openedBody) { _ = b.Close() },
		"read":        func(b *openedBody) { _, _ = io.Copy(io.Discard, b) },
		"closed late": func(b *openedBody) { _, _ = io.ReadFull(b, make([]byte, 10)); _ = b.Close(); _ = b.Close() },
	} {
		resp, err := client.stream(t.Context(), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		end(resp.body)
		if _, err := resp.body.reader.Read(make([]byte, 1)); !errors.Is(err, ohttp.ErrUsed) {
			t.Errorf("%s: the keys are there: %v", name, err)
		}
	}
	for name, inner := range map[string]http.HandlerFunc{
		"an error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"encoded": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(200)
		},
	} {
		g.set(func() { g.inner = inner })
		if _, err := client.stream(t.Context(), in, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	g.set(func() {
		g.outer = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(200); return true }
	})
	if _, err := client.stream(t.Context(), in, nil); err == nil {
		t.Error("an empty answer was taken")
	}
	if n := rt.open.Load(); n != 0 {
		t.Errorf("%d bodies were not closed", n)
	}
	if s := client.Stats(); s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

// The answer is opened to the beginning of the room that was made for it, and nothing else stays there.
func TestOHTTPOpensIntoRoom(t *testing.T) {
	g := newTiny(t, shortAnswer)
	client := directClient(t, g, nil)
	r, err := client.wire.seal(t.Context(), chatRequest([]byte(`{"model":"m"}`), true), &callOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.release()
	a, err := httpx.Exchange(client.http, r.http, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var room []byte
	got, err := client.wire.openAnswer(r, a, func(n int) ([]byte, error) {
		room = bytes.Repeat([]byte{0xff}, n)
		return room, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := len(got.plaintext)
	if n == 0 || &got.plaintext[0] != &room[0] || !bytes.Contains(room, []byte("Paris")) {
		t.Errorf("%d bytes", n)
	}
	if rest := bytes.Trim(room[n:], "\xff"); len(bytes.Trim(rest, "\x00")) > 0 {
		t.Errorf("behind it: %q", rest)
	}
	if bytes.Contains(a.Body, []byte("Paris")) {
		t.Error("it was opened where it came, too")
	}
}

// auditRecorder is an Auditor that keeps what it is told, and fails at events of one type.
type auditRecorder struct {
	mu     sync.Mutex
	events []Event
	fail   EventType
}

var errNotRecorded = errors.New("not recorded")

func (a *auditRecorder) Record(_ context.Context, e Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
	if e.Type == a.fail {
		return errNotRecorded
	}
	return nil
}

func (a *auditRecorder) take() (all []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		all = append(all, strings.TrimSuffix(string(e.Type)+" "+e.Reason, " "))
	}
	a.events = nil
	return all
}

func TestOHTTPAudit(t *testing.T) {
	g := newTiny(t, shortAnswer)
	rec := &auditRecorder{}
	client := directClient(t, g, func(c *Config) { c.Audit = rec.Record })
	rec.take()
	stream := func() (err error) {
		for _, err = range client.Stream(t.Context(), ask("x")) {
		}
		return err
	}
	sealed, opened := string(EventRequestSealed), string(EventResponseOpened)
	if err := stream(); err != nil {
		t.Fatal(err)
	}
	if got := rec.take(); len(got) != 3 || got[1] != sealed || got[2] != opened { // and the server's key before
		t.Errorf("a stream: %q", got)
	}
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	if got := rec.take(); !slices.Equal(got, []string{sealed, opened}) {
		t.Errorf("a chat: %q", got)
	}
	for range client.Stream(t.Context(), ask("x")) {
		break
	}
	if got := rec.take(); !slices.Equal(got, []string{sealed, opened + " left early"}) {
		t.Errorf("left early: %q", got)
	}
	_, _, _ = openTampered(t, g, client, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	rec.take()
	out := int64(0)
	for part, err := range client.Stream(t.Context(), ask("x")) {
		if err == nil {
			out += int64(len(part.Choices))
		}
	}
	rec.mu.Lock()
	if last := rec.events[len(rec.events)-1]; last.Type != EventDecryptionRefused || out == 0 || last.Bytes == 0 || last.PayloadID == "" {
		t.Errorf("after %d parts: %+v", out, last)
	}
	rec.mu.Unlock()
	_, _, _ = openTampered(t, g, client, func(b []byte) []byte { return b[:len(b)-20] })
	rec.take()
	if err := stream(); err == nil {
		t.Error("cut")
	}
	if got := rec.take(); len(got) != 2 || got[0] != sealed || (got[1] != opened+" cut short" && !strings.HasPrefix(got[1], string(EventDecryptionRefused))) {
		t.Errorf("cut: %q", got)
	}
	g.set(func() { g.mangle = nil; g.inner = answerEvents("data: []\n\n", done) })
	if err := stream(); !errors.Is(err, ErrResponseSchema) {
		t.Errorf("got %v", err)
	}
	if got := rec.take(); len(got) != 3 || !strings.HasPrefix(got[1], string(EventSchemaRefused)) && !strings.HasPrefix(got[2], string(EventSchemaRefused)) {
		t.Errorf("no chunk: %q", got)
	}
	g.set(func() { g.inner = shortAnswer })
	for _, event := range []EventType{EventRequestSealed, EventResponseOpened} {
		rec.fail = event
		_, before := g.counts()
		if err := stream(); !errors.Is(err, ErrAudit) || !errors.Is(err, errNotRecorded) {
			t.Errorf("%s is not recorded: %v", event, err)
		}
		if _, after := g.counts(); (after == before) != (event == EventRequestSealed) {
			t.Errorf("%s is not recorded: %d requests", event, after-before)
		}
	}
	if s := client.Stats(); s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

// A model's server may quote the prompt in its refusals. They came sealed, and stay out of error texts and logs; a gateway's
// own words may be read there, and an SDK gets all of them.
func TestObliviousErrorsHoldNoContent(t *testing.T) {
	const marker = "MARKER-content-4711"
	own := ""
	g := newTiny(t, func(w http.ResponseWriter, _ *http.Request) {
		if own != "" {
			w.Header().Set(ohttp.HeaderProcessed, "no")
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":{"message":"the prompt `+marker+` is too long","code":"code-`+marker+`"}}`)
	})
	var log bytes.Buffer
	client := directClient(t, g, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	for name, call := range callsOf(client) {
		err := call(t.Context())
		refused, ok := errors.AsType[*APIError](err)
		if !ok || refused.Detail != "" || refused.Code != "" {
			t.Errorf("%s: %v", name, err)
			continue
		}
		code, detail := refused.Sealed()
		if !strings.Contains(detail, marker) || !strings.Contains(code, marker) {
			t.Errorf("%s: sealed were %q, %q", name, code, detail)
		}
		if strings.Contains(err.Error(), marker) || strings.Contains(log.String(), marker) || !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%s: %v, %s", name, err, log.String())
		}
		for form, text := range printed(t, refused) {
			words := strings.HasSuffix(form, "of the pointer") && !strings.HasPrefix(form, "%#v") &&
				!strings.HasPrefix(form, "json")
			if strings.Contains(text, marker) || words && !strings.Contains(text, "400 Bad Request with a sealed error") {
				t.Errorf("%s: %s prints %s", name, form, text)
			}
		}
	}
	resp, err := client.HTTPClient().Post("https://gateway.test/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","messages":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), marker) {
		t.Errorf("an SDK gets %d %s, %v", resp.StatusCode, text, err)
	}
	own = "yes"
	_, err = client.Chat(t.Context(), ask("x"))
	if !strings.Contains(fmt.Sprint(err), marker) {
		t.Errorf("the gateway's own words: %v", err)
	}
	if refused, ok := errors.AsType[*APIError](err); ok {
		for form, text := range printed(t, refused) {
			if !strings.Contains(text, marker) {
				t.Errorf("the gateway's own words: %s prints %s", form, text)
			}
		}
	}
}

var hexRuns = regexp.MustCompile(`[0-9a-f]{8,}`)

// printed is e in every form in which a program prints, logs or marshals an error.
func printed(t *testing.T, e *APIError) map[string]string {
	t.Helper()
	type holder struct {
		Err   error
		Value APIError
	}
	forms := make(map[string]string)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for name, v := range map[string]any{"pointer": e, "value": *e, "holder": holder{e, *e}} {
			text := fmt.Sprintf(verb, v)
			if verb == "%x" {
				text = hexRuns.ReplaceAllStringFunc(text, func(run string) string {
					b, _ := hex.DecodeString(run)
					return string(b)
				})
			}
			forms[verb+" of the "+name] = text
		}
	}
	for name, v := range map[string]any{"pointer": e, "value": *e, "holder": holder{e, *e}} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		forms["json of the "+name] = string(text)
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "v", v)
		forms["slog in JSON of the "+name] = log.String()
		log.Reset()
		slog.New(slog.NewTextHandler(&log, nil)).Error("x", slog.Any("v", v))
		forms["slog of the "+name] = log.String()
	}
	return forms
}
