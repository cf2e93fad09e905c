// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// demoModel is an OpenAI-compatible model that knows a few capitals and otherwise repeats the
// prompt.
func demoModel(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Model    string               `json:"model"`
		Stream   bool                 `json:"stream"`
		Messages []sealedchat.Message `json:"messages"`
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/chat/completions" {
		http.NotFound(w, r)
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, "not a chat request", http.StatusBadRequest)
		return
	}
	answer := demoAnswer(request.Messages)
	if request.Stream {
		typeWords(w, r, request.Model, answer)
		return
	}
	words := 0
	for _, m := range request.Messages {
		words += len(strings.Fields(m.Text()))
	}
	spoken := len(strings.Fields(answer))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the writer is in memory and cannot fail
		"id": "chatcmpl-demo", "object": "chat.completion", "created": time.Now().Unix(),
		"model": request.Model,
		"choices": []any{map[string]any{"index": 0, "finish_reason": "stop",
			"message": sealedchat.AssistantMessage(answer)}},
		"usage": map[string]int{"prompt_tokens": words, "completion_tokens": spoken,
			"total_tokens": words + spoken},
	})
}

// typing is the time that the demo model takes for a word.
const typing = 40 * time.Millisecond

// typeWords streams an answer word by word.
func typeWords(w http.ResponseWriter, r *http.Request, model, answer string) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(delta map[string]string, finish any) {
		chunk, _ := json.Marshal(map[string]any{ // texts only: this cannot fail
			"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": time.Now().Unix(),
			"model":   model,
			"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}},
		})
		_, _ = fmt.Fprintf(w, "data: %s\n\n", chunk)
		_ = http.NewResponseController(w).Flush()
	}
	for word := range strings.SplitAfterSeq(answer, " ") {
		send(map[string]string{"content": word}, nil)
		select {
		case <-time.After(typing):
		case <-r.Context().Done():
			return
		}
	}
	send(map[string]string{}, "stop")
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// demoAnswer makes a text from the prompt, the conversation before it and the instructions.
func demoAnswer(messages []sealedchat.Message) string {
	var said []string
	system := ""
	for _, m := range messages {
		switch m.Role {
		case "user":
			said = append(said, m.Text())
		case "system", "developer":
			system = m.Text()
		}
	}
	if len(said) == 0 {
		return "You said nothing."
	}
	prompt, before := said[len(said)-1], said[:len(said)-1]
	var b strings.Builder
	b.WriteString(knowledge(prompt))
	fmt.Fprintf(&b, "You said: “%s”", prompt)
	switch n := len(before); n {
	case 0:
	case 1:
		fmt.Fprintf(&b, " You said one thing before: “%s”", before[0])
	default:
		fmt.Fprintf(&b, " You said %d things before, the last one: “%s”", n, before[n-1])
	}
	if system != "" {
		fmt.Fprintf(&b, " My instructions are: “%s”", system)
	}
	b.WriteString(" (I am a demo that only repeats.)")
	return b.String()
}

var capitals = [][2]string{
	{"Argentina", "Buenos Aires"}, {"Australia", "Canberra"}, {"Brazil", "Brasília"},
	{"Canada", "Ottawa"},
	{"Egypt", "Cairo"}, {"France", "Paris"}, {"Germany", "Berlin"}, {"India", "New Delhi"},
	{"Italy", "Rome"},
	{"Japan", "Tokyo"}, {"Kenya", "Nairobi"}, {"Norway", "Oslo"}, {"Poland", "Warsaw"},
	{"Spain", "Madrid"},
	{"Switzerland", "Bern"},
}

// knowledge returns the sentences of the demo model that fit the prompt, if there are any.
func knowledge(prompt string) string {
	lower := strings.ToLower(prompt)
	var b strings.Builder
	if strings.HasPrefix(lower, "hello") || strings.HasPrefix(lower, "hi ") || lower == "hi" {
		b.WriteString("Hello! ")
	}
	if strings.Contains(lower, "capital") {
		for _, c := range capitals {
			if strings.Contains(lower, strings.ToLower(c[0])) {
				fmt.Fprintf(&b, "The capital of %s is %s. ", c[0], c[1])
			}
		}
	}
	return b.String()
}

// inMemory is a RoundTripper that calls a handler instead of using a network.
type inMemory struct{ handler http.Handler }

func (m inMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	} else {
		req = req.Clone(req.Context())
		req.Body = http.NoBody
	}
	reader, writer := io.Pipe()
	answer := &memoryAnswer{header: http.Header{}, status: http.StatusOK, body: writer,
		begun: make(chan struct{})}
	stop := context.AfterFunc(req.Context(), func() {
		_ = reader.CloseWithError(context.Cause(req.Context()))
	})
	go func() { // ends with the handler: at the end of the request, or when nobody reads any more
		defer stop()
		m.handler.ServeHTTP(answer, req)
		answer.begin()
		_ = writer.Close()
	}()
	<-answer.begun
	return &http.Response{
		StatusCode: answer.status, Status: http.StatusText(answer.status), Proto: "HTTP/1.1",
		ProtoMajor: 1, ProtoMinor: 1,
		Header: answer.header, Body: reader, ContentLength: -1, Request: req,
	}, nil
}

// memoryAnswer is the http.ResponseWriter of inMemory. A Write waits for a reader, so everything is
// flushed at once.
type memoryAnswer struct {
	header http.Header
	status int
	body   *io.PipeWriter
	begun  chan struct{} // closed once header and status are set
	once   sync.Once
}

func (a *memoryAnswer) begin()              { a.once.Do(func() { close(a.begun) }) }
func (a *memoryAnswer) Header() http.Header { return a.header }
func (a *memoryAnswer) Flush()              { a.begin() }

func (a *memoryAnswer) WriteHeader(status int) {
	a.status = status
	a.begin()
}

func (a *memoryAnswer) Write(b []byte) (int, error) {
	a.begin()
	return a.body.Write(b)
}
