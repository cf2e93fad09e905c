// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"errors"
	"fmt"
	"io"
)

// Source is what a message is read from. Its own errors, other than io.EOF, come through as causes.
type Source interface {
	io.Reader
	io.ByteReader
}

// ReadRequest reads the control data and the header of a request, of known or indeterminate length.
// It reads nothing beyond them; Body reads the rest.
func ReadRequest(src Source, limits Limits) (*Request, *Body, error) {
	d := newBody(src, limits, false)
	if err := d.framing(knownRequest, indeterminateRequest); err != nil {
		return nil, nil, err
	}
	q := &Request{}
	for _, part := range [...]struct {
		name  string
		value *string
	}{{"method", &q.Method}, {"scheme", &q.Scheme}, {"authority", &q.Authority},
		{"path", &q.Path}} {
		n, err := d.varint()
		if err == nil {
			*part.value, err = d.text(n)
		}
		if err != nil {
			return nil, nil, cut(err)
		}
	}
	var err error
	if q.Header, err = d.section(); err == nil {
		err = q.check()
	}
	if err == nil {
		d.declared, err = declaredLength(q.Header)
	}
	if err != nil {
		return nil, nil, err
	}
	return q, d, nil
}

// ReadResponse is ReadRequest for a response. It returns when the final status and its header have
// come.
func ReadResponse(src Source, limits Limits) (*Response, *Body, error) {
	d := newBody(src, limits, true)
	if err := d.framing(knownResponse, indeterminateResponse); err != nil {
		return nil, nil, err
	}
	p := &Response{}
	for {
		status, err := d.varint()
		if err != nil {
			return nil, nil, cut(err)
		}
		informational := status < 200
		if err := checkStatus(status, informational); err != nil {
			return nil, nil, err
		}
		header, err := d.section()
		if err == nil {
			err = checkFields(header)
		}
		if err != nil {
			return nil, nil, err
		}
		if !informational {
			p.Status, p.Header = int(status), header
			if d.declared, err = declaredLength(header); err != nil {
				return nil, nil, err
			}
			return p, d, nil
		}
		if d.limits.Fields--; d.limits.Fields < 0 {
			return nil, nil, ErrTooLarge
		}
		p.Informational = append(p.Informational, Informational{int(status), header})
	}
}

// Body reads the content of a message, and after it the trailer and the padding. It is not safe for
// concurrent use.
type Body struct {
	src           Source
	limits        Limits // what is left of them
	response      bool
	indeterminate bool
	ended         bool // the message ended where the rest of it is empty

	read     int64 // bytes of the source
	declared int64 // content-length, or -1
	length   int64 // of the content, so far
	left     int64 // of the known content, or of the chunk
	begun    bool
	trailer  []Field
	err      error
}

func newBody(src Source, limits Limits, response bool) *Body {
	return &Body{src: src, limits: limits.withDefaults(), response: response, declared: -1}
}

// Read reads content as it comes. It returns io.EOF after everything that follows the content was
// read and found valid, up to the end of the source.
func (d *Body) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if d.left == 0 {
		if d.err = d.nextPiece(); d.err != nil {
			return 0, d.err
		}
	}
	n, err := d.src.Read(p[:min(int64(len(p)), d.left)])
	d.read += int64(n)
	d.left -= int64(n)
	d.length += int64(n)
	if err != nil && (n == 0 || err != io.EOF) { // an io.EOF beside data comes again
		d.err = cut(err)
	}
	return n, d.err
}

// Trailer is the trailer section, complete once Read has returned io.EOF.
func (d *Body) Trailer() []Field { return d.trailer }

// ReadAll reads the content to its end, into memory that grows as the content comes. The caller
// wipes it; what is left behind by growing, or read before an error, is wiped already.
func (d *Body) ReadAll() ([]byte, error) {
	b := make([]byte, 0, 512)
	for {
		var probe [1]byte // finds the end without growing for it
		into := b[len(b):cap(b)]
		if len(into) == 0 {
			into = probe[:]
		}
		n, err := d.Read(into)
		if n > 0 && len(b) == cap(b) {
			b = d.grow(b)
			b = append(b, probe[0])
		} else {
			b = b[:len(b)+n]
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			clear(b)
			return nil, err
		}
	}
}

// grow moves b. A stated length is taken at its word only so far that stating more gains a sender
// nothing.
func (d *Body) grow(b []byte) []byte {
	grown := make([]byte, len(b), max(2*cap(b), len(b)+1+int(min(d.left, 64<<10))))
	copy(grown, b)
	clear(b)
	return grown
}

// nextPiece sets left to the length of the next piece of content. After the last one it reads the
// rest of the message, and returns io.EOF.
func (d *Body) nextPiece() error {
	if !d.ended && (d.indeterminate || !d.begun) {
		n, err := d.varint()
		switch {
		case err == io.EOF && !d.begun:
			d.ended = true
		case err != nil:
			return cut(err)
		case n > uint64(d.limits.Content):
			return ErrTooLarge
		}
		d.begun = true
		d.limits.Content -= int64(n)
		if d.left = int64(n); n > 0 {
			return nil
		}
	}
	return d.finish()
}

func (d *Body) finish() error {
	if err := checkLength(d.declared, d.length, d.response); err != nil {
		return err
	}
	trailer, err := d.section()
	if err == nil {
		err = checkTrailer(trailer)
	}
	if err != nil {
		return err
	}
	for ; !d.ended; d.limits.Padding-- {
		b, err := d.src.ReadByte()
		switch {
		case err == io.EOF:
			d.ended = true
		case err != nil:
			return cut(err)
		case b != 0:
			return &FormatError{"padding", "not zero"}
		case d.limits.Padding == 0:
			return ErrTooLarge
		}
	}
	d.trailer = trailer
	return io.EOF
}

func (d *Body) framing(known, indeterminate uint64) error {
	f, err := d.varint()
	if err != nil {
		return cut(err)
	}
	if f != known && f != indeterminate {
		return &FormatError{"framing", "another kind of message"}
	}
	d.indeterminate = f == indeterminate
	return nil
}

// section reads a field section. A message may end before one: then it, and all that follows, is
// empty.
func (d *Body) section() ([]Field, error) {
	if d.ended {
		return nil, nil
	}
	end := int64(-1)
	if !d.indeterminate {
		n, err := d.varint()
		switch {
		case err == io.EOF:
			d.ended = true
			return nil, nil
		case err != nil:
			return nil, cut(err)
		case n > uint64(d.limits.Head):
			return nil, ErrTooLarge
		}
		end = d.read + int64(n)
	}
	var fields []Field
	for d.read != end {
		n, err := d.varint()
		switch {
		case err == io.EOF && d.indeterminate && fields == nil:
			d.ended = true
			return nil, nil
		case err != nil:
			return nil, cut(err)
		case n == 0 && d.indeterminate:
			return fields, nil
		case n == 0:
			return nil, &FormatError{"field name", "empty"}
		}
		var f Field
		if f.Name, err = d.fieldText(n, end); err == nil {
			if n, err = d.varint(); err == nil {
				f.Value, err = d.fieldText(n, end)
			}
		}
		if err != nil {
			return nil, cut(err)
		}
		if d.limits.Fields--; d.limits.Fields < 0 {
			return nil, ErrTooLarge
		}
		fields = append(fields, f)
	}
	return fields, nil
}

func (d *Body) fieldText(n uint64, end int64) (string, error) {
	if end >= 0 && (d.read > end || n > uint64(end-d.read)) {
		return "", &FormatError{"field section", "longer than its length"}
	}
	return d.text(n)
}

// text reads n bytes at the expense of the head's limit.
func (d *Body) text(n uint64) (string, error) {
	if n > uint64(d.limits.Head) {
		return "", ErrTooLarge
	}
	d.limits.Head -= int(n)
	b := make([]byte, n)
	got, err := io.ReadFull(d.src, b)
	d.read += int64(got)
	if err != nil {
		return "", err
	}
	s := string(b)
	clear(b)
	return s, nil
}

func (d *Body) varint() (uint64, error) {
	v, size, err := ReadVarint(d.src)
	d.read += int64(size)
	return v, err
}

// cut makes an error of the source into one of the message: a message that the source could not
// give to its end is cut short.
func cut(err error) error {
	var format *FormatError
	switch {
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return ErrTruncated
	case err == ErrTooLarge, errors.As(err, &format):
		return err
	}
	return fmt.Errorf("%w: %w", ErrTruncated, err)
}
