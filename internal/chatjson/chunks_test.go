// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/sse"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// readChunks reads a stream to its end.
func readChunks(src io.Reader) (data, raw []string, err error) {
	return readChunksOf(NewChunkReader(src, 1<<20, 1))
}

func readChunksOf(r *ChunkReader) (data, raw []string, err error) {
	defer r.Wipe()
	for {
		c, err := r.Next()
		if err == io.EOF {
			return data, raw, r.End()
		}
		if err != nil {
			return data, raw, err
		}
		data, raw = append(data, string(c.Data)), append(raw, string(c.Raw))
	}
}

// alikeStream is a stream of chunks that differ in their texts alone.
func alikeStream(texts ...string) string {
	var s strings.Builder
	for _, text := range texts {
		s.WriteString(`data: {"id":"x","choices":[{"index":0,"delta":{"content":"` + text +
			`"},"finish_reason":null}]}` + "\n\n")
	}
	return s.String() + `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
}

// Chunks that need no repair are the bytes that came.
func TestChunksStayByteForByte(t *testing.T) {
	for _, chunk := range []string{
		`{"choices":[]}`, `{ "choices" : [ ] , "x" : 1.50 }`,
		testkit.FineAnswer[:1] + `"choices":[{"delta":{}}]}`,
		`{"id":"x","choices":[{"index":0,"delta":{"content":"\u0061\/é","role":null}}],"usage":null}`,
		`{"choices":[{"index":3,"delta":{"tool_calls":[{"index":0,"id":"a"},{"index":1}]}}]}`,
	} {
		data, raw, err := readChunks(strings.NewReader("data: " + chunk + "\n\ndata: [DONE]\n\n"))
		if err != io.EOF || len(data) != 1 || data[0] != chunk || raw[0] != chunk {
			t.Errorf("%s: %q, %q, %v", chunk, data, raw, err)
		}
	}
}

// Repairs change what they have to, and nothing around it.
func TestRepairs(t *testing.T) {
	for chunk, want := range map[string]string{
		`{"choices":[{"delta":{"content":[ {"type":"text","text":"a\""} , {"type":"x"} ]}}] }`: `{"choices":[{"delta":{"content":"a\""}}] }`,
		`{"choices":[ {"delta":{"tool_calls":[ {"id":"a"} ] } } ]}`:                            `{"choices":[ {"delta":{"tool_calls":[ {"index":0,"id":"a"} ] } } ]}`,
		`{"choices":[{"delta":{"tool_calls":[{}]}}]}`:                                          `{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}`,
		`{"choices":[{"delta":{}}, {"delta":{}}]}`:                                             `{"choices":[{"delta":{}}, {"index":1,"delta":{}}]}`,
		`{"choices":[{"index":"x","delta":{}}]}`:                                               `{"choices":[{"index":0,"delta":{}}]}`,
		`{"choices":[],"id":7,"created":1.5,"usage":{"total_tokens":2.0}}`:                     `{"choices":[],"id":null,"created":1,"usage":{"total_tokens":2}}`,
		`{"choices":[],"error":{}}`:                                                            `{"choices":[]}`,
		`{"error":null,"choices":[]}`:                                                          `{"choices":[]}`,
	} {
		data, raw, err := readChunks(strings.NewReader("data: " + chunk + "\n\ndata: [DONE]\n\n"))
		if err != io.EOF || len(data) != 1 || data[0] != want || raw[0] != chunk {
			t.Errorf("%s\ngot  %q, %v\nwant %q", chunk, data, err, want)
		}
	}
	for answer, want := range map[string]string{
		`{"choices":[{"message":{"content":[{"type":"text","text":"a"}]}}]}`:                                  `{"choices":[{"message":{"content":"a"}}]}`,
		`{"choices":[{"message":{"tool_calls":[{"function":{"arguments":{"a": "b"}}}]}}]}`:                    `{"choices":[{"message":{"tool_calls":[{"function":{"arguments":"{\"a\": \"b\"}"}}]}}]}`,
		`{"choices":[{"message":{"role":1,"refusal":[]},"finish_reason":{}}],"usage":"x","object":["x"]}`:     `{"choices":[{"message":{"role":null,"refusal":null},"finish_reason":null}],"usage":null,"object":null}`,
		`{"choices":[{"message":{}},{"index":null,"message":{}}],"created":1e400,"system_fingerprint":false}`: `{"choices":[{"message":{}},{"index":1,"message":{}}],"created":null,"system_fingerprint":null}`,
	} {
		if got := string(Repaired([]byte(answer))); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", answer, got, want)
		}
	}
	for _, fine := range []string{testkit.FineAnswer, testkit.AnswerWith(),
		`{"choices":[{"message":{"content":null}}]}`} {
		if got := Repaired([]byte(fine)); got != nil {
			t.Errorf("%s became %s", fine, got)
		}
	}
}

// What is filled in is what is missing, and nothing else changes.
func TestFillIn(t *testing.T) {
	with := Missing{ID: "made", Created: 7, Model: []byte(`"m"`)}
	for answer, want := range map[string]string{
		`{"choices":[]}`: `{"model":"m","created":7,"object":"chat.completion","id":"made","choices":[]}`,
		`{"id":null,"object":null,"created":null,"model":null,"choices":[]}`:                                `{"id":null,"object":"chat.completion","created":7,"model":null,"choices":[]}`,
		`{"id":1,"object":"x","created":"y","model":{},"choices":[]}`:                                       "",
		`{"id":"","object":"","created":0,"model":"","choices":[{"message":{}}]}`:                           `{"id":"","object":"","created":0,"model":"","choices":[{"index":0,"message":{"role":"assistant"}}]}`,
		`{"id":"","object":"","created":0,"model":"","choices":[{"index":0,"message":{"role":"x"}}]}`:       "",
		`{"id":"","object":"","created":0,"model":"","choices":[ {"index":null,"message":{"role":null}} ]}`: `{"id":"","object":"","created":0,"model":"","choices":[ {"index":0,"message":{"role":"assistant"}} ]}`,
	} {
		got := string(FillIn([]byte(answer), with))
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", answer, got, want)
		}
		if want == "" {
			want = answer
		}
		if strings.Contains(want, "finish_reason") || strings.Contains(want, "usage") ||
			strings.Contains(want, "content") {
			t.Errorf("%s says more than came", want)
		}
		if err := CheckCompletion([]byte(want), Asked{}); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if FillIn([]byte(want), with) != nil {
			t.Errorf("%s is filled in again", want)
		}
	}
	// What is filled in may be as long as the nulls that it replaces.
	nulls := `{"id":"","object":"x","created":null,"model":"","choices":[{"index":null,"message":` +
		`{"role":"x"}},{"index":null,"message":{"role":"x"}}]}`
	want := `{"id":"","object":"x","created":1234567890,"model":"","choices":[{"index":0,` +
		`"message":{"role":"x"}},{"index":1,"message":{"role":"x"}}]}`
	with.Created = 1234567890
	if got := string(FillIn([]byte(nulls), with)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	choice := `{"index":null,"message":{"role":"x"}}`
	if got := string(filledChoice(1000, []byte(choice))); got !=
		`{"index":1000,"message":{"role":"x"}}` {
		t.Errorf("choice 1000 is %s", got)
	}
}

func TestErrorsInStreams(t *testing.T) {
	for stream, want := range map[string]string{
		"data: {\"error\":{\"message\":\"x\"}}\n\n":       `{"error":{"message":"x"}}`,
		"data: {\"error\":\"x\"}\n\n":                     `{"error":{"message":"x"}}`,
		"data: {\"error\":7}\n\n":                         `{"error":{"message":"7"}}`,
		"error: x\n\n":                                    `{"error":{"message":"x"}}`,
		"error: {\"message\":\"x\"}\ndata: {}\n\n":        `{"error":{"message":"x"}}`,
		"event: error\ndata: {\"message\":\"x\"}\n\n":     `{"error":{"message":"x"}}`,
		"event: error\ndata: x\ndata: y\n\n":              `{"error":{"message":"x\ny"}}`,
		"event: error\ndata: \"x\"\n\n":                   `{"error":{"message":"x"}}`,
		"event: x\ndata: {\"error\":true}\n\n":            `{"error":{"message":"true"}}`,
		"data: {\"choices\":[],\"error\":\" \"}\n\n":      `{"error":{"message":" "}}`,
		"error: false\nevent: error\ndata: {\"a\":1}\n\n": `{"error":{"a":1}}`,
	} {
		_, _, err := readChunks(strings.NewReader(stream))
		failed, ok := errors.AsType[*ErrorObject](err)
		if !ok || string(failed.Data) != want {
			t.Errorf("%q: %v", stream, err)
		}
	}
}

// Every way to read the same bytes comes to the same chunks and the same end.
func FuzzChunkReader(f *testing.F) {
	const pa = `data: {"choices":[{"index":0,"delta":{"content":"a\ud83d","tool_calls":[{"id":"x","function":{"name":"f","arguments":{"a":1}}}]}}]}` + "\n\n"
	for _, c := range testkit.AnswerCases(f) {
		f.Add(strings.Join(c.Body, ""))
	}
	for _, s := range []string{
		pa + pa + "data: [DONE]\n\n",
		pa + `data: {"choices":[{"delta":{"content":"\ude00"},"finish_reason":"stop"}]}`,
		"event: ping\ndata: x\n\nerror: {}\n\nerror: x\n\n", "data: null\n\ndata:\n\n" + pa,
		"\xef\xbb\xbf: x\r\rdata:[DONE]", `data: {"choices":[{"index":1.5,"delta":null},7]}` +
			"\n\n",
		"event: error\ndata: {\ndata: \"a\":1}\n\n",
		`data: {"choices":[{"delta":{"content":[]}}],"error":""}` + "\n\n",
		alikeStream("a", "b", `\n\"`, "\xff"), alikeStream("a", "b", `\ud83d`, `\ude00`, "c"),
		alikeStream("a", "b", `\ud83d`, "c", "d"),
		alikeStream("a", `b","role":"x`, "c"), alikeStream(`a`, `b\`), alikeStream("a", "\x01"),
		alikeStream("a") + strings.Replace(alikeStream("b"), `"stop"`, `"length"`, 1),
		strings.ReplaceAll(alikeStream("a", "b"), `"content"`, `"tool_calls":[{"id":"x",`+
			`"function":{"name":"f","arguments":"{}"}}],"content"`),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stream string) {
		data, raw, err := readChunks(strings.NewReader(stream))
		again, _, errAgain := readChunks(iotest.OneByteReader(strings.NewReader(stream)))
		if fmt.Sprint(data, err) != fmt.Sprint(again, errAgain) {
			t.Fatalf("%q, %v\nbyte by byte %q, %v", data, err, again, errAgain)
		}
		thorough := NewChunkReader(strings.NewReader(stream), 1<<20, 1)
		for range 100 { // it gives up looking for chunks that are alike
			thorough.alike.Learn(sse.Event{Data: []byte("{}")})
		}
		again, _, errAgain = readChunksOf(thorough)
		if fmt.Sprint(data, err) != fmt.Sprint(again, errAgain) {
			t.Fatalf("%q, %v\neach chunk by itself %q, %v", data, err, again, errAgain)
		}
		_, failed := errors.AsType[*ErrorObject](err)
		if err != io.EOF && !failed && !errors.Is(err, fault.ErrResponseSchema) &&
			!errors.Is(err, fault.ErrTruncated) && !errors.Is(err, fault.ErrTooLarge) {
			t.Fatal(err)
		}
		for i, d := range data {
			if !json.Valid([]byte(d)) || strings.ContainsAny(d, "\r\n") ||
				!json.Valid([]byte(raw[i])) {
				t.Fatalf("%q of %q", d, raw[i])
			}
		}
		// What was repaired needs no repair, except for halves of characters that stay alone.
		if strings.Contains(strings.ToLower(stream), `\ud`) {
			return
		}
		var repaired bytes.Buffer
		for _, d := range data {
			repaired.WriteString("data: " + d + "\n\n")
		}
		second, _, _ := readChunks(&repaired)
		if fmt.Sprint(second) != fmt.Sprint(data) {
			t.Fatalf("%q\nread again %q", data, second)
		}
	})
}
