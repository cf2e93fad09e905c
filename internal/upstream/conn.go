// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	readBuffer = 4 << 10  // net/http's buffer of a connection
	pieceSize  = 32 << 10 // content that is written at once
	recordSize = 16 << 10 // the same in TLS: a whole record
	maxDrain   = time.Second
)

// conn is a connection as net/http has it. It sees to it that no buffer keeps what passed through
// it, and knows whether an answer began before the request's content was written. One goroutine
// reads, another one writes.
type conn struct {
	net.Conn
	// TLS is above it: what follows is not known, and nothing is done for buffers
	blind  bool
	unsent atomic.Bool // the last piece of the content was not begun
	during atomic.Bool // the content was not written to its end
	early  atomic.Bool // an answer began while unsent
	idle   atomic.Bool // no request is under way: nothing may come
	dead   atomic.Bool // closed, or failed

	mu    sync.Mutex
	cond  *sync.Cond // tells of rests and of what ends the connection; its lock is mu, a leaf
	rests bool       // a reader waits for the peer: it has taken all that had come before
	gone  bool       // nobody will read any more

	buffer []byte // net/http's, into which it reads answers; its reader's
	copies *copies
}

// copies is memory for pieces of content, which connections use one after another. It holds zeros
// meanwhile.
type copies struct{ pool sync.Pool }

// get returns memory that free wipes, and takes back if it is that of a whole piece.
func (c *copies) get(size int) (buf []byte, free func()) {
	if size < pieceSize {
		buf = make([]byte, size)
		return buf, func() { clear(buf) }
	}
	whole, ok := c.pool.Get().(*[pieceSize]byte)
	if !ok {
		whole = new([pieceSize]byte)
	}
	return whole[:], func() {
		clear(whole[:])
		c.pool.Put(whole)
	}
}

func newConn(inner net.Conn, blind bool, copies *copies) *conn {
	c := &conn{Conn: inner, blind: blind, copies: copies}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// begin is a new request, before net/http has it.
func (c *conn) begin(content bool) {
	c.idle.Store(false)
	c.early.Store(false)
	c.unsent.Store(content)
	c.during.Store(content)
}

// settled reports, after the end of an answer, that the connection is fit for a further request.
func (c *conn) settled() bool {
	return !c.dead.Load() && (c.blind || !c.early.Load() && !c.during.Load())
}

// drained waits, after the end of an answer, until net/http's reader waits for what comes next, and
// reports that it does. It does not where something stood behind the answer, in the buffer that the
// answer was read from: net/http closes the connection when it looks there, but a request that came
// sooner would take it for its answer. The reader is on its way to either, so this is short.
//
// Should net/http come to neither, the connection is given up: nobody waits for long.
func (c *conn) drained() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rests && !c.gone {
		defer time.AfterFunc(maxDrain, c.end).Stop()
	}
	for !c.rests && !c.gone {
		c.cond.Wait()
	}
	return !c.gone
}

// forget clears net/http's buffer at the end of an answer, of which all that counts was read. If
// something stands there that nobody asked for, net/http writes it to its log.
func (c *conn) forget() { clear(c.buffer) }

func (c *conn) rest(rests bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rests = rests
	c.cond.Broadcast()
}

// end notes that nobody reads any more, or that reading fails.
func (c *conn) end() {
	c.dead.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	c.cond.Broadcast()
}

// Read clears p before it waits: when a request is over, net/http waits here with the whole of its
// buffer, in which the answer still stands. Larger ones are the answer's reader's own.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) <= readBuffer {
		clear(p)
	}
	if c.buffer == nil && !c.blind { // the first to read is net/http, ahead of any answer
		c.buffer = p
	}
	c.rest(true)
	n, err := c.Conn.Read(p)
	c.rest(false)
	if n > 0 && c.idle.Load() && !c.blind { // net/http would write it to its log
		clear(p[:n])
		n, err = 0, io.EOF
	}
	if n > 0 && c.unsent.Load() {
		c.early.Store(true)
	}
	if err != nil {
		c.end()
	}
	return n, err
}

// ReadFrom writes content. net/http would copy it through a buffer that it does not clear.
//
// The last piece counts as sent when it is begun: a server that waited for it may answer before
// Write returns. That all of it was written is asked at the answer's end.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	// The one copy of content on its way from the request that opened: net/http hides the body,
	// which could say where it lies.
	size := int64(pieceSize)
	if _, ok := c.Conn.(*tls.Conn); ok {
		size = recordSize
	}
	limited, ok := r.(*io.LimitedReader)
	if ok {
		size = max(1, min(size, limited.N))
	}
	buf, free := c.copies.get(int(size))
	defer free()
	var sent int64
	for {
		n, err := io.ReadFull(r, buf)
		last := err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) || ok && limited.N == 0
		if last {
			c.unsent.Store(false)
		}
		if n > 0 {
			written, failed := c.write(buf[:n])
			sent += int64(written)
			if failed != nil {
				return sent, failed
			}
		}
		if last {
			c.during.Store(false)
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
}

// write sends a piece of content. In TLS it may take two records.
func (c *conn) write(b []byte) (int, error) {
	fit := len(b)
	if _, ok := c.Conn.(*tls.Conn); ok {
		fit = sealable(fit)
	}
	n, err := c.Conn.Write(b[:fit])
	if err != nil || fit == len(b) {
		return n, err
	}
	more, err := c.Conn.Write(b[fit:])
	return n + more, err
}

// sealable is how much of n bytes crypto/tls seals without leaving a copy. It appends the plaintext
// to a record's header, and what TLS 1.3 adds to that, and seals in place. If the last addition is
// what makes the buffer grow, the plaintext stays behind in the old one. So there must be room for
// it in what the runtime rounds the first size up to, whether the buffer is new or was kept from an
// earlier record. Sizes below about 280 bytes are rounded up by too little; a shorter rest finds
// room where the piece before it was.
func sealable(n int) int {
	const added = 1 + 16 // RFC 8446, section 5.2: the content's type, the tag
	if n == recordSize {
		return n // there is room, as the test says, and most pieces are such
	}
	room := cap(slices.Grow([]byte(nil), recordHeader+n))
	if most := room - recordHeader - added; most < n && most > 0 {
		return most
	}
	return n
}

// Close is net/http's.
func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}

// sever closes what is below TLS. It waits for nothing.
func (c *conn) sever() {
	c.end()
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
		return
	}
	_ = c.Conn.Close()
}

// records is a connection below TLS. It hands out one record at a time, its header alone.
// crypto/tls decrypts a record where it lies, in a buffer that it empties before it asks for the
// next header: then the plaintext of the last record stands in p, and nowhere else.
type records struct {
	net.Conn
	in     *bufio.Reader // ciphertext
	header [recordHeader]byte
	have   int // of header
	left   int // of the record behind the header
}

const recordHeader = 5 // RFC 8446, section 5.1: type, version, length

func newRecords(c net.Conn) *records {
	return &records{Conn: c, in: bufio.NewReaderSize(c, readBuffer)}
}

func (r *records) Read(p []byte) (int, error) {
	if r.left > 0 {
		n, err := r.in.Read(p[:min(len(p), r.left)])
		r.left -= n
		return n, err
	}
	clear(p)
	n, err := r.in.Read(p[:min(len(p), recordHeader-r.have)])
	copy(r.header[r.have:], p[:n])
	if r.have += n; r.have == recordHeader {
		r.have, r.left = 0, int(binary.BigEndian.Uint16(r.header[3:]))
	}
	return n, err
}
