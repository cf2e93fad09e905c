// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"strings"
)

// ending tells whether an answer that was seen piece by piece ended where its form says that it ends. A connection that was
// cut does not always show.
type ending interface {
	see(piece []byte)
	ended() bool
}

// newEnding knows the forms in which the endpoints answer. length is the declared one, which HTTP itself checks, or -1.
func newEnding(kind, path string, length int64) ending {
	switch {
	case kind == "text/event-stream":
		switch path {
		case "/v1/chat/completions", "/v1/completions":
			return &eventEnding{last: doneLines}
		case "/v1/responses":
			return &eventEnding{last: append([]string{
				"event: response.completed", "event: response.incomplete", "event: response.failed", "event: error",
			}, doneLines...)}
		}
	case length < 0 && (kind == "application/json" || strings.HasSuffix(kind, "+json")):
		return &jsonEnding{}
	}
	return anyEnding{}
}

var doneLines = []string{"data: [DONE]", "data:[DONE]"}

// anyEnding is that of a form that has none of its own: HTTP has to have one then.
type anyEnding struct{}

func (anyEnding) see([]byte)  {}
func (anyEnding) ended() bool { return true }

// noContent is that of an answer to HEAD, which ends with its header whatever that says.
type noContent struct{ anyEnding }

// eventEnding looks for the line that says that nothing more comes.
type eventEnding struct {
	last []string
	line []byte // as much of the present line as the longest of last has
	long bool
	seen bool
}

func (e *eventEnding) see(piece []byte) {
	for len(piece) > 0 && !e.seen {
		i := bytes.IndexAny(piece, "\r\n")
		part := piece
		if i >= 0 {
			part = piece[:i]
		}
		const most = 64
		if len(e.line)+len(part) > most {
			e.long = true
		} else {
			e.line = append(e.line, part...)
		}
		if i < 0 {
			return
		}
		e.check()
		e.line, e.long = e.line[:0], false
		piece = piece[i+1:]
	}
}

func (e *eventEnding) check() {
	line := strings.TrimRight(string(e.line), " ")
	for _, last := range e.last {
		e.seen = e.seen || !e.long && line == last
	}
}

// ended also counts a last line without a line break.
func (e *eventEnding) ended() bool {
	e.check()
	return e.seen
}

// jsonEnding counts brackets outside of strings.
type jsonEnding struct {
	depth          int
	text, escape   bool
	begun, damaged bool
}

func (j *jsonEnding) see(piece []byte) {
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

func (j *jsonEnding) ended() bool { return j.begun && j.depth == 0 && !j.text && !j.damaged }
