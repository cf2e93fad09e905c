// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// chunking says where the chunks of an answer end, and so what their lengths tell.
type chunking int

const (
	fullChunks   chunking = iota // where one is full, and at the end
	pieceChunks                  // with each piece that comes
	paddedEvents                 // where an event is complete, after a comment line as padding
)

// answerEncoder encodes an upstream's answer as binary HTTP, and says where a chunk ends.
//
// Without padding, this package copies no content: it is read from the upstream's connection into
// buf, behind room for what encodes it, and before room for the message's end. The cipher puts what
// stands there into the sealed chunks, all of them in one piece of memory, which net/http sends.
// With padding, where chunks end does not follow from pieces: they are copied into out, for their
// encoding, and into the writer, which gathers them.
//
// Invariant: until started is set, nothing of the answer is with the client, and a refusal can take
// its place. taken counts what was read of the content, also of what is not sent yet.
type answerEncoder struct {
	q        *ohttpRequest
	resp     *http.Response
	padding  int
	chunking chunking
	ending   sse.Ending
	unseen   bool        // HTTP does not tell an end from a cut
	events   *sse.Stream // ending, of an event stream; nil otherwise

	encoder bhttp.Encoder
	started bool
	buf     []byte // where pieces are read, behind lead bytes
	lead    int
	piece   []byte // what was read last, and not sent yet
	filled  bool   // it came up to the end of buf: there may be more
	head    []byte // of the message, until it is sent
	out     []byte // with padding: what is encoded of a piece
	taken   int    // bytes of content that were read
	written int    // with padding: bytes of the message
}

const (
	smallPiece = 4 << 10 // of a stream; larger ones get pieceSize, when they come
	// In buf, behind a piece: the end of the message.
	endRoom = 16
)

func newAnswerEncoder(q *ohttpRequest, resp *http.Response) *answerEncoder {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	ending := sse.EndingOf(kind, q.path, resp.ContentLength)
	if q.head.Method == http.MethodHead {
		ending = sse.NoContent{}
	}
	e := &answerEncoder{
		q: q, resp: resp, padding: q.s.cfg.OHTTP.Padding, ending: ending,
		unseen: endsUnseen(resp),
	}
	e.events, _ = ending.(*sse.Stream)
	switch {
	case e.padding > 1 && e.events != nil:
		e.chunking = paddedEvents
	case e.padding <= 1 && e.unknownLength():
		e.chunking = pieceChunks
	}
	return e
}

// unknownLength tells of an answer that may be made while it is sent.
func (e *answerEncoder) unknownLength() bool { return e.resp.ContentLength < 0 }

// padded tells of an answer whose chunks are gathered in the writer.
func (e *answerEncoder) padded() bool { return e.padding > 1 }

func (e *answerEncoder) wipe() {
	e.replaceBuffer(nil)
	clear(e.out[:cap(e.out)])
	e.ending.Wipe()
}

// replaceBuffer wipes buf.
func (e *answerEncoder) replaceBuffer(buf []byte) {
	clear(e.buf)
	e.q.s.buffers.put(e.buf)
	e.buf, e.piece = buf, nil
}

// makeRoom sees to it that the next piece finds room.
func (e *answerEncoder) makeRoom() {
	if e.buf != nil && (!e.filled || len(e.buf) == pieceSize) {
		return
	}
	e.lead = len(e.head) + bhttp.MaxLead
	size := int64(smallPiece)
	if !e.unknownLength() {
		size = e.resp.ContentLength + 1 // and the end of it
	} else if e.filled {
		size = pieceSize
	}
	if size += int64(e.lead + endRoom); size < pieceSize {
		e.replaceBuffer(make([]byte, size))
		return
	}
	e.replaceBuffer(e.q.s.buffers.get())
	e.useBuffer()
}

// useBuffer has the chunks of large pieces sealed into memory that is used again.
func (e *answerEncoder) useBuffer() {
	if len(e.buf) == pieceSize && e.started && !e.padded() && e.q.sealed == nil {
		e.q.sealed = e.q.s.sealed.get()
		e.q.writer.UseBuffer(e.q.sealed)
	}
}

// read reads what has come of a body, or, if it has a known length, as much as fits.
func (e *answerEncoder) read(body io.Reader) (err error) {
	e.makeRoom()
	// With the head, and with the 4 bytes of its length, a full piece fills chunks.
	room := e.buf[e.lead : len(e.buf)-endRoom]
	room = room[:min(len(room), max(4*ohttp.PassChunk-4-len(e.head), smallPiece))]
	n := 0
	for n < len(room) && err == nil && (n == 0 || !e.unknownLength()) {
		var m int
		m, err = body.Read(room[n:])
		n += m
	}
	e.piece, e.filled = room[:n], n == len(room)
	e.ending.See(e.piece)
	e.taken += n
	return err
}

// encodeHead makes the head of the message.
func (e *answerEncoder) encodeHead() (err error) {
	var header []bhttp.Field
	for _, name := range headersDown {
		if name == "retry-after" && e.resp.StatusCode == http.StatusServiceUnavailable {
			continue // it would read as if nothing had begun to work on the request
		}
		for _, v := range e.resp.Header.Values(name) {
			header = append(header, bhttp.Field{Name: name, Value: strings.TrimSpace(v)})
		}
	}
	header = e.q.answerHeader(header, int(e.resp.ContentLength))
	e.head, err = e.encoder.ResponseHead(nil, e.resp.StatusCode, header)
	if err == nil && len(e.head) > maxInnerHead {
		err = errLargeHead
	}
	return err
}

// errLargeHead: no client takes so much, and buf has room for it and a piece. The gateway's own
// transport does not bring it.
var errLargeHead = errors.New("the upstream's header has more than 64 KiB")

// start makes the writer, and sends the head ahead of an answer that may be made while it is sent.
func (e *answerEncoder) start() error {
	if err := e.q.startAnswer(e.resp.StatusCode); err != nil {
		return err
	}
	e.started = true
	e.useBuffer()
	switch {
	case e.padded():
		e.out, e.head = append(e.out, e.head...), nil
		if err := e.write(); err != nil || e.chunking == fullChunks {
			return err
		}
		return e.endChunk(nil)
	case e.unknownLength() && e.buf == nil: // nothing was read yet
		head := e.head
		e.head = nil
		return e.q.writer.Pass(head)
	}
	return nil
}

// send passes on what was read last.
func (e *answerEncoder) send() error {
	if !e.started {
		if err := e.start(); err != nil {
			return err
		}
	}
	piece := e.piece
	if len(piece) == 0 {
		return nil
	}
	if !e.padded() {
		return e.q.writer.Pass(e.message())
	}
	e.piece = nil
	if e.chunking == paddedEvents {
		if n := e.events.Complete(); n > 0 {
			if err := e.endChunk(piece[:n]); err != nil {
				return err
			}
			piece = piece[n:]
		}
	}
	return e.content(piece)
}

// message is what stands in buf, with what encodes it, and with the head, if that is still there.
func (e *answerEncoder) message() []byte {
	from := e.lead
	if len(e.piece) > 0 {
		var room [bhttp.MaxLead]byte
		lead := e.encoder.Lead(room[:0], len(e.piece))
		from -= len(lead)
		copy(e.buf[from:], lead)
	}
	from -= len(e.head)
	copy(e.buf[from:], e.head)
	message := e.buf[from : e.lead+len(e.piece)]
	e.head, e.piece = nil, nil
	return message
}

// endChunk ends a chunk after content. With padding, a comment line fills it up.
func (e *answerEncoder) endChunk(content []byte) error {
	if err := e.content(content); err != nil {
		return err
	}
	if e.chunking == paddedEvents && e.written%e.padding != 0 {
		if err := e.content(e.comment()); err != nil {
			return err
		}
	}
	return e.q.writer.Flush()
}

// comment is a line that readers of event streams skip, of such a length that the message has a
// multiple of padding bytes behind it.
func (e *answerEncoder) comment() []byte {
	size := commentSize(e.written, e.padding)
	comment := bytes.Repeat([]byte{'.'}, size)
	comment[0], comment[size-1] = ':', '\n'
	return comment
}

// commentSize is the least size, of a colon and a line break or more, with which written, a varint
// of size, and size are a multiple of padding, a power of two.
func commentSize(written, padding int) int {
	for _, v := range [...]struct{ length, least, most int }{{1, 2, 63}, {2, 64, 16383}} {
		if size := v.least + -(written+v.length+v.least)&(padding-1); size <= v.most {
			return size
		}
	}
	return 16384 + -(written+4+16384)&(padding-1)
}

func (e *answerEncoder) content(content []byte) error {
	if len(content) == 0 {
		return nil
	}
	if need := len(content) + bhttp.MaxLead; cap(e.out) < need { // growing would leave a copy behind
		clear(e.out[:cap(e.out)])
		e.out = make([]byte, 0, need)
	}
	e.out = e.encoder.Content(e.out[:0], content)
	return e.write()
}

// end sends what was read last, and the end of the message.
func (e *answerEncoder) end() (err error) {
	if e.padded() {
		if err := e.send(); err != nil {
			return err
		}
		if e.out, err = e.encoder.End(e.out[:0], nil, e.padding); err != nil {
			return err
		}
		if err := e.write(); err != nil {
			return err
		}
		return e.q.writer.Finish()
	}
	if !e.started {
		if err := e.start(); err != nil {
			return err
		}
	}
	inOne := e.head != nil && !e.unknownLength()
	message := e.message()
	whole, err := e.encoder.End(message, nil, 0)
	if err != nil {
		_ = e.q.writer.Pass(message) // it stays without an end
		return err
	}
	e.q.inOne = inOne
	return e.q.writer.PassLast(whole)
}

func (e *answerEncoder) write() error {
	e.written += len(e.out)
	_, err := e.q.writer.Write(e.out)
	return err
}
