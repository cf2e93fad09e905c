// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"bytes"
	"strings"
)

// Ending tells whether content that was seen piece by piece ended where its form says that it ends.
// A connection that was cut does not always show.
type Ending interface {
	// See takes in the next piece, of which it keeps nothing that Wipe does not clear.
	See(piece []byte)
	// Done reports whether the end has come, whatever the connection does: nothing that follows
	// belongs to the content.
	Done() bool
	// Ended reports whether the content may end here, if HTTP says so too: by a length, a last
	// chunk, or the end of a stream of HTTP/2.
	Ended() bool
	// Known reports whether the form has an end of its own. Otherwise HTTP has to have one.
	Known() bool
	// Wipe clears what was kept.
	Wipe()
}

// EndingOf knows the forms in which the endpoints answer: kind is a media type without parameters,
// path that of the endpoint, and length the declared one, which HTTP itself checks, or -1. Some
// servers send JSON under the type of event streams, and some the reverse: content that begins like
// the other form is of that form.
func EndingOf(kind, path string, length int64) Ending {
	switch {
	case kind == TypeEvents:
		return &Stream{scanner: Scanner{most: MaxEvent}, api: apiOf(path)}
	case length < 0 && IsJSON(kind):
		return &JSON{api: apiOf(path), sniff: true}
	}
	return Any{}
}

// WatchOf is EndingOf for a chat completion whose reader judges the end itself: every end is as
// good as another, and only [DONE] is looked for.
func WatchOf(kind string) Ending {
	switch {
	case kind == TypeEvents:
		return &Stream{scanner: Scanner{most: 64}, api: apiWatched}
	case IsJSON(kind):
		return &JSON{api: apiWatched, sniff: true}
	}
	return Any{}
}

// TypeEvents is the media type of event streams.
const TypeEvents = "text/event-stream"

// IsJSON tells the media types of JSON, without parameters.
func IsJSON(kind string) bool {
	return kind == "application/json" || strings.HasSuffix(kind, "+json")
}

// Any is the ending of a form that has none of its own.
type Any struct{}

// See does nothing.
func (Any) See([]byte) {}

// Done is false.
func (Any) Done() bool { return false }

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

// Form is what content looks like.
type Form int

// The forms.
const (
	FormUnknown Form = iota // nothing but white space and comments has come
	FormJSON
	FormEvents // or anything else
)

// Sniffer tells JSON from an event stream by the first byte that is neither white space nor part of
// a comment line or a byte order mark. No line of an event stream begins with a bracket. The zero
// value is ready.
type Sniffer struct {
	form    Form
	comment bool
}

// See takes in the next piece, and returns the form and where in the piece it showed.
func (s *Sniffer) See(piece []byte) (Form, int) {
	for i, c := range piece {
		if s.form != FormUnknown {
			return s.form, i
		}
		switch {
		case s.comment:
			s.comment = c != '\n' && c != '\r'
		case c == ':':
			s.comment = true
		case c == '{' || c == '[':
			s.form = FormJSON
			return s.form, i
		case bytes.IndexByte([]byte(" \t\r\n\xef\xbb\xbf"), c) < 0:
			s.form = FormEvents
			return s.form, i
		}
	}
	return s.form, len(piece)
}

// Stream is the ending of an event stream. The zero value is not usable; see [EndingOf].
//
// It follows what [DONE], the finish reasons of all choices, and errors say. An event of more than
// MaxEvent bytes says nothing, except by its name and its first members.
type Stream struct {
	scanner Scanner
	sniffer Sniffer
	json    *JSON // what came is JSON
	api     api
	choices func() int // that were asked for; nil: one
	finish  Finish
	alike   Alike // chunks whose choices are those that finish has seen

	done     bool // the last event has come
	failed   bool // an error has come
	any      bool // an event has come
	complete int
}

// Asked says how many choices were asked for. Without it, it is one. choices is called only where
// the end depends on it, which most streams say.
func (s *Stream) Asked(choices func() int) { s.choices = choices }

// missing is what the finish reasons lack.
func (s *Stream) missing(f *Finish) string {
	lacks := f.Missing(1)
	if lacks == "" && s.choices != nil {
		lacks = f.Missing(s.choices())
	}
	return lacks
}

// See takes in the next piece.
func (s *Stream) See(piece []byte) {
	s.complete = 0
	if form, at := s.sniffer.See(piece); form == FormJSON {
		if s.json == nil {
			s.json = &JSON{}
		} else {
			at = 0
		}
		s.json.See(piece[at:])
		return
	}
	for at := 0; at < len(piece); {
		n, end := s.scanner.Scan(piece[at:])
		at += n
		if !end {
			continue
		}
		s.complete = at
		if e, ok := s.scanner.Event(); ok {
			s.any = true
			s.take(e)
		}
	}
}

func (s *Stream) take(e Event) {
	if s.done || s.alike.Is(e) {
		return
	}
	s.done = s.api.isLast(e)
	if s.api == apiChoices {
		choices, _, failed := e.chunk()
		s.failed = s.failed || failed
		s.finish.seeChoices(choices)
		if choices != nil && !failed {
			s.alike.Learn(e)
		}
	}
}

// Complete is how many bytes of the last piece belong to events that are complete with it, or to
// ones before.
func (s *Stream) Complete() int { return s.complete }

// Begun reports whether a whole event has come.
func (s *Stream) Begun() bool { return s.any }

// Done reports whether the last event has come.
func (s *Stream) Done() bool { return s.done }

// DoneAtEnd is Done if the content ends here: an event without its empty line counts.
func (s *Stream) DoneAtEnd() bool {
	done := s.done
	s.scanner.AtEnd(func(e Event) { done = done || s.api.isLast(e) })
	return done
}

// Ended also counts an event without its empty line.
func (s *Stream) Ended() bool {
	if s.json != nil {
		return s.json.Ended()
	}
	if s.done || s.failed || s.api == apiOther || s.api == apiWatched {
		return true
	}
	end := *s
	end.finish, end.alike = s.finish.clone(), Alike{}
	defer end.alike.Forget()
	s.scanner.AtEnd(end.take)
	return end.done || end.failed || s.api == apiChoices && s.missing(&end.finish) == ""
}

// EndedUnseen is Ended where HTTP does not tell an end from a cut: only an end that is said counts,
// and no finish reason.
func (s *Stream) EndedUnseen() bool {
	if s.json != nil || s.api == apiOther {
		return s.Ended()
	}
	return s.failed || s.DoneAtEnd()
}

// Known reports whether there is an event that ends the stream.
func (s *Stream) Known() bool { return s.json != nil || s.api != apiOther }

// Wipe clears what was kept of an event.
func (s *Stream) Wipe() {
	s.scanner.Wipe()
	s.alike.Forget()
}

// JSON is the ending of a JSON text: it counts brackets outside of strings.
type JSON struct {
	depth          int
	text, escape   bool
	begun, damaged bool

	sniff   bool // it may be an event stream
	sniffer Sniffer
	api     api
	choices func() int // that were asked for; nil: one
	events  *Stream    // what came is one
}

// See takes in the next piece.
func (j *JSON) See(piece []byte) {
	if j.sniff {
		form, at := j.sniffer.See(piece)
		if form == FormUnknown {
			return
		}
		piece, j.sniff = piece[at:], false
		if form == FormEvents && beginsField(piece) {
			j.events = &Stream{scanner: Scanner{most: MaxEvent}, api: j.api, choices: j.choices}
			j.events.sniffer.form = FormEvents
		}
	}
	if j.events != nil {
		j.events.See(piece)
		return
	}
	for i := 0; i < len(piece); i++ {
		if j.text {
			i += j.inText(piece[i:])
			continue
		}
		switch c := piece[i]; c {
		case '"':
			j.text, j.begun = true, true
		case '{', '[':
			j.depth++
			j.begun = true
		case '}', ']':
			j.depth--
			j.damaged = j.damaged || j.depth < 0
		case ' ', '\t', '\r', '\n':
		default:
			j.begun = true
		}
	}
}

// inText goes on to the quotation mark that ends a string, and returns where it stands: at the end
// of piece, if it has none. Strings are most of an answer.
func (j *JSON) inText(piece []byte) int {
	at, quote := 0, -1 // the first mark at or behind at, once it was looked for
	if j.escape && len(piece) > 0 {
		j.escape, at = false, 1
	}
	for at < len(piece) {
		if quote < at {
			quote = len(piece)
			if i := bytes.IndexByte(piece[at:], '"'); i >= 0 {
				quote = at + i
			}
		}
		escape := bytes.IndexByte(piece[at:quote], '\\')
		if escape < 0 {
			j.text = quote == len(piece)
			return quote
		}
		at += escape + 2
	}
	j.escape = at > len(piece)
	return len(piece)
}

// beginsField tells whether text can be the beginning of a field of an event stream, and not of
// JSON: true, false, null, numbers and strings begin otherwise.
func beginsField(text []byte) bool { return bytes.IndexByte([]byte("deri"), text[0]) >= 0 }

// Done is that of the event stream, if it is one.
func (j *JSON) Done() bool { return j.events != nil && j.events.Done() }

// DoneAtEnd is that of the event stream, if it is one.
func (j *JSON) DoneAtEnd() bool { return j.events != nil && j.events.DoneAtEnd() }

// Begun is that of the event stream, if it is one.
func (j *JSON) Begun() bool { return j.events != nil && j.events.Begun() }

// Ended reports whether every bracket is closed.
func (j *JSON) Ended() bool {
	if j.events != nil {
		return j.events.Ended()
	}
	return j.begun && j.depth == 0 && !j.text && !j.damaged
}

// EndedUnseen is that of the event stream, if it is one; a bracket that closes is said.
func (j *JSON) EndedUnseen() bool {
	if j.events != nil {
		return j.events.EndedUnseen()
	}
	return j.Ended()
}

// Known is true.
func (j *JSON) Known() bool { return j.events == nil || j.events.Known() }

// Asked is that of the event stream, if it is one.
func (j *JSON) Asked(choices func() int) { j.choices = choices }

// Wipe clears what was kept of an event stream. Of JSON no content is kept.
func (j *JSON) Wipe() {
	if j.events != nil {
		j.events.Wipe()
	}
}
