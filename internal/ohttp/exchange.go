// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// Exchange is the gateway's half of one exchange: one request to read, and one answer to seal.
//
// Invariant: secret is set until Response gives it to a Writer or Close wipes it.
type Exchange struct {
	config  *Config // with the request's AEAD
	request *Reader
	head    []byte // header and enc
	id      [sha256.Size]byte
	secret  []byte // for the keys of the answer; nil once used
}

// Keys finds the key of a request.
type Keys interface {
	// Key returns nil if there is no key of this id and KEM.
	Key(id uint8, kem uint16) *PrivateKey
}

// Open reads the head of a request from src and sets up its keys. It reads no chunk. A chunk may
// hold up to maxChunk bytes, or MaxChunk if that is more. The error is ErrUnknownKey, ErrDecryption
// or ErrTruncated.
//
// Nothing about the request is authentic before its first chunk has opened, and nobody should act
// on the request before all chunks have opened. The caller bounds how much src yields and how long
// it takes, because anyone can make a gateway decapsulate.
func Open(src io.Reader, keys Keys, maxChunk int) (*Exchange, error) {
	return open(src, keys, maxChunk, chunked)
}

func open(src io.Reader, keys Keys, maxChunk int, l labels) (*Exchange, error) {
	r := newReader(src, maxChunk, nil, nil)
	head := make([]byte, headerLen, headerLen+kems[0].enc)
	if err := r.readFull(head); err != nil {
		return nil, cut(err)
	}
	key := keys.Key(head[0], binary.BigEndian.Uint16(head[1:]))
	if key == nil {
		return nil, ErrUnknownKey
	}
	c := key.configOf(head)
	if c == nil {
		return nil, ErrUnknownKey
	}
	head = head[:headerLen+c.kem.enc]
	if err := r.readFull(head[headerLen:]); err != nil {
		return nil, cut(err)
	}
	recipient, secret, err := key.recipient(c.aead, head[headerLen:], head[:headerLen], l)
	if err != nil {
		return nil, err
	}
	r.open, r.done = openWith(recipient)
	return &Exchange{c, r, head, sha256.Sum256(head), secret}, nil
}

// openWith returns the function that opens the chunks of a request, and one that wipes its keys.
func openWith(recipient *hpke.Recipient) (func([]byte, bool) ([]byte, error), func()) {
	if s := contextOf(nil, recipient); s != nil {
		return s.open, func() { clear(s.nonce[:]); wipe(recipient) } // and with it the cipher of s
	}
	return func(chunk []byte, final bool) ([]byte, error) {
		return recipient.Open(aad(final), chunk)
	}, func() { wipe(recipient) }
}

// Request returns the Reader of the message. It is the same one at every call.
func (x *Exchange) Request() *Reader { return x.request }

// ID identifies the request: the SHA-256 of its header and encapsulated secret. A request that
// comes again has the same ID. A gateway remembers the ID against replays once it has read the
// request to its end.
func (x *Exchange) ID() [sha256.Size]byte { return x.id }

// Response returns a Writer that seals the answer. It works once, at any time. The Writer has keys
// of its own: the caller closes both.
func (x *Exchange) Response(dst io.Writer) (*Writer, error) {
	if x.secret == nil {
		return nil, ErrUsed
	}
	secret := x.secret
	x.secret = nil
	return responseWriter(dst, x.config.aead, secret, x.head[headerLen:])
}

// Close wipes the keys of the request, and those of the answer if Response was not called. It is
// idempotent.
func (x *Exchange) Close() {
	x.request.Close()
	clear(x.secret)
	x.secret = nil
}
