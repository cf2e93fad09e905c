// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"fmt"
	"io"
)

// maxEvent bounds one event of a stream, and each of its lines, in bytes.
const maxEvent = 1 << 20

// event is one event of a stream. Its memory is the reader's, until the next one is asked for.
type event struct {
	name string // "" where the stream gives none
	data []byte // lines joined by "\n"
}

// eventReader reads an event stream (the HTML standard, section 9.2) as it comes: an event is handed out as soon as the empty
// line behind it has come. Comments, ids, retry times and fields that are not known are passed over, and so are events
// without data. Unlike the standard, an event that the end of the stream completes counts: where a cut is told from an
// end otherwise, it is one.
type eventReader struct {
	src io.Reader
	max int

	buf      []byte
	from     int  // what of buf was read
	searched int  // what of buf holds no line break
	skipLF   bool // the line before ended with CR
	begun    bool
	ended    bool
	name     string
	data     []byte
	hasData  bool
	err      error
}

func newEventReader(src io.Reader, most int) *eventReader { return &eventReader{src: src, max: most} }

// next returns the next event, io.EOF, ErrTooLarge, or the error of the stream. Errors stay.
func (r *eventReader) next() (event, error) {
	r.name, r.data, r.hasData = "", r.data[:0], false
	for {
		line, err := r.line()
		if err == io.EOF && r.hasData {
			return event{r.name, r.data}, nil
		}
		if err != nil {
			return event{}, err
		}
		if len(line) > 0 {
			if err := r.field(line); err != nil {
				r.err = err
				return event{}, err
			}
			continue
		}
		if r.hasData {
			return event{r.name, r.data}, nil
		}
		r.name = ""
	}
}

func (r *eventReader) field(line []byte) error {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		if len(value) <= 64 { // longer than any name that means something here
			r.name = string(value)
		}
	case "data":
		if len(r.data)+1+len(value) > r.max {
			return fmt.Errorf("%w: an event of more than %d bytes", ErrTooLarge, r.max)
		}
		if r.hasData {
			r.data = append(r.data, '\n')
		}
		r.data, r.hasData = append(r.data, value...), true
	}
	return nil
}

// line returns the next line without its break: CR, LF or both. It lies in buf until the next call.
func (r *eventReader) line() ([]byte, error) {
	for r.err == nil {
		if r.skipLF && r.from < len(r.buf) {
			r.skipLF = false
			if r.buf[r.from] == '\n' {
				r.from++
			}
		}
		r.searched = max(r.searched, r.from)
		if i := bytes.IndexAny(r.buf[r.searched:], "\r\n"); i >= 0 {
			line := r.buf[r.from : r.searched+i]
			if len(line) > r.max {
				return nil, r.tooLong()
			}
			r.skipLF = r.buf[r.searched+i] == '\r'
			r.from = r.searched + i + 1
			return r.trimMark(line), nil
		}
		r.searched = len(r.buf)
		if len(r.buf)-r.from > r.max {
			return nil, r.tooLong()
		}
		if r.ended {
			r.err = io.EOF
			if rest := r.buf[r.from:]; len(rest) > 0 {
				r.from = len(r.buf)
				return r.trimMark(rest), nil
			}
			break
		}
		r.fill()
	}
	return nil, r.err
}

func (r *eventReader) tooLong() error {
	r.err = fmt.Errorf("%w: a line of more than %d bytes in an event stream", ErrTooLarge, r.max)
	return r.err
}

// trimMark takes the byte order mark from the first line.
func (r *eventReader) trimMark(line []byte) []byte {
	if !r.begun {
		r.begun = true
		return bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	return line
}

// fill reads what there is, behind what was not read yet.
func (r *eventReader) fill() {
	if r.from > 0 {
		n := copy(r.buf, r.buf[r.from:])
		clear(r.buf[n:])
		r.buf, r.searched, r.from = r.buf[:n], r.searched-r.from, 0
	}
	if len(r.buf) == cap(r.buf) {
		grown := make([]byte, len(r.buf), max(4096, 2*cap(r.buf)))
		copy(grown, r.buf)
		clear(r.buf)
		r.buf = grown
	}
	n, err := r.src.Read(r.buf[len(r.buf):cap(r.buf)])
	r.buf = r.buf[:len(r.buf)+n]
	switch {
	case err == io.EOF:
		r.ended = true
	case err != nil:
		r.err = err
	}
}

// wipe clears what was read. Nothing can be read after it.
func (r *eventReader) wipe() {
	clear(r.buf[:cap(r.buf)])
	clear(r.data[:cap(r.data)])
	r.buf, r.data, r.from = nil, nil, 0
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
}
