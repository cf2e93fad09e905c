// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// collect reads a stream to its end.
func collect(t testing.TB, c *sealedchat.SecureCompletionClient, r *sealedchat.ChatRequest,
	opts ...sealedchat.CallOption) (chunks []*sealedchat.ChatChunk, last error) {
	t.Helper()
	for chunk, err := range c.Stream(t.Context(), r, opts...) {
		if (chunk == nil) == (err == nil) {
			t.Errorf("chunk %v beside error %v", chunk, err)
		}
		if last != nil {
			t.Errorf("%v after an error", chunk)
		}
		if last = err; err == nil {
			chunks = append(chunks, chunk)
		}
	}
	return chunks, last
}

func TestStreamChunks(t *testing.T) {
	g := fakes.NewGateway(t, fakes.AnswerEvents(
		": hello\n\n",
		`data: {"id":"c1","object":"chat.completion.chunk","created":1765250382.5,"model":"m","service_tier":"flex","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":{"content":[1]}}]}`+"\n\n",
		`data: {"id":"c1","object":"chat.completion.chunk","created":1765250382,"model":"m","choices":[{"index":1,"delta":{"content":"zwei","reasoning_content":"hm"}},{"index":0,"delta":{"content":"ei"},"logprobs":{"content":[2],"refusal":null}}]}`+"\n\n",
		`data: {"id":"c1","object":"","created":0,"model":"","choices":[{"index":0,"delta":{"content":"ns","tool_calls":[{"index":1,"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\""}},{"index":0,"id":"t0","type":"function","function":{"name":"g"}}]}}]}`+"\n\n",
		`data: {"id":"c1","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":":1}"}}],"refusal":"no"},"finish_reason":"tool_calls"},{"index":1,"delta":{"reasoning_content":"\ud83d"},"finish_reason":null}]}`+"\n\n",
		`data: {"id":"c1","choices":[{"index":1,"delta":{"reasoning_content":"\ude00"},"finish_reason":"stop"},{"index":2,"delta":null}]}`+"\n\n",
		`data: {"id":"c1","choices":[],"error":null,"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},"x":1}`+"\n\n",
		fakes.Done,
	))
	client := directClient(t, g, nil)
	chunks, err := collect(t, client, ask("count"))
	if err != nil || len(chunks) != 6 {
		t.Fatalf("%d chunks, %v", len(chunks), err)
	}
	if chunks[1].Text() != "ei" || !chatjson.IsUUID(chunks[0].PayloadID) ||
		!json.Valid(chunks[3].Raw) || chunks[0].Created != 1765250382 {
		t.Errorf("%+v", chunks[1])
	}
	var a sealedchat.ChatAccumulator
	for _, c := range chunks {
		a.Add(c)
	}
	r := a.Response()
	if r.ID != "c1" || r.Object != "chat.completion" || r.Model != "m" || r.Created != 1765250382 ||
		r.ServiceTier != "flex" ||
		r.Usage == nil || r.Usage.TotalTokens != 3 || string(r.Extra["x"]) != "1" ||
		r.PayloadID != chunks[0].PayloadID || r.Text() != "eins" {
		t.Errorf("%+v", r)
	}
	want := []sealedchat.Choice{
		{Index: 0, FinishReason: "tool_calls", Message: sealedchat.Message{Role: "assistant",
			Content: "eins",
			Refusal: "no", ToolCalls: []sealedchat.ToolCall{
				{ID: "t0", Type: "function", Function: sealedchat.FunctionCall{Name: "g"}},
				{ID: "t1", Type: "function", Function: sealedchat.FunctionCall{Name: "f",
					Arguments: `{"a":1}`}},
			}}, Extra: map[string]json.RawMessage{
			"logprobs": json.RawMessage(`{"content":[1,2],"refusal":null}`)}},
		{Index: 1, FinishReason: "stop", Message: sealedchat.Message{Role: "assistant",
			Content: "zwei",
			Extra: map[string]json.RawMessage{
				"reasoning_content": json.RawMessage(`"hm\ud83d\ude00"`)}}},
		{Index: 2, Message: sealedchat.Message{Role: "assistant"}},
	}
	if !reflect.DeepEqual(r.Choices, want) {
		t.Errorf("got  %+v\nwant %+v", r.Choices, want)
	}
	var empty sealedchat.ChatAccumulator
	if r := empty.Response(); r.Text() != "" || len(r.Choices) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestStreamRequest(t *testing.T) {
	g := fakes.NewGateway(t, fakes.WordByWord(nil, "x"))
	client := directClient(t, g, nil)
	r := ask("x")
	if _, err := collect(t, client, r); err != nil {
		t.Fatal(err)
	}
	if r.Extra != nil {
		t.Error("the caller's request was changed")
	}
	o, _ := chatjson.Pick(g.Content, "stream", "stream_options", "model")
	if string(o["stream"]) != "true" || string(o["stream_options"]) != `{"include_usage":true}` {
		t.Errorf("sent %s", g.Content)
	}
	r.Extra = map[string]any{"stream_options": nil, "stream": false}
	if _, err := collect(t, client, r); err != nil {
		t.Fatal(err)
	}
	if o, _ := chatjson.Pick(g.Content, "stream",
		"stream_options"); string(o["stream"]) != "true" || o["stream_options"] != nil {
		t.Errorf("sent %s", g.Content)
	}
	for name, bad := range map[string]*sealedchat.ChatRequest{"none": nil,
		"no model":    {Messages: []sealedchat.Message{sealedchat.UserMessage("x")}},
		"no messages": {Model: "m"},
		"api_key": {Model: "m", Messages: []sealedchat.Message{sealedchat.UserMessage("x")},
			Extra: map[string]any{"api_key": "k"}}} {
		if _, err := collect(t, client, bad); !errors.Is(err, sealedchat.ErrInvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := collect(t, client, ask("x"), sealedchat.WithTier("odd")); !errors.Is(err,
		sealedchat.ErrInvalidRequest) {
		t.Errorf("got %v", err)
	}
	_ = client.Close()
	if _, err := collect(t, client, ask("x")); !errors.Is(err, sealedchat.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestStreamsThatGoWrong(t *testing.T) {
	const good = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	for name, test := range map[string]struct {
		events []string
		want   error
		text   string // in the error
	}{
		"without end": {[]string{good}, sealedchat.ErrTruncated, ""},
		"cut within an event": {[]string{good, `data: {"choices":[{"ind`}, sealedchat.ErrTruncated,
			""},
		"the finish of another choice": {[]string{good,
			`data: {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}` + "\n\n"},
			sealedchat.ErrTruncated, ""},
		"an error": {[]string{good,
			`data: {"error":{"message":"out of memory","code":"oom"}}` + "\n\n", fakes.Done},
			sealedchat.ErrServer,
			""},
		"an error in a chunk": {[]string{good,
			`data: {"object":"chat.completion.chunk","error":{"code":502,"message":"memory"},` +
				`"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}` + "\n\n",
			fakes.Done}, sealedchat.ErrServer, ""},
		"an error that is true": {[]string{good, `data: {"error":true,"choices":[]}` + "\n\n",
			fakes.Done}, sealedchat.ErrServer, ""},
		"event: error": {[]string{good,
			"event: error\n" + `data: {"message":"out of memory"}` + "\n\n"}, sealedchat.ErrServer,
			""},
		"event: error, no JSON": {[]string{good, "event: error\ndata: out of memory\n\n"},
			sealedchat.ErrServer, ""},
		"no JSON": {[]string{good, "data: hello\n\n", fakes.Done}, sealedchat.ErrResponseSchema,
			""},
		"a list": {[]string{good, "data: []\n\n", fakes.Done}, sealedchat.ErrResponseSchema, ""},
		"invalid UTF-8": {[]string{good, "data: {\"choices\":[],\"a\":\"\xff\"}\n\n",
			fakes.Done}, sealedchat.ErrResponseSchema, ""},
		"no choices": {[]string{good, `data: {"id":"x"}` + "\n\n", fakes.Done},
			sealedchat.ErrResponseSchema, "choices"},
		"a whole completion": {[]string{`data: {"object":"chat.completion","choices":[]}` + "\n\n",
			fakes.Done}, sealedchat.ErrResponseSchema, "object"},
		"a number for a text": {[]string{`data: {"choices":[{"index":0,"delta":{"content":7}}]}` +
			"\n\n", fakes.Done}, sealedchat.ErrResponseSchema, "choices"},
		"too much of it": {[]string{`data: {"choices":[` + strings.Repeat("{},",
			chatjson.MaxWeight) + `{}]}` + "\n\n", fakes.Done}, sealedchat.ErrResponseSchema, ""},
		"too large an event": {[]string{"data: " + strings.Repeat(" ",
			1<<20) + "\n\n", fakes.Done}, sealedchat.ErrTooLarge, ""},
	} {
		g := fakes.NewGateway(t, fakes.AnswerEvents(test.events...))
		chunks, err := collect(t, directClient(t, g, func(c *sealedchat.Config) {
			c.MaxResponseBytes = 1 << 20
		}), ask("x"))
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) ||
			strings.Contains(err.Error(), "memory") {
			t.Errorf("%s: %v after %d chunks", name, err, len(chunks))
		}
		if _, api := errors.AsType[*sealedchat.APIError](
			err); api != (test.want == sealedchat.ErrServer) {
			t.Errorf("%s: %T", name, err)
		}
	}
}

// A server that takes no notice of stream answers as a whole.
func TestStreamFromAWholeAnswer(t *testing.T) {
	g := fakes.NewGateway(t, testkit.AnswerText("all at once"))
	client := directClient(t, g, nil)
	chunks, err := collect(t, client, ask("x"))
	var a sealedchat.ChatAccumulator
	for _, c := range chunks {
		a.Add(c)
	}
	if r := a.Response(); err != nil || r.Text() != "all at once" || r.Usage == nil ||
		r.Choices[0].FinishReason != "stop" {
		t.Errorf("%v: %+v", err, r)
	}
	g.Inner = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>")
	}
	if _, err := collect(t, client, ask("x")); !errors.Is(err, sealedchat.ErrResponseSchema) {
		t.Errorf("got %v", err)
	}
}

// Version 1 has no streams: the pieces are made here, and put together they are the answer.
func TestStreamOverVersion1(t *testing.T) {
	testkit.NoLeaks(t)
	text := strings.Repeat("Grüße \U0001F600 ", 3000)
	gateway := startGateway(t, testkit.AnswerText(text), nil)
	srv := httptest.NewServer(gateway)
	defer srv.Close()
	client := startClient(t, srv.URL, nil)
	chunks, err := collect(t, client, ask("x"))
	if err != nil || len(chunks) < 4 {
		t.Fatalf("%d chunks, %v", len(chunks), err)
	}
	var a sealedchat.ChatAccumulator
	for _, c := range chunks {
		if !chatjson.IsUUID(c.PayloadID) {
			t.Errorf("id %q", c.PayloadID)
		}
		a.Add(c)
	}
	if r := a.Response(); r.Text() != text || r.Usage == nil || r.Usage.TotalTokens != 30 ||
		r.Choices[0].FinishReason != "stop" {
		t.Errorf("got %d bytes, usage %+v", len(r.Text()), r.Usage)
	}
	for range client.Stream(t.Context(), ask("x")) { // leaving early
		break
	}
	if s := client.Stats(); s.InFlight != 0 || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

// Leaving the loop ends the request, at the upstream, too.
func TestLeavingAStreamEndsIt(t *testing.T) {
	testkit.NoLeaks(t)
	ended := make(chan struct{})
	upstream := func(w http.ResponseWriter, r *http.Request) {
		fakes.AnswerEvents(`data: {"choices":[]}`+"\n\n")(w, r)
		<-r.Context().Done()
		close(ended)
	}
	gateway := startGateway(t, http.HandlerFunc(upstream), nil)
	srv := httptest.NewServer(gateway)
	defer srv.Close()
	client := ohttpClient(t, srv.URL, nil)
	for _, err := range client.Stream(t.Context(), ask("x")) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	<-ended
	if s := client.Stats(); s.InFlight != 0 || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

// Over version 1 a stream is asked for as Chat asks: nothing about streams is sealed, and the usage
// comes as stream_options say.
func TestStreamOverV1IsAskedForAsChat(t *testing.T) {
	for name, test := range map[string]struct {
		extra map[string]any
		usage bool
	}{
		"nothing said":  {nil, true},
		"other members": {map[string]any{"top_k": 40}, true},
		"stream":        {map[string]any{"stream": false}, true},
		"usage": {map[string]any{"stream_options": map[string]any{"include_usage": true}},
			true},
		"no usage": {map[string]any{
			"stream_options": map[string]any{"include_usage": false}}, false},
		"no word of it": {map[string]any{"stream_options": struct{}{}}, false},
		"null":          {map[string]any{"stream": true, "stream_options": nil}, false},
		"a text":        {map[string]any{"stream_options": "include_usage"}, false},
		"raw JSON": {map[string]any{
			"stream_options": json.RawMessage(` {"include_\u0075sage" : true}`)}, true},
		"raw JSON, twice": {map[string]any{
			"stream_options": json.RawMessage(`{"include_usage":true,"include_usage":1}`)}, false},
	} {
		s := fakes.NewServer(t)
		var asked []byte
		s.Answer = func(q *fakes.Question) *http.Response {
			asked = bytes.Clone(q.Plaintext)
			return q.Seal(testkit.CompletionJSON("Paris", ""))
		}
		r := ask("x")
		r.Extra = test.extra
		before := maps.Clone(test.extra)
		chunks, err := collect(t, sealedClient(t, s, nil), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		o, _ := chatjson.Pick(asked, "stream", "stream_options", "top_k")
		if o["stream"] != nil || o["stream_options"] != nil ||
			(o["top_k"] != nil) != (test.extra["top_k"] != nil) {
			t.Errorf("%s: sealed %s", name, asked)
		}
		if last := chunks[len(chunks)-1]; (last.Usage != nil) != test.usage {
			t.Errorf("%s: the last chunk is %s", name, last.Raw)
		}
		if len(before) != len(r.Extra) {
			t.Errorf("%s: the request was changed to %v", name, r.Extra)
		}
		for _, c := range chunks {
			if !json.Valid(c.Raw) || !chatjson.IsUUID(c.PayloadID) {
				t.Errorf("%s: %s, %q", name, c.Raw, c.PayloadID)
			}
		}
	}
	bad := ask("x")
	bad.Extra = map[string]any{"stream_options": func() {}}
	if _, err := collect(t, sealedClient(t, fakes.NewServer(t), nil), bad); !errors.Is(err,
		sealedchat.ErrInvalidRequest) {
		t.Errorf("options that are no JSON: %v", err)
	}
}
