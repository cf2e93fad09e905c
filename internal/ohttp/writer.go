// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"io"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// Writer seals a message into chunks of at most MaxChunk bytes. Each Flush makes one chunk of the
// bytes written since the last one, and hands it to the stream in one Write. Pass seals bytes where
// they lie, with no copy of them. Only Finish and PassLast make the final chunk: a message that the
// caller gives up, by Close alone, by a panic or by an error, never looks complete.
//
// Invariant: plain holds the bytes that are not sealed yet. Once err is set, plain and the keys are
// wiped.
type Writer struct {
	dst    io.Writer
	sealer sealFunc
	done   func()
	left   uint64 // chunks that may be sealed

	plain []byte // not sealed yet; nil before the first Write
	out   []byte // the sealed chunks, and before the first one the head of the message
	err   error
}

// sealFunc appends a sealed chunk to dst.
type sealFunc func(dst, plain []byte, final bool) ([]byte, error)

// newWriter makes a Writer that writes prefix together with the first chunk.
func newWriter(dst io.Writer, prefix []byte, seal sealFunc, done func()) *Writer {
	return &Writer{dst: dst, sealer: seal, done: done, left: maxChunks, out: prefix}
}

// Write buffers p. It seals and writes a chunk whenever the buffer is full.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if len(w.plain) == MaxChunk {
			if err := w.Flush(); err != nil {
				return written, err
			}
		}
		if w.err != nil {
			return written, w.err
		}
		if w.plain == nil {
			// plain never grows: nobody would wipe the copy that growing leaves behind
			w.plain = make([]byte, 0, MaxChunk)
		}
		n := min(len(p), MaxChunk-len(w.plain))
		w.plain = append(w.plain, p[:n]...)
		written, p = written+n, p[n:]
	}
	return written, w.err
}

// Flush seals and writes the buffered bytes as one chunk. It writes nothing if the buffer is empty.
func (w *Writer) Flush() error {
	if w.err != nil || len(w.plain) == 0 {
		return w.err
	}
	return w.write(false)
}

// Finish writes the buffered bytes as the final chunk and wipes the keys. Every call after it
// returns ErrUsed.
func (w *Writer) Finish() error {
	if w.err != nil {
		return w.err
	}
	err := w.write(true)
	w.Close()
	return err
}

// Close wipes the keys and the bytes that were not written. The message stays without an end. It is
// idempotent.
func (w *Writer) Close() {
	if w.err == nil {
		w.err = ErrUsed
	}
	clear(w.plain)
	w.plain, w.out = nil, nil
	if w.done != nil {
		w.done()
		w.done = nil
	}
}

// PassChunk is the plaintext of the chunks that Pass makes. Sealed, such a chunk and the header of
// a DATA frame (RFC 9113, section 4.1) fill one record of TLS.
const PassChunk = MaxChunk - 9 - 2 - tagSize // header, length, tag

// UseBuffer gives the Writer memory for sealed chunks, which it uses as long as they fit. The
// caller keeps b, and may use it again after Close.
func (w *Writer) UseBuffer(b []byte) { w.out = append(b[:0], w.out...) }

// Pass seals p in chunks of PassChunk bytes, and hands them to the stream in one Write. What was
// buffered goes ahead, in a chunk of its own. The caller keeps p.
func (w *Writer) Pass(p []byte) error {
	if w.err != nil || len(p) == 0 {
		return w.err
	}
	return w.pass(p, false)
}

// PassLast is Pass and Finish: the end of p is the final chunk.
func (w *Writer) PassLast(p []byte) error {
	if w.err != nil {
		return w.err
	}
	err := w.pass(p, true)
	w.Close()
	return err
}

func (w *Writer) pass(p []byte, last bool) error {
	chunks := len(p)/PassChunk + 2
	w.out = slices.Grow(w.out, len(w.plain)+len(p)+chunks*(4+tagSize))
	if len(w.plain) > 0 {
		w.seal(w.plain, false)
		clear(w.plain)
		w.plain = w.plain[:0]
	}
	for w.err == nil {
		n := min(len(p), PassChunk)
		final := last && n == len(p)
		w.seal(p[:n], final)
		if p = p[n:]; len(p) == 0 {
			break
		}
	}
	return w.send()
}

// write seals and writes the buffered bytes as one chunk.
func (w *Writer) write(final bool) error {
	w.seal(w.plain, final)
	clear(w.plain)
	w.plain = w.plain[:0]
	return w.send()
}

// seal appends a chunk to out.
func (w *Writer) seal(plain []byte, final bool) {
	if w.err == nil {
		w.out, w.err = appendChunk(w.out, plain, final, w.sealer, &w.left)
	}
}

// send hands out to the stream.
func (w *Writer) send() error {
	if w.err == nil {
		_, w.err = w.dst.Write(w.out)
		w.out = w.out[:0]
	}
	if err := w.err; err != nil {
		w.Close()
		return err
	}
	return nil
}

// appendChunk appends one sealed chunk after its length, or after 0 if it is the final one.
func appendChunk(dst, plain []byte, final bool, seal sealFunc, left *uint64) ([]byte, error) {
	if *left == 0 {
		return dst, ErrTooMany
	}
	*left--
	size := uint64(0)
	if !final {
		size = uint64(len(plain) + tagSize)
	}
	return seal(bhttp.AppendVarint(dst, size), plain, final)
}
