// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package keyfile reads and writes the files that hold private keys: PEM key files of other
// programs, the keystore file, and sealed data at rest. It takes bytes and returns bytes. The
// caller handles files, locks and permissions.
//
// Every secret lies in a buffer with one owner. A function clears the secrets that it derives or
// decrypts on its way. A result has a Wipe method, or the comment of its function says that the
// caller clears it. The package caps the sizes, counts and key derivation costs that a file states
// before it allocates or computes anything.
//
// Values of this package are not safe for concurrent use, with one exception: any number of
// goroutines may call Open, Seal, SealData and OpenData with the same *MasterKey or data key, as
// long as nobody wipes or moves it.
package keyfile

import (
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

const (
	minKeyBits = 2048
	maxKeyBits = 8192
)

// RSAKey holds the integers of a two-prime RSA private key (RFC 8017, section 3.2), big-endian
// without leading zeros.
//
// Invariant: the slices are spans of one buffer. The key owns the buffer, or the Body that the key
// came from does.
type RSAKey struct {
	N, E, D, P, Q, Dp, Dq, Qinv []byte

	memory *locked.Buffer // nil when a Body owns the bytes
}

// NewRSAKey copies the integers of a key into a buffer of its own. The caller wipes the source. The
// errors are those of ParsePrivateKey.
func NewRSAKey(priv *rsa.PrivateKey, options ...Option) (k *RSAKey, err error) {
	erase.Do(func() { k, err = newRSAKey(priv, policyOf(options)) })
	return k, err
}

// newRSAKey does the work of NewRSAKey, within erase.Do.
func newRSAKey(priv *rsa.PrivateKey, policy locked.Policy) (*RSAKey, error) {
	if len(priv.Primes) > 2 {
		return nil, ErrMultiPrime
	}
	pre := &priv.Precomputed
	if len(priv.Primes) < 2 || pre.Dp == nil || pre.Dq == nil || pre.Qinv == nil {
		return nil, fmt.Errorf("%w: key without precomputed values", ErrInvalid)
	}
	k := new(RSAKey)
	ints := []*big.Int{priv.N, big.NewInt(int64(priv.E)), priv.D, priv.Primes[0], priv.Primes[1],
		pre.Dp, pre.Dq, pre.Qinv}
	size := 0
	for _, x := range ints {
		size += byteLen(x)
	}
	memory, err := locked.NewWith(policy, size)
	if err != nil {
		return nil, err
	}
	k.memory = memory
	rest := k.memory.Bytes()
	for i, field := range k.fields() {
		n := byteLen(ints[i])
		*field = ints[i].FillBytes(rest[:n:n])
		rest = rest[n:]
	}
	if err := k.check(); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

func byteLen(x *big.Int) int { return (x.BitLen() + 7) / 8 }

// fields lists the integers in the order of RFC 8017, appendix A.1.2.
func (k *RSAKey) fields() []*[]byte {
	return []*[]byte{&k.N, &k.E, &k.D, &k.P, &k.Q, &k.Dp, &k.Dq, &k.Qinv}
}

// Wipe clears the key's own memory and forgets the integers. It is idempotent.
func (k *RSAKey) Wipe() {
	if k.memory != nil {
		k.memory.Destroy()
	}
	*k = RSAKey{}
}

// Bits returns the length of the modulus in bits.
func (k *RSAKey) Bits() int { return bitLen(k.N) }

// bitLen returns the length of a big-endian integer without leading zeros, in bits.
func bitLen(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return (len(b)-1)*8 + bits.Len8(b[0])
}

// PrivateKey builds the key that crypto/rsa works with, precomputed and validated. The caller owns
// it: its numbers are copies. The error is ErrInconsistent if crypto/rsa refuses the numbers.
// crypto/rsa leaves some copies of each number on the heap.
func (k *RSAKey) PrivateKey() (priv *rsa.PrivateKey, err error) {
	if err := k.checkPublic(); err != nil {
		return nil, err
	}
	erase.Do(func() { priv, err = k.privateKey() })
	return priv, err
}

// privateKey does the work of PrivateKey, within erase.Do.
func (k *RSAKey) privateKey() (*rsa.PrivateKey, error) {
	set := func(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
	priv := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: set(k.N), E: k.exponent()},
		D:         set(k.D),
		Primes:    []*big.Int{set(k.P), set(k.Q)},
	}
	// Given these values, crypto/rsa checks them and computes nothing anew.
	priv.Precomputed.Dp, priv.Precomputed.Dq, priv.Precomputed.Qinv = set(k.Dp), set(k.Dq),
		set(k.Qinv)
	priv.Precompute()
	// Validate leaves sixteen more copies, and is not needed if Precompute succeeded. The only sign
	// of success is a CRTValues that is not nil.
	//lint:ignore SA1019 CRTValues is compared with nil and not used for decryption
	if priv.Precomputed.CRTValues != nil {
		return priv, nil
	}
	if err := priv.Validate(); err != nil {
		erase.Wipe(priv)
		return nil, fmt.Errorf("%w: %w", ErrInconsistent, err)
	}
	return priv, nil
}

// SPKI returns the public half as a DER SubjectPublicKeyInfo (RFC 5280, section 4.1).
func (k *RSAKey) SPKI() []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addRSAAlgorithm(b)
		b.AddASN1(asn1.BIT_STRING, func(b *cryptobyte.Builder) {
			b.AddUint8(0) // no unused bits
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addInteger(b, k.N)
				addInteger(b, k.E)
			})
		})
	})
	return b.BytesOrPanic() // fails only beyond 4 GB
}

// Fingerprint returns the SHA-256 of SPKI.
func (k *RSAKey) Fingerprint() [sha256.Size]byte { return sha256.Sum256(k.SPKI()) }

// exponent returns the public exponent, or 0 if it has more than 31 bits.
func (k *RSAKey) exponent() int {
	if bitLen(k.E) > 31 {
		return 0
	}
	e := 0
	for _, c := range k.E {
		e = e<<8 | int(c)
	}
	return e
}

// checkPublic checks only sizes, which bound the cost of the work that follows.
func (k *RSAKey) checkPublic() error {
	if n := k.Bits(); n < minKeyBits || n > maxKeyBits {
		return fmt.Errorf("%w: it has %d; make a new one, as CreateKeyStore does", ErrKeySize, n)
	}
	if e := k.exponent(); e < 65537 || e%2 == 0 {
		return ErrExponent
	}
	for _, field := range k.fields() {
		if len(*field) == 0 || len(*field) > len(k.N) {
			return ErrInconsistent
		}
	}
	return nil
}

// check also proves that the integers belong together, so that crypto/rsa accepts every key that
// passes. It does not prove that P and Q are prime.
func (k *RSAKey) check() error {
	if err := k.checkPublic(); err != nil {
		return err
	}
	var x [8]big.Int
	for i, field := range k.fields() {
		x[i].SetBytes(*field)
	}
	n, e, d, p, q, dp, dq, qinv := &x[0], &x[1], &x[2], &x[3], &x[4], &x[5], &x[6], &x[7]
	var t, quo, rem, m big.Int
	defer wipeInts(d, p, q, dp, dq, qinv, &t, &quo, &rem, &m)

	one := big.NewInt(1)
	// QuoRem writes to a quotient of ours. Mod would leave one that cannot be wiped.
	mod := func(a, b *big.Int) *big.Int {
		quo.QuoRem(a, b, &rem)
		return &rem
	}
	crt := func(prime, exp *big.Int) bool { // d = exp and e*d = 1 modulo prime-1
		if prime.Bit(0) == 0 || prime.Cmp(one) <= 0 {
			return false
		}
		m.Sub(prime, one)
		return mod(d, &m).Cmp(exp) == 0 && mod(t.Mul(exp, e), &m).Cmp(one) == 0
	}
	half := n.BitLen() / 2
	// math/big divides in pooled memory that nobody can wipe. Dividing public numbers of the
	// same lengths grows that memory beforehand, and overwrites the secrets in it afterwards.
	scrub := func() {
		m.Rsh(n, uint(half))
		mod(n, &m)
	}
	scrub()
	defer scrub()
	ok := t.Mul(p, q).Cmp(n) == 0 &&
		crt(p, dp) && crt(q, dq) &&
		qinv.Cmp(p) < 0 && mod(t.Mul(qinv, q), p).Cmp(one) == 0 &&
		d.Cmp(n) < 0 && d.BitLen() > half && // Wiener
		t.Sub(p, q).BitLen() > half-100 // Fermat; FIPS 186-5, appendix A.1.3
	if !ok {
		return ErrInconsistent
	}
	return nil
}

// wipeInts clears the words of the integers.
func wipeInts(ints ...*big.Int) {
	for _, x := range ints {
		words := x.Bits()
		clear(words[:cap(words)])
		x.SetInt64(0)
	}
}

// wipeOnError clears the key when the function that defers it fails.
func wipeOnError(k *RSAKey, err *error) {
	if *err != nil {
		k.Wipe()
	}
}
