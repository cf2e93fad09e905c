// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
)

// The upstream stands in for a model. All of its work is in the figures.

// answer is what an upstream answers that was told before.
type answer struct {
	media  string
	pieces [][]byte // each is flushed, if there are several
	// hold, where it is set, is closed when what follows the first piece may come
	hold chan struct{}
}

// standIn reads a prompt. With an answer it writes these bytes; without, it reads the JSON, and
// answers in kind, or with events if it is asked for a stream.
type standIn struct {
	answer *answer
	events int // of a stream, before the end
}

func (u *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != chatPath:
		w.WriteHeader(http.StatusNotFound)
	case u.answer != nil:
		u.answer.serve(w, r)
	case u.events > 0:
		u.stream(w, r)
	default:
		u.chat(w, r)
	}
}

// chat answers with as much text as the prompt has.
func (u *standIn) chat(w http.ResponseWriter, r *http.Request) {
	var request chatRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Messages) == 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	text := completionOf(request.Messages[0].Content)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write(text)
}

func completionOf(content string) []byte {
	text, _ := json.Marshal(map[string]any{ // plain values marshal
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1765250382, "model": "model",
		"choices": []any{map[string]any{"index": 0, "finish_reason": "stop",
			"message": chatMessage{Role: "assistant", Content: content}}},
		"usage": map[string]int{"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16},
	})
	return text
}

func (a *answer) serve(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", a.media)
	if len(a.pieces) == 1 {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.pieces[0])))
	}
	for i, piece := range a.pieces {
		if i == 1 && a.hold != nil {
			<-a.hold
		}
		if _, err := w.Write(piece); err != nil {
			return
		}
		if len(a.pieces) > 1 {
			w.(http.Flusher).Flush()
		}
	}
}

// stream makes each event when its turn has come, and flushes it.
func (u *standIn) stream(w http.ResponseWriter, r *http.Request) {
	var request chatRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || !request.Stream {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range u.events {
		_, _ = w.Write(event(i == u.events-1))
		w.(http.Flusher).Flush()
	}
	_, _ = io.WriteString(w, endOfEvents)
}

// streamChunk is one event of a stream.
type streamChunk struct {
	ID      string         `json:"id"`
	Object  string         `json:"object"`
	Created int64          `json:"created"`
	Model   string         `json:"model"`
	Choices []streamChoice `json:"choices"`
}

type streamChoice struct {
	Index        int          `json:"index"`
	Delta        *chatMessage `json:"delta"`
	FinishReason *string      `json:"finish_reason"`
}

const endOfEvents = "data: [DONE]\n\n"

const eventText = " token"

func event(last bool) []byte {
	choice := streamChoice{Delta: &chatMessage{Role: "assistant", Content: eventText}}
	if last {
		stop := "stop"
		choice.FinishReason = &stop
	}
	text, _ := json.Marshal(streamChunk{ID: "chatcmpl-BPtZYl2nGx8cLQ8yGXn1vwGNsWFd4",
		Object: "chat.completion.chunk", Created: 1765250382, Model: "model",
		Choices: []streamChoice{choice}}) // plain values marshal
	return append(append([]byte("data: "), text...), "\n\n"...)
}

// events is a stream of n events, and its end.
func events(n int) (pieces [][]byte) {
	for i := range n {
		pieces = append(pieces, event(i == n-1))
	}
	return append(pieces, []byte(endOfEvents))
}
