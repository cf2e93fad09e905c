// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"slices"
	"strings"
)

// Ending tells whether content that was seen piece by piece ended where its form says that it ends.
// A connection that was cut does not always show.
type Ending interface {
	// See takes in the next piece, of which it keeps nothing that Wipe does not clear.
	See(piece []byte)
	// Ended reports whether the content may end here.
	Ended() bool
	// Known reports whether the form has an end of its own. Otherwise HTTP has to have one.
	Known() bool
	// Wipe clears what was kept.
	Wipe()
}

// EndingOf knows the forms in which the endpoints answer: kind is a media type without parameters,
// path that of the endpoint, and length the declared one, which HTTP itself checks, or -1.
func EndingOf(kind, path string, length int64) Ending {
	switch {
	case kind == "text/event-stream":
		return &Stream{scanner: Scanner{most: 64}, last: lastEvent(path)}
	case length < 0 && (kind == "application/json" || strings.HasSuffix(kind, "+json")):
		return &JSON{}
	}
	return Any{}
}

// lastEvent tells the event behind which nothing more comes, or is nil where there is none.
func lastEvent(path string) func(Event) bool {
	switch path {
	case "/v1/chat/completions", "/v1/completions":
		return Event.IsDone
	case "/v1/responses":
		return func(e Event) bool {
			return e.IsDone() || slices.Contains(lastNames[:], strings.TrimRight(e.Name, " "))
		}
	}
	return nil
}

// lastNames are the events that end an answer of the Responses API. It is never changed.
var lastNames = [...]string{"response.completed", "response.incomplete", "response.failed", "error"}

// IsDone reports whether the event is the [DONE] that ends a stream.
func (e Event) IsDone() bool { return !e.Cut && string(bytes.TrimRight(e.Data, " ")) == "[DONE]" }

// Any is the ending of a form that has none of its own.
type Any struct{}

// See does nothing.
func (Any) See([]byte) {}

// Ended is true: every end is as good as another.
func (Any) Ended() bool { return true }

// Known is false.
func (Any) Known() bool { return false }

// Wipe does nothing.
func (Any) Wipe() {}

// NoContent is the ending of an answer to HEAD, which ends with its header whatever that says.
type NoContent struct{ Any }

// Known is true.
func (NoContent) Known() bool { return true }

// Stream is the ending of an event stream. The zero value is not usable; see [EndingOf].
type Stream struct {
	scanner  Scanner
	last     func(Event) bool // nil: no event ends the stream
	seen     bool             // the last event has come
	any      bool             // an event has come
	complete int
}

// See takes in the next piece.
func (s *Stream) See(piece []byte) {
	s.complete = 0
	for at := 0; at < len(piece); {
		n, end := s.scanner.Scan(piece[at:])
		at += n
		if !end {
			continue
		}
		s.complete = at
		if e, ok := s.scanner.Event(); ok {
			s.any = true
			s.seen = s.seen || s.last != nil && s.last(e)
		}
	}
}

// Complete is how many bytes of the last piece belong to events that are complete with it, or to
// ones before.
func (s *Stream) Complete() int { return s.complete }

// Begun reports whether a whole event has come.
func (s *Stream) Begun() bool { return s.any }

// Ended also counts a last event without its empty line.
func (s *Stream) Ended() bool {
	ended := s.seen || s.last == nil
	if !ended {
		s.scanner.AtEnd(func(e Event) { ended = s.last(e) })
	}
	return ended
}

// Known reports whether there is an event that ends the stream.
func (s *Stream) Known() bool { return s.last != nil }

// Wipe clears what was kept of an event.
func (s *Stream) Wipe() { s.scanner.Wipe() }

// JSON is the ending of a JSON text: it counts brackets outside of strings.
type JSON struct {
	depth          int
	text, escape   bool
	begun, damaged bool
}

// See takes in the next piece.
func (j *JSON) See(piece []byte) {
	for _, c := range piece {
		switch {
		case j.escape:
			j.escape = false
		case j.text:
			j.text = c != '"'
			j.escape = c == '\\'
		case c == '"':
			j.text = true
			j.begun = true
		case c == '{', c == '[':
			j.depth++
			j.begun = true
		case c == '}', c == ']':
			j.depth--
			j.damaged = j.damaged || j.depth < 0
		case c != ' ' && c != '\t' && c != '\r' && c != '\n':
			j.begun = true
		}
	}
}

// Ended reports whether every bracket is closed.
func (j *JSON) Ended() bool { return j.begun && j.depth == 0 && !j.text && !j.damaged }

// Known is true.
func (j *JSON) Known() bool { return true }

// Wipe does nothing: no content is kept.
func (j *JSON) Wipe() {}
