// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bufio"
	"io"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// Reader opens a message chunk by chunk. Read and ReadByte hand out only what is authenticated, and
// return io.EOF only after the final chunk has opened. Every other end is an error that stays:
// ErrTruncated if the stream ends before the final chunk (its cause is beside it, if there is one),
// ErrDecryption, ErrTooLarge, ErrEmptyChunk or ErrTooMany.
//
// A final chunk ends where the stream ends: one that was cut does not open, and is ErrDecryption.
type Reader struct {
	src   *bufio.Reader
	start func(*Reader) error // reads what comes before the chunks, and sets open
	open  func(chunk []byte, final bool) ([]byte, error)
	done  func() // wipes the keys
	max   int
	left  uint64 // chunks that may come

	chunk []byte // ciphertext, possibly opened in place
	plain []byte // what the last chunk held
	rest  []byte // what of it was not read yet
	final bool
	err   error
}

// newReader reads chunks of up to maxChunk bytes of plaintext, and always ones of MaxChunk.
func newReader(src io.Reader, maxChunk int, start func(*Reader) error, done func()) *Reader {
	maxChunk = max(maxChunk, MaxChunk)
	return &Reader{src: bufio.NewReader(src), start: start, done: done, max: maxChunk,
		left: maxChunks}
}

// Read reads plaintext as it comes: as soon as one chunk has come, it returns what that holds.
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

// UseBuffer has chunks read into b, and opened there, as far as they fit: memory that is better
// protected than the heap. It fits every chunk if it has maxChunk and [Overhead] bytes and one
// more. b stays the caller's, who may take it back after Close, which clears it. It is for before
// the first Read.
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

// Close wipes the keys and what was opened last. Later reads are ErrUsed. It does not close the
// stream. It is idempotent.
func (r *Reader) Close() {
	if r.err == nil || r.err == io.EOF {
		r.err = ErrUsed
	}
	r.forget()
}

// forget wipes everything secret.
func (r *Reader) forget() {
	clear(r.plain)
	clear(r.chunk[:cap(r.chunk)])
	r.plain, r.rest = nil, nil
	if r.done != nil {
		r.done()
		r.done = nil
	}
}

// fill sees to it that rest is not empty.
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

// readFinal reads to the end of the stream.
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
