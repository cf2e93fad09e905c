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
	"io"
)

// newAnswer makes what seals or opens a response. Its keys come from the context of the request and
// from a nonce of the response's own (RFC 9458, section 4.4). It wipes secret, also when it fails.
func newAnswer(a *aead, secret, enc, responseNonce []byte) (*sealer, error) {
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
	x := &sealer{nonce: [nonceSize]byte(nonce)}
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

// responseReader makes the Reader of a response. The Reader reads the nonce of the response when
// its first chunk is asked for.
func responseReader(src io.Reader, max int, a *aead, secret, enc []byte) *Reader {
	r := newReader(src, max, nil, func() { clear(secret) })
	r.start = func(r *Reader) error {
		nonce := make([]byte, a.key)
		if err := r.readFull(nonce); err != nil {
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
	nonce := make([]byte, a.key)
	rand.Read(nonce)
	x, err := newAnswer(a, secret, enc, nonce)
	if err != nil {
		return nil, err
	}
	return newWriter(dst, nonce, x.seal, x.wipe), nil
}
