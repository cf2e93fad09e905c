// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package sse reads event streams (the HTML standard, section 9.2). [Scanner] is the one place that
// knows lines and events; [Reader] hands out events as they come, and [Stream] only watches a
// stream that passes, for where its events and the stream itself end.
package sse

import "bytes"

// maxName is longer than any event name that means something here. Longer names are ignored.
const maxName = 64

// Event is one event of a stream. Its memory belongs to the scanner, until the next call.
type Event struct {
	Name string // "" where the stream gives none
	Data []byte // lines joined by "\n"; nil where the stream gives none
	Cut  bool   // Data or Failure is not complete: there was more than the scanner keeps

	Unended bool // the stream ended where the event's empty line should be

	// Failure is the value of a field "error", which the standard does not have and llama.cpp's
	// server writes; nil where the stream gives none.
	Failure []byte
}

// Scanner takes an event stream in, piece by piece, cut anywhere. Comments, ids, retry times and
// unknown fields are skipped, and so are blocks without data.
//
// Invariant: between two calls, line and long describe the line that has begun; name, data,
// failure, cut and hasData describe the lines before it in the same block. Memory is bounded by
// three times most.
type Scanner struct {
	most int // bytes that are kept of a line, and of an event

	line    []byte // what is kept of the present line
	long    bool   // there is more of it
	begun   bool   // the first line is over: a byte order mark is none any more
	cr      bool   // the last byte was a CR: an LF behind it belongs to the same line break
	closed  bool   // that line break ended a block
	ready   bool   // the block is complete, and the next call begins another one
	name    string
	data    []byte
	failure []byte
	cut     bool
	lines   int  // of data in this block
	hasData bool // a data or error line has come
	over    bool // a line or an event was longer than most
}

// Scan takes in piece to the end of the next block, which an empty line ends, or all of it. n is
// how much it took. At the end of a block, [Scanner.Event] is the event, if the block has one.
func (s *Scanner) Scan(piece []byte) (n int, end bool) {
	s.next()
	for n < len(piece) {
		if s.cr {
			s.cr = false
			if piece[n] == '\n' {
				n++
				if s.closed {
					return n, true
				}
				continue
			}
		}
		i := lineEnd(piece[n:])
		if i < 0 {
			s.keep(piece[n:])
			return len(piece), false
		}
		line := piece[n : n+i]
		s.cr = piece[n+i] == '\r'
		n += i + 1
		if s.closed = s.endLine(line); s.closed {
			if s.cr && n < len(piece) && piece[n] == '\n' {
				s.cr = false
				n++
			}
			return n, true
		}
	}
	return n, false
}

// lineEnd is where the first CR or LF stands, or -1. It looks for one after the other in stretches
// that are longer than most lines, so that neither is looked for far behind the other.
func lineEnd(piece []byte) int {
	for from := 0; from < len(piece); from += stretch {
		part := piece[from:min(len(piece), from+stretch)]
		lf := bytes.IndexByte(part, '\n')
		if lf >= 0 {
			part = part[:lf]
		}
		if cr := bytes.IndexByte(part, '\r'); cr >= 0 {
			return from + cr
		}
		if lf >= 0 {
			return from + lf
		}
	}
	return -1
}

const stretch = 512

// Event is the event that ended with the last call of Scan or Finish. ok is false for a block
// without data.
func (s *Scanner) Event() (e Event, ok bool) {
	if !s.ready || !s.hasData {
		return Event{}, false
	}
	return Event{Name: s.name, Data: s.data, Cut: s.cut, Failure: s.failure}, true
}

// Over reports whether a line or an event was longer than what is kept.
func (s *Scanner) Over() bool { return s.over }

// Finish takes the end of the stream for the end of a line and of an event. Unlike in the standard,
// such an event counts: where a cut is told from an end otherwise, it is one.
func (s *Scanner) Finish() {
	s.next()
	if len(s.line) > 0 || s.long {
		s.endLine(nil)
	}
	s.ready = true
}

// AtEnd says what [Scanner.Event] would be if the stream ended here. Nothing changes.
func (s *Scanner) AtEnd(look func(Event)) {
	c := *s
	c.line, c.data, c.failure = bytes.Clone(s.line), bytes.Clone(s.data), bytes.Clone(s.failure)
	defer c.Wipe()
	c.Finish()
	if e, ok := c.Event(); ok {
		look(e)
	}
}

// Wipe clears what is kept. The scanner is not used after it.
func (s *Scanner) Wipe() {
	clear(s.line[:cap(s.line)])
	clear(s.data[:cap(s.data)])
	clear(s.failure)
	s.line, s.data, s.failure, s.hasData = nil, nil, nil, false
}

func (s *Scanner) next() {
	if s.ready {
		clear(s.failure)
		s.failure = nil
		s.ready, s.name, s.data, s.lines, s.cut, s.hasData = false, "", s.data[:0], 0, false, false
	}
}

// keep adds part to the present line.
func (s *Scanner) keep(part []byte) {
	if room := s.most - len(s.line); len(part) > room {
		part = part[:room]
		s.long, s.over = true, true
	}
	s.line = AppendWiping(s.line, part)
}

// endLine ends the present line with rest, and reports whether the block ends with it.
func (s *Scanner) endLine(rest []byte) bool {
	line := rest
	if len(s.line) > 0 || s.long || len(rest) > s.most {
		s.keep(rest)
		line = s.line
	}
	long := s.long
	s.line, s.long = s.line[:0], false
	if !s.begun {
		s.begun = true
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	if len(line) == 0 && !long {
		s.ready = true
		return true
	}
	s.field(line, long)
	return false
}

func (s *Scanner) field(line []byte, long bool) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		if !long && len(value) <= maxName {
			s.name = string(value)
		}
	case "error":
		s.hasData, s.cut, s.over = true, s.cut || long, s.over || long
		if !long {
			clear(s.failure)
			s.failure = bytes.Clone(value)
		}
	case "data":
		if long || len(s.data)+1+len(value) > s.most {
			s.cut, s.over, s.hasData = true, true, true
			s.lines++
			return
		}
		if s.lines++; s.lines > 1 {
			s.data = AppendWiping(s.data, "\n")
		}
		s.data, s.hasData = AppendWiping(s.data, value), true
	}
}

// AppendWiping is append that leaves nothing behind when it moves.
func AppendWiping[T string | []byte](dst []byte, more T) []byte {
	need := len(dst) + len(more)
	if need <= cap(dst) {
		return append(dst, more...)
	}
	grown := make([]byte, len(dst), max(64, need, 2*cap(dst)))
	copy(grown, dst)
	clear(dst[:cap(dst)])
	return append(grown, more...)
}
