// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/hpke"
	"crypto/sha256"
	"io"
	"slices"
)

// Request is the client's half of one exchange: one message to seal, and one answer to open.
//
// Invariant: sender is set until Seal or Writer uses it, and secret until Response uses it. Close
// wipes those that are left.
type Request struct {
	config *Config
	sender *hpke.Sender // nil once used
	head   []byte       // header and enc
	secret []byte       // for the keys of the answer; nil once used
}

// NewRequest encapsulates a new secret to the key of c. The caller closes the Request.
func NewRequest(c *Config) (*Request, error) { return newRequest(c, chunked) }

func newRequest(c *Config, l labels) (*Request, error) {
	header := c.header()
	enc, sender, err := hpke.NewSender(c.public, hpke.HKDFSHA256(), c.aead.new(), l.info(header))
	if err != nil {
		return nil, err
	}
	secret, err := sender.Export(l.response, c.aead.key)
	if err != nil {
		return nil, err
	}
	return &Request{c, sender, append(header, enc...), secret}, nil
}

// ID returns what [Exchange.ID] returns at the gateway.
func (q *Request) ID() [sha256.Size]byte { return sha256.Sum256(q.head) }

// Seal appends the sealed request with the given message to dst. It works once, and not together
// with Writer. The caller keeps message.
func (q *Request) Seal(dst, message []byte) ([]byte, error) { return q.SealParts(dst, nil, message) }

// SealedSize is how many bytes Seal appends for a message of n bytes, at most.
func (q *Request) SealedSize(n int) int { return len(q.head) + n + (n/MaxChunk+1)*(4+tagSize) }

// SealParts is Seal for a message that is in several parts. It seals from where they lie: only a
// chunk that crosses from one part into the next is put together before, in buffer, which has
// MaxChunk bytes, or as many as the parts together. The caller keeps and wipes buffer and parts.
// dst grows at most once.
func (q *Request) SealParts(dst, buffer []byte, parts ...[]byte) ([]byte, error) {
	sender := q.take()
	if sender == nil {
		return nil, ErrUsed
	}
	seal, done := sealWith(sender)
	defer done()
	m := &parted{parts: slices.Clone(parts)}
	for _, p := range parts {
		m.left += len(p)
	}
	dst = append(slices.Grow(dst, q.SealedSize(m.left)), q.head...)
	left := uint64(maxChunks)
	for {
		final := m.left <= MaxChunk
		var err error
		if dst, err = appendChunk(dst, m.next(MaxChunk, buffer), final, seal, &left); err != nil ||
			final {
			return dst, err
		}
	}
}

// parted is what is left of a message in parts.
type parted struct {
	parts [][]byte
	left  int // bytes of all parts
}

// next cuts the next n bytes off, or all that are left. They lie in buffer if they are of several
// parts.
func (m *parted) next(n int, buffer []byte) []byte {
	n = min(n, m.left)
	m.left -= n
	for len(m.parts) > 0 && len(m.parts[0]) == 0 {
		m.parts = m.parts[1:]
	}
	if n == 0 || len(m.parts[0]) >= n {
		return m.cut(n)
	}
	together := buffer[:0]
	for len(together) < n {
		together = append(together, m.cut(min(n-len(together), len(m.parts[0])))...)
		if len(m.parts[0]) == 0 {
			m.parts = m.parts[1:]
		}
	}
	return together
}

// cut cuts n bytes off the first part.
func (m *parted) cut(n int) []byte {
	if n == 0 {
		return nil
	}
	p := m.parts[0]
	m.parts[0] = p[n:]
	return p[:n:n]
}

// Writer returns a Writer that seals the request piece by piece. It works once, and not together
// with Seal. The Writer has keys of its own: the caller closes both.
func (q *Request) Writer(dst io.Writer) (*Writer, error) {
	sender := q.take()
	if sender == nil {
		return nil, ErrUsed
	}
	seal, done := sealWith(sender)
	return newWriter(dst, slices.Clone(q.head), seal, done), nil
}

// take returns the sender, once.
func (q *Request) take() *hpke.Sender {
	sender := q.sender
	q.sender = nil
	return sender
}

// sealWith returns the function that seals the chunks of a request, and one that wipes its keys.
func sealWith(sender *hpke.Sender) (sealFunc, func()) {
	if s := contextOf(sender, nil); s != nil {
		return s.seal, func() { clear(s.nonce[:]); wipe(sender) } // and with it the cipher of s
	}
	return func(dst, plain []byte, final bool) ([]byte, error) {
		sealed, err := sender.Seal(aad(final), plain)
		return append(dst, sealed...), err
	}, func() { wipe(sender) }
}

// Response returns a Reader that opens the answer in src. A chunk may hold up to maxChunk bytes, or
// MaxChunk if that is more. It works once. The Reader has keys of its own: the caller closes both.
func (q *Request) Response(src io.Reader, maxChunk int) (*Reader, error) {
	if q.secret == nil {
		return nil, ErrUsed
	}
	r := responseReader(src, maxChunk, q.config.aead, q.secret, q.head[headerLen:])
	q.secret = nil
	return r, nil
}

// Close wipes the keys that were not used. It is idempotent.
func (q *Request) Close() {
	if sender := q.take(); sender != nil {
		wipe(sender)
	}
	clear(q.secret)
	q.secret = nil
}
