// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// passer encodes an answer of the upstream's, and says where a chunk ends.
type passer struct {
	q      *obliviousRequest
	pad    int
	live   bool // of unknown length: it may be made while it is sent
	whole  sse.Ending
	events *sse.Stream // whole, of an event stream; nil otherwise

	encoder bhttp.Encoder
	begun   bool
	buf     []byte // what was read last
	out     []byte
	passed  int // bytes of content that were read
	written int // bytes of the message
}

func (q *obliviousRequest) newPasser(resp *http.Response) *passer {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	size := int64(16<<10 - 64) // a chunk's, with what encoding adds
	if resp.ContentLength >= 0 {
		size = min(size, resp.ContentLength+1) // and the end of it
	}
	whole := sse.EndingOf(kind, q.path, resp.ContentLength)
	if q.head.Method == http.MethodHead {
		whole = sse.NoContent{}
	}
	events, _ := whole.(*sse.Stream)
	return &passer{
		q: q, pad: q.g.cfg.OHTTP.Pad, events: events, live: resp.ContentLength < 0,
		whole: whole, buf: make([]byte, size), out: make([]byte, 0, size+1<<10),
	}
}

func (p *passer) wipe() {
	clear(p.buf)
	clear(p.out[:cap(p.out)])
	p.whole.Wipe()
}

// read reads what has come of a body, or, if it has a known length, as much as fits.
func (p *passer) read(body io.Reader) (n int, err error) {
	for n < len(p.buf) && err == nil && (n == 0 || !p.live) {
		var m int
		m, err = body.Read(p.buf[n:])
		n += m
	}
	p.whole.See(p.buf[:n])
	p.passed += n
	return n, err
}

// send passes on the n bytes that were read last.
func (p *passer) send(resp *http.Response, n int) error {
	if !p.begun {
		if err := p.head(resp); err != nil {
			return err
		}
	}
	return p.piece(p.buf[:n])
}

func (p *passer) head(resp *http.Response) (err error) {
	var header []bhttp.Field
	for _, name := range headersDown {
		if name == "retry-after" && resp.StatusCode == http.StatusServiceUnavailable {
			continue // it would read as if nothing had begun to work on the request
		}
		for _, v := range resp.Header.Values(name) {
			header = append(header, bhttp.Field{Name: name, Value: strings.TrimSpace(v)})
		}
	}
	header = p.q.answerHeader(header, int(resp.ContentLength))
	if p.out, err = p.encoder.ResponseHead(p.out[:0], resp.StatusCode, header); err != nil {
		return err
	}
	if err := p.q.begin(resp.StatusCode); err != nil {
		return err
	}
	p.begun = true
	if err := p.write(); err != nil || !p.live {
		return err
	}
	return p.flush(nil)
}

// piece takes in content. Without padding it is a chunk, or more, of its own.
func (p *passer) piece(content []byte) error {
	if len(content) == 0 {
		return nil
	}
	if p.pad > 1 && p.events != nil {
		if n := p.events.Complete(); n > 0 {
			if err := p.flush(content[:n]); err != nil {
				return err
			}
			content = content[n:]
		}
	}
	if err := p.content(content); err != nil || !p.live || p.pad > 1 {
		return err
	}
	return p.q.writer.Flush()
}

// flush ends a chunk after content. With padding it fills the chunk with a comment line, where the content's lines allow it.
func (p *passer) flush(content []byte) error {
	if p.pad > 1 && p.events == nil {
		return nil // all but full chunks waits for the end
	}
	if err := p.content(content); err != nil {
		return err
	}
	if p.pad > 1 && p.written%p.pad != 0 {
		if err := p.content(p.comment()); err != nil {
			return err
		}
	}
	return p.q.writer.Flush()
}

// comment is a line that readers of event streams skip, of such a length that the message has a multiple of pad bytes behind it.
func (p *passer) comment() []byte {
	size := commentSize(p.written, p.pad)
	comment := bytes.Repeat([]byte{'.'}, size)
	comment[0], comment[size-1] = ':', '\n'
	return comment
}

// commentSize is the least size, of a colon and a line break or more, with which written, a varint of size, and size are a multiple
// of pad, a power of two.
func commentSize(written, pad int) int {
	for _, v := range [...]struct{ length, least, most int }{{1, 2, 63}, {2, 64, 16383}} {
		if size := v.least + -(written+v.length+v.least)&(pad-1); size <= v.most {
			return size
		}
	}
	return 16384 + -(written+4+16384)&(pad-1)
}

func (p *passer) content(content []byte) error {
	if len(content) == 0 {
		return nil
	}
	if need := len(content) + 8; cap(p.out) < need { // growing would leave a copy that nobody wipes
		clear(p.out[:cap(p.out)])
		p.out = make([]byte, 0, need)
	}
	p.out = p.encoder.Content(p.out[:0], content)
	return p.write()
}

func (p *passer) end() (err error) {
	if p.out, err = p.encoder.End(p.out[:0], nil, p.pad); err != nil {
		return err
	}
	if err := p.write(); err != nil {
		return err
	}
	return p.q.writer.Finish()
}

func (p *passer) write() error {
	p.written += len(p.out)
	_, err := p.q.writer.Write(p.out)
	return err
}
