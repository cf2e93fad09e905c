// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

func gzipError(err error) error {
	if err == nil || errors.Is(err, fault.ErrTooLarge) {
		return err
	}
	return errors.Join(fault.ErrGzip, err)
}

// readBody reads a response's body and undoes gzip. On fault.ErrTooLarge, or a broken stream, it
// returns what it has, up to limit, together with the error.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	plain, size, err := Open(resp, limit)
	if err != nil {
		return nil, err
	}
	return ReadAll(plain, size)
}

// Open returns a response's body with gzip undone, of which limit bytes are let through, and its
// size if that is known, or -1. It reads nothing.
func Open(resp *http.Response, limit int64) (_ io.Reader, size int64, _ error) {
	if resp.ContentLength > limit && resp.StatusCode == http.StatusOK {
		return nil, 0, fmt.Errorf("%w: answer of %d bytes, limit %d",
			fault.ErrTooLarge, resp.ContentLength, limit)
	}
	plain, encoded, err := Decoded(resp.Header, Capped(resp.Body, limit), limit)
	if err != nil || encoded {
		return plain, -1, err
	}
	return plain, resp.ContentLength, nil
}

// Decoded undoes the content encoding that header names, of which it knows gzip. It reads nothing
// before it is read itself, and lets limit bytes through. encoded tells whether there is one.
func Decoded(header http.Header, raw io.Reader, limit int64) (_ io.Reader, encoded bool, _ error) {
	switch strings.ToLower(strings.TrimSpace(header.Get("Content-Encoding"))) {
	case "", "identity":
		return raw, false, nil
	case "gzip", "x-gzip":
		return &CappedReader{r: &gunzipper{raw: raw}, left: limit, limit: limit}, true, nil
	}
	return nil, true, fault.ErrContentEncoding
}

// gunzipper is a gzip.Reader that reads its header when it is read first.
type gunzipper struct {
	raw io.Reader
	z   *gzip.Reader
	err error
}

func (g *gunzipper) Read(p []byte) (n int, err error) {
	if g.z == nil && g.err == nil {
		g.z, g.err = gzip.NewReader(g.raw)
	}
	if g.err == nil {
		n, g.err = g.z.Read(p)
	}
	if g.err == io.EOF && g.z != nil {
		return n, io.EOF
	}
	return n, gzipError(g.err)
}

// ReadAll is io.ReadAll with the buffer made in one piece when the size is known. Those that it
// outgrows are cleared.
func ReadAll(r io.Reader, size int64) ([]byte, error) {
	const most = 1 << 20 // a promise of more is believed as it arrives
	return ReadInto(make([]byte, 0, RoomFor(size, most)), r)
}

// RoomFor is how much room to make for size bytes, or for -1 if that is not known: with a byte more
// than will come, the end is found without growing.
func RoomFor(size, most int64) int64 { return min(max(size, 511), most) + 1 }

// ReadInto reads to the end of r into b, which is empty. If b has too little room, it is cleared,
// and the result is elsewhere.
func ReadInto(b []byte, r io.Reader) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			outgrown := b
			b = append(make([]byte, 0, max(2*cap(b), 512)), b...)
			clear(outgrown)
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

// CappedReader fails with fault.ErrTooLarge, unlike io.LimitReader, which pretends that the stream
// has ended.
type CappedReader struct {
	r           io.Reader
	left, limit int64
	held        int64 // of limit, until AllowRest
}

// Capped lets limit bytes of r through.
func Capped(r io.Reader, limit int64) *CappedReader { return CappedAt(r, limit, limit) }

// CappedAt lets the first bytes of r through, and the rest of limit after AllowRest.
func CappedAt(r io.Reader, first, limit int64) *CappedReader {
	first = min(first, limit)
	return &CappedReader{r: r, left: first, limit: limit, held: limit - first}
}

// AllowRest lets through what CappedAt held back.
func (c *CappedReader) AllowRest() { c.left, c.held = c.left+c.held, 0 }

func (c *CappedReader) Read(p []byte) (int, error) {
	if c.left <= 0 { // exactly at the limit: only the end may follow
		var one [1]byte
		n, err := c.r.Read(one[:])
		if n > 0 {
			return 0, fmt.Errorf("%w: answer of more than %d bytes", fault.ErrTooLarge, c.limit)
		}
		return 0, err
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}
