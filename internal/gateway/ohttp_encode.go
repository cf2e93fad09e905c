// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
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
	buf     []byte // what was read last
	out     []byte
	taken   int // bytes of content that were read
	written int // bytes of the message
}

func newAnswerEncoder(q *ohttpRequest, resp *http.Response) *answerEncoder {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	size := int64(16<<10 - 64) // a chunk's, with what encoding adds
	if resp.ContentLength >= 0 {
		size = min(size, resp.ContentLength+1) // and the end of it
	}
	ending := sse.EndingOf(kind, q.path, resp.ContentLength)
	if asked, ok := ending.(interface{ Asked(choices int) }); ok && q.choices > 0 {
		asked.Asked(q.choices)
	}
	if q.head.Method == http.MethodHead {
		ending = sse.NoContent{}
	}
	e := &answerEncoder{
		q: q, resp: resp, padding: q.s.cfg.OHTTP.Padding, ending: ending,
		unseen: endsUnseen(resp), buf: make([]byte, size), out: make([]byte, 0, size+1<<10),
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

func (e *answerEncoder) wipe() {
	clear(e.buf)
	clear(e.out[:cap(e.out)])
	e.ending.Wipe()
}

// read reads what has come of a body, or, if it has a known length, as much as fits.
func (e *answerEncoder) read(body io.Reader) (n int, err error) {
	for n < len(e.buf) && err == nil && (n == 0 || !e.unknownLength()) {
		var m int
		m, err = body.Read(e.buf[n:])
		n += m
	}
	e.ending.See(e.buf[:n])
	e.taken += n
	return n, err
}

// start sends the head of the answer.
func (e *answerEncoder) start() (err error) {
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
	if e.out, err = e.encoder.ResponseHead(e.out[:0], e.resp.StatusCode, header); err != nil {
		return err
	}
	if err := e.q.startAnswer(e.resp.StatusCode); err != nil {
		return err
	}
	e.started = true
	if err := e.write(); err != nil || !e.unknownLength() || e.chunking == fullChunks {
		return err
	}
	return e.endChunk(nil)
}

// send passes on the n bytes that were read last.
func (e *answerEncoder) send(n int) error {
	if !e.started {
		if err := e.start(); err != nil {
			return err
		}
	}
	content := e.buf[:n]
	if n == 0 {
		return nil
	}
	if e.chunking == paddedEvents {
		if n := e.events.Complete(); n > 0 {
			if err := e.endChunk(content[:n]); err != nil {
				return err
			}
			content = content[n:]
		}
	}
	if err := e.content(content); err != nil || e.chunking != pieceChunks {
		return err
	}
	return e.q.writer.Flush()
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
	if need := len(content) + 8; cap(e.out) < need { // growing would leave a copy behind
		clear(e.out[:cap(e.out)])
		e.out = make([]byte, 0, need)
	}
	e.out = e.encoder.Content(e.out[:0], content)
	return e.write()
}

func (e *answerEncoder) end() (err error) {
	if e.out, err = e.encoder.End(e.out[:0], nil, e.padding); err != nil {
		return err
	}
	if err := e.write(); err != nil {
		return err
	}
	return e.q.writer.Finish()
}

func (e *answerEncoder) write() error {
	e.written += len(e.out)
	_, err := e.q.writer.Write(e.out)
	return err
}
