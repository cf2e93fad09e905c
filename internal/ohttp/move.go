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
	"unsafe"
)

// SecretSize is how much memory MoveTo needs at most.
const SecretSize = 2 * 32

// ErrShape says that crypto/hpke keeps its numbers where they are not found any more.
var ErrShape = errors.New("ohttp: the private key cannot be moved: crypto/hpke has another shape")

// MoveTo moves the seed, and the scalar of X25519, into memory of SecretSize bytes that is the caller's and has to live as
// long as the key; Close clears it. Without them an X-Wing key opens nothing, whatever else of it is known: ML-KEM's
// numbers are arrays, and stay on the heap. Then it looks whether the key still opens what is sealed to it, and if not, puts
// everything back: the error is ErrShape. It is for before the first use.
func (k *PrivateKey) MoveTo(memory []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key == nil {
		return ErrUsed
	}
	m := mover{to: memory, at: make(map[unsafe.Pointer][]byte)}
	m.slice(&k.seed)
	m.walk(reflect.ValueOf(k.key), 0)
	if m.short || len(m.headers) < 2 || k.test() != nil {
		m.undo()
		return ErrShape
	}
	for _, old := range m.old {
		clear(old)
	}
	return nil
}

// test opens something that is sealed to the key.
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

// mover moves slices of bytes; those of the same memory stay together.
type mover struct {
	to      []byte
	at      map[unsafe.Pointer][]byte // where memory has gone, by where it was
	headers []*[]byte
	old     [][]byte
	short   bool
}

func (m *mover) walk(v reflect.Value, depth int) {
	if !v.IsValid() || depth > 16 || v.Type() == reflect.TypeFor[*ecdh.PublicKey]() {
		return
	}
	for _, t := range shared {
		if v.Type().Implements(t) {
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		m.walk(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			m.walk(v.Field(i), depth+1)
		}
	case reflect.Slice:
		if v.CanAddr() && v.Type().Elem().Kind() == reflect.Uint8 {
			m.slice((*[]byte)(unsafe.Pointer(v.UnsafeAddr())))
		}
	}
}

func (m *mover) slice(header *[]byte) {
	old := *header
	if len(old) == 0 {
		return
	}
	from := unsafe.Pointer(unsafe.SliceData(old))
	to, moved := m.at[from]
	if !moved {
		if len(old) > len(m.to) {
			m.short = true
			return
		}
		to = m.to[:len(old):len(old)]
		m.to = m.to[len(old):]
		copy(to, old)
		m.at[from] = to
	}
	if len(to) != len(old) {
		m.short = true
		return
	}
	m.headers, m.old = append(m.headers, header), append(m.old, old)
	*header = to
}

func (m *mover) undo() {
	for i, header := range m.headers {
		clear(*header)
		*header = m.old[i]
	}
}
