// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// Name is what the model calls itself in its list. It answers to any name.
const Name = "demo"

// Typing is the time that the model takes for a word.
const Typing = 40 * time.Millisecond

// chatRequest is the part of a request that the model looks at.
type chatRequest struct {
	Model    string               `json:"model"`
	Stream   bool                 `json:"stream"`
	Messages []sealedchat.Message `json:"messages"`
	Tools    []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
}

// Model is an OpenAI-compatible model that knows a few capitals and otherwise repeats the prompt.
// If it is offered tools, it calls the first one and then repeats what that said. It also lists
// itself, and makes small embeddings.
func Model(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/chat/completions":
		complete(w, r)
	case "POST /v1/embeddings":
		embed(w, r)
	case "GET /v1/models":
		write(w, map[string]any{"object": "list", "data": []any{map[string]any{
			"id": Name, "object": "model", "created": 0, "owned_by": "sealedchat"}}})
	default:
		refuse(w, http.StatusNotFound, "the demo model has no "+r.Method+" "+r.URL.Path)
	}
}

func complete(w http.ResponseWriter, r *http.Request) {
	var request chatRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		refuse(w, http.StatusBadRequest, "not a chat request")
		return
	}
	last := sealedchat.Message{}
	if n := len(request.Messages); n > 0 {
		last = request.Messages[n-1]
	}
	var message any
	answer, finish := answerTo(request.Messages), "stop"
	switch {
	case last.Role == "tool":
		answer = "The tool said: “" + last.Text() + "”"
		message = sealedchat.AssistantMessage(answer)
	case len(request.Tools) > 0:
		answer, finish = "", "tool_calls"
		message = map[string]any{"role": "assistant", "content": nil, "tool_calls": toolCalls(
			request.Tools[0].Function.Name)}
	default:
		message = sealedchat.AssistantMessage(answer)
	}
	if request.Stream {
		stream(w, r, &request, answer, finish)
		return
	}
	words := 0
	for _, m := range request.Messages {
		words += len(strings.Fields(m.Text()))
	}
	spoken := len(strings.Fields(answer))
	write(w, map[string]any{
		"id": "chatcmpl-demo", "object": "chat.completion", "created": time.Now().Unix(),
		"model":   request.Model,
		"choices": []any{map[string]any{"index": 0, "finish_reason": finish, "message": message}},
		"usage": map[string]int{"prompt_tokens": words, "completion_tokens": spoken,
			"total_tokens": words + spoken},
	})
}

func toolCalls(name string) []any {
	return []any{map[string]any{"index": 0, "id": "call-demo", "type": "function",
		"function": map[string]string{"name": name, "arguments": "{}"}}}
}

// stream types an answer word by word, or calls the tool if there is no answer.
func stream(w http.ResponseWriter, r *http.Request, request *chatRequest, answer, finish string) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(delta map[string]any, finish any) {
		chunk, _ := json.Marshal(map[string]any{ // texts only: this cannot fail
			"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": time.Now().Unix(),
			"model":   request.Model,
			"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}},
		})
		_, _ = fmt.Fprintf(w, "data: %s\n\n", chunk)
		_ = http.NewResponseController(w).Flush()
	}
	if answer == "" {
		send(map[string]any{"role": "assistant",
			"tool_calls": toolCalls(request.Tools[0].Function.Name)}, nil)
	} else {
		for word := range strings.SplitAfterSeq(answer, " ") {
			send(map[string]any{"content": word}, nil)
			select {
			case <-time.After(Typing):
			case <-r.Context().Done():
				return
			}
		}
	}
	send(map[string]any{}, finish)
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// embed makes four numbers of each text.
func embed(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Model string          `json:"model"`
		Input json.RawMessage `json:"input"`
	}
	err := json.NewDecoder(r.Body).Decode(&request)
	texts := []string{""}
	if err == nil && json.Unmarshal(request.Input, &texts[0]) != nil {
		err = json.Unmarshal(request.Input, &texts)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "not a request for embeddings of texts")
		return
	}
	var data []any
	for i, text := range texts {
		hash := fnv.New32a()
		_, _ = io.WriteString(hash, text)
		var numbers [4]float64
		for j, b := range hash.Sum(nil) {
			numbers[j] = float64(b)/128 - 1
		}
		data = append(data, map[string]any{"object": "embedding", "index": i,
			"embedding": numbers})
	}
	write(w, map[string]any{"object": "list", "model": request.Model, "data": data,
		"usage": map[string]int{"prompt_tokens": len(texts), "total_tokens": len(texts)}})
}

// write writes JSON. The writer is in memory and does not fail.
func write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// refuse writes an error in OpenAI's shape.
func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"message": message, "type": "invalid_request_error", "param": nil, "code": nil}})
}
