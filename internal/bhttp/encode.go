// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import "slices"

// AppendRequest appends q with its content and trailer as a message of known length. With pad above
// 1 zeros follow, so that the message has a multiple of pad bytes. dst grows at most once.
func AppendRequest(dst []byte, q *Request, content []byte, trailer []Field, pad int) ([]byte,
	error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	start := len(dst)
	dst = slices.Grow(dst, q.size()+bodySize(content, trailer, pad))
	dst = q.appendControl(AppendVarint(dst, knownRequest))
	dst = appendSection(dst, q.Header)
	return appendBody(dst, start, q.Header, content, trailer, pad, false)
}

// AppendResponse is AppendRequest for a response.
func AppendResponse(dst []byte, p *Response, content []byte, trailer []Field, pad int) ([]byte,
	error) {
	size := 16 + fieldsSize(p.Header)
	for _, i := range p.Informational {
		size += 16 + fieldsSize(i.Header)
		if err := checkHead(i.Status, i.Header, true); err != nil {
			return nil, err
		}
	}
	if err := checkHead(p.Status, p.Header, false); err != nil {
		return nil, err
	}
	start := len(dst)
	dst = AppendVarint(slices.Grow(dst, size+bodySize(content, trailer, pad)), knownResponse)
	for _, i := range p.Informational {
		dst = appendSection(AppendVarint(dst, uint64(i.Status)), i.Header)
	}
	dst = appendSection(AppendVarint(dst, uint64(p.Status)), p.Header)
	return appendBody(dst, start, p.Header, content, trailer, pad, true)
}

func appendBody(dst []byte, start int, header []Field, content []byte, trailer []Field, pad int,
	response bool) ([]byte, error) {
	declared, err := declaredLength(header)
	if err == nil {
		err = checkLength(declared, int64(len(content)), response)
	}
	if err == nil {
		err = checkTrailer(trailer)
	}
	if err != nil {
		clear(dst[start:])
		return nil, err
	}
	dst = append(AppendVarint(dst, uint64(len(content))), content...)
	dst = appendSection(dst, trailer)
	return appendPadding(dst, len(dst)-start, pad), nil
}

func appendPadding(dst []byte, length, pad int) []byte {
	if pad > 1 && length%pad > 0 {
		dst = append(dst, make([]byte, pad-length%pad)...)
	}
	return dst
}

func checkHead(status int, header []Field, informational bool) error {
	if err := checkStatus(uint64(status), informational); err != nil {
		return err
	}
	return checkFields(header)
}

func (q *Request) appendControl(dst []byte) []byte {
	for _, s := range [...]string{q.Method, q.Scheme, q.Authority, q.Path} {
		dst = append(AppendVarint(dst, uint64(len(s))), s...)
	}
	return dst
}

func appendFields(dst []byte, fields []Field) []byte {
	for _, f := range fields {
		dst = append(AppendVarint(dst, uint64(len(f.Name))), f.Name...)
		dst = append(AppendVarint(dst, uint64(len(f.Value))), f.Value...)
	}
	return dst
}

// appendSection appends a field section of known length.
func appendSection(dst []byte, fields []Field) []byte {
	n := 0
	for _, f := range fields {
		n += varintSize(len(f.Name)) + len(f.Name) + varintSize(len(f.Value)) + len(f.Value)
	}
	return appendFields(AppendVarint(dst, uint64(n)), fields)
}

func varintSize(n int) int {
	var b [8]byte
	return len(AppendVarint(b[:0], uint64(n)))
}

// The sizes are upper bounds: a copy that is left behind by a second growth is one that nobody
// wipes.
func (q *Request) size() int {
	return 64 + len(q.Method) + len(q.Scheme) + len(q.Authority) + len(q.Path) +
		fieldsSize(q.Header)
}

func bodySize(content []byte, trailer []Field, pad int) int {
	return 32 + len(content) + fieldsSize(trailer) + max(pad, 0)
}

func fieldsSize(fields []Field) int {
	n := 8
	for _, f := range fields {
		n += 16 + len(f.Name) + len(f.Value)
	}
	return n
}

// Encoder encodes one message of indeterminate length, piece by piece: RequestHead, or
// Informational any number of times and ResponseHead; then Content any number of times; then End.
// It panics when called in another order. The zero Encoder is ready. After an error nothing was
// appended, and the same step may be tried again.
type Encoder struct {
	length   int
	state    encoderState
	response bool
	declared int64
	content  int64
}

type encoderState int

const (
	atStart encoderState = iota
	atHead
	atContent
	atEnd
)

func (e *Encoder) step(ok bool) {
	if !ok {
		panic("bhttp: Encoder called out of order")
	}
}

// RequestHead appends the control data and the header of a request.
func (e *Encoder) RequestHead(dst []byte, q *Request) ([]byte, error) {
	e.step(e.state == atStart)
	declared, err := declaredLength(q.Header)
	if err == nil {
		err = q.check()
	}
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = AppendVarint(slices.Grow(dst, q.size()), indeterminateRequest)
	dst = append(appendFields(q.appendControl(dst), q.Header), 0)
	e.length, e.state, e.declared = len(dst)-start, atContent, declared
	return dst, nil
}

// Informational appends an informational response.
func (e *Encoder) Informational(dst []byte, status int, header []Field) ([]byte, error) {
	return e.responseHead(dst, status, header, true)
}

// ResponseHead appends the final status and the header of a response.
func (e *Encoder) ResponseHead(dst []byte, status int, header []Field) ([]byte, error) {
	declared, err := declaredLength(header)
	if err != nil {
		return nil, err
	}
	if dst, err = e.responseHead(dst, status, header, false); err == nil {
		e.state, e.declared = atContent, declared
	}
	return dst, err
}

func (e *Encoder) responseHead(dst []byte, status int, header []Field, informational bool) ([]byte,
	error) {
	e.step(e.state == atStart || e.state == atHead)
	if err := checkHead(status, header, informational); err != nil {
		return nil, err
	}
	start := len(dst)
	dst = slices.Grow(dst, 32+fieldsSize(header))
	if e.state == atStart {
		dst = AppendVarint(dst, indeterminateResponse)
	}
	dst = append(appendFields(AppendVarint(dst, uint64(status)), header), 0)
	e.length, e.state, e.response = e.length+len(dst)-start, atHead, true
	return dst, nil
}

// Content appends a piece of the content. An empty piece appends nothing.
func (e *Encoder) Content(dst, piece []byte) []byte {
	e.step(e.state == atContent)
	if len(piece) == 0 {
		return dst
	}
	start := len(dst)
	dst = append(AppendVarint(slices.Grow(dst, 8+len(piece)), uint64(len(piece))), piece...)
	e.length += len(dst) - start
	e.content += int64(len(piece))
	return dst
}

// End appends the end of the content, the trailer, and zeros up to a multiple of pad bytes of the
// whole message if pad is above 1. It is an error if the header declared another length than the
// content has.
func (e *Encoder) End(dst []byte, trailer []Field, pad int) ([]byte, error) {
	e.step(e.state == atContent)
	err := checkLength(e.declared, e.content, e.response)
	if err == nil {
		err = checkTrailer(trailer)
	}
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = append(slices.Grow(dst, 2+fieldsSize(trailer)+max(pad, 0)), 0)
	dst = append(appendFields(dst, trailer), 0)
	e.state = atEnd
	return appendPadding(dst, e.length+len(dst)-start, pad), nil
}
