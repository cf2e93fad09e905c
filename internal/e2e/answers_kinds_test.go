// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

const (
	eventPa = `data: {"choices":[{"index":0,"delta":{"content":"Pa"},"finish_reason":null}]}` +
		"\n\n"
	eventRis  = `data: {"choices":[{"index":0,"delta":{"content":"ris."},"finish_reason":"stop"}]}` + "\n\n"
	eventDone = "data: [DONE]\n\n"
)

// streamed is a case that is asked for as a stream, over Oblivious HTTP.
func streamed(name string, want testkit.AnswerWant, body ...string) testkit.AnswerCase {
	return testkit.AnswerCase{Name: name, Stream: true, Protocols: []string{"ohttp"}, Status: 200,
		ContentType: "text/event-stream", Body: body, Want: want}
}

// wholeAnswer is a case that comes as a whole, over both protocols.
func wholeAnswer(name string, want testkit.AnswerWant, body string) testkit.AnswerCase {
	return testkit.AnswerCase{Name: name, Stream: true, Whole: true, Status: 200,
		Protocols: []string{"v1", "ohttp"}, ContentType: "application/json",
		Body: []string{body}, Want: want}
}

var (
	paris     = testkit.AnswerWant{Text: "Paris."}
	onlyPa    = testkit.AnswerWant{Text: "Pa", Error: "truncated"}
	noChunk   = testkit.AnswerWant{Text: "Pa", Error: "schema"}
	diedMidst = testkit.AnswerWant{Text: "Pa", Error: "api", Words: "died"}
	notAnswer = testkit.AnswerWant{Error: "schema"}
)

// between puts an event between two chunks of an answer that is good otherwise.
func between(event string) []string { return []string{eventPa, event, eventRis, eventDone} }

// pieceOf is an event with a piece of a tool call.
func pieceOf(piece string) string {
	return `data: {"choices":[{"index":0,"delta":{"tool_calls":[` + piece + `]}}]}` + "\n\n"
}

// callsOfPieces is a case with these pieces of tool calls.
func callsOfPieces(name string, want [][2]string, pieces ...string) testkit.AnswerCase {
	var body []string
	for _, p := range pieces {
		body = append(body, pieceOf(p))
	}
	body = append(body,
		`data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}`+"\n\n", eventDone)
	return streamed(name, testkit.AnswerWant{Calls: want}, body...)
}

// More members of each kind, and what must stay an error.
func TestKindsOfAnswers(t *testing.T) {
	w := newAnswerWorld(t)
	oslo, utc := [2]string{"weather", `{"city":"Oslo"}`}, [2]string{"time", `{"tz":"UTC"}`}
	completion := func(message string) string {
		return `{"choices":[{"message":` + message + `,"finish_reason":"stop"}]}`
	}
	cases := []testkit.AnswerCase{
		// not a chunk
		streamed("data of spaces", paris, between("data:   \n\n")...),
		streamed("two empty lines of data", paris, between("data:\ndata:\n\n")...),
		streamed("null with spaces", paris, between("data:  null \n\n")...),
		streamed("a name alone", paris, between("event: ping\n\n")...),
		streamed("a named event of text", paris, between("event: heartbeat\ndata: tick\n\n")...),
		streamed("a named event of an object", paris, between("event: x\ndata: {\"a\":1}\n\n")...),
		streamed("an id and a retry time", paris, between("id: 7\nretry: 100\n\n")...),
		streamed("a named chunk", paris, eventPa, "event: chunk\n"+eventRis, eventDone),
		streamed("a message", paris, eventPa, "event: message\n"+eventRis, eventDone),
		streamed("lines of data", paris, eventPa,
			"data: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"content\":\"ris.\"},\ndata: "+
				"\"finish_reason\":\"stop\"}]}\n\n", eventDone),
		streamed("no space, CR alone", paris,
			"data:{\"choices\":[{\"delta\":{\"content\":\"Paris.\"}}]}\r\rdata:[DONE]\r\r"),
		streamed("byte by byte", paris, strings.Split(eventPa+eventRis+eventDone, "")...),
		streamed("a chunk without choices", paris,
			between(`data: {"object":"chat.completion.chunk"}`+"\n\n")...),
		streamed("text where a chunk should be", noChunk, between("data: hello\n\n")...),
		streamed("an object where a chunk should be", noChunk, between("data: {\"a\":1}\n\n")...),
		streamed("a number where a chunk should be", noChunk, between("data: 7\n\n")...),
		streamed("half a chunk", noChunk, between("data: {\"choices\":[\n\n")...),
		streamed("choices of another type", noChunk, between("data: {\"choices\":{}}\n\n")...),
		streamed("a list", noChunk, between("data: {\"object\":\"list\",\"choices\":[]}\n\n")...),
		streamed("content of another type", noChunk,
			between(`data: {"choices":[{"delta":{"content":7}}]}`+"\n\n")...),
		// the end comes from content
		streamed("DONE, then more", paris, eventPa, eventRis, eventDone, "data: hello\n\n"),
		streamed("DONE without an empty line", paris, eventPa, eventRis, "data: [DONE]"),
		streamed("DONE with a name", paris, eventPa, eventRis, "event: done\ndata: [DONE]\n\n"),
		streamed("DONE without a finish_reason", testkit.AnswerWant{Text: "Pa"}, eventPa,
			eventDone),
		streamed("an empty finish_reason", onlyPa, eventPa,
			`data: {"choices":[{"index":0,"delta":{},"finish_reason":""}]}`+"\n\n"),
		streamed("DONE in quotes", noChunk, eventPa, "data: \"[DONE]\"\n\n"),
		streamed("DONE in a comment", onlyPa, eventPa, ": [DONE]\n\n"),
		streamed("cut in an event", onlyPa, eventPa, `data: {"choices":[{"ind`),
		streamed("an error as text", diedMidst, between("error: worker died\n\n")...),
		streamed("an error that is a string", diedMidst,
			between(`data: {"error":"worker died"}`+"\n\n")...),
		streamed("an error beside choices", diedMidst,
			between(`data: {"choices":[{"delta":{"content":"x"}}],"error":{"message":"worker died"}}`+"\n\n")...),
		streamed("an error event of text", diedMidst,
			between("event: error\ndata: worker died\n\n")...),
		streamed("an error in an event of another name", diedMidst,
			between("event: x\ndata: {\"error\":{\"message\":\"worker died\"}}\n\n")...),
		streamed("an error field of null", paris, between("error: null\n\n")...),
		streamed("an error event of nothing", paris, between("event: error\ndata: {}\n\n")...),
		streamed("false", paris, between(`data: {"choices":[],"error":false}`+"\n\n")...),
		streamed("an empty text", paris, between(`data: {"choices":[],"error":""}`+"\n\n")...),
		wholeAnswer("an error with status 200", testkit.AnswerWant{Error: "api", Words: "died"},
			`{"error":{"message":"worker died"}}`),
		wholeAnswer("an error of nothing with status 200", notAnswer, `{"error":{}}`),
		// one verdict
		wholeAnswer("two parts", paris,
			completion(`{"content":[{"type":"text","text":"Pa"},{"type":"x"},{"type":"text","text":"ris."}]}`)),
		wholeAnswer("parts of another type", notAnswer, completion(`{"content":["Paris."]}`)),
		wholeAnswer("no message", notAnswer, `{"choices":[{"finish_reason":"stop"}]}`),
		wholeAnswer("choices of null", notAnswer, `{"choices":null}`),
		wholeAnswer("choices alone", paris, `{"choices":[{"message":{"content":"Paris."}}]}`),
		// tool calls
		callsOfPieces("no index, no ids", [][2]string{oslo, utc},
			`{"function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}`,
			`{"function":{"name":"time","arguments":"{\"tz\":\"UTC\"}"}}`),
		callsOfPieces("no index, in pieces", [][2]string{oslo, utc},
			`{"function":{"name":"weather","arguments":""}}`,
			`{"function":{"arguments":"{\"city\":"}}`,
			`{"function":{"arguments":"\"Oslo\"}"}}`,
			`{"function":{"name":"time","arguments":"{\"tz\":\"UTC\"}"}}`),
		callsOfPieces("one index, ids", [][2]string{oslo, utc},
			`{"index":0,"id":"a","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}`,
			`{"index":0,"id":"b","function":{"name":"time","arguments":"{\"tz\":\"UTC\"}"}}`),
		callsOfPieces("one name, one index, ids", [][2]string{oslo, oslo},
			`{"index":0,"id":"a","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}`,
			`{"index":0,"id":"b","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}`),
		callsOfPieces("an id in each piece", [][2]string{oslo},
			`{"index":0,"id":"a","function":{"name":"weather","arguments":""}}`,
			`{"index":0,"id":"b","function":{"arguments":"{\"city\":"}}`,
			`{"index":0,"id":"c","function":{"arguments":"\"Oslo\"}"}}`),
		callsOfPieces("the name again at the end", [][2]string{oslo},
			`{"index":0,"id":"a","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}`,
			`{"index":0,"id":"a","function":{"name":"weather","arguments":""}}`),
		callsOfPieces("interleaved", [][2]string{oslo, utc},
			`{"index":0,"id":"a","function":{"name":"weather","arguments":""}}`,
			`{"index":1,"id":"b","function":{"name":"time","arguments":""}}`,
			`{"index":1,"function":{"arguments":"{\"tz\":\"UTC\"}"}}`,
			`{"index":0,"function":{"arguments":"{\"city\":\"Oslo\"}"}}`),
		callsOfPieces("arguments as an object", [][2]string{oslo},
			`{"index":0,"id":"a","function":{"name":"weather","arguments":{"city":"Oslo"}}}`),
		streamed("a call that is none", notAnswer, pieceOf("7"), eventDone),
		streamed("arguments of another type", notAnswer, pieceOf(`{"function":{"arguments":7}}`),
			eventDone),
		wholeAnswer("calls that are none", notAnswer, completion(`{"tool_calls":{}}`)),
		// nothing is lost
		streamed("a pair with an empty piece within", testkit.AnswerWant{Text: "a😀b"},
			`data: {"choices":[{"delta":{"content":"a\ud83d"}}]}`+"\n\n",
			`data: {"choices":[{"delta":{"content":""}}]}`+"\n\n",
			`data: {"choices":[{"delta":{"content":"\ude00b"}}]}`+"\n\n", eventDone),
		streamed("a half alone", testkit.AnswerWant{Text: "a�b"},
			`data: {"choices":[{"delta":{"content":"a\ud83d"}}]}`+"\n\n",
			`data: {"choices":[{"delta":{"content":"b"}}]}`+"\n\n", eventDone),
		streamed("a half at the end", testkit.AnswerWant{Text: "a�"},
			`data: {"choices":[{"index":0,"delta":{"content":"a\ud83d"}}]}`+"\n\n",
			`data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\n", eventDone),
		streamed("an escaped backslash is no half", testkit.AnswerWant{Text: `a\ud83db`},
			`data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}`+"\n\n",
			`data: {"choices":[{"delta":{"content":"b"}}]}`+"\n\n", eventDone),
		streamed("two pieces of white space", testkit.AnswerWant{Text: "x",
			Extra: map[string]string{"reasoning_content": " a  b "}},
			`data: {"choices":[{"delta":{"reasoning_content":" a "}}]}`+"\n\n",
			`data: {"choices":[{"delta":{"reasoning_content":" b "}}]}`+"\n\n",
			`data: {"choices":[{"delta":{"content":"x"}}]}`+"\n\n", eventDone),
		// limits
		streamed("an event of 3 MiB", testkit.AnswerWant{Text: "Paris."},
			`data: {"choices":[{"delta":{"content":"Paris."}}],"x":"`+strings.Repeat("x",
				3<<20)+"\"}\n\n", eventDone),
	}
	for i := range cases {
		// over version 1 the gateway refuses what is no completion itself, and seals no error
		if c := &cases[i]; c.Want.Error != "" {
			c.Protocols = []string{"ohttp"}
		}
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) { w.check(t, &c) })
	}
}

// All n that were asked for have to end.
func TestAllChoicesThatWereAskedFor(t *testing.T) {
	w := newAnswerWorld(t)
	other := strings.Replace(eventRis, `"index":0`, `"index":1`, 1)
	for name, test := range map[string]struct {
		n    int
		body []string
		want error
	}{
		"one":            {1, []string{eventPa, eventRis}, nil},
		"two":            {2, []string{eventPa, eventRis, other}, nil},
		"one of two":     {2, []string{eventPa, eventRis}, sealedchat.ErrTruncated},
		"the same twice": {2, []string{eventRis, eventRis}, sealedchat.ErrTruncated},
		"two of three":   {3, []string{eventRis, other}, sealedchat.ErrTruncated},
		"and DONE":       {3, []string{eventRis, other, eventDone}, nil},
	} {
		c := streamed(name, paris, test.body...)
		w.now = &c
		r := ask("?")
		r.N = test.n
		for name, way := range waysOf(&c) {
			if g := way(t.Context(), w.clients["ohttp"], r); !errors.Is(g.err, test.want) ||
				(g.err == nil) != (test.want == nil) {
				t.Errorf("%s, %s: %v", c.Name, name, g.err)
			}
		}
	}
}

// The upstream may compress, and may say 2xx in any way.
func TestAnswersOfAnyStatusAndCoding(t *testing.T) {
	w := newAnswerWorld(t)
	zipped := func(text string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return b.String()
	}
	coded := func(c testkit.AnswerCase, coding string) testkit.AnswerCase {
		c.Header = map[string]string{"Content-Encoding": coding}
		return c
	}
	const answer = `{"choices":[{"message":{"content":"Paris."},"finish_reason":"stop"}]}`
	for _, status := range []int{200, 201, 202, 203, 206, 299} {
		c := wholeAnswer(fmt.Sprint("status ", status), paris, answer)
		c.Status = status
		w.check(t, &c)
	}
	whole := coded(wholeAnswer("gzip", paris, zipped(answer)), "gzip")
	w.check(t, &whole)
	events := zipped(eventPa + eventRis + eventDone)
	stream := coded(streamed("a gzipped stream", paris, events[:20], events[20:]), "gzip")
	w.check(t, &stream)
	for name, c := range map[string]testkit.AnswerCase{
		"no gzip":        coded(wholeAnswer("", paris, answer), "gzip"),
		"half of a gzip": coded(wholeAnswer("", paris, zipped(answer)[:30]), "gzip"),
		"another coding": coded(wholeAnswer("", paris, answer), "br"),
		"no content": {Status: 204, Stream: true, Whole: true,
			Protocols: []string{"v1", "ohttp"}},
	} {
		w.now = &c
		for protocol, client := range w.clients {
			for way, ask := range waysOf(&c) {
				g := ask(t.Context(), client, &sealedchat.ChatRequest{Model: "m",
					Messages: []sealedchat.Message{sealedchat.UserMessage("?")}})
				if g.err == nil {
					t.Errorf("%s, %s, %s: %+v", name, protocol, way, g)
				}
			}
		}
	}
}

// Chat is good exactly when Stream and an SDK are, and then they say the same.
func TestOneVerdict(t *testing.T) {
	s := fakes.NewServer(t)
	client := sealedClient(t, s, nil)
	r := rand.New(rand.NewPCG(testkit.Seed(t), 0))
	some := func(v ...string) string { return v[r.IntN(len(v))] }
	odd := func(good ...string) string {
		if r.IntN(6) > 0 {
			return some(good...)
		}
		return some("null", "7", "1.5", "1e400", `"x"`, "[]", "{}", "true", `["x"]`, `{"a":1}`)
	}
	good, bad, answers := 0, 0, 120
	if testkit.Long() {
		answers = 600
	}
	for range answers {
		call := `{"id":` + odd(`"a"`, `""`) + `,"type":` + odd(`"function"`) +
			`,"function":{"name":` +
			odd(`"f"`) + `,"arguments":` + odd(`"{}"`, `{"a":1}`, `""`) + `}}`
		message := `{"role":` + odd(`"assistant"`) + `,"content":` + odd(`"hi"`, `""`, "null",
			`[{"type":"text","text":"hi"}]`) + `,"refusal":` + odd("null", `"no"`) +
			`,"tool_calls":` +
			odd("null", "[]", "["+call+"]", "["+call+","+call+"]") + `}`
		answer := `{"id":` + odd(`"x"`) + `,"object":` + odd(`"chat.completion"`) + `,"created":` +
			odd("1") + `,"model":` + odd(`"m"`) + `,"choices":` +
			odd(`[{"index":`+some("0", "null", "0.5", "0.0", `"x"`, "1e400")+
				`,"message":`+odd(message)+`,"finish_reason":`+odd(`"stop"`, "null")+`}]`) +
			`,"usage":` + odd(`{"total_tokens":`+odd("3")+`}`, "null") + `,"error":` + odd("null") +
			`}`
		s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(answer) }
		verdicts := make(map[string]got)
		for name, ask := range everyWay {
			verdicts[name] = ask(t.Context(), client, &sealedchat.ChatRequest{Model: "m",
				Messages: []sealedchat.Message{sealedchat.UserMessage("?")}})
		}
		chat := verdicts["Chat"]
		if good++; chat.err != nil {
			good, bad = good-1, bad+1
		}
		for name, g := range verdicts {
			if (g.err == nil) != (chat.err == nil) || g.text != chat.text ||
				fmt.Sprint(g.calls) != fmt.Sprint(chat.calls) || g.finish != chat.finish {
				t.Errorf("%s says %+v, Chat %+v of %s", name, g, chat, answer)
			}
		}
	}
	if good < answers/6 || bad < answers/6 {
		t.Errorf("%d good and %d bad: the corpus is one-sided", good, bad)
	}
}

// A message that came goes back as it came, except for what says nothing, and for ids that tools
// need.
func TestMessagesGoBackAsTheyCame(t *testing.T) {
	r := rand.New(rand.NewPCG(testkit.Seed(t), 1))
	some := func(v ...any) any { return v[r.IntN(len(v))] }
	for range 500 {
		message := map[string]any{"role": "assistant"}
		if r.IntN(4) > 0 {
			message["content"] = some(nil, "", "hi",
				[]any{map[string]any{"type": "text", "text": "hi"}})
		}
		if r.IntN(2) == 0 {
			var calls []any
			for range 1 + r.IntN(3) {
				call := map[string]any{"id": "a"}
				if r.IntN(2) == 0 {
					call["type"] = "function"
				}
				function := map[string]any{"name": "f"}
				if r.IntN(3) > 0 {
					function["arguments"] = some("", "{}")
				}
				if r.IntN(5) > 0 {
					call["function"] = function
				} else {
					call["custom"] = map[string]any{"input": "x"}
				}
				calls = append(calls, call)
			}
			message["tool_calls"] = calls
		}
		if r.IntN(3) == 0 {
			message["refusal"] = "no"
		}
		for _, name := range []string{"reasoning_content", "annotations", "function_call"} {
			if r.IntN(4) == 0 {
				message[name] = some("think ", []any{}, nil, map[string]any{"a": ""})
			}
		}
		came, _ := json.Marshal(message)
		var resp sealedchat.ChatResponse
		if err := resp.UnmarshalJSON([]byte(`{"choices":[{"message":` + string(came) +
			`}]}`)); err != nil {
			t.Fatal(err)
		}
		back, err := json.Marshal(resp.Choices[0].Message)
		var again map[string]any
		if err != nil || json.Unmarshal(back, &again) != nil || !reflect.DeepEqual(again, message) {
			t.Fatalf("came %s\nback %s, %v", came, back, err)
		}
	}
}

// A call without an id gets one that tools can answer, and none in Raw.
func TestCallsWithoutIDs(t *testing.T) {
	s := fakes.NewServer(t)
	client := sealedClient(t, s, nil)
	const answer = `{"choices":[{"message":{"tool_calls":[{"function":{"name":"f"}},{"id":null},{"id":"x"}]}}]}`
	s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(answer) }
	resp, err := client.Chat(t.Context(), ask("?"))
	if err != nil {
		t.Fatal(err)
	}
	chunks, err := collect(t, client, ask("?"))
	if err != nil {
		t.Fatal(err)
	}
	var a sealedchat.ChatAccumulator
	for _, c := range chunks {
		a.Add(c)
	}
	for _, r := range []*sealedchat.ChatResponse{resp, a.Response()} {
		var ids []string
		for _, call := range r.Choices[0].Message.ToolCalls {
			ids = append(ids, call.ID)
		}
		if fmt.Sprint(ids) != "[call_0 call_1 x]" || strings.Contains(string(r.Raw), "call_") {
			t.Errorf("%v in %s", ids, r.Raw)
		}
	}
}

// A stream that is made of a whole answer ends with its context, and says so as net/http does.
func TestMadeStreamsEndWithTheirContext(t *testing.T) {
	s := fakes.NewServer(t)
	client := sealedClient(t, s, nil)
	s.Answer = func(q *fakes.Question) *http.Response {
		return q.Seal(fakes.FineCompletion(strings.Repeat("x", 100<<10)))
	}
	for name, c := range map[string]struct {
		end     func(context.Context) (context.Context, func())
		timeout bool
	}{
		"cancelled": {func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancel(ctx)
			return ctx, cancel
		}, false},
		"out of time": {func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithDeadline(ctx, time.Now().Add(time.Hour))
			return &lateContext{Context: ctx}, cancel
		}, true},
	} {
		ctx, end := c.end(t.Context())
		if late, ok := ctx.(*lateContext); ok {
			end = func() { late.over = true }
		}
		chunks := 0
		var last error
		for _, err := range client.Stream(ctx, ask("?")) {
			if chunks++; chunks == 3 {
				end()
			}
			last = err
		}
		timeout, ok := last.(interface{ Timeout() bool })
		if chunks != 4 || !ok || timeout.Timeout() != c.timeout {
			t.Errorf("%s: %v after %d chunks", name, last, chunks)
		}
	}
}

// lateContext is a context whose deadline passes when a test says so.
type lateContext struct {
	context.Context
	over bool
}

func (c *lateContext) Err() error {
	if c.over {
		return context.DeadlineExceeded
	}
	return c.Context.Err()
}

// Errors of ended time are timeouts to net/http, and others are not.
func TestTimeouts(t *testing.T) {
	s := fakes.NewServer(t)
	client := sealedClient(t, s, nil)
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx  context.Context
		want bool
	}{"past": {past, true}, "cancelled": {cancelled, false}} {
		for way, ask := range everyWay {
			err := ask(test.ctx, client, &sealedchat.ChatRequest{Model: "m",
				Messages: []sealedchat.Message{sealedchat.UserMessage("?")}}).err
			timeout, ok := err.(interface{ Timeout() bool })
			if !ok || timeout.Timeout() != test.want {
				t.Errorf("%s, %s: %v", name, way, err)
			}
		}
	}
}

// At [DONE] the client has its end, and the upstream is let go, although it holds the connection.
func TestUpstreamIsLetGoAtDone(t *testing.T) {
	gone := make(chan struct{})
	upstream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := streamed("", paris, eventPa, eventRis, eventDone)
		c.ServeHTTP(w, r)
		<-r.Context().Done()
		close(gone)
	})
	server := httptest.NewServer(startGateway(t, upstream, nil))
	defer server.Close()
	client := ohttpClient(t, server.URL, nil)
	if chunks, err := collect(t, client, ask("?")); err != nil || len(chunks) != 2 {
		t.Errorf("%d chunks, %v", len(chunks), err)
	}
	<-gone // or the test never ends
}
