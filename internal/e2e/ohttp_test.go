// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

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
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestOHTTPChat(t *testing.T) {
	g := fakes.StartGateway(t, testkit.AnswerText("Paris"))
	client := ohttpClient(t, g.URL, func(c *sealedchat.Config) {
		c.Trust = sealedchat.Pin(g.Key().Fingerprint())
		c.APIKey = secret(t, "sk-inner-5b1f")
	})
	answer, err := client.Chat(t.Context(), ask("What is the capital of France?"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Text() != "Paris" || !chatjson.IsUUID(answer.PayloadID) {
		t.Errorf("got %q, id %q", answer.Text(), answer.PayloadID)
	}
	h := httpx.HeaderOf(g.Last.Header)
	if g.Last.Method != "POST" || g.Last.Path != "/v1/chat/completions" ||
		h.Get("Authorization") != "Bearer sk-inner-5b1f" {
		t.Errorf("inside: %+v", g.Last)
	}
}

func TestOHTTPComplete(t *testing.T) {
	g := fakes.StartGateway(t, testkit.AnswerText(strings.Repeat("Paris ", 20000)))
	client := ohttpClient(t, g.URL, nil)
	const body = `{"model":"test-model","messages":[{"role":"user","content":"x"}]}`
	r, err := client.Complete(t.Context(), secret(t, body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Destroy()
	if err := r.Body.Use(func(b []byte) error {
		return chatjson.CheckCompletion(b, chatjson.Asked{})
	}); err != nil {
		t.Error(err)
	}
}

func TestOHTTPStream(t *testing.T) {
	testkit.NoLeaks(t)
	gate := make(chan struct{})
	g := fakes.StartGateway(t, fakes.WordByWord(gate, "Pa", "ris", "!"))
	client := ohttpClient(t, g.URL, nil)
	var all sealedchat.ChatAccumulator
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

// auditRecorder is an Auditor that keeps what it is told, and fails at events of one type.
type auditRecorder struct {
	mu     sync.Mutex
	events []sealedchat.Event
	fail   sealedchat.EventType
}

var errNotRecorded = errors.New("not recorded")

func (a *auditRecorder) Record(_ context.Context, e sealedchat.Event) error {
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
	g := fakes.NewGateway(t, fakes.ShortAnswer)
	rec := &auditRecorder{}
	client := directClient(t, g, func(c *sealedchat.Config) { c.Audit = rec.Record })
	rec.take()
	stream := func() (err error) {
		for _, err = range client.Stream(t.Context(), ask("x")) {
		}
		return err
	}
	sealed, opened := string(sealedchat.EventRequestSealed), string(sealedchat.EventResponseOpened)
	if err := stream(); err != nil {
		t.Fatal(err)
	}
	// and the server's key before
	if got := rec.take(); len(got) != 3 || got[1] != sealed || got[2] != opened {
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
	if last := rec.events[len(rec.events)-1]; last.Type != sealedchat.EventDecryptionRefused ||
		out == 0 || last.Bytes == 0 || last.PayloadID == "" {
		t.Errorf("after %d parts: %+v", out, last)
	}
	rec.mu.Unlock()
	_, _, _ = openTampered(t, g, client, func(b []byte) []byte { return b[:len(b)-20] })
	rec.take()
	if err := stream(); err == nil {
		t.Error("cut")
	}
	if got := rec.take(); len(got) != 2 || got[0] != sealed ||
		(got[1] != opened+" cut short" && !strings.HasPrefix(got[1],
			string(sealedchat.EventDecryptionRefused))) {
		t.Errorf("cut: %q", got)
	}
	g.Set(func() { g.Mangle = nil; g.Inner = fakes.AnswerEvents("data: []\n\n", fakes.Done) })
	if err := stream(); !errors.Is(err, sealedchat.ErrResponseSchema) {
		t.Errorf("got %v", err)
	}
	if got := rec.take(); len(got) != 3 || !strings.HasPrefix(got[1],
		string(sealedchat.EventSchemaRefused)) && !strings.HasPrefix(got[2],
		string(sealedchat.EventSchemaRefused)) {
		t.Errorf("no chunk: %q", got)
	}
	g.Set(func() { g.Inner = fakes.ShortAnswer })
	for _, event := range []sealedchat.EventType{sealedchat.EventRequestSealed,
		sealedchat.EventResponseOpened} {
		rec.fail = event
		_, before := g.Counts()
		if err := stream(); !errors.Is(err, sealedchat.ErrAudit) ||
			!errors.Is(err, errNotRecorded) {
			t.Errorf("%s is not recorded: %v", event, err)
		}
		if _, after := g.Counts(); (after == before) != (event == sealedchat.EventRequestSealed) {
			t.Errorf("%s is not recorded: %d requests", event, after-before)
		}
	}
	if s := client.Stats(); s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

// A model's server may quote the prompt in its refusals. They came sealed, and stay out of error
// texts and logs; a gateway's own words may be read there, and an SDK gets all of them.
func TestObliviousErrorsHoldNoContent(t *testing.T) {
	const marker = "MARKER-content-4711"
	own, by := "", "upstream" // and no other word than "gateway" counts
	g := fakes.NewGateway(t, func(w http.ResponseWriter, _ *http.Request) {
		if own != "" {
			w.Header().Set(ohttp.HeaderProcessed, own)
		}
		w.Header().Set(ohttp.HeaderRefusedBy, by)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w,
			`{"error":{"message":"the prompt `+marker+` is too long","code":"code-`+marker+`"}}`)
	})
	var log bytes.Buffer
	client := directClient(t, g, func(c *sealedchat.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	for name, call := range callsOf(client) {
		err := call(t.Context())
		refused, ok := errors.AsType[*sealedchat.APIError](err)
		if !ok || refused.Detail != "" || refused.Code != "" {
			t.Errorf("%s: %v", name, err)
			continue
		}
		code, detail := refused.Sealed()
		if !strings.Contains(detail, marker) || !strings.Contains(code, marker) {
			t.Errorf("%s: sealed were %q, %q", name, code, detail)
		}
		if strings.Contains(err.Error(), marker) || strings.Contains(log.String(), marker) ||
			!errors.Is(err, sealedchat.ErrInvalidRequest) {
			t.Errorf("%s: %v, %s", name, err, log.String())
		}
		for form, text := range printed(t, refused) {
			words := strings.HasSuffix(form, "of the pointer") && !strings.HasPrefix(form, "%#v") &&
				!strings.HasPrefix(form, "json")
			if strings.Contains(text, marker) ||
				words && !strings.Contains(text, "400 Bad Request with a sealed error") {
				t.Errorf("%s: %s prints %s", name, form, text)
			}
		}
	}
	resp, err := client.HTTPClient().Post("https://gateway.test/v1/chat/completions",
		"application/json", strings.NewReader(`{"model":"m","messages":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusBadRequest ||
		!strings.Contains(string(text), marker) {
		t.Errorf("an SDK gets %d %s, %v", resp.StatusCode, text, err)
	}
	for _, says := range [][2]string{{"no", ""}, {"no", "gateway"}, {"", "gateway"}} {
		own, by = says[0], says[1]
		_, err = client.Chat(t.Context(), ask("x"))
		if !strings.Contains(fmt.Sprint(err), marker) {
			t.Errorf("the gateway's own words, %q: %v", says, err)
		}
	}
	if refused, ok := errors.AsType[*sealedchat.APIError](err); ok {
		for form, text := range printed(t, refused) {
			if !strings.Contains(text, marker) {
				t.Errorf("the gateway's own words: %s prints %s", form, text)
			}
		}
	}
}

var hexRuns = regexp.MustCompile(`[0-9a-f]{8,}`)

// printed is e in every form in which a program prints, logs or marshals an error.
func printed(t *testing.T, e *sealedchat.APIError) map[string]string {
	t.Helper()
	type holder struct {
		Err   error
		Value sealedchat.APIError
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
