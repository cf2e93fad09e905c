// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"io"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/erase"
)

// BatchSize is how many bytes of chunks [Request.ReadWhole] reads before it opens them: four full
// ones, and always one of the largest that a reader accepts with maxChunk up to 65,536.
const BatchSize = 4*(MaxChunk+tagSize+4) + tagSize

// Whole says how an answer is read as a whole.
type Whole struct {
	MaxChunk int
	Limit    int64 // of the content
	// Batch returns memory of so many bytes, where sealed chunks are read, and opened: first of some
	// kilobytes, and of BatchSize if the message is longer. The caller keeps all of it, wiped.
	Batch func(size int) ([]byte, error)
	// Grow returns larger memory of at least size bytes with content at its beginning, and wipes
	// content where it was. content is nil the first time.
	Grow func(content []byte, size int) ([]byte, error)
	// Look sees the whole message, within erase.Do. It may be nil.
	Look func(head *bhttp.Response, content []byte)
}

// ReadWhole reads the answer in src to its end, and the binary HTTP response in it. It works once,
// and not together with Response. Chunks are read as they come, and opened batch by batch, each
// batch within one erase.Do: entering and leaving that costs as much as opening 4 KiB. From src on,
// a byte of content is copied twice, both times within the cache: into the batch, where it is
// opened in place, and from there to its place in the content, because the binary HTTP message has
// lengths between its pieces.
//
// After an error all content is wiped, and the caller has the memory.
func (q *Request) ReadWhole(src io.Reader, w *Whole) (head *bhttp.Response, content []byte,
	err error) {
	r, err := q.Response(src, w.MaxChunk)
	if err != nil {
		return nil, nil, err
	}
	m := &wholeReader{reader: r, Whole: w}
	defer func() {
		if !m.over {
			erase.Do(r.Close)
		}
	}()
	for err = m.begin(); err == nil; {
		if err = r.readAhead(); err == nil {
			erase.Do(func() { err = m.openLast() })
		}
	}
	if err != io.EOF {
		clear(m.content)
		return nil, nil, err
	}
	return m.head, m.content, nil
}

// wholeReader is the state of ReadWhole.
type wholeReader struct {
	*Whole
	reader  *Reader
	head    *bhttp.Response
	body    *bhttp.Body
	content []byte
	over    bool // reader is closed
}

// begin reads the beginning of the message into memory that is enough for most.
func (m *wholeReader) begin() error {
	first, err := m.Batch(firstRead)
	if err != nil {
		return err
	}
	m.reader.UseBuffer(first)
	if err := m.reader.readAhead(); err != nil || m.reader.srcErr != nil {
		return err
	}
	batch, err := m.Batch(BatchSize)
	if err == nil {
		copy(batch, first) // ciphertext: nothing was opened
		m.reader.UseBuffer(batch)
	}
	return err
}

// openLast is open, and what follows the end of the message: a look at it, and wiping keys and the
// batch.
func (m *wholeReader) openLast() error {
	err := m.open()
	if err == io.EOF && m.Look != nil {
		m.Look(m.head, m.content)
	}
	if err != nil {
		m.reader.Close()
		m.over = true
	}
	return err
}

// open opens what was read ahead. It returns io.EOF at the end of the message. If the batch ends
// within a length of the binary HTTP message, where gateways end no chunk, it waits for the stream.
func (m *wholeReader) open() (err error) {
	for m.reader.isReady() {
		if m.head == nil {
			m.head, m.body, err = bhttp.ReadResponse(m.reader, bhttp.Limits{Content: m.Limit})
			if err == nil {
				// with a byte more than is declared, the end is found without growing
				err = m.grow(int(min(m.body.Declared(), maxDeclared)) + 1)
			}
		} else {
			err = m.read()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxDeclared bounds what is made for a declared length: more is believed as it comes.
const maxDeclared = 4 << 20

// leastContent is what is made where no length is declared.
const leastContent = 4 << 10

func (m *wholeReader) read() error {
	if len(m.content) == cap(m.content) {
		if err := m.grow(2 * cap(m.content)); err != nil {
			return err
		}
	}
	n, err := m.body.Read(m.content[len(m.content):cap(m.content)])
	m.content = m.content[:len(m.content)+n]
	return err
}

func (m *wholeReader) grow(size int) error {
	larger, err := m.Grow(m.content, max(size, leastContent))
	if err == nil {
		m.content = larger[:len(m.content)]
	}
	return err
}
