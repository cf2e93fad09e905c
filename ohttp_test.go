// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

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
	if answer.Text() != "Paris" || !isUUID(answer.PayloadID) {
		t.Errorf("got %q, id %q", answer.Text(), answer.PayloadID)
	}
	h := headerOf(g.last.Header)
	if g.last.Method != "POST" || g.last.Path != "/v1/chat/completions" || h.Get("Authorization") != "Bearer sk-inner-5b1f" {
		t.Errorf("inside: %+v", g.last)
	}
}

func TestOHTTPComplete(t *testing.T) {
	g := startTiny(t, answerText(strings.Repeat("Paris ", 20000)))
	client := ohttpClient(t, g.url, nil)
	body, _ := ask("x").encode()
	r, err := client.Complete(t.Context(), &Request{Body: secret(t, string(body))})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
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
			chunk, _ := marshal(map[string]any{
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
