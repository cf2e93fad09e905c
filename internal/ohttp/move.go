// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/subtle"
	"errors"
	"reflect"

	"github.com/seed-017344ad/sealedchat/internal/erase"
)

// SecretSize is how much memory MoveTo needs.
const SecretSize = 2 * 32

// ErrShape says that MoveTo does not find the numbers of a key where it expects crypto/hpke to keep
// them.
var ErrShape = errors.New("ohttp: the private key cannot be moved: crypto/hpke has another shape")

// MoveTo moves the seed, and the scalar of X25519, into memory of SecretSize bytes. The memory
// belongs to the caller and has to live as long as the key; Close clears it. The caller calls
// MoveTo before the first use of the key.
//
// The seed is enough to protect: without it an X-Wing key opens nothing. The numbers of ML-KEM are
// arrays and stay on the heap.
//
// MoveTo then checks that the key still opens what is sealed to it. If not, it puts everything back
// and returns ErrShape.
func (k *PrivateKey) MoveTo(memory []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key == nil {
		return ErrUsed
	}
	reached := &struct {
		seed *[]byte
		key  hpke.PrivateKey
	}{&k.seed, k.key}
	room := func(size int) ([]byte, error) {
		if size != SecretSize || len(memory) < size {
			return nil, ErrShape
		}
		return memory, nil
	}
	if erase.Move(reached, room, k.test, append(shared[:],
		reflect.TypeFor[*ecdh.PublicKey]())...) != nil {
		return ErrShape
	}
	return nil
}

// test opens a secret that it has just encapsulated to the key.
func (k *PrivateKey) test() error {
	enc, sender, err := hpke.NewSender(k.config.public, hpke.HKDFSHA256(), k.config.aead.new(), nil)
	if err != nil {
		return err
	}
	defer wipe(sender)
	recipient, err := hpke.NewRecipient(enc, k.key, hpke.HKDFSHA256(), k.config.aead.new(), nil)
	if err != nil {
		return err
	}
	defer wipe(recipient)
	a, errA := sender.Export("", 32)
	b, errB := recipient.Export("", 32)
	if errA != nil || errB != nil || subtle.ConstantTimeCompare(a, b) != 1 {
		return ErrShape
	}
	if seed, err := k.key.Bytes(); err != nil || !bytes.Equal(seed, k.seed) {
		return ErrShape
	}
	return nil
}
