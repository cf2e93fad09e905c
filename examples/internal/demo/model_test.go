// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
)

func TestDemoAnswer(t *testing.T) {
	const end = " (I am a demo that only repeats.)"
	user, assistant := sealedchat.UserMessage, sealedchat.AssistantMessage
	for want, messages := range map[string][]sealedchat.Message{
		"You said nothing.":              nil,
		"You said: “x”" + end:            {user("x")},
		"Hello! You said: “hi”" + end:    {user("hi")},
		"You said: “I like Spain”" + end: {user("I like Spain")},
		"The capital of France is Paris. The capital of Italy is Rome. You said: “Capitals of " +
			"ITALY and france?”" + end: {
			user("Capitals of ITALY and france?")},
		"You said: “b” You said one thing before: “a”" +
			end: {user("a"), assistant("…"), user("b")},
		"You said: “c” You said 2 things before, the last one: “b” My instructions are: “s”" +
			end: {
			sealedchat.SystemMessage("s"), user("a"), assistant("…"), user("b"), assistant("…"),
			user("c")},
		"You said: “parts”" + end: {sealedchat.UserParts(sealedchat.TextPart("parts"))},
	} {
		if got := answerTo(messages); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDemoModelRefuses(t *testing.T) {
	transport := InMemory(http.HandlerFunc(Model))
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/chat/completions", "", 404},
		{"POST", "/v1/models", "{}", 404},
		{"POST", "/v1/chat/completions", "[", 400},
		{"POST", "/v1/chat/completions", "{}", 200},
		{"GET", "/v1/models", "", 200},
		{"POST", "/v1/embeddings", `{"input":7}`, 400},
		{"POST", "/v1/embeddings", `{"input":"a"}`, 200},
		{"POST", "/v1/embeddings", `{"input":["a","b"]}`, 200},
	} {
		var body io.Reader
		if c.body != "" {
			body = strings.NewReader(c.body)
		}
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://demo.invalid"+c.path,
			body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, resp.StatusCode, c.status)
		}
	}
}

// The model calls a tool that it is offered, and repeats what it said.
func TestDemoModelCallsTools(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"clock"}}]`
	for body, want := range map[string]string{
		`{"messages":[{"role":"user","content":"hi"}],` + tools + `}`:               `"name":"clock"`,
		`{"stream":true,"messages":[{"role":"user","content":"hi"}],` + tools + `}`: `"name":"clock"`,
		`{"messages":[{"role":"tool","content":"noon"}],` + tools + `}`:             "noon",
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST",
			"https://demo.invalid/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := InMemory(http.HandlerFunc(Model)).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(text), want) {
			t.Errorf("%s: %s", body, text)
		}
	}
}
