// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// maxDepth bounds the nesting of an event's JSON.
const maxDepth = 10_000

// api is a kind of endpoint, by how its event streams end.
type api int

const (
	apiOther     api = iota // there is no last event
	apiChoices              // [DONE], or a finish reason for every choice
	apiResponses            // [DONE], or an event of one of lastTypes
	apiWatched              // [DONE], if there is one
)

func apiOf(path string) api {
	switch path {
	case "/v1/chat/completions", "/v1/completions":
		return apiChoices
	case "/v1/responses":
		return apiResponses
	}
	return apiOther
}

// isLast tells the event behind which nothing more comes.
func (a api) isLast(e Event) bool {
	switch a {
	case apiChoices, apiWatched:
		return e.IsDone()
	case apiResponses:
		return e.IsDone() || isLastType(strings.TrimSpace(e.Name)) || isLastType(typeOf(e))
	}
	return false
}

// lastTypes are the events that end an answer of the Responses API. It is never changed.
var lastTypes = [...]string{"response.completed", "response.incomplete", "response.failed", "error"}

func isLastType(name string) bool { return slices.Contains(lastTypes[:], name) }

// typeOf is the member "type" of an event's data, "" if there is none. Of data that is not complete
// only the first member is looked at.
func typeOf(e Event) string {
	if !e.Cut {
		if jsonspan.Valid(e.Data, maxDepth) != nil {
			return ""
		}
		name := ""
		for m := range jsonspan.MembersOf(e.Data) {
			if m.Is("type") {
				name = shortText(m.Value)
			}
		}
		return name
	}
	rest := e.Data
	for _, token := range [...]string{"{", `"type"`, ":", `"`} {
		var ok bool
		if rest, ok = bytes.CutPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte(token)); !ok {
			return ""
		}
	}
	name, _, _ := bytes.Cut(rest[:min(len(rest), maxName)], []byte(`"`))
	return string(name)
}

// shortText is a string value of at most maxName bytes, "" for anything else.
func shortText(value []byte) string {
	if jsonspan.KindOf(value) != jsonspan.String || len(value) > maxName {
		return ""
	}
	return jsonspan.Text(value[1 : len(value)-1])
}

// IsDone reports whether the event is the [DONE] that ends a stream.
func (e Event) IsDone() bool {
	return !e.Cut && string(bytes.Trim(e.Data, " \t")) == "[DONE]"
}

// Trim is text without the white space of JSON around it. Other white space is no part of JSON.
func Trim(text []byte) []byte { return bytes.Trim(text, " \t\r\n") }

// IsNothing tells values that stand for no error: null, false, "" and {}, or none at all. The value
// is part of a text that was checked before.
func IsNothing(value []byte) bool {
	switch jsonspan.KindOf(value) {
	case jsonspan.Null:
		return true
	case jsonspan.Bool:
		return bytes.HasPrefix(bytes.TrimLeft(value, " \t\r\n"), []byte("false"))
	case jsonspan.String:
		return len(Trim(value)) == len(`""`)
	case jsonspan.Object:
		for range jsonspan.MembersOf(value) {
			return false
		}
		return true
	}
	return false
}

// Error is the error that an event of a completion's stream holds, wherever it stands: in a field
// "error", in an event of that name, or as a member of an object. failed is false when there is
// none, or nothing in it. The value may be no JSON.
func (e Event) Error() (value []byte, failed bool) {
	_, value, failed = e.chunk()
	return value, failed
}

// chunk is [Event.Error], and the member "choices" of the event's JSON, which is nil if there is
// none. The JSON is checked and walked once for both.
func (e Event) chunk() (choices, value []byte, failed bool) {
	data := Trim(e.Data)
	valid := jsonspan.Valid(data, maxDepth) == nil
	var inner []byte
	if valid {
		for m := range jsonspan.MembersOf(data) {
			switch {
			case m.Is("error"):
				inner = m.Value
			case m.Is("choices"):
				choices = m.Value
			}
		}
	}
	if v := Trim(e.Failure); len(v) > 0 && !isNothing(v) {
		return choices, v, true
	}
	if inner != nil {
		return choices, inner, !IsNothing(inner)
	}
	named := strings.TrimSpace(e.Name) == "error"
	return choices, data, named && len(data) > 0 && !(valid && IsNothing(data))
}

// isNothing is IsNothing for a value that may be no JSON.
func isNothing(value []byte) bool {
	return jsonspan.Valid(value, maxDepth) == nil && IsNothing(value)
}

// maxChoices bounds the choices of a stream that are told apart.
const maxChoices = 1 << 16

// Finish follows the finish reasons of a stream's choices. The zero value is ready.
type Finish struct {
	ended map[int64]bool // of each choice that was seen: whether its finish reason has come
	many  bool           // there were more than maxChoices
}

// See takes in the data of an event. What is no chunk says nothing.
func (f *Finish) See(data []byte) {
	if jsonspan.Valid(data, maxDepth) != nil {
		return
	}
	var choices []byte
	for m := range jsonspan.MembersOf(data) {
		if m.Is("choices") {
			choices = m.Value
		}
	}
	f.seeChoices(choices)
}

// seeChoices takes in the choices of a chunk that was checked before.
func (f *Finish) seeChoices(choices []byte) {
	n := int64(0)
	for choice := range jsonspan.ElementsOf(choices) {
		f.choice(n, choice)
		n++
	}
}

// choice takes in the n'th choice of a chunk.
func (f *Finish) choice(n int64, choice []byte) {
	index, finished := n, false
	for m := range jsonspan.MembersOf(choice) {
		switch {
		case m.Is("index"):
			index = wholeOr(m.Value, n)
		case m.Is("finish_reason"):
			finished = jsonspan.KindOf(m.Value) == jsonspan.String && len(m.Value) > len(`""`)
		}
	}
	if f.ended == nil {
		f.ended = make(map[int64]bool)
	}
	if _, known := f.ended[index]; !known && len(f.ended) == maxChoices {
		f.many = true
		return
	}
	f.ended[index] = f.ended[index] || finished
}

// wholeOr is a number without its fraction, or other if it is none.
func wholeOr(value []byte, other int64) int64 {
	if n, err := strconv.ParseInt(string(value), 10, 64); err == nil {
		return n
	}
	x, err := strconv.ParseFloat(string(value), 64)
	if err != nil || math.Abs(x) >= 1<<63 {
		return other
	}
	return int64(x)
}

// Missing says what a stream lacks for being complete without [DONE]. It is "" when every choice
// that was seen has its finish reason, and as many were seen as were asked for.
func (f *Finish) Missing(asked int) string {
	switch {
	case f.many:
		return "[DONE], and there are too many choices to follow"
	case len(f.ended) == 0:
		return "[DONE]"
	}
	for _, index := range slices.Sorted(maps.Keys(f.ended)) {
		if !f.ended[index] {
			return fmt.Sprintf("[DONE], and choice %d has no finish_reason", index)
		}
	}
	if len(f.ended) < asked {
		return fmt.Sprintf("[DONE], and only %d of %d choices came", len(f.ended), asked)
	}
	return ""
}

func (f *Finish) clone() Finish { return Finish{maps.Clone(f.ended), f.many} }
