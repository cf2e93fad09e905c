// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package hybrid

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
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// PrivateKey opens envelopes that were sealed to its public half. It is safe for concurrent use,
// until it is wiped: the owner waits for those who use it.
type PrivateKey struct {
	key    *rsa.PrivateKey
	public *PublicKey     // shares nothing with key, and lives on when that is wiped
	memory *locked.Buffer // where key's numbers lie; nil: in ordinary memory
}

// NewPrivateKey makes a private key that uses key as it is, and where it is.
func NewPrivateKey(key *rsa.PrivateKey) (*PrivateKey, error) {
	public, err := NewPublicKey(&rsa.PublicKey{N: new(big.Int).Set(key.N), E: key.E})
	if err != nil {
		return nil, err
	}
	return &PrivateKey{key: key, public: public}, nil
}

// ErrKeyShape says that crypto/rsa of this Go release keeps its numbers where they are not found.
var ErrKeyShape = errors.New(
	"sealedchat: the private key cannot be moved: crypto/rsa has another shape")

// ErrKeyTest says that a key that was moved does not open what is sealed to it.
var ErrKeyTest = errors.New("sealedchat: a private key failed its test")

// Public is the public half, also after Wipe.
func (k *PrivateKey) Public() *PublicKey { return k.public }

// RSA lends the key itself, until Wipe. It is not there any more when Purged.
func (k *PrivateKey) RSA() *rsa.PrivateKey { return k.key }

// Protect moves every number of the key, crypto/rsa's own ones too, into memory under policy, once:
// parsing a key again for each use leaves more copies than it saves. (A word for each modulus,
// which Montgomery's reduction needs, stays. The last 64 bits of a prime follow from it; that is
// not enough to factor.) The key must be nobody else's. When the moved key does not open what was
// sealed to it (ErrKeyTest), or numbers were not found (ErrKeyShape), the key goes back to where it
// was, and works all the same. With locked.Required the caller refuses that; *locked.LimitError is
// the other reason.
func (k *PrivateKey) Protect(policy locked.Policy) (err error) {
	if policy == locked.Off {
		return nil
	}
	erase.Do(func() { err = k.move(policy) })
	return err
}

func (k *PrivateKey) move(policy locked.Policy) error {
	var memory *locked.Buffer
	err := erase.Move(k.key, func(size int) (_ []byte, err error) {
		// In sizes of the modulus: 4.5 for the exported numbers, 6.5 for crypto/rsa's own form of
		// them, with Montgomery's helpers. Less means that some were not found.
		if size < ownNumbers*k.key.Size() {
			return nil, ErrKeyShape
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

// ownNumbers is how many times the modulus a private key takes in memory, about.
const ownNumbers = 11

// CountUnlocked makes a key that lies in ordinary memory count as that in the account of package
// locked, until Wipe.
func (k *PrivateKey) CountUnlocked() {
	if k.memory == nil {
		k.memory, _ = locked.NewWith(locked.Off, ownNumbers*k.key.Size()) // never fails
	}
}

// check is a known-answer test: the key opens what is sealed to its public half.
func (k *PrivateKey) check() error {
	var want [DataKeySize]byte
	_, _ = rand.Read(want[:])
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, k.public.key, want[:], nil)
	if err != nil {
		return fmt.Errorf("sealedchat: testing a private key: %w", err)
	}
	defer clear(want[:])
	var got [DataKeySize]byte
	defer clear(got[:])
	if !k.unwrap(got[:], wrapped) || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return ErrKeyTest
	}
	return nil
}

// Locked reports whether the key's numbers lie in memory that cannot be swapped out.
func (k *PrivateKey) Locked() bool { return k.memory != nil && k.memory.Locked() }

// unwrap puts the unwrapped AES key into dataKey, or leaves that as it is and returns false. It is
// called within erase.Do.
func (k *PrivateKey) unwrap(dataKey, wrapped []byte) bool {
	if k.Purged() {
		return false
	}
	unwrapped, err := rsa.DecryptOAEP(sha256.New(), nil, k.key, wrapped, nil)
	// The slice is the end of the padded block. Its beginning, from which all of it follows, is out
	// of reach here.
	defer clear(unwrapped)
	if err != nil || len(unwrapped) != DataKeySize {
		return false
	}
	copy(dataKey, unwrapped)
	return true
}

// Purged reports that the program has had memguard destroy its buffers, this key's with them.
func (k *PrivateKey) Purged() bool { return k.memory != nil && k.memory.Bytes() == nil }

// Wipe clears the private numbers. The key opens nothing after that.
func (k *PrivateKey) Wipe() {
	if !k.Purged() {
		erase.Wipe(k.key)
	}
	k.key = nil
	if k.memory != nil {
		k.memory.Destroy()
	}
}

// Open decrypts e with this key alone, see [Open].
func (k *PrivateKey) Open(e *envelope.Envelope, to Alloc) ([]byte, error) {
	return Open(e, []*PrivateKey{k}, nil, to)
}

// Alloc makes memory for n bytes of plaintext.
type Alloc func(n int) ([]byte, error)

// Open decrypts e with the one of keys that unwraps its data key, into the memory that to returns,
// or in place, in e.Sealed, when to is nil. When none of keys does, more, if not nil, is asked for
// others. Every failure after the format checks is ErrDecryption and costs the same work: as many
// RSA operations as there are keys, and one of GCM, under a random key if no other is there.
func Open(
	e *envelope.Envelope, keys []*PrivateKey, more func() []*PrivateKey, to Alloc,
) (plaintext []byte, err error) {
	fits := func(k *PrivateKey) bool { return k.public.Size() == len(e.WrappedKey) }
	if !slices.ContainsFunc(keys, fits) && more != nil {
		keys, more = more(), nil
	}
	if !slices.ContainsFunc(keys, fits) {
		return nil, fmt.Errorf("%w: wrapped key of %d bytes, the modulus has another size",
			fault.ErrEnvelope, len(e.WrappedKey))
	}
	o := opening{e: e, to: e.Sealed[:0]}
	if to != nil {
		if o.to, err = to(max(len(e.Sealed)-sealedOverhead, 0)); err != nil {
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
	return nil, fault.ErrDecryption
}

// opening is an envelope that some keys are tried on.
type opening struct {
	e         *envelope.Envelope
	to        []byte // where plaintext goes
	unwrapped bool   // a key did, and GCM was asked
	plaintext []byte
}

func (o *opening) try(keys []*PrivateKey, last bool) (opened bool) {
	erase.Do(func() { opened = o.confined(keys, last) })
	return opened
}

// confined is try, within erase.Do. After the last keys GCM has been asked, whatever they did.
func (o *opening) confined(keys []*PrivateKey, last bool) bool {
	dataKey := make([]byte, DataKeySize)
	defer clear(dataKey)
	_, _ = rand.Read(dataKey)
	for _, k := range keys {
		if k.public.Size() != len(o.e.WrappedKey) || !k.unwrap(dataKey, o.e.WrappedKey) ||
			o.unwrapped {
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

// openSealed decrypts nonce ‖ ciphertext ‖ tag to where to begins, which is where sealed begins, or
// elsewhere altogether.
func openSealed(to, dataKey, sealed []byte) ([]byte, error) {
	aead, err := newAEAD(dataKey)
	if err != nil {
		return nil, err
	}
	defer erase.Wipe(aead)
	return aead.Open(to[:0], nil, sealed, nil)
}
