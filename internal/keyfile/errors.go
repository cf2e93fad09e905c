// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"errors"
	"fmt"
)

// Reasons to refuse a private key file. Callers tell them apart with errors.Is. The messages never
// hold a byte of the file.
var (
	ErrNotPEM       = errors.New("no PEM block in the file")
	ErrPublicOnly   = errors.New("a public key file, not the private one")
	ErrMultipleKeys = errors.New("more than one private key in the file")
	ErrLabel        = errors.New("the PEM label does not fit its content")
	ErrMalformed    = errors.New("damaged key file")
	ErrPKCS8Version = errors.New("PKCS#8 version 1 (RFC 5958) is not read; convert the " +
		"file with: openssl pkey -in old.pem -out new.pem")
	ErrTrailing              = errors.New("bytes after the end of the key")
	ErrPassphraseNeeded      = errors.New("the key is encrypted: a passphrase is needed")
	ErrPassphraseSuperfluous = errors.New("the key is not encrypted, but a passphrase was given")
	ErrKeySize               = errors.New("RSA key under 2048 or over 8192 bits")
	ErrExponent              = errors.New(
		"RSA public exponent is even, under 65537 or over 31 bits")
	ErrMultiPrime     = errors.New("RSA key with more than two primes")
	ErrInconsistent   = errors.New("the numbers of the RSA key contradict each other")
	ErrPublicMismatch = errors.New("the public key does not belong to the private key")
)

// Errors that several of the formats share.
var (
	// ErrPassphrase is a wrong passphrase or a damaged file: without the right key the two look the
	// same.
	ErrPassphrase = errors.New("wrong passphrase or damaged file")
	// ErrKDFCost is an iteration count of zero or beyond MaxIterations.
	ErrKDFCost = fmt.Errorf("key derivation cost outside 1 to %d iterations", MaxIterations)
	// ErrWeakKDF is an attempt to write with fewer than MinIterations.
	ErrWeakKDF = fmt.Errorf("fewer than %d iterations", MinIterations)
	// ErrTooLarge is an input beyond the size that its function states.
	ErrTooLarge = errors.New("too large")
)

// Errors of the keystore file and of data at rest.
var (
	// ErrDamaged is a keystore whose header or opened body breaks the format.
	ErrDamaged = errors.New("damaged keystore file")
	// ErrVersion is a keystore of a version that this code does not know.
	ErrVersion = errors.New("keystore file of an unknown version")
	// ErrInvalid is a Body, a key or a label that must not be written.
	ErrInvalid = errors.New("invalid value")
	// ErrDecryption is sealed data that does not open, for any reason.
	ErrDecryption = errors.New("sealed data does not open: another key, another label, or damaged")
)

// KeyTypeError is the error for a key that is not a plain RSA key.
type KeyTypeError struct {
	Name string // "EC", "Ed25519", "RSA-PSS", a dotted object identifier, …
}

func (e *KeyTypeError) Error() string {
	return fmt.Sprintf("a key of type %s, where RSA is needed", e.Name)
}

// UnsupportedError is the error for a form of encryption that the package does not read. It names
// the command that converts the file.
type UnsupportedError struct {
	What    string // "scrypt", "PBES1", "legacy PEM encryption", …
	Command string // reads old.pem and writes new.pem, unless it says otherwise
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s is not supported; convert the file with: %s", e.What, e.Command)
}
