// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// privateKey opens what was sealed to its public half. Safe for concurrent use, until it is wiped.
type privateKey struct {
	key    *rsa.PrivateKey
	public *PublicKey     // shares nothing with key, and lives on when that is wiped
	memory *locked.Buffer // where key's numbers lie; nil: in ordinary memory
}

// newPrivateKey makes a private key that uses key as it is, and where it is.
func newPrivateKey(key *rsa.PrivateKey) (*privateKey, error) {
	public, err := newPublicKey(&rsa.PublicKey{N: new(big.Int).Set(key.N), E: key.E})
	if err != nil {
		return nil, err
	}
	return &privateKey{key: key, public: public}, nil
}

// errKeyShape: crypto/rsa keeps its numbers where they are not found any more.
var errKeyShape = errors.New("sealedchat: the private key cannot be moved: crypto/rsa has another shape")

// errKeyTest: a key that was moved does not open what is sealed to it.
var errKeyTest = errors.New("sealedchat: a private key failed its test")

// protect moves every number of the key, crypto/rsa's own ones too, into memory under policy, once: parsing a key again for
// each use leaves more copies than it saves. (What stays is a word for each modulus that Montgomery's reduction needs, from
// which the last 64 bits of a prime follow; that is not enough to factor.) The key must be nobody else's. When the moved key does not open
// what was sealed to it, or numbers are missed, it goes back to where it was, and the error says so; the key works all the
// same. With MemoryRequired that is for the caller to refuse; *locked.LimitError is the other reason.
func (k *privateKey) protect(policy locked.Policy) (err error) {
	if policy == locked.Off {
		return nil
	}
	erase.Do(func() { err = k.move(policy) })
	return err
}

func (k *privateKey) move(policy locked.Policy) error {
	var memory *locked.Buffer
	err := erase.Move(k.key, func(size int) (_ []byte, err error) {
		// In sizes of the modulus: 4.5 for the exported numbers, 6.5 for crypto/rsa's own form of them, with Montgomery's
		// helpers. Less means that some were not found.
		if size < 11*k.key.Size() {
			return nil, errKeyShape
		}
		if memory, err = locked.NewResting(policy, (size+7)&^7); err != nil {
			return nil, err
		}
		return memory.Bytes(), nil
	}, k.check)
	if err != nil {
		if memory != nil {
			memory.Destroy()
		}
		return err
	}
	k.memory = memory
	return nil
}

// check is a known-answer test: the key opens what is sealed to its public half.
func (k *privateKey) check() error {
	var want [dataKeySize]byte
	_, _ = rand.Read(want[:])
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, k.public.key, want[:], nil)
	if err != nil {
		return fmt.Errorf("sealedchat: testing a private key: %w", err)
	}
	defer clear(want[:])
	var got [dataKeySize]byte
	defer clear(got[:])
	if !k.unwrap(got[:], wrapped) || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return errKeyTest
	}
	return nil
}

// locked reports whether the key's numbers lie in memory that cannot be swapped out.
func (k *privateKey) locked() bool { return k.memory != nil && k.memory.Locked() }

// unwrap puts the unwrapped AES key into dataKey, or leaves that as it is and returns false. It is called within erase.Do.
func (k *privateKey) unwrap(dataKey, wrapped []byte) bool {
	if k.purged() {
		return false
	}
	unwrapped, err := rsa.DecryptOAEP(sha256.New(), nil, k.key, wrapped, nil)
	// The slice is the end of the padded block. Its beginning, from which all of it follows, is out of reach here.
	defer clear(unwrapped)
	if err != nil || len(unwrapped) != dataKeySize {
		return false
	}
	copy(dataKey, unwrapped)
	return true
}

// purged reports that the program has had memguard destroy its buffers, this key's with them.
func (k *privateKey) purged() bool { return k.memory != nil && k.memory.Bytes() == nil }

// wipe clears the private numbers. The key opens nothing after that.
func (k *privateKey) wipe() {
	if !k.purged() {
		erase.Wipe(k.key)
	}
	k.key = nil
	if k.memory != nil {
		k.memory.Destroy()
	}
}

// open decrypts e in place with this key alone.
func (k *privateKey) open(e *envelope.Envelope) ([]byte, error) {
	return openWith(e, []*privateKey{k}, nil, nil)
}

// room makes a place for n bytes of plaintext.
type room func(n int) ([]byte, error)

// openWith decrypts e with whichever of keys unwraps it, into the memory that into returns, or in place, in e.Sealed, when
// into is nil. When none of keys does, more, if not nil, is asked for others. Every failure after the format checks is
// ErrDecryption and costs the same work: as many RSA operations as there are keys, and one of GCM, under a random key if
// no other is there.
func openWith(e *envelope.Envelope, keys []*privateKey, more func() []*privateKey, into room) (plaintext []byte, err error) {
	fits := func(k *privateKey) bool { return k.public.key.Size() == len(e.WrappedKey) }
	if !slices.ContainsFunc(keys, fits) && more != nil {
		keys, more = more(), nil
	}
	if !slices.ContainsFunc(keys, fits) {
		return nil, fmt.Errorf("%w: wrapped key of %d bytes, the modulus has another size", ErrEnvelope, len(e.WrappedKey))
	}
	o := opening{e: e, to: e.Sealed[:0]}
	if into != nil {
		if o.to, err = into(max(len(e.Sealed)-sealedOverhead, 0)); err != nil {
			return nil, err
		}
	}
	if o.try(keys, more == nil) {
		return o.plaintext, nil
	}
	// more asks others, such as an Auditor: not within erase.Do.
	if more != nil && o.try(more(), true) {
		return o.plaintext, nil
	}
	return nil, ErrDecryption
}

// opening is an envelope that some keys are tried on.
type opening struct {
	e         *envelope.Envelope
	to        []byte // where plaintext goes
	unwrapped bool   // a key did, and GCM was asked
	plaintext []byte
}

func (o *opening) try(keys []*privateKey, last bool) (opened bool) {
	erase.Do(func() { opened = o.confined(keys, last) })
	return opened
}

// confined is try, within erase.Do. After the last keys GCM has been asked, whatever they did.
func (o *opening) confined(keys []*privateKey, last bool) bool {
	dataKey := make([]byte, dataKeySize)
	defer clear(dataKey)
	_, _ = rand.Read(dataKey)
	for _, k := range keys {
		if k.public.key.Size() != len(o.e.WrappedKey) || !k.unwrap(dataKey, o.e.WrappedKey) || o.unwrapped {
			continue
		}
		o.unwrapped = true
		var err error
		if o.plaintext, err = openSealed(o.to, dataKey, o.e.Sealed); err == nil {
			return true
		}
	}
	if last && !o.unwrapped {
		_, _ = openSealed(o.to, dataKey, o.e.Sealed)
	}
	return false
}

const sealedOverhead = envelope.NonceSize + envelope.TagSize

// openSealed decrypts nonce ‖ ciphertext ‖ tag to where to begins, which is where sealed begins, or elsewhere altogether.
func openSealed(to, dataKey, sealed []byte) ([]byte, error) {
	aead, err := newAEAD(dataKey)
	if err != nil {
		return nil, err
	}
	defer erase.Wipe(aead)
	return aead.Open(to[:0], nil, sealed, nil)
}
