// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	encodingasn1 "encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const oidRSA = "1.2.840.113549.1.1.1"

// keyTypeNames names the algorithms of RFC 8017, 5480, 8410 and 3279 that people most often mistake
// for RSA encryption.
var keyTypeNames = map[string]string{
	"1.2.840.113549.1.1.7":  "RSA-OAEP",
	"1.2.840.113549.1.1.10": "RSA-PSS",
	"1.2.840.113549.1.3.1":  "DH",
	"1.2.840.10040.4.1":     "DSA",
	"1.2.840.10045.2.1":     "EC",
	"1.3.101.110":           "X25519",
	"1.3.101.111":           "X448",
	"1.3.101.112":           "Ed25519",
	"1.3.101.113":           "Ed448",
}

// parseLabelled reads the content of a private key block and decrypts it in place. The integers of
// the key are spans of der, which the caller keeps.
func parseLabelled(label string, der, passphrase []byte, lim limits) (*RSAKey, *Report, error) {
	form, err := formOf(der)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case label == labelPKCS8 && form == PKCS8:
		k, err := parsePKCS8(der)
		return k, &Report{Container: PKCS8}, err
	case label == labelPKCS1 && form == PKCS1:
		k, err := parsePKCS1(der)
		return k, &Report{Container: PKCS1}, err
	case label == labelEncrypted && form == PBES2:
		return decryptPBES2(der, passphrase, lim)
	case label == labelPKCS8 && form == JavaScript:
		return decryptJavaScript(der, passphrase, lim)
	case form != JavaScript:
		return nil, nil, fmt.Errorf("%w: %s under %s", ErrLabel, form, label)
	case len(der) > 0 && der[0] != 0x30: // cannot be the ASN.1 that the label promises
		return nil, nil, fmt.Errorf("%w: not ASN.1 under %s", ErrLabel, label)
	default:
		return nil, nil, ErrMalformed
	}
}

// formOf tells the forms apart by parsing them as deep as the labels promise. The first bytes are
// not enough: the JavaScript form looks random, since it begins with a salt, and may begin as ASN.1
// does. Data that parses as none of the others counts as the JavaScript form.
func formOf(der []byte) (Container, error) {
	var body cryptobyte.String
	s := cryptobyte.String(der)
	if !s.ReadASN1(&body, asn1.SEQUENCE) {
		return JavaScript, nil
	}
	var form Container
	switch {
	case isPKCS8(body):
		form = PKCS8
	case isPKCS1(body):
		form = PKCS1
	case isEncrypted(body):
		form = PBES2
	default:
		return JavaScript, nil
	}
	if !s.Empty() {
		return "", ErrTrailing
	}
	return form, nil
}

func isPKCS8(s cryptobyte.String) bool {
	var key cryptobyte.String
	if !s.SkipASN1(asn1.INTEGER) {
		return false
	}
	_, _, ok := readAlgorithm(&s)
	return ok && s.ReadASN1(&key, asn1.OCTET_STRING)
}

func isPKCS1(s cryptobyte.String) bool {
	for range 1 + 8 { // version and integers
		if !s.SkipASN1(asn1.INTEGER) {
			return false
		}
	}
	return true
}

func isEncrypted(s cryptobyte.String) bool {
	_, _, ok := readAlgorithm(&s)
	return ok && s.SkipASN1(asn1.OCTET_STRING) && s.Empty()
}

// parsePKCS8 reads a PrivateKeyInfo (RFC 5208, section 5) of version 0. It skips attributes.
func parsePKCS8(der []byte) (*RSAKey, error) {
	var info, key cryptobyte.String
	var version uint64
	s := cryptobyte.String(der)
	if !s.ReadASN1(&info, asn1.SEQUENCE) || !info.ReadASN1Integer(&version) || version > 1 {
		return nil, fmt.Errorf("%w: not PKCS#8 version 0", ErrMalformed)
	}
	if version == 1 { // OneAsymmetricKey, with the public key in it
		return nil, ErrPKCS8Version
	}
	oid, parameters, ok := readAlgorithm(&info)
	if !ok || !info.ReadASN1(&key, asn1.OCTET_STRING) ||
		!info.SkipOptionalASN1(asn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() {
		return nil, fmt.Errorf("%w: not a PKCS#8 structure", ErrMalformed)
	}
	if !s.Empty() {
		return nil, ErrTrailing
	}
	if oid != oidRSA {
		return nil, keyType(oid)
	}
	if !emptyParameters(parameters) {
		return nil, fmt.Errorf("%w: parameters of an RSA key", ErrMalformed)
	}
	return parsePKCS1(key)
}

// parsePKCS1 reads an RSAPrivateKey (RFC 8017, appendix A.1.2) into spans of der. It checks only
// the form.
func parsePKCS1(der []byte) (*RSAKey, error) {
	var key cryptobyte.String
	var version uint64
	s := cryptobyte.String(der)
	if !s.ReadASN1(&key, asn1.SEQUENCE) || !key.ReadASN1Integer(&version) || version > 1 {
		return nil, fmt.Errorf("%w: not PKCS#1 version 0", ErrMalformed)
	}
	if version == 1 {
		return nil, ErrMultiPrime
	}
	k := new(RSAKey)
	for _, field := range k.fields() {
		if !key.ReadASN1Integer(field) { // a span, not a copy
			return nil, fmt.Errorf("%w: not eight positive integers", ErrMalformed)
		}
	}
	if !key.Empty() {
		return nil, fmt.Errorf("%w: more than eight integers", ErrMalformed)
	}
	if !s.Empty() {
		return nil, ErrTrailing
	}
	return k, nil
}

// checkPublicBlock returns ErrPublicMismatch if the block is another public key than that of k.
func (k *RSAKey) checkPublicBlock(b block) error {
	der, err := b.decode(make([]byte, len(b.body)))
	if err != nil {
		return err
	}
	s := cryptobyte.String(der)
	if b.label == labelSPKI {
		var info, bits cryptobyte.String
		var unused uint8
		if !s.ReadASN1(&info, asn1.SEQUENCE) {
			return fmt.Errorf("%w: the public key", ErrMalformed)
		}
		oid, _, ok := readAlgorithm(&info)
		if !ok || !info.ReadASN1(&bits, asn1.BIT_STRING) || !bits.ReadUint8(&unused) ||
			unused != 0 || !info.Empty() {
			return fmt.Errorf("%w: the public key", ErrMalformed)
		}
		if oid != oidRSA {
			return fmt.Errorf("%w: %w", ErrPublicMismatch, keyType(oid))
		}
		if !s.Empty() {
			return fmt.Errorf("%w: the public key", ErrTrailing)
		}
		s = bits
	}
	var seq cryptobyte.String
	var n, e []byte
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1Integer(&n) || !seq.ReadASN1Integer(&e) ||
		!seq.Empty() {
		return fmt.Errorf("%w: the public key", ErrMalformed)
	}
	if !s.Empty() {
		return fmt.Errorf("%w: the public key", ErrTrailing)
	}
	if !bytes.Equal(n, k.N) || !bytes.Equal(e, k.E) {
		return ErrPublicMismatch
	}
	return nil
}

// readAlgorithm reads an AlgorithmIdentifier (RFC 5280, section 4.1.1.2): the object
// identifier in dotted form, and the bytes of its parameters.
func readAlgorithm(s *cryptobyte.String) (oid string, parameters cryptobyte.String, ok bool) {
	var id encodingasn1.ObjectIdentifier
	if !s.ReadASN1(&parameters, asn1.SEQUENCE) || !parameters.ReadASN1ObjectIdentifier(&id) {
		return "", nil, false
	}
	if len(id) > 16 {
		return "unknown", parameters, true // not worth printing
	}
	return id.String(), parameters, true
}

// keyType returns the error for a key of another algorithm.
func keyType(oid string) error {
	if name, ok := keyTypeNames[oid]; ok {
		return &KeyTypeError{name}
	}
	return &KeyTypeError{oid}
}

// emptyParameters reports whether the parameters are absent or NULL.
func emptyParameters(alg cryptobyte.String) bool {
	var null cryptobyte.String
	if alg.Empty() {
		return true
	}
	return alg.ReadASN1(&null, asn1.NULL) && null.Empty() && alg.Empty()
}
