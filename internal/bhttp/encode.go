// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import "slices"

// AppendRequest appends q with its content and trailer as a message of known length. If pad is
// above 1, zeros follow until the length of the message is a multiple of pad bytes. dst grows at
// most once.
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

// AppendRequestAround is AppendRequest for a content of so many bytes that lies elsewhere: it
// appends what stands before the content, and then what stands behind it, without a trailer.
// dst[:behind] ends before the content.
func AppendRequestAround(dst []byte, q *Request, length, pad int) (_ []byte, behind int,
	err error) {
	if err := q.check(); err != nil {
		return nil, 0, err
	}
	declared, err := declaredLength(q.Header)
	if err == nil {
		err = checkLength(declared, int64(length), false)
	}
	if err != nil {
		return nil, 0, err
	}
	start := len(dst)
	dst = slices.Grow(dst, q.size()+bodySize(nil, nil, pad))
	dst = q.appendControl(AppendVarint(dst, knownRequest))
	dst = AppendVarint(appendSection(dst, q.Header), uint64(length))
	behind = len(dst)
	dst = appendSection(dst, nil)
	return appendPadding(dst, len(dst)-start+length, pad), behind, nil
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

// appendBody appends content, trailer and padding to the message that begins at start. After an
// error it has wiped that message.
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

// appendPadding appends zeros until length is a multiple of pad.
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

// appendControl appends the control data: method, scheme, authority and path.
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

// size, bodySize and fieldsSize return upper bounds. A buffer that is too small would grow twice,
// and nobody would wipe the copy that it leaves behind.
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

// Encoder encodes one response of indeterminate length, piece by piece. The zero Encoder is ready.
// It is not safe for concurrent use.
//
// The caller calls Informational any number of times, ResponseHead once, Content any number of
// times, and End once. A call in another order panics. A call that returns an error has appended
// nothing, and the caller may repeat it.
type Encoder struct {
	length   int          // bytes that were appended
	state    encoderState // which calls may come next
	declared int64        // content-length, or -1
	content  int64        // bytes of content that were appended
}

// encoderState says how much of the message was appended.
type encoderState int

const (
	atStart   encoderState = iota // nothing was appended
	atHead                        // informational responses only
	atContent                     // the final head, and perhaps content
	atEnd                         // the whole message
)

// step panics if the call is out of order.
func (e *Encoder) step(ok bool) {
	if !ok {
		panic("bhttp: Encoder called out of order")
	}
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
	e.length, e.state = e.length+len(dst)-start, atHead
	return dst, nil
}

// Content appends a piece of the content. An empty piece appends nothing.
func (e *Encoder) Content(dst, piece []byte) []byte {
	e.step(e.state == atContent)
	if len(piece) == 0 {
		return dst
	}
	return append(e.Lead(slices.Grow(dst, MaxLead+len(piece)), len(piece)), piece...)
}

// Lead appends what stands before a piece of the content: its length, in up to MaxLead bytes. The
// caller puts the piece behind it, where that is better than a copy. A piece has a byte or more.
func (e *Encoder) Lead(dst []byte, piece int) []byte {
	e.step(e.state == atContent && piece > 0)
	start := len(dst)
	dst = AppendVarint(dst, uint64(piece))
	e.length += len(dst) - start + piece
	e.content += int64(piece)
	return dst
}

// MaxLead is the most bytes that Lead appends.
const MaxLead = 8

// End appends the end of the content and the trailer. If pad is above 1, zeros follow until the
// length of the whole message is a multiple of pad bytes. End returns an error if the header
// declared another length than the content has.
func (e *Encoder) End(dst []byte, trailer []Field, pad int) ([]byte, error) {
	e.step(e.state == atContent)
	err := checkLength(e.declared, e.content, true)
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
