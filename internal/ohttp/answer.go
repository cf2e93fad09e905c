// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// answer seals or opens a response. Its keys come from the context of the request and from a nonce
// of the response's own.
//
// Invariant: counter is the number of nonces used so far, so no nonce is used twice.
type answer struct {
	gcm     cipher.AEAD
	nonce   [nonceSize]byte
	counter uint64
}

// newAnswer derives the keys (RFC 9458, section 4.4). It wipes secret, also when it fails.
func newAnswer(a *aead, secret, enc, responseNonce []byte) (*answer, error) {
	defer clear(secret)
	salt := append(append(make([]byte, 0, len(enc)+len(responseNonce)), enc...), responseNonce...)
	prk, err := hkdf.Extract(sha256.New, secret, salt)
	if err != nil {
		return nil, err
	}
	defer clear(prk)
	key, err := hkdf.Expand(sha256.New, prk, "key", a.key)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	nonce, err := hkdf.Expand(sha256.New, prk, "nonce", nonceSize)
	if err != nil {
		return nil, err
	}
	x := &answer{nonce: [nonceSize]byte(nonce)}
	clear(nonce)
	// Strict FIPS mode allows counted nonces only within HPKE and TLS. These are the nonces of
	// HPKE: derived from a fresh secret, and counted up, each used once.
	fips140.WithoutEnforcement(func() {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			x.gcm, err = cipher.NewGCM(block)
			wipe(block)
		}
	})
	if err != nil {
		return nil, err
	}
	return x, nil
}

// next returns the next nonce.
func (x *answer) next() []byte {
	nonce := x.nonce
	tail := nonce[nonceSize-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^x.counter)
	x.counter++ // Reader and Writer end long before it wraps
	return nonce[:]
}

func (x *answer) seal(dst, plain []byte, final bool) ([]byte, error) {
	return x.gcm.Seal(dst, x.next(), plain, aad(final)), nil
}

// open opens a chunk in place.
func (x *answer) open(chunk []byte, final bool) ([]byte, error) {
	return x.gcm.Open(chunk[:0], x.next(), chunk, aad(final))
}

func (x *answer) wipe() {
	wipe(x.gcm)
	clear(x.nonce[:])
}

// responseReader makes the Reader of a response. The Reader reads the nonce of the response when
// its first chunk is asked for.
func responseReader(src io.Reader, max int, a *aead, secret, enc []byte) *Reader {
	r := newReader(src, max, nil, func() { clear(secret) })
	r.start = func(r *Reader) error {
		nonce := make([]byte, a.key)
		if _, err := io.ReadFull(r.src, nonce); err != nil {
			return cut(err)
		}
		x, err := newAnswer(a, secret, enc, nonce)
		if err != nil {
			return err
		}
		r.open, r.done = x.open, x.wipe
		return nil
	}
	return r
}

// responseWriter makes the Writer of a response, with a fresh nonce.
func responseWriter(dst io.Writer, a *aead, secret, enc []byte) (*Writer, error) {
	nonce := make([]byte, a.key, a.key+MaxChunk+tagSize+4)
	rand.Read(nonce)
	x, err := newAnswer(a, secret, enc, nonce)
	if err != nil {
		return nil, err
	}
	return newWriter(dst, nonce, x.seal, x.wipe), nil
}
