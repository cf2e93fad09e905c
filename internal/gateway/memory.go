// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"io"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// The copies of a body on its way through the gateway, beside those of the kernel, and of net/http
// and crypto/tls, which have ciphertext from the client's side and wiped memory towards the
// upstream:
//
//   - A sealed request is read into the buffer of an [ohttp.Reader], and its chunks are opened
//     there. None.
//   - What opened is copied into pieces: nothing acts on a request before its final chunk has
//     opened, and what stands between the chunks is left behind. One.
//   - On the way upstream a piece of it at a time is copied once more, by the connection: net/http
//     hides where the body lies, and its own copy would not be wiped. Two.
//   - An answer is read from the upstream's connection into an answerEncoder's buffer. The cipher
//     reads it there and writes the sealed chunks, which net/http sends. None; with padding two
//     (see answerEncoder).

// pieceSize is the capacity of a large piece of content: four chunks of an answer, with what stands
// around them.
const pieceSize = 4*ohttp.PassChunk + 1<<10

// buffers are pieces of memory of pieceSize, which requests use one after another. They hold zeros
// meanwhile: content of one client is never there when another's comes.
//
// A request's content is copied three times between the connections:
//
//  1. net/http writes ciphertext into the buffer of an ohttp.Reader: it has no other way to hand it
//     over. It is opened there, in place.
//  2. From there it goes into pieces, where all of it waits: nothing acts on a request before its
//     last chunk has opened, and the binary HTTP message has lengths between its pieces.
//  3. An httpx.Sent copies it into the memory of net/http's transport, which may read on when the
//     request is over. It never gets memory that is wiped and used again.
//
// For answers, answerEncoder counts.
type buffers struct{ pool sync.Pool }

// get returns memory of pieceSize bytes.
func (p *buffers) get() []byte {
	if b, ok := p.pool.Get().(*[pieceSize]byte); ok {
		return b[:]
	}
	return make([]byte, pieceSize)
}

// put takes a piece that is wiped. It leaves smaller memory to the garbage collector.
func (p *buffers) put(wiped []byte) {
	if cap(wiped) == pieceSize {
		p.pool.Put((*[pieceSize]byte)(wiped[:pieceSize]))
	}
}

// readPieces reads content to its end. What is stated to come is believed up to one piece, so that
// a sender gains nothing by stating more. After an error everything is wiped.
func (p *buffers) readPieces(body *bhttp.Body) (read [][]byte, err error) {
	var size int
	for {
		left, err := body.Left()
		if err == nil {
			if len(read) == 0 || len(read[len(read)-1]) == cap(read[len(read)-1]) {
				read = append(read, p.room(left, size))
			}
			last := &read[len(read)-1]
			var n int
			n, err = body.Read((*last)[len(*last):cap(*last)])
			*last, size = (*last)[:len(*last)+n], size+n
		}
		switch {
		case err == io.EOF:
			return read, nil
		case err != nil:
			p.wipe(read)
			return nil, err
		}
	}
}

// room is memory for what comes next of content of which so many bytes have come.
func (p *buffers) room(left int64, come int) []byte {
	const small = 8 << 10
	if left <= small && come < small {
		return make([]byte, 0, max(int(left), come, 512))
	}
	return p.get()[:0]
}

// wipe wipes pieces and takes them back.
func (p *buffers) wipe(read [][]byte) {
	for _, b := range read {
		clear(b[:cap(b)])
		p.put(b)
	}
}
