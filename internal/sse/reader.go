// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"fmt"
	"io"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// MaxEvent bounds one event of a stream that only passes, and each of its lines, in bytes. Larger
// events pass too; only an end that they bring is not seen.
const MaxEvent = 1 << 20

// Reader reads an event stream as it comes: an event is handed out as soon as the empty line behind
// it has come. See [Scanner.Finish] for the end of the stream.
type Reader struct {
	src     io.Reader
	scanner Scanner
	buf     []byte
	from    int // what of buf was taken in
	ended   bool
	err     error
}

// NewReader reads events of at most so many bytes from src. The caller wipes the reader.
func NewReader(src io.Reader, most int) *Reader {
	return &Reader{src: src, scanner: Scanner{most: most}}
}

// Next returns the next event, io.EOF, ErrTooLarge, or the error of the stream. Errors stay.
func (r *Reader) Next() (Event, error) {
	for r.err == nil {
		end := false
		switch {
		case r.from < len(r.buf):
			var n int
			n, end = r.scanner.Scan(r.buf[r.from:])
			r.from += n
		case r.ended:
			r.scanner.Finish()
			r.err, end = io.EOF, true
		default:
			r.fill()
		}
		if r.scanner.Over() {
			r.err = fmt.Errorf("%w: an event, or a line of one, with more than %d bytes",
				fault.ErrTooLarge, r.scanner.most)
			break
		}
		if e, ok := r.scanner.Event(); end && ok {
			e.Unended = r.err == io.EOF
			return e, nil
		}
	}
	return Event{}, r.err
}

// fill reads what there is.
func (r *Reader) fill() {
	if r.buf == nil {
		r.buf = make([]byte, 4096)
	}
	n, err := r.src.Read(r.buf[:cap(r.buf)])
	r.buf, r.from = r.buf[:n], 0
	switch {
	case err == io.EOF:
		r.ended = true
	case err != nil && n == 0:
		r.err = err
	case err != nil:
		r.src = failed{err} // first what came with it
	}
}

type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }

// Wipe clears what was read. Nothing can be read after it.
func (r *Reader) Wipe() {
	clear(r.buf[:cap(r.buf)])
	r.scanner.Wipe()
	r.buf, r.from = nil, 0
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
}
