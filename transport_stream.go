// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// passStream is a chat completion's answer as an event stream for the SDK, which reads what Stream
// reads: one event a chunk, in OpenAI's form, and [DONE].
func (c *SecureCompletionClient) passStream(req *http.Request, resp *openedResponse,
	call *chatjson.Call) *http.Response {
	out := passOn(req, resp)
	out.Header.Set("Content-Type", mediaEventsUTF8)
	out.Header.Del("Content-Length")
	out.ContentLength = -1
	out.Body = &sdkStreamBody{resp: resp, answer: c.answerOf(req.Context(), resp, call)}
	return out
}

// sdkStreamBody is the text of an event stream. Close may be called at any time, from any
// goroutine.
type sdkStreamBody struct {
	resp *openedResponse

	mu     sync.Mutex
	answer *streamedAnswer
	line   []byte // of the present event
	from   int    // what of line was read
	done   bool   // line is [DONE]
	err    error  // what follows line, unless it is nil
}

// Read implements [io.Reader].
func (b *sdkStreamBody) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if b.from == len(b.line) {
		b.fill()
	}
	n = copy(p, b.line[b.from:])
	b.from += n
	if n > 0 {
		return n, nil
	}
	return 0, b.err
}

// fill makes the next line, or sets err.
func (b *sdkStreamBody) fill() {
	b.from, b.line = 0, b.line[:0]
	switch {
	case b.err != nil:
		return
	case b.done:
		b.err = b.answer.end()
		return
	}
	chunk, err := b.answer.next()
	if err == nil {
		b.event(chunk.Data)
		return
	}
	if err == io.EOF {
		b.done = true
		b.event([]byte("[DONE]"))
		return
	}
	b.err = err
	if failed, ok := errors.AsType[*chatjson.ErrorObject](err); ok {
		b.err = answerError(err)
		b.event(failed.Data) // the SDK's own way to learn of it
	}
}

func (b *sdkStreamBody) event(data []byte) { b.line = chatjson.AppendEvent(b.line, data) }

// Close gives the rest of the answer up.
func (b *sdkStreamBody) Close() error {
	_ = b.resp.body.Close() // a Read that waits ends
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer.wipe()
	clear(b.line[:cap(b.line)])
	b.line, b.from = nil, 0
	if b.err == nil {
		b.err = errBodyClosed
	}
	return nil
}

// boundedBody is a body that is made on this machine, and ends with its request's context all the
// same.
type boundedBody struct {
	ctx context.Context
	io.ReadCloser
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, fault.Ended(b.ctx)
	}
	return b.ReadCloser.Read(p)
}

// sdkWhole is a whole answer, which Close wipes and gives to spare.
func sdkWhole(req *http.Request, answer []byte, spare *httpx.Spare) *http.Response {
	resp := sdkResponse(req, http.StatusOK, mediaJSON, answer)
	resp.Body = &wholeBody{answer: answer, spare: spare}
	return resp
}

// wholeBody reads an answer that is all there. Close may be called at any time, from any goroutine.
type wholeBody struct {
	mu     sync.Mutex
	answer []byte // nil after Close
	from   int    // what of answer was read
	spare  *httpx.Spare
}

// Read implements [io.Reader].
func (b *wholeBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answer == nil {
		return 0, errBodyClosed
	}
	n := copy(p, b.answer[b.from:])
	if b.from += n; n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Close wipes the answer.
func (b *wholeBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spare.Put(b.answer)
	b.answer = nil
	return nil
}
