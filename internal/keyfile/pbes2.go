// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"unsafe"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// MinIterations is the least number of PBKDF2 iterations that the package writes, and the
	// default.
	MinIterations = 600_000
	// MaxIterations is the largest number of PBKDF2 iterations that a file may ask for: about two
	// seconds.
	MaxIterations = 10_000_000
)

// The commands that convert forms that the package refuses. All of them ask for the old and the new
// passphrase.
const (
	convertCommand = "openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -iter " +
		"600000 -in old.pem -out new.pem"
	convertLegacyCommand = convertCommand + " -provider legacy -provider default"
)

const (
	oidPBES2  = "1.2.840.113549.1.5.13"
	oidPBKDF2 = "1.2.840.113549.1.5.12"
	oidScrypt = "1.3.6.1.4.1.11591.4.11"
	oid3DES   = "1.2.840.113549.3.7"

	oidHMACSHA256 = "1.2.840.113549.2.9"
	oidAES256CBC  = "2.16.840.1.101.3.4.1.42"
)

// prf is a pseudorandom function of PBKDF2.
type prf struct {
	name string
	hash func() hash.Hash
}

// prfs maps object identifiers to functions (RFC 8018, appendix B.1).
var prfs = map[string]prf{
	"1.2.840.113549.2.7":  {"SHA1", sha1.New},
	"1.2.840.113549.2.8":  {"SHA224", sha256.New224},
	oidHMACSHA256:         {"SHA256", sha256.New},
	"1.2.840.113549.2.10": {"SHA384", sha512.New384},
	"1.2.840.113549.2.11": {"SHA512", sha512.New},
}

// aesCBC maps object identifiers to key sizes (RFC 8018, appendix B.2.5).
var aesCBC = map[string]int{
	"2.16.840.1.101.3.4.1.2":  16,
	"2.16.840.1.101.3.4.1.22": 24,
	oidAES256CBC:              32,
}

// pbes1 lists the schemes of RFC 8018, appendix A.3, and RFC 7292, appendix C. True marks those
// that openssl 3 has only in its legacy provider.
var pbes1 = map[string]bool{
	"1.2.840.113549.1.5.1":    true,
	"1.2.840.113549.1.5.3":    true,
	"1.2.840.113549.1.5.4":    true,
	"1.2.840.113549.1.5.6":    true,
	"1.2.840.113549.1.5.10":   true,
	"1.2.840.113549.1.5.11":   true,
	"1.2.840.113549.1.12.1.1": true,
	"1.2.840.113549.1.12.1.2": true,
	"1.2.840.113549.1.12.1.3": false,
	"1.2.840.113549.1.12.1.4": false,
	"1.2.840.113549.1.12.1.5": true,
	"1.2.840.113549.1.12.1.6": true,
}

// kdf is a PBKDF2 key derivation, and the AES-CBC that uses its key.
type kdf struct {
	prf        prf
	salt       []byte
	iterations int
	keySize    int
	iv         []byte
}

// decryptPBES2 opens an EncryptedPrivateKeyInfo (RFC 5208, section 6) in place.
func decryptPBES2(der, passphrase []byte, lim limits) (*RSAKey, *Report, error) {
	var info, ciphertext cryptobyte.String
	s := cryptobyte.String(der)
	if !s.ReadASN1(&info, asn1.SEQUENCE) {
		return nil, nil, ErrMalformed
	}
	scheme, parameters, ok := readAlgorithm(&info)
	if !ok || !info.ReadASN1(&ciphertext, asn1.OCTET_STRING) || !info.Empty() || !s.Empty() {
		return nil, nil, ErrMalformed
	}
	if legacy, ok := pbes1[scheme]; ok {
		command := convertCommand
		if legacy {
			command = convertLegacyCommand
		}
		return nil, nil, &UnsupportedError{"PBES1", command}
	}
	if scheme != oidPBES2 {
		return nil, nil, &UnsupportedError{"the encryption scheme " + scheme, convertCommand}
	}
	d, err := parsePBES2(parameters)
	if err != nil {
		return nil, nil, err
	}
	k, err := d.open(ciphertext, passphrase, lim)
	return k, &Report{Container: PBES2, KDF: "PBKDF2-HMAC-" + d.prf.name, Iterations: d.iterations},
		err
}

// parsePBES2 reads PBES2-params (RFC 8018, appendix A.4).
func parsePBES2(parameters cryptobyte.String) (*kdf, error) {
	var seq cryptobyte.String
	if !parameters.ReadASN1(&seq, asn1.SEQUENCE) || !parameters.Empty() {
		return nil, fmt.Errorf("%w: PBES2 parameters", ErrMalformed)
	}
	derivation, kdfParameters, ok := readAlgorithm(&seq)
	if !ok {
		return nil, fmt.Errorf("%w: PBES2 key derivation", ErrMalformed)
	}
	encryption, iv, ok := readAlgorithm(&seq)
	if !ok || !seq.Empty() {
		return nil, fmt.Errorf("%w: PBES2 cipher", ErrMalformed)
	}
	switch {
	case derivation == oidScrypt:
		return nil, &UnsupportedError{"scrypt", convertCommand}
	case derivation != oidPBKDF2:
		return nil, &UnsupportedError{"the key derivation " + derivation, convertCommand}
	case encryption == oid3DES:
		return nil, &UnsupportedError{"3DES", convertCommand}
	case aesCBC[encryption] == 0:
		return nil, &UnsupportedError{"the cipher " + encryption, convertCommand}
	}
	d := &kdf{keySize: aesCBC[encryption]}
	if !iv.ReadASN1Bytes(&d.iv, asn1.OCTET_STRING) || len(d.iv) != aes.BlockSize || !iv.Empty() {
		return nil, fmt.Errorf("%w: PBES2 initialization vector", ErrMalformed)
	}
	return d, d.parsePBKDF2(kdfParameters)
}

// parsePBKDF2 reads PBKDF2-params (RFC 8018, appendix A.2).
func (d *kdf) parsePBKDF2(parameters cryptobyte.String) error {
	var seq cryptobyte.String
	var iterations, keyLength []byte
	if !parameters.ReadASN1(&seq, asn1.SEQUENCE) || !parameters.Empty() ||
		!seq.ReadASN1Bytes(&d.salt, asn1.OCTET_STRING) || !seq.ReadASN1Integer(&iterations) {
		return fmt.Errorf("%w: PBKDF2 parameters", ErrMalformed)
	}
	if len(iterations) > 3 { // MaxIterations has 24 bits
		return ErrKDFCost
	}
	for _, c := range iterations {
		d.iterations = d.iterations<<8 | int(c)
	}
	if seq.PeekASN1Tag(asn1.INTEGER) {
		if !seq.ReadASN1Integer(&keyLength) || !bytes.Equal(keyLength, []byte{byte(d.keySize)}) {
			return fmt.Errorf("%w: PBKDF2 key length", ErrMalformed)
		}
	}
	if seq.Empty() {
		d.prf = prfs["1.2.840.113549.2.7"] // the default of the standard
		return nil
	}
	name, empty, ok := readAlgorithm(&seq)
	if !ok || !emptyParameters(empty) || !seq.Empty() {
		return fmt.Errorf("%w: PBKDF2 pseudorandom function", ErrMalformed)
	}
	if d.prf, ok = prfs[name]; !ok {
		return &UnsupportedError{"the pseudorandom function " + name, convertCommand}
	}
	return nil
}

// decryptJavaScript opens salt ‖ iv ‖ AES-256-CBC(PKCS#8) in place.
func decryptJavaScript(data, passphrase []byte, lim limits) (*RSAKey, *Report, error) {
	const saltSize, headSize = 16, 16 + aes.BlockSize
	if len(data) <= headSize || len(data)%aes.BlockSize != 0 {
		return nil, nil, fmt.Errorf(
			"%w: neither PKCS#8 nor as long as the JavaScript client's encrypted form",
			ErrMalformed)
	}
	d := &kdf{prfs[oidHMACSHA256], data[:saltSize], 100_000, 32, data[saltSize:headSize]}
	k, err := d.open(data[headSize:], passphrase, lim)
	if err == ErrPassphraseNeeded {
		err = fmt.Errorf("%w (it is in the JavaScript client's form, or damaged)", err)
	}
	return k, &Report{Container: JavaScript, KDF: "PBKDF2-HMAC-SHA256", Iterations: d.iterations},
		err
}

// open decrypts a PKCS#8 key in place. The key's integers are spans of ciphertext.
func (d *kdf) open(ciphertext, passphrase []byte, lim limits) (*RSAKey, error) {
	if len(ciphertext) == 0 || len(ciphertext)%aes.BlockSize != 0 {
		return nil, fmt.Errorf("%w: ciphertext cut short", ErrMalformed)
	}
	if d.iterations < 1 || d.iterations > lim.maxIterations {
		return nil, ErrKDFCost
	}
	if len(passphrase) == 0 {
		return nil, ErrPassphraseNeeded
	}
	key, err := d.key(passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(key[:cap(key)])
	if err := cbc(key, d.iv, ciphertext, cipher.NewCBCDecrypter); err != nil {
		return nil, err
	}
	// Nobody can ask the owner of the file often enough to use the padding as an oracle.
	n := len(ciphertext) - int(ciphertext[len(ciphertext)-1])
	if n <= 0 || n < len(ciphertext)-aes.BlockSize || n == len(ciphertext) {
		return nil, ErrPassphrase
	}
	for _, c := range ciphertext[n:] {
		if int(c) != len(ciphertext)-n {
			return nil, ErrPassphrase
		}
	}
	// A wrong key passes the check of the padding once in 256 times, but does not give a valid
	// structure.
	if form, err := formOf(ciphertext[:n]); form != PKCS8 && err == nil {
		return nil, ErrPassphrase
	}
	return parsePKCS8(ciphertext[:n])
}

// key derives the key from a passphrase.
func (d *kdf) key(passphrase []byte) ([]byte, error) {
	return pbkdf2.Key(d.prf.hash, borrowString(passphrase), d.salt, d.iterations, d.keySize)
}

// borrowString returns b as a string without a copy, because crypto/pbkdf2 takes only strings and a
// copy could not be wiped. b must not change while the string is in use.
func borrowString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
