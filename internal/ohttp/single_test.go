// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/rand"
	"io"
	"testing"
)

// The messages of RFC 9458 that are not in chunks. The protocol of this package has no use for
// them; they share its key schedule, and the RFC has examples of them.

// TestSingle makes an exchange in the form without chunks, and checks that neither form opens as
// the other.
func TestSingle(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		sealed, q, err := sealSingle(key.config, []byte("question"))
		if err != nil {
			t.Fatal(err)
		}
		message, x, err := openSingle(sealed, key)
		if err != nil || string(message) != "question" {
			t.Fatalf("%q, %v", message, err)
		}
		chunk := append([]byte{0}, sealed[headerLen+key.config.kem.enc:]...)
		for _, body := range [][]byte{sealed[headerLen+key.config.kem.enc:], chunk} {
			if _, got, err := openRequest(append(bytes.Clone(sealed[:headerLen+key.config.kem.enc]),
				body...), key); err == nil {
				t.Errorf("in chunks it opens to %q", got)
			}
		}
		answer, err := x.sealSingleResponse([]byte("answer"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readAnswer(q, answer); err == nil {
			t.Errorf("in chunks the answer opens to %q", got)
		}
		if got, err := q.openSingleResponse(answer); err != nil || string(got) != "answer" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// sealSingle seals a message as message/ohttp-req.
func sealSingle(c *Config, message []byte) ([]byte, *Request, error) {
	q, err := newRequest(c, single)
	if err != nil {
		return nil, nil, err
	}
	sender := q.take()
	defer wipe(sender)
	sealed, err := sender.Seal(nil, message)
	return append(q.head, sealed...), q, err
}

// openSingle opens message/ohttp-req.
func openSingle(sealed []byte, keys Keys) ([]byte, *Exchange, error) {
	src := bytes.NewReader(sealed)
	x, err := open(src, keys, 0, single)
	if err != nil {
		return nil, nil, err
	}
	rest, err := io.ReadAll(src)
	if err != nil {
		return nil, nil, err
	}
	ahead := x.request.buf[x.request.from:x.request.to]
	message, err := x.request.open(append(bytes.Clone(ahead), rest...), false)
	if err != nil {
		return nil, nil, ErrDecryption
	}
	return message, x, nil
}

// sealSingleResponse seals message/ohttp-res.
func (x *Exchange) sealSingleResponse(message []byte) ([]byte, error) {
	nonce := make([]byte, x.config.aead.key)
	rand.Read(nonce)
	a, err := newAnswer(x.config.aead, x.secret, x.head[headerLen:], nonce)
	if err != nil {
		return nil, err
	}
	return a.seal(nonce, message, false)
}

// openSingleResponse opens message/ohttp-res.
func (q *Request) openSingleResponse(sealed []byte) ([]byte, error) {
	n := q.config.aead.key
	if len(sealed) < n+tagSize {
		return nil, ErrTruncated
	}
	a, err := newAnswer(q.config.aead, q.secret, q.head[headerLen:], sealed[:n])
	if err != nil {
		return nil, err
	}
	message, err := a.open(bytes.Clone(sealed[n:]), false)
	if err != nil {
		return nil, ErrDecryption
	}
	return message, nil
}
