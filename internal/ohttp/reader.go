// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bufio"
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
// Invariant: rest is the part of plain that was not read yet, and plain is the content of one
// opened chunk. Once err is set, the keys and plain are wiped.
type Reader struct {
	src   *bufio.Reader
	start func(*Reader) error // reads what comes before the chunks, and sets open
	open  func(chunk []byte, final bool) ([]byte, error)
	done  func() // wipes the keys
	max   int
	left  uint64 // chunks that may come

	chunk []byte // the sealed chunk; it may be opened in place
	plain []byte // content of the chunk that was opened last
	rest  []byte // the part of plain that was not read yet
	final bool   // the final chunk was opened
	err   error  // how the message ended
}

// newReader makes a Reader of chunks of up to maxChunk bytes of plaintext, and always of chunks up
// to MaxChunk.
func newReader(src io.Reader, maxChunk int, start func(*Reader) error, done func()) *Reader {
	maxChunk = max(maxChunk, MaxChunk)
	return &Reader{src: bufio.NewReader(src), start: start, done: done, max: maxChunk,
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

// UseBuffer gives the Reader memory to read chunks into and open them in: memory that is better
// protected than the heap. A chunk that does not fit goes to the heap. Every chunk fits if b has
// maxChunk and [Overhead] bytes and one more. The caller keeps b, and may reuse it after Close,
// which clears it. The caller calls UseBuffer before the first Read.
func (r *Reader) UseBuffer(b []byte) { r.chunk = b[:0] }

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
	clear(r.chunk[:cap(r.chunk)])
	r.plain, r.rest = nil, nil
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
	size, _, err := bhttp.ReadVarint(r.src)
	switch {
	case err != nil:
		return cut(err)
	case size == 0:
		r.final = true
		if err := r.readFinal(); err != nil {
			return err
		}
	case size > uint64(r.max+tagSize):
		return ErrTooLarge
	case size <= tagSize:
		return ErrEmptyChunk
	default:
		if uint64(cap(r.chunk)) < size {
			r.chunk = make([]byte, size)
		}
		r.chunk = r.chunk[:size]
		if _, err := io.ReadFull(r.src, r.chunk); err != nil {
			return cut(err)
		}
	}
	plain, err := r.open(r.chunk, r.final)
	if err != nil {
		return ErrDecryption
	}
	r.plain, r.rest = plain, plain
	return nil
}

// readFinal reads the final chunk, which ends with the stream.
func (r *Reader) readFinal() error {
	r.chunk = r.chunk[:0]
	for {
		if len(r.chunk) == cap(r.chunk) {
			r.chunk = append(r.chunk, 0)[:len(r.chunk)] // ciphertext: nothing to wipe
		}
		n, err := r.src.Read(r.chunk[len(r.chunk):cap(r.chunk)])
		r.chunk = r.chunk[:len(r.chunk)+n]
		switch {
		case len(r.chunk) > r.max+tagSize:
			return ErrTooLarge
		case err == io.EOF && len(r.chunk) < tagSize:
			return ErrTruncated
		case err == io.EOF:
			return nil
		case err != nil:
			return cut(err)
		}
	}
}
