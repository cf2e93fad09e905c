// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/cipher"
	"crypto/hpke"
	"reflect"
	"unsafe"
)

// sealer seals or opens the chunks of one message.
//
// Invariant: counter is the number of nonces used so far, so no nonce is used twice.
type sealer struct {
	gcm     cipher.AEAD
	nonce   [nonceSize]byte
	counter uint64
}

// next returns the next nonce (RFC 9180, section 5.2).
func (s *sealer) next() (nonce [nonceSize]byte) {
	nonce = s.nonce
	for i, c := 0, s.counter; i < 8; i, c = i+1, c>>8 {
		nonce[nonceSize-1-i] ^= byte(c)
	}
	s.counter++ // Reader and Writer end long before it wraps
	return nonce
}

// seal appends the sealed chunk to dst.
func (s *sealer) seal(dst, plain []byte, final bool) ([]byte, error) {
	nonce := s.next()
	return s.gcm.Seal(dst, nonce[:], plain, aad(final)), nil
}

// open opens a chunk in place.
func (s *sealer) open(chunk []byte, final bool) ([]byte, error) {
	nonce := s.next()
	return s.gcm.Open(chunk[:0], nonce[:], chunk, aad(final))
}

func (s *sealer) wipe() {
	wipe(s.gcm)
	clear(s.nonce[:])
}

// contextOf returns what an hpke.Sender or hpke.Recipient that was not used yet works with: its
// AEAD, which goes on to be that context's, and its first nonce. Their own methods make new memory
// for each chunk, which costs as much as the cipher, and which nobody wipes. It is nil if
// crypto/hpke has another shape than it is known to have: then those methods do the work. The
// caller uses either the sealer or the context, and wipes both.
func contextOf(sender *hpke.Sender, recipient *hpke.Recipient) *sealer {
	v := reflect.ValueOf(sender)
	if sender == nil {
		v = reflect.ValueOf(recipient)
	}
	v = v.Elem().FieldByName("context")
	if !v.IsValid() || v.Kind() != reflect.Pointer || v.IsNil() ||
		v.Elem().Kind() != reflect.Struct {
		return nil
	}
	gcm, ok := fieldOf[cipher.AEAD](v.Elem(), "aead")
	base, hasBase := fieldOf[[]byte](v.Elem(), "baseNonce")
	count, hasCount := fieldOf[uint64](v.Elem(), "seqNum")
	if !ok || !hasBase || !hasCount || *gcm == nil || len(*base) != nonceSize || *count != 0 {
		return nil
	}
	return &sealer{gcm: *gcm, nonce: [nonceSize]byte(*base)}
}

// fieldOf points to the field of a struct that has this name and type.
func fieldOf[T any](v reflect.Value, name string) (_ *T, ok bool) {
	f := v.FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return nil, false
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr())), true
}
