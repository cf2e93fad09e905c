// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/ecdh"
	"crypto/sha3"
	"encoding/binary"
	"errors"
	"io"
)

// OpenRequest opens a sealed request with the seed of its key, from the specification.
func OpenRequest(seed, body []byte) ([]byte, error) {
	q, _, _, err := context(seed, body)
	if err != nil {
		return nil, err
	}
	return openChunks(newSealer(q.HPKEKey, q.BaseNonce), body[len(q.Header)+len(q.Enc):])
}

// OpenAnswer opens the answer to a sealed request with the seed of that one's key.
func OpenAnswer(seed, request, body []byte) ([]byte, error) {
	q, k, aead, err := context(seed, request)
	if n := keySize(aead); err != nil || len(body) < n {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	n := keySize(aead)
	var a Answer
	a.schedule(k, aead, q, body[:n])
	return openChunks(newSealer(a.AEADKey, a.BaseNonce), body[n:])
}

// context is the context of a request's body.
func context(seed, body []byte) (q Request, k Key, aead uint16, err error) {
	if len(body) < 7 {
		return q, k, 0, io.ErrUnexpectedEOF
	}
	k = Key{ID: body[0], KEM: binary.BigEndian.Uint16(body[1:])}
	aead = binary.BigEndian.Uint16(body[5:])
	n := 7 + 32
	if k.KEM == xwing {
		n = 7 + 1120
	}
	if len(body) < n {
		return q, k, 0, io.ErrUnexpectedEOF
	}
	q.Enc = body[7:n]
	if q.SharedSecret, err = decapsulate(k.KEM, seed, q.Enc); err == nil {
		q.expand(k, aead)
	}
	return q, k, aead, err
}

func decapsulate(kem uint16, seed, enc []byte) ([]byte, error) {
	var own *ecdh.PrivateKey
	var shared []byte
	if kem == xwing {
		pq, t := expand(seed)
		var err error
		if shared, err = pq.Decapsulate(enc[:1088]); err != nil {
			return nil, err
		}
		own, enc = t, enc[1088:]
	} else {
		own = must(ecdh.X25519().NewPrivateKey(seed))
	}
	peer, err := ecdh.X25519().NewPublicKey(enc)
	if err != nil {
		return nil, err
	}
	dh, err := own.ECDH(peer)
	if err != nil {
		return nil, err
	}
	public := own.PublicKey().Bytes()
	if kem == xwing {
		sum := sha3.Sum256(join(shared, dh, enc, public, []byte(xwingLabel)))
		return sum[:], nil
	}
	return dhkem(dh, enc, public), nil
}

// openChunks opens the chunks of a request.
func openChunks(s *sealer, body []byte) (message []byte, err error) {
	for len(body) > 0 {
		size := 1 << (body[0] >> 6)
		if len(body) < size {
			break
		}
		n := int(body[0] & 0x3f)
		for _, b := range body[1:size] {
			n = n<<8 | int(b)
		}
		body = body[size:]
		final := n == 0
		if final {
			n = len(body)
		}
		if len(body) < n {
			break
		}
		plain, err := s.open(body[:n], final)
		message = join(message, plain)
		if err != nil || final {
			return message, err
		}
		body = body[n:]
	}
	return message, errors.Join(io.ErrUnexpectedEOF, err)
}
