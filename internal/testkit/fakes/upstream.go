// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
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
				"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1765250382, "model": "test-model",
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
