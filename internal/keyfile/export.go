// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	encodingasn1 "encoding/asn1"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// Option changes a rule of a function.
type Option int

const (
	AllowWeak Option = iota + 1 // for tests: fewer than MinIterations
	// the error is a *locked.LimitError if memory cannot be locked into RAM
	RequireLock
	WithoutLock // ordinary memory, wiped
)

// policyOf returns the policy for the memory of secrets.
func policyOf(options []Option) locked.Policy {
	switch {
	case slices.Contains(options, RequireLock):
		return locked.Required
	case slices.Contains(options, WithoutLock):
		return locked.Off
	}
	return locked.BestEffort
}

// checkIterations checks a number of iterations, and turns 0 into MinIterations.
func checkIterations(iterations int, options []Option) (int, error) {
	switch {
	case iterations == 0:
		return MinIterations, nil
	case iterations < 0 || iterations > MaxIterations:
		return 0, ErrKDFCost
	case iterations < MinIterations && !slices.Contains(options, AllowWeak):
		return 0, ErrWeakKDF
	}
	return iterations, nil
}

// MarshalPBES2 encrypts a key as PKCS#8 in PBES2 (RFC 8018): PBKDF2-HMAC-SHA256 with a fresh salt
// of 16 bytes, AES-256-CBC, PEM in lines of 64. 0 iterations mean MinIterations; fewer are
// ErrWeakKDF. CBC has no authentication: an attacker who can write the file can damage the key, and
// nobody notices before the key is loaded.
func MarshalPBES2(k *RSAKey, passphrase []byte, iterations int, options ...Option) ([]byte, error) {
	iterations, err := checkIterations(iterations, options)
	if err != nil {
		return nil, err
	}
	if len(passphrase) == 0 {
		return nil, ErrPassphraseNeeded
	}
	memory, data, err := marshalPKCS8(k, policyOf(options))
	if err != nil {
		return nil, err
	}
	defer memory.Destroy()
	padding := aes.BlockSize - len(data)%aes.BlockSize
	for range padding { // marshalPKCS8 leaves room
		data = append(data, byte(padding))
	}
	var random [16 + aes.BlockSize]byte
	rand.Read(random[:])
	d := kdf{prfs[oidHMACSHA256], random[:16], iterations, 32, random[16:]}
	erase.Do(func() {
		var key []byte
		if key, err = d.key(passphrase); err == nil {
			err = cbc(key, d.iv, data, cipher.NewCBCEncrypter)
			clear(key[:cap(key)])
		}
	})
	if err != nil {
		return nil, err
	}
	der, err := d.marshal(data)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: labelEncrypted, Bytes: der}), nil
}

// marshal writes an EncryptedPrivateKeyInfo.
func (d *kdf) marshal(ciphertext []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addAlgorithm(b, oidPBES2, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addAlgorithm(b, oidPBKDF2, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString(d.salt)
						b.AddASN1Uint64(uint64(d.iterations))
						addAlgorithm(b, oidHMACSHA256, addNull)
					})
				})
				addAlgorithm(b, oidAES256CBC, func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(d.iv)
				})
			})
		})
		b.AddASN1OctetString(ciphertext)
	})
	return b.Bytes()
}

// marshalPKCS8 writes a PrivateKeyInfo with room for one block of padding after it. The caller
// destroys the memory in which it lies.
func marshalPKCS8(k *RSAKey, policy locked.Policy) (memory *locked.Buffer, der []byte, err error) {
	erase.Do(func() { err = k.check() })
	if err != nil {
		return nil, nil, err
	}
	size := 64 // the structure around the integers
	for _, field := range k.fields() {
		size += len(*field) + 6
	}
	// A builder that cannot grow leaves no outgrown buffer.
	if memory, err = locked.NewWith(policy, size+aes.BlockSize); err != nil {
		return nil, nil, err
	}
	b := cryptobyte.NewFixedBuilder(memory.Bytes()[:0])
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Uint64(0)
		addRSAAlgorithm(b)
		b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Uint64(0)
				for _, field := range k.fields() {
					addInteger(b, *field)
				}
			})
		})
	})
	if der, err = b.Bytes(); err != nil {
		memory.Destroy()
		return nil, nil, err
	}
	return memory, der, nil
}

// addInteger writes a positive integer from its canonical big-endian bytes.
func addInteger(b *cryptobyte.Builder, x []byte) {
	b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) {
		if len(x) == 0 || x[0] >= 0x80 {
			b.AddUint8(0)
		}
		b.AddBytes(x)
	})
}

func addNull(b *cryptobyte.Builder) { b.AddASN1NULL() }

// addRSAAlgorithm writes the AlgorithmIdentifier of RSA keys.
func addRSAAlgorithm(b *cryptobyte.Builder) { addAlgorithm(b, oidRSA, addNull) }

// addAlgorithm writes an AlgorithmIdentifier (RFC 5280, section 4.1.1.2).
func addAlgorithm(b *cryptobyte.Builder, oid string, parameters cryptobyte.BuilderContinuation) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		id, err := parseOID(oid)
		if err != nil {
			b.SetError(err)
			return
		}
		b.AddASN1ObjectIdentifier(id)
		parameters(b)
	})
}

// parseOID decodes the dotted form of an object identifier.
func parseOID(dotted string) (encodingasn1.ObjectIdentifier, error) {
	var id encodingasn1.ObjectIdentifier
	for arc := range strings.SplitSeq(dotted, ".") {
		n, err := strconv.Atoi(arc)
		if err != nil {
			return nil, err
		}
		id = append(id, n)
	}
	return id, nil
}
