// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"

	"github.com/seed-017344ad/sealedchat/internal/erase"
)

const (
	aesKeySize = 32
	// gcmOverhead is the bytes of the nonce before the ciphertext and of the tag after it.
	gcmOverhead = 12 + 16
)

// deriveGCM returns AES-256-GCM under a key that HKDF-SHA256 (RFC 5869) derives from secret. The
// AEAD puts a random nonce at the head of each message, because enforced FIPS 140-3 mode does not
// allow the other constructors of GCM. wipe clears the derived key and the cipher's copies of it.
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
		erase.Wipe(block)
		return nil, nil, err
	}
	return aead, func() { erase.Wipe(block); erase.Wipe(aead) }, nil
}

// withGCM calls f with the AEAD of deriveGCM, and wipes it afterwards. f runs within erase.Do.
func withGCM(secret, salt []byte, info string, f func(cipher.AEAD) error) (err error) {
	erase.Do(func() {
		aead, wipe, deriveErr := deriveGCM(secret, salt, info)
		if deriveErr != nil {
			err = deriveErr
			return
		}
		defer wipe()
		err = f(aead)
	})
	return err
}

// cbc encrypts or decrypts data in place with AES-CBC.
func cbc(key, iv, data []byte, mode func(cipher.Block, []byte) cipher.BlockMode) error {
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	m := mode(block, iv)
	m.CryptBlocks(data, data)
	erase.Wipe(block)
	erase.Wipe(m)
	return nil
}
