// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// refused lists every vector that does not load, and why. Errors of a type are
// given by a value with the name to look for.
var refused = map[string]error{
	"ossl-pbes2-3des":           &UnsupportedError{What: "3DES"},
	"ossl-scrypt":               &UnsupportedError{What: "scrypt"},
	"ossl-scrypt-utf8pw-params": &UnsupportedError{What: "scrypt"},
	"ossl-legacy-pem-aes256": &UnsupportedError{
		What: "legacy PEM encryption (Proc-Type, DEK-Info)"},
	"ossl-legacy-pem-aes128": &UnsupportedError{
		What: "legacy PEM encryption (Proc-Type, DEK-Info)"},
	"ossl-legacy-pem-3des": &UnsupportedError{What: "legacy PEM encryption (Proc-Type, DEK-Info)"},
	"ossl-legacy-pem-utf8pw": &UnsupportedError{
		What: "legacy PEM encryption (Proc-Type, DEK-Info)"},
	"ossl-pbes1-3des":               &UnsupportedError{What: "PBES1"},
	"ossl-pbes1-md5-des":            &UnsupportedError{What: "PBES1"},
	"ossl-pbes1-rc2-40":             &UnsupportedError{What: "PBES1"},
	"ec-pkcs8":                      &KeyTypeError{"EC"},
	"ec-sec1":                       &KeyTypeError{"EC"},
	"ec-encrypted":                  &KeyTypeError{"EC"},
	"ed25519-pkcs8":                 &KeyTypeError{"Ed25519"},
	"ed25519-encrypted":             &KeyTypeError{"Ed25519"},
	"x25519-pkcs8":                  &KeyTypeError{"X25519"},
	"rsa-pss":                       &KeyTypeError{"RSA-PSS"},
	"dsa":                           &KeyTypeError{"DSA"},
	"rsa-1024":                      ErrKeySize,
	"rsa-1024-encrypted":            ErrKeySize,
	"rsa-1024-pkcs1":                ErrKeySize,
	"rsa-512":                       ErrKeySize,
	"rsa-just-below-2048":           ErrKeySize,
	"js-1024-pw":                    ErrKeySize,
	"rsa-2048-e3":                   ErrExponent,
	"rsa-3prime":                    ErrMultiPrime,
	"pem-two-private":               ErrMultipleKeys,
	"pem-truncated":                 ErrMalformed,
	"pem-no-footer":                 ErrMalformed,
	"pem-trailing-der-garbage":      ErrTrailing,
	"pem-flipped-modulus":           ErrInconsistent,
	"pem-flipped-exponent-d":        ErrInconsistent,
	"pem-wrong-label-rsa":           ErrLabel,
	"pem-label-encrypted-but-plain": ErrLabel,
	"pem-pkcs1-under-private-key":   ErrLabel,
	"js-pw-label-encrypted":         ErrLabel,
	"pem-empty-file":                ErrNotPEM,
	"pem-not-pem":                   ErrNotPEM,
	"pem-der-file":                  ErrNotPEM,
	"pem-public-key-instead":        ErrPublicOnly,
	"js-pw-corrupt-last-block":      ErrPassphrase,
	"js-pw-corrupt-salt":            ErrPassphrase,
	"js-pw-corrupt-iv":              ErrPassphrase,
	"js-pw-corrupt-middle":          ErrInconsistent,
	"js-pw-truncated-16":            ErrPassphrase,
	"js-pw-odd-length":              ErrMalformed,
	"js-pw-too-short":               ErrMalformed,
	"js-pw-31-bytes":                ErrMalformed,
	"py-pw-corrupt-last-block":      ErrPassphrase,
	"py-pw-corrupt-middle":          ErrInconsistent,
	"py-pw-truncated":               ErrMalformed,
	"py-pw-iterations-2e31":         ErrKDFCost,
	"mismatched-public":             ErrPublicMismatch, // by checkPublicPEM
}

func sameError(got, want error) bool {
	switch want := want.(type) {
	case *KeyTypeError:
		var e *KeyTypeError
		return errors.As(got, &e) && *e == *want
	case *UnsupportedError:
		var e *UnsupportedError
		return errors.As(got, &e) && e.What == want.What && e.Command != ""
	}
	return errors.Is(got, want)
}

func password(c testkit.Case) []byte {
	if c.Password == nil {
		return nil
	}
	return []byte(*c.Password)
}

// checkPublicPEM returns ErrPublicMismatch unless every public key block in a PEM file belongs to
// k. A file without one is ErrNotPEM.
func checkPublicPEM(k *RSAKey, pemBytes []byte) error {
	private, public, err := splitBlocks(pemBytes)
	if err != nil {
		return err
	}
	if private != nil {
		return fmt.Errorf("%w: a private key, where a public one is expected", ErrLabel)
	}
	for _, b := range public {
		if err := k.checkPublicBlock(b); err != nil {
			return err
		}
	}
	return nil
}

// load reads a vector's private key, and compares it with its public one.
func load(c testkit.Case, passphrase []byte) (*RSAKey, *Report, error) {
	file := c.File("private_key")
	before := bytes.Clone(file)
	k, report, err := ParsePrivateKey(file, passphrase)
	if !bytes.Equal(file, before) {
		return nil, nil, errors.New("ParsePrivateKey changed its input")
	}
	if err == nil {
		err = checkPublicPEM(k, c.File("public_key"))
	}
	return k, report, err
}

func TestVectors(t *testing.T) {
	cases := testkit.Vectors(t, testkit.PrivateKey)
	if len(cases) != 100 {
		t.Errorf("%d vectors, want 100", len(cases))
	}
	names := make(map[string]bool)
	for _, c := range cases {
		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			want, refuse := refused[c.Name]
			if c.Expected.Suggested == testkit.Accept && refuse ||
				c.Expected.Suggested == testkit.Reject && !refuse {
				t.Fatalf("the vector suggests %s", c.Expected.Suggested)
			}
			k, report, err := load(c, password(c))
			if refuse {
				if !sameError(err, want) {
					t.Fatalf("got %v, want %v", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer k.Wipe()
			fingerprint := k.Fingerprint()
			if got := hex.EncodeToString(fingerprint[:]); got != c.Expected.SPKISHA256 {
				t.Errorf("fingerprint %s, want %s", got, c.Expected.SPKISHA256)
			}
			if c.Expected.Bits != 0 && k.Bits() != c.Expected.Bits {
				t.Errorf("%d bits, want %d", k.Bits(), c.Expected.Bits)
			}
			if encrypted := len(password(c)) > 0; encrypted != (report.KDF != "") ||
				encrypted != (report.Iterations > 0) {
				t.Errorf("report %+v", *report)
			}
			priv, err := k.PrivateKey()
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKIXPublicKey(priv.Public())
			if err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(der) != fingerprint {
				t.Error("crypto/x509 gives another fingerprint")
			}
		})
	}
	for name := range refused {
		if !names[name] {
			t.Errorf("no vector %s", name)
		}
	}
}

// Every encrypted vector is refused without and with another passphrase, every other with any.
func TestVectorsWrongPassphrase(t *testing.T) {
	for _, c := range testkit.Vectors(t, testkit.PrivateKey) {
		if _, refuse := refused[c.Name]; refuse {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			if c.Password == nil {
				if _, _, err := load(c, []byte("superfluous")); !errors.Is(err,
					ErrPassphraseSuperfluous) {
					t.Errorf("superfluous passphrase: %v", err)
				}
				return
			}
			if _, _, err := load(c, nil); !errors.Is(err, ErrPassphraseNeeded) {
				t.Errorf("no passphrase: %v", err)
			}
			wrong := append(password(c), ' ')
			if strings.Contains(c.Name, "nfd") {
				wrong = []byte("caf\u00e9") // the same letters in form NFC
			}
			if _, _, err := load(c, wrong); !errors.Is(err, ErrPassphrase) {
				t.Errorf("wrong passphrase: %v", err)
			}
		})
	}
}

func TestReports(t *testing.T) {
	for name, want := range map[string]Report{
		"client":                  {Container: PKCS8},
		"ossl-pkcs1-plain":        {Container: PKCS1},
		"pem-public-then-private": {Container: PKCS8, Public: true},
		"js-2048-pw-ascii": {JavaScript, "PBKDF2-HMAC-SHA256", 100_000, true,
			false},
		"py48-4096-pw-ascii":                {PBES2, "PBKDF2-HMAC-SHA256", 2048, true, false},
		"ossl-pbes2-iter1":                  {PBES2, "PBKDF2-HMAC-SHA256", 1, true, false},
		"ossl-pbes2-aes256-sha1-absent-prf": {PBES2, "PBKDF2-HMAC-SHA1", 2048, true, false},
		"ossl-pbes2-aes256-sha224":          {PBES2, "PBKDF2-HMAC-SHA224", 2048, true, false},
		"ossl-pbes2-aes192-sha384":          {PBES2, "PBKDF2-HMAC-SHA384", 2048, true, false},
		"ossl-pbes2-aes256-sha512-600000":   {PBES2, "PBKDF2-HMAC-SHA512", 600_000, false, false},
		"ossl-pbes2-aes256-sha256-600000":   {PBES2, "PBKDF2-HMAC-SHA256", 600_000, false, false},
		"js-2048-pw-saltlikeasn1": {JavaScript, "PBKDF2-HMAC-SHA256", 100_000, true,
			false},
		"ossl-pbes2-default":              {PBES2, "PBKDF2-HMAC-SHA256", 2048, true, false},
		"pem-utf8-bom":                    {Container: PKCS8},
		"ossl-pbes2-aes128-sha256":        {PBES2, "PBKDF2-HMAC-SHA256", 2048, true, false},
		"ossl-pbes2-aes256-sha512-utf8pw": {PBES2, "PBKDF2-HMAC-SHA512", 210_000, true, false},
	} {
		c := testkit.Vector(t, testkit.PrivateKey, name)
		k, report, err := ParsePrivateKey(c.File("private_key"), password(c))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if *report != want {
			t.Errorf("%s: %+v, want %+v", name, *report, want)
		}
		k.Wipe()
	}
}
