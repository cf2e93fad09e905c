// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"
	"errors"
	"io"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// Chunk is a checked chat.completion.chunk of a stream. Its memory belongs to the reader, until the
// next call.
type Chunk struct {
	Data []byte // as SDKs read it, in one line
	Raw  []byte // as it came
}

// ChunkReader reads the event stream of a chat completion, and says what its end is. It is the one
// reader of streams: whatever tolerance real servers need stands here, so that all callers come to
// one verdict.
type ChunkReader struct {
	events *sse.Reader
	asked  int // choices
	finish sse.Finish
	repair chunkRepair
	alike  sse.Alike
	buf    []byte
	err    error
}

// NewChunkReader reads from src, which ends with io.EOF only if its end is authentic. An event has
// most bytes at most, and asked choices were asked for. The caller wipes the reader.
func NewChunkReader(src io.Reader, most, asked int) *ChunkReader {
	return &ChunkReader{events: sse.NewReader(src, most), asked: asked}
}

// Next returns the next chunk. Its error is io.EOF at the end of a complete answer: at [DONE],
// which ends it whatever follows, or where every choice that was seen has its finish reason, and
// all that were asked for were seen. Other ends are fault.ErrTruncated, an error within the stream
// is *ErrorObject, and what is no chunk and should be one fault.ErrResponseSchema. Errors stay.
func (r *ChunkReader) Next() (Chunk, error) {
	for r.err == nil {
		e, err := r.events.Next()
		if err == io.EOF {
			if missing := r.finish.Missing(r.asked); missing != "" {
				err = &fault.TruncatedError{What: "the stream ends without " + missing}
			}
		}
		if err != nil {
			r.err = err
			break
		}
		if r.alike.Is(e) && !r.repair.holds {
			return Chunk{Data: e.Data, Raw: e.Data}, nil
		}
		if e.IsDone() {
			r.err = io.EOF
			break
		}
		chunk, err := CheckChunk(e)
		if e.Unended && errors.Is(err, fault.ErrResponseSchema) {
			err = &fault.TruncatedError{What: "the stream ends within an event"}
		}
		if err != nil {
			r.err = err
			break
		}
		if chunk {
			return r.chunk(e), nil
		}
	}
	return Chunk{}, r.err
}

// End reads what follows [DONE], and is no part of the answer: all that is left to learn is whether
// the end is one. Its error is io.EOF then.
func (r *ChunkReader) End() error {
	for r.err == io.EOF {
		if _, err := r.events.Next(); err != nil {
			return err
		}
	}
	return r.err
}

func (r *ChunkReader) chunk(e sse.Event) Chunk {
	c := Chunk{Data: sse.Trim(e.Data), Raw: e.Data}
	r.finish.See(e.Data)
	repaired := r.repair.repaired(c.Data)
	if repaired != nil {
		c.Data = r.keep(repaired)
	}
	if bytes.IndexByte(c.Data, '\n') >= 0 {
		c.Data = r.keep(AppendLine(make([]byte, 0, len(c.Data)), c.Data))
	} else if repaired == nil && len(c.Data) == len(c.Raw) {
		r.alike.Learn(e)
	}
	return c
}

// keep has Wipe, or the next one, clear text.
func (r *ChunkReader) keep(text []byte) []byte {
	clear(r.buf)
	r.buf = text
	return text
}

// Wipe clears what was read. Nothing can be read after it.
func (r *ChunkReader) Wipe() {
	r.events.Wipe()
	clear(r.buf)
	r.repair = chunkRepair{}
	r.alike.Forget()
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
}
