// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"reflect"
	"unsafe"
)

const (
	aesKeySize = 32
	// gcmOverhead is the nonce before and the tag after the ciphertext.
	gcmOverhead = 12 + 16
)

// deriveGCM returns AES-256-GCM under a key derived from secret by HKDF-SHA256
// (RFC 5869), with the random nonce at the head of each message. The other
// constructors of GCM are not allowed where FIPS 140-3 mode is enforced.
// wipe clears the derived key and the cipher's copies of it.
func deriveGCM(secret, salt []byte, info string) (aead cipher.AEAD, wipe func(), err error) {
	key, err := hkdf.Key(sha256.New, secret, salt, info, aesKeySize)
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	aead, err = cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		wipeState(block)
		return nil, nil, err
	}
	return aead, func() { wipeState(block); wipeState(aead) }, nil
}

// cbc encrypts or decrypts data in place with AES-CBC.
func cbc(key, iv, data []byte, mode func(cipher.Block, []byte) cipher.BlockMode) error {
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	m := mode(block, iv)
	m.CryptBlocks(data, data)
	wipeState(block)
	wipeState(m)
	return nil
}

// wipeState clears the key schedule behind one of the standard library's ciphers:
// a pointer to a struct without pointers, or a struct that wraps one. The
// schedule begins with the key itself. Any other shape is left alone.
func wipeState(v any) {
	p := reflect.ValueOf(v)
	if p.Kind() == reflect.Struct && p.NumField() == 1 {
		p = p.Field(0)
	}
	if p.Kind() != reflect.Pointer || p.IsNil() || !isPlain(p.Type().Elem()) {
		return
	}
	clear(unsafe.Slice((*byte)(p.UnsafePointer()), p.Type().Elem().Size()))
}

// isPlain says whether a type is made of integers alone, so that zero bytes are safe.
func isPlain(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return isPlain(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !isPlain(t.Field(i).Type) {
				return false
			}
		}
		return true
	default:
		return t.Kind() >= reflect.Bool && t.Kind() <= reflect.Uint64
	}
}
