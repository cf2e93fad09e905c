// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"errors"
	"fmt"
	"io"
)

// Source is the stream that a message is read from. Its errors, except io.EOF, become causes of the
// errors of this package.
type Source interface {
	io.Reader
	io.ByteReader
}

// ReadRequest reads the control data and the header of a request, of known or indeterminate length.
// It reads nothing after them: the caller reads the rest from the Body.
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

// ReadResponse is ReadRequest for a response. It returns once the final status and its header have
// arrived.
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

// Body reads the content of a message, then its trailer and its padding. It is not safe for
// concurrent use.
//
// Invariant: src stands at the next piece of content, or inside a piece of which left bytes remain.
// The limits hold how much the message may still use. Once err is set, it stays.
type Body struct {
	src           Source
	limits        Limits // how much of each remains
	response      bool
	indeterminate bool
	ended         bool // the source ended at a place where the rest of the message may be left out

	read     int64 // bytes read from the source
	declared int64 // content-length, or -1
	length   int64 // of the content, so far
	left     int64 // bytes that remain of the known content, or of the current chunk
	begun    bool  // the first length was read
	trailer  []Field
	err      error
}

func newBody(src Source, limits Limits, response bool) *Body {
	return &Body{src: src, limits: limits.withDefaults(), response: response, declared: -1}
}

// Read reads content as it arrives. It returns io.EOF only after it has read everything that
// follows the content, up to the end of the source, and has found it valid.
func (d *Body) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if _, err := d.Left(); err != nil {
		return 0, err
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

// Declared returns the content-length of the message's header, or -1. Nobody has checked it before
// Read has returned io.EOF.
func (d *Body) Declared() int64 { return d.declared }

// Left returns how much content the message says to follow next, 1 at least, so that its reader can
// make room. At the end it returns what Read does.
func (d *Body) Left() (int64, error) {
	if d.err == nil && d.left == 0 {
		d.err = d.nextPiece()
	}
	return d.left, d.err
}

// Trailer returns the trailer section. It is complete once Read has returned io.EOF.
func (d *Body) Trailer() []Field { return d.trailer }

// ReadAll reads the content to its end, into memory that grows as the content arrives. The caller
// wipes the result. ReadAll wipes the memory that it outgrows, and all of it after an error.
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

// grow moves b into larger memory. It trusts a stated length only for the next 64 KiB, so that a
// sender gains nothing by stating more.
func (d *Body) grow(b []byte) []byte {
	grown := make([]byte, len(b), max(2*cap(b), len(b)+1+int(min(d.left, 64<<10))))
	copy(grown, b)
	clear(b)
	return grown
}

// nextPiece sets left to the length of the next piece of content. After the last piece it reads the
// rest of the message and returns io.EOF.
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

// finish checks the length of the content, and reads the trailer and the padding. It returns io.EOF
// if all of it is valid.
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

// framing reads the framing indicator, which has to be one of the two given.
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

// section reads a field section. A message may end before one: then the section and everything
// after it is empty.
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

// fieldText reads a name or a value of n bytes in a section that ends at end; -1 is a section of
// indeterminate length.
func (d *Body) fieldText(n uint64, end int64) (string, error) {
	if end >= 0 && (d.read > end || n > uint64(end-d.read)) {
		return "", &FormatError{"field section", "longer than its length"}
	}
	return d.text(n)
}

// text reads n bytes and counts them against the limit of the head.
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

// varint reads an integer and counts its bytes.
func (d *Body) varint() (uint64, error) {
	v, size, err := ReadVarint(d.src)
	d.read += int64(size)
	return v, err
}

// cut turns an error of the source into one of the message: the source did not give the message to
// its end, so the message is cut short.
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
