// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Done is the event that ends a stream of chunks.
const Done = "data: [DONE]\n\n"

// Direct is a transport without a network: it asks h, and waits for nothing but h itself.
func Direct(h http.Handler) http.RoundTripper { return direct{h} }

type direct struct{ h http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	w := httptest.NewRecorder()
	r := req.Clone(req.Context())
	if r.Body == nil {
		r.Body = http.NoBody
	}
	d.h.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

// WordByWord is an upstream that streams texts, one event each, and waits for gate before each but
// the first, if gate is not nil.
func WordByWord(gate <-chan struct{}, texts ...string) http.HandlerFunc {
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
				"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1765250382,
				"model": "test-model",
				"choices": []any{map[string]any{
					"index": 0, "delta": map[string]any{"content": text}, "finish_reason": nil,
				}},
			})
			_, _ = fmt.Fprintf(w, "data: %s\n\n", chunk)
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, Done)
	}
}

// AnswerEvents is an upstream that answers every request with the given events, one flush each.
func AnswerEvents(events ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for _, e := range events {
			_, _ = io.WriteString(w, e)
			w.(http.Flusher).Flush()
		}
	}
}

// ShortAnswer answers in the form that was asked for, in three chunks at least.
func ShortAnswer(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.Header.Get("Accept"), "event-stream") {
		WordByWord(nil, "Pa", "ris")(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	for _, piece := range []string{`{"id":"c","object":"chat.completion","created":1,"model":"m",`,
		`"choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},` +
			`"finish_reason":"stop"}]`, `}`} {
		_, _ = io.WriteString(w, piece)
		w.(http.Flusher).Flush()
	}
}

// Everything is an upstream with several endpoints.
func Everything(suffix string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var req struct {
			Stream   bool
			Messages []struct{ Content string }
		}
		if err := json.Unmarshal(body, &req); err != nil || len(req.Messages) == 0 {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		text := req.Messages[len(req.Messages)-1].Content + suffix
		if req.Stream {
			WordByWord(nil, strings.SplitAfter(text, " ")...)(w, r)
			return
		}
		testkit.AnswerText(text)(w, r)
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"MODEL-LISTED-55d0"}]}`)
	})
	mux.HandleFunc("POST /v1/embeddings", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(slices.Concat([]byte(`{"object":"list","data":[`), body, []byte(`]}`)))
	})
	return mux
}

// CloseRecorder is a transport whose bodies tell whether they were closed.
type CloseRecorder struct {
	http.RoundTripper
	Open atomic.Int32
}

func (c *CloseRecorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(req)
	if err == nil {
		c.Open.Add(1)
		resp.Body = &recordedBody{resp.Body, sync.OnceFunc(func() { c.Open.Add(-1) })}
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
