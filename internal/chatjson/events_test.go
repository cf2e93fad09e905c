// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// answerOf is a completion with that many choices, the members of each, and repeated members of
// that size.
func answerOf(choices int, each func(i int) string, size int) []byte {
	long := strings.Repeat("m", size)
	var b bytes.Buffer
	fmt.Fprintf(&b,
		`{"id":"%s","object":"chat.completion","created":1.%s,"model":"%s","system_fingerprint":"%s","service_tier":"%s","choices":[`,
		long, strings.Repeat("0", size+1), long, long, long)
	for i := range choices {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(each(i))
	}
	b.WriteString(`],"usage":{"total_tokens":3}}`)
	return b.Bytes()
}

func always(s string) func(int) string { return func(int) string { return s } }

// measure reads all events of an answer: how many bytes they have, and how many were allocated.
func measure(t *testing.T, answer []byte, usage bool) (size int, allocated uint64) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	text, err := NewEventText(answer, usage)
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	piece := make([]byte, 32<<10)
	for err == nil {
		var n int
		n, err = text.Read(piece)
		size += n
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	return size, after.TotalAlloc - before.TotalAlloc
}

// All limits at once, in every combination: an answer's events have at most 16 times its size and 1
// MiB, and making them allocates little more than the answer has.
func TestEventsStaySmall(t *testing.T) {
	many := func(s string, n int) string {
		return strings.TrimSuffix(strings.Repeat(s+",", n),
			",")
	}
	text := func(n int) string { return strings.Repeat("t", n) }
	kinds := map[string]struct {
		text   string
		weight int
	}{
		"empty":   {`{"message":{}}`, 4},
		"content": {`{"message":{"content":"` + text(3) + `"}}`, 4},
		"long content": {`{"index":7,"message":{"role":"assistant","content":"` + text(20_000) +
			`"},"finish_reason":"stop"}`, 8},
		"escapes": {`{"message":{"content":"` + strings.Repeat(`\ud83d\ude00`,
			2000) + `"}}`, 4},
		"tool calls": {`{"message":{"tool_calls":[` + many(`{}`, 40) + `]}}`, 44},
		"logprobs": {`{"message":{"content":"x"},"logprobs":{"content":[` +
			many(`{"token":"x"}`, 30) + `]}}`, 6},
		"members": {`{"message":{` + many(`"":0`, 30) + `}}`, 36},
		"all": {`{"message":{"content":"` + text(9000) +
			`","":[ ],"tool_calls":[{},{}]},"logprobs":{},"finish_reason":"x"}`, 12},
		"spaces": {"{\"message\":{\"content\":\"x\",\n\r\"a\":{\r\n}}}", 6},
		"parts":  {`{"message":{"content":[` + many(`{"type":""}`, 20) + `]}}`, 44},
		"an index": {`{"index":1` + strings.Repeat("0",
			17) + `,"message":{"content":"` + text(30_000) + `"}}`, 5},
		"an index of 1.0": {`{"index":1.` + strings.Repeat("0",
			3000) + `,"message":{"content":"` + text(30_000) + `"}}`, 5},
	}
	for name, kind := range kinds {
		for _, choices := range []int{0, 1, 30, 1000, 12_000} {
			if choices*kind.weight >= MaxWeight || choices*len(kind.text) > 2<<20 {
				continue
			}
			for _, size := range []int{0, 10, 62, 63, 1000} {
				for _, usage := range []bool{false, true} {
					answer := answerOf(choices, always(kind.text), size)
					got, allocated := measure(t, bytes.Clone(answer), usage)
					if most := 16*len(answer) + 1<<20; got > most {
						t.Errorf(
							"%s, %d choices, members of %d: %d bytes of events from %d, at most %d",
							name, choices, size, got, len(answer), most)
					}
					if most := uint64(4*len(answer) + 1<<20); allocated > most {
						t.Errorf("%s, %d choices, members of %d: %d bytes allocated for %d", name,
							choices, size, allocated, len(answer))
					}
				}
			}
		}
	}
}

// The answer that was found to cost 1,000 MiB.
func TestEventsOfManyChoices(t *testing.T) {
	answer := answerOf(21_800, always(`{"message":{"content":""}}`), 1000)
	size, allocated := measure(t, bytes.Clone(answer), true)
	t.Logf("%d KiB with 21,800 choices and 5 members of 1,000 characters: %d KiB of events, %d "+
		"KiB allocated",
		len(answer)>>10, size>>10, allocated>>10)
	if size > 16*len(answer)+1<<20 || allocated > 2<<20 {
		t.Errorf("%d bytes of events, %d allocated for %d", size, allocated, len(answer))
	}
}

// chunk is an event as far as these tests look at it.
type chunk struct {
	ID      *string
	Object  string
	Choices []struct {
		Index int
		Delta struct {
			Role, Content *string
			ToolCalls     []struct{ Index int } `json:"tool_calls"`
			Reasoning     string
		}
		LogProbs     json.RawMessage
		FinishReason *string `json:"finish_reason"`
	}
}

func chunksOf(t *testing.T, answer []byte) (chunks []chunk) {
	t.Helper()
	events, err := NewEvents(answer, false)
	if err != nil {
		t.Fatal(err)
	}
	for {
		text, err := events.Next()
		if err == io.EOF {
			return chunks
		}
		var c chunk
		if err := json.Unmarshal(text, &c); err != nil || c.Object != "chat.completion.chunk" ||
			bytes.ContainsAny(text, "\r\n") {
			t.Fatalf("%v: %.300s", err, text)
		}
		chunks = append(chunks, c)
	}
}

// However little an answer is worth, nothing of its choices is lost.
func TestBriefEventsLoseNothing(t *testing.T) {
	const n = 5000
	answer := answerOf(n, func(i int) string {
		return fmt.Sprintf(`{"message":{"content":"%d","reasoning":"r","tool_calls":[{},{}]},"logprobs":{"n":%d},"finish_reason":"f%d"}`, i, i, i)
	}, 1000)
	type whole struct{ role, content, finish, logprobs, reasoning string }
	got := make([]whole, n)
	briefly, calls := 0, 0
	for i, c := range chunksOf(t, answer) {
		if (c.ID != nil && len(*c.ID) == 1000) != (c.ID != nil) || i == 0 && c.ID == nil {
			t.Fatalf("chunk %d: %+v", i, c)
		}
		choice := c.Choices[0]
		w := &got[choice.Index]
		if w.finish != "" {
			t.Fatalf("choice %d goes on behind its end", choice.Index)
		}
		if role := choice.Delta.Role; role != nil {
			w.role += *role
			if choice.FinishReason != nil {
				briefly++
			}
		}
		if choice.Delta.Content != nil {
			w.content += *choice.Delta.Content
		}
		if choice.FinishReason != nil {
			w.finish = *choice.FinishReason
		}
		w.logprobs += string(choice.LogProbs)
		w.reasoning += choice.Delta.Reasoning
		calls += len(choice.Delta.ToolCalls)
	}
	for i, w := range got {
		if want := (whole{"assistant", fmt.Sprint(i), fmt.Sprint("f", i), fmt.Sprintf(`{"n":%d}`,
			i), "r"}); w != want {
			t.Fatalf("choice %d: %+v", i, w)
		}
	}
	if calls != 2*n || briefly == 0 || briefly == n {
		t.Errorf("%d calls, %d choices of one event", calls, briefly)
	}
}

// A long member stands in the first event of a choice, a short one in every event.
func TestLongMembersComeOnce(t *testing.T) {
	for _, size := range []int{62, 63} { // with its quotes
		answer := answerOf(3, always(`{"message":{"content":"x","reasoning":"y"}}`), size)
		for i, c := range chunksOf(t, answer) {
			first := c.Choices[0].Delta.Role != nil
			if has := c.ID != nil; has != (size == 62 || first) {
				t.Errorf("members of %d, chunk %d: %v", size, i, has)
			}
		}
	}
}

func TestEventsRefuse(t *testing.T) {
	for _, choice := range []string{
		`{"message":{"tool_calls":1}}`, `{"message":{"tool_calls":{}}}`,
		`{"message":{"tool_calls":[[]]}}`, `{"message":{"tool_calls":[{},null]}}`,
		`{"message":{},"index":1e400}`, `{"message":{},"index":9223372036854775808}`,
		`{"message":{},"index":-1e300}`,
	} {
		for _, answer := range [][]byte{answerOf(1, always(choice), 3), answerOf(2,
			func(i int) string {
				return []string{`{"message":{}}`, choice}[i]
			}, 3)} {
			if text, err := NewEventText(answer, true); !errors.Is(err, fault.ErrResponseSchema) ||
				text != nil {
				t.Errorf("%s: %v", choice, err)
			}
		}
	}
}

// A member that is too long to stand in every event stands in the first one alone.
func TestVeryLongMembersStandInTheFirstEvent(t *testing.T) {
	answer := answerOf(3, always(`{"message":{"content":"x"}}`), maxRepeated-1)
	for i, c := range chunksOf(t, answer) {
		if has := c.ID != nil; has != (i == 0) {
			t.Errorf("chunk %d: %v", i, has)
		}
	}
}

// Pairs of surrogates stay together, wherever a piece ends.
func TestCutText(t *testing.T) {
	for _, s := range []string{`\ud83d\ude00`, `\udc00\ud83d\ude00`, `\ud83d\uD83D\uDE00`,
		`\\u\ud83dx`, `\ud83d\n`, `\"`, "é", "€", "😀", "a"} {
		for shift := range 13 {
			text := strings.Repeat("a", shift) + strings.Repeat(s, 2*eventPiece/len(s)+1)
			var want, got string
			if err := json.Unmarshal([]byte(`"`+text+`"`), &want); err != nil {
				t.Fatal(err)
			}
			for rest := []byte(text); len(rest) > 0; {
				n := cutText(rest)
				if n <= eventPiece-12 && n < len(rest) || n > eventPiece {
					t.Fatalf("%q: a piece of %d bytes", s, n)
				}
				var piece string
				if err := json.Unmarshal(slices.Concat([]byte{'"'}, rest[:n], []byte{'"'}),
					&piece); err != nil {
					t.Fatalf("%q: %v", s, err)
				}
				got, rest = got+piece, rest[n:]
			}
			if got != want {
				t.Errorf("%q, %d bytes on: something was cut", s, shift)
			}
		}
	}
}

// However a stream is read, its bytes are the same; closing it wipes the answer, and so does its
// end.
func TestEventTextOwnsTheAnswer(t *testing.T) {
	answer := answerOf(2, always(`{"message":{"content":"secret"}}`), 10)
	read := func(way func(io.Reader) io.Reader) (string, []byte) {
		own := bytes.Clone(answer)
		text, err := NewEventText(own, true)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(way(text))
		if err != nil {
			t.Fatal(err)
		}
		return string(b), own
	}
	want, own := read(func(r io.Reader) io.Reader { return r })
	if got, _ := read(iotest.OneByteReader); got != want || !strings.HasSuffix(want,
		"data: [DONE]\n\n") {
		t.Errorf("byte by byte: %q\nat once: %q", got, want)
	}
	if len(bytes.Trim(own, "\x00")) > 0 {
		t.Error("the answer was left")
	}
	own = bytes.Clone(answer)
	text, _ := NewEventText(own, true)
	if _, err := text.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := text.Close(); err != nil || len(bytes.Trim(own, "\x00")) > 0 {
			t.Errorf("%v, the answer was left: %q", err, own)
		}
		if n, err := text.Read(make([]byte, 10)); n > 0 || err != io.ErrClosedPipe {
			t.Errorf("read after Close: %d, %v", n, err)
		}
	}
}

// What an event's memory outgrows is wiped, whatever is appended.
func TestEventsWipeWhatTheyOutgrow(t *testing.T) {
	const secret = "0123456789abcdef"
	for name, grow := range map[string]func(dst []byte) []byte{
		"text":  func(dst []byte) []byte { return put(dst, strings.Repeat("x", 100)) },
		"bytes": func(dst []byte) []byte { return put(dst, make([]byte, 100)) },
		"line":  func(dst []byte) []byte { return AppendLine(dst, []byte("[\n"+strings.Repeat("1", 99))) },
		"event": func(dst []byte) []byte { return AppendEvent(dst, make([]byte, 64)) },
	} {
		dst := append(make([]byte, 0, 20), secret...)
		got := grow(dst)
		if !bytes.HasPrefix(got, []byte(secret)) || len(got) < 80 {
			t.Errorf("%s: %q", name, got)
		}
		if left := dst[:cap(dst)]; !bytes.Equal(left, make([]byte, len(left))) {
			t.Errorf("%s: %q was left", name, left)
		}
	}
	// Room that is there is used.
	dst := append(make([]byte, 0, 32), secret...)
	if got := put(dst, "more"); &got[0] != &dst[0] {
		t.Error("memory that has room was left")
	}
}
