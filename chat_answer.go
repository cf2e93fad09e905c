// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"io"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// streamedAnswer hands out the chunks of an answer to Stream and to HTTPClient alike: those that
// the server sent, or those that are made of an answer that came whole. It is for one goroutine at
// a time. What it is shows when the answer's content begins, whatever its media type says.
type streamedAnswer struct {
	c         *SecureCompletionClient
	ctx       context.Context // of the call, which bounds what is made too
	call      *chatjson.Call
	payloadID string

	resp   *openedResponse       // nil of an answer that came whole
	events *chatjson.ChunkReader // of resp, once its content has begun
	made   *chatjson.Events
	whole  []byte // that made is made of
}

// answerOf is the answer that resp holds, whose body stays the caller's to close.
func (c *SecureCompletionClient) answerOf(ctx context.Context, resp *openedResponse,
	call *chatjson.Call) *streamedAnswer {
	return &streamedAnswer{c: c, ctx: ctx, call: call, payloadID: resp.payloadID, resp: resp}
}

// madeAnswer is a whole answer, which it wipes.
func (c *SecureCompletionClient) madeAnswer(ctx context.Context, whole *completion,
	usage bool) (*streamedAnswer, error) {
	a := &streamedAnswer{c: c, ctx: ctx, call: &chatjson.Call{IncludeUsage: usage},
		payloadID: whole.payloadID}
	return a, a.make(whole)
}

func (a *streamedAnswer) make(whole *completion) error {
	events, err := chatjson.NewEvents(whole.plaintext, a.call.IncludeUsage)
	if err != nil {
		clear(whole.plaintext)
		return a.c.tellSchema(a.ctx, a.payloadID, err)
	}
	a.made, a.whole = events, whole.plaintext
	return nil
}

// begin waits for the answer's first bytes, and finds out what it is.
func (a *streamedAnswer) begin() error {
	form, err := a.resp.sniff()
	if err != nil {
		return err
	}
	if form == sse.FormJSON || !a.resp.saysEvents() && !a.resp.beginsEvents() {
		whole, err := a.c.readWhole(a.ctx, a.resp)
		if err != nil {
			return err
		}
		return a.make(whole)
	}
	a.events = chatjson.NewChunkReader(a.resp.content(),
		int(min(a.c.cfg.MaxResponseBytes, maxBytes)), a.call.Choices)
	return nil
}

// next returns the next chunk, which is overwritten by the next call, or io.EOF.
func (a *streamedAnswer) next() (chatjson.Chunk, error) {
	if a.events == nil && a.made == nil {
		if err := a.begin(); err != nil {
			return chatjson.Chunk{}, err
		}
	}
	if a.events != nil {
		chunk, err := a.events.Next()
		if err != nil && err != io.EOF {
			err = a.c.tellSchema(a.ctx, a.payloadID, err)
		}
		return chunk, err
	}
	if a.ctx.Err() != nil {
		return chatjson.Chunk{}, fault.Ended(a.ctx)
	}
	text, err := a.made.Next()
	return chatjson.Chunk{Data: text, Raw: text}, err
}

// end tells, behind the last chunk, whether the end is one: io.EOF then.
func (a *streamedAnswer) end() error {
	if a.events == nil {
		return io.EOF
	}
	return a.events.End()
}

// each gives each chunk to yield, and wipes the answer. It returns nil at the end, and after yield
// returned false.
func (a *streamedAnswer) each(yield func(*ChatChunk) bool) error {
	defer a.wipe()
	for {
		text, err := a.next()
		if err == io.EOF {
			if err = a.end(); err == io.EOF {
				return nil
			}
		}
		if err != nil {
			return answerError(err)
		}
		chunk, err := decodeChunk(text.Data)
		if err != nil {
			return a.c.tellSchema(a.ctx, a.payloadID, err)
		}
		if !bytes.Equal(text.Data, text.Raw) {
			chunk.Raw = bytes.Clone(text.Raw)
		}
		chunk.PayloadID = a.payloadID
		if !yield(chunk) {
			return nil
		}
	}
}

func (a *streamedAnswer) wipe() {
	if a.events != nil {
		a.events.Wipe()
	}
	if a.made != nil {
		a.made.Wipe()
	}
	clear(a.whole)
	if a.resp != nil {
		clear(a.resp.begun)
	}
}
