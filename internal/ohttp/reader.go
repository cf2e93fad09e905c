// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"io"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// Reader opens a message chunk by chunk. Read and ReadByte return only authenticated bytes. They
// return io.EOF only after the final chunk has opened. Every other end is an error that stays:
// ErrTruncated if the stream ends before the final chunk (with the cause, if there is one),
// ErrDecryption, ErrTooLarge, ErrEmptyChunk or ErrTooMany.
//
// The final chunk ends where the stream ends. A final chunk that was cut does not open: that is
// ErrDecryption.
//
// A Reader reads ahead, and opens chunks where they lie: between the stream and Read, nothing is
// copied except the beginning of a chunk that came in part.
//
// Invariant: buf[from:to] was read from src and not opened yet. plain is the content of one opened
// chunk, which lies before from if it was opened in place, and rest is the part of it that was not
// read yet: src is not read into buf before rest is empty and plain is wiped. Once err is set, the
// keys and plain are wiped.
type Reader struct {
	src   io.Reader
	start func(*Reader) error // reads what comes before the chunks, and sets open
	open  func(chunk []byte, final bool) ([]byte, error)
	done  func() // wipes the keys
	max   int
	left  uint64 // chunks that may come

	buf      []byte
	lent     bool // buf is the caller's
	from, to int
	come     int   // bytes that have come
	srcErr   error // how src ended

	plain []byte // content of the chunk that was opened last
	rest  []byte // the part of plain that was not read yet
	final bool   // the final chunk was opened
	err   error  // how the message ended
}

const (
	firstRead = 4 << 10                      // enough for a small message, and most streams
	readAhead = 2 * (MaxChunk + tagSize + 4) // a chunk that came, and what came with it
	farAhead  = 4 * readAhead                // once as much has come: each read has its price
)

// newReader makes a Reader of chunks of up to maxChunk bytes of plaintext, and always of chunks up
// to MaxChunk.
func newReader(src io.Reader, maxChunk int, start func(*Reader) error, done func()) *Reader {
	return &Reader{src: src, start: start, done: done, max: max(maxChunk, MaxChunk),
		left: maxChunks}
}

// Read reads plaintext as it arrives: it returns as soon as one chunk has opened.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// UseBuffer gives the Reader memory to read into and open chunks in: memory that is better
// protected than the heap. From a chunk that does not fit on, the heap is used. Every chunk fits if
// b has maxChunk and [Overhead] bytes and one more. The caller keeps b, and may reuse it after
// Close, which clears it. The caller calls UseBuffer before the first Read.
func (r *Reader) UseBuffer(b []byte) { r.buf, r.lent = b, true }

// ReadByte makes a Reader a bhttp.Source.
func (r *Reader) ReadByte() (byte, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b, nil
}

// Close wipes the keys and the chunk that was opened last. Later reads return ErrUsed. It does not
// close the stream. It is idempotent.
func (r *Reader) Close() {
	if r.err == nil || r.err == io.EOF {
		r.err = ErrUsed
	}
	r.forget()
}

// forget wipes the keys and the plaintext.
func (r *Reader) forget() {
	clear(r.plain)
	clear(r.buf)
	r.plain, r.rest, r.buf, r.from, r.to = nil, nil, nil, 0, 0
	if r.done != nil {
		r.done()
		r.done = nil
	}
}

// fill opens chunks until rest is not empty or the message has ended.
func (r *Reader) fill() error {
	for len(r.rest) == 0 && r.err == nil {
		clear(r.plain)
		r.plain, r.rest = nil, nil
		if r.final {
			r.err = io.EOF
		} else {
			r.err = r.next()
		}
		if r.err != nil {
			r.forget()
		}
	}
	return r.err
}

// next reads and opens one chunk.
func (r *Reader) next() error {
	if r.start != nil {
		if err := r.start(r); err != nil {
			return err
		}
		r.start = nil
	}
	if r.left == 0 {
		return ErrTooMany
	}
	r.left--
	size, err := r.varint()
	switch {
	case err != nil:
		return cut(err)
	case size == 0:
		r.final = true
		if err := r.readFinal(); err != nil {
			return err
		}
		size = uint64(r.to - r.from)
	case size > uint64(r.max+tagSize):
		return ErrTooLarge
	case size <= tagSize:
		return ErrEmptyChunk
	default:
		if err := r.need(int(size)); err != nil {
			return cut(err)
		}
	}
	chunk := r.buf[r.from : r.from+int(size)]
	r.from += len(chunk)
	plain, err := r.open(chunk, r.final)
	if err != nil {
		return ErrDecryption
	}
	r.plain, r.rest = plain, plain
	return nil
}

// readFinal reads the final chunk, which ends with the stream.
func (r *Reader) readFinal() error {
	for {
		err := r.more(r.to - r.from + 1)
		have := r.to - r.from
		switch {
		case have > r.max+tagSize:
			return ErrTooLarge
		case err == io.EOF && have < tagSize:
			return ErrTruncated
		case err == io.EOF:
			return nil
		case err != nil:
			return cut(err)
		}
	}
}

// readFull reads what comes before the chunks.
func (r *Reader) readFull(p []byte) error {
	if err := r.need(len(p)); err != nil {
		return err
	}
	r.from += copy(p, r.buf[r.from:])
	return nil
}

// varint reads the length of a chunk.
func (r *Reader) varint() (uint64, error) {
	if err := r.need(1); err != nil {
		return 0, err
	}
	if err := r.need(bhttp.VarintSize(r.buf[r.from])); err != nil {
		return 0, err
	}
	v, n := bhttp.Varint(r.buf[r.from:r.to])
	r.from += n
	return v, nil
}

// need reads until n bytes are there that were not opened yet.
func (r *Reader) need(n int) error {
	for r.to-r.from < n {
		if err := r.more(n); err != nil {
			return err
		}
	}
	return nil
}

// more reads once, with room for n bytes that were not opened yet. It returns an error only if
// nothing came.
func (r *Reader) more(n int) error {
	r.makeRoom(n)
	for range 100 { // as bufio.Reader has it
		if r.srcErr != nil {
			return r.srcErr
		}
		var got int
		got, r.srcErr = r.src.Read(r.buf[r.to:])
		r.to, r.come = r.to+got, r.come+got
		if got > 0 {
			return nil
		}
	}
	return io.ErrNoProgress
}

// makeRoom sees to it that n bytes from r.from on fit into buf, and that there is room behind r.to.
// What it moves is ciphertext: nothing has to be wiped.
func (r *Reader) makeRoom(n int) {
	into := r.buf
	switch {
	case n > len(r.buf):
		size := readAhead
		if r.buf == nil {
			size = firstRead
		}
		// what is wanted may grow byte by byte: nobody says how long a final chunk is
		into = make([]byte, max(size, n, 2*len(r.buf)))
	case r.come > farAhead && len(r.buf) == readAhead && !r.lent:
		into = make([]byte, farAhead)
	case r.from < r.to && r.from+n <= len(r.buf):
		return
	}
	r.to = copy(into, r.buf[r.from:r.to])
	r.buf, r.from = into, 0
}

// readAhead reads as much of the stream as there is room for. It opens nothing. What Read opens
// next is wiped before.
func (r *Reader) readAhead() error {
	if r.err != nil {
		return r.err
	}
	if len(r.rest) > 0 {
		return nil
	}
	clear(r.plain)
	r.plain, r.rest = nil, nil
	r.makeRoom(len(r.buf))
	for r.to < len(r.buf) && r.srcErr == nil {
		if err := r.more(r.to - r.from + 1); err != nil && err != r.srcErr {
			return err
		}
	}
	return nil
}

// isReady reports, after readAhead, whether Read opens what is there without waiting for the
// stream.
func (r *Reader) isReady() bool {
	if len(r.rest) > 0 || r.err != nil || r.srcErr != nil {
		return true
	}
	if r.start != nil || r.from == 0 && r.to == len(r.buf) { // more than this is not read ahead
		return true
	}
	have := r.buf[r.from:r.to]
	if len(have) == 0 || len(have) < bhttp.VarintSize(have[0]) {
		return false
	}
	size, n := bhttp.Varint(have)
	return size > 0 && size <= uint64(len(have)-n)
}
