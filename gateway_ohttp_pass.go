// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// passer encodes an answer of the upstream's, and says where a chunk ends.
type passer struct {
	q      *obliviousRequest
	pad    int
	events bool // an event stream
	live   bool // of unknown length: it may be made while it is sent
	lines  eventLines

	encoder bhttp.Encoder
	out     []byte
	written int // bytes of the message
}

func (p *passer) wipe() { clear(p.out[:cap(p.out)]) }

func (p *passer) head(status int, header []bhttp.Field) (err error) {
	if p.out, err = p.encoder.ResponseHead(p.out[:0], status, header); err != nil {
		return err
	}
	if err := p.q.begin(status); err != nil {
		return err
	}
	if err := p.write(); err != nil || !p.live {
		return err
	}
	return p.flush(nil) // the client learns the status, and what kind of answer comes
}

// piece takes in content. Without padding it is a chunk, or more, of its own.
func (p *passer) piece(content []byte) error {
	if len(content) == 0 {
		return nil
	}
	if p.pad > 1 && p.events {
		if n := p.lines.complete(content); n > 0 {
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
	if p.pad > 1 {
		if !p.events {
			return nil // all but full chunks waits for the end
		}
		content = append(content[:len(content):len(content)], p.comment(len(content))...)
	}
	if err := p.content(content); err != nil {
		return err
	}
	return p.q.writer.Flush()
}

// comment is a line that readers of event streams skip, of such a length that the message has a multiple of pad bytes behind it
// and n bytes of content.
func (p *passer) comment(n int) []byte {
	if n == 0 && p.written%p.pad == 0 {
		return nil
	}
	for c := 0; ; c++ {
		if c == 1 || n+c == 0 { // a colon and a line break are two; a piece of nothing is none
			continue
		}
		if size := n + c; (p.written+len(bhttp.AppendVarint(nil, uint64(size)))+size)%p.pad == 0 {
			if c == 0 {
				return nil
			}
			comment := bytes.Repeat([]byte{'.'}, c)
			comment[0], comment[c-1] = ':', '\n'
			return comment
		}
	}
}

func (p *passer) content(content []byte) error {
	if len(content) == 0 {
		return nil
	}
	if need := len(content) + 8; cap(p.out) < need { // growing would leave a copy that nobody wipes
		p.wipe()
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

// eventLines finds where events end in a stream that comes in pieces: at an empty line.
type eventLines struct {
	line bool // something stands on the present line
	cr   bool // the last byte was a CR, and a LF behind it belongs to the same line break
}

// complete says how many bytes of piece belong to events that are complete with it, or to ones before.
func (e *eventLines) complete(piece []byte) (n int) {
	for i, c := range piece {
		switch {
		case c == '\n' && e.cr:
			e.cr = false
			if n == i {
				n++
			}
		case c == '\n', c == '\r':
			if !e.line {
				n = i + 1
			}
			e.line, e.cr = false, c == '\r'
		default:
			e.line, e.cr = true, false
		}
	}
	return n
}
