// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// javaScript encrypts a padded plaintext as the JavaScript client does.
func javaScript(t *testing.T, salt, passphrase, padded []byte) []byte {
	t.Helper()
	data := make([]byte, 32, 32+len(padded))
	copy(data, salt)
	data = append(data, padded...)
	d := kdf{prfs[oidHMACSHA256], data[:16], 100_000, 32, data[16:32]}
	key, err := d.key(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	if err := cbc(key, d.iv, data[32:], cipher.NewCBCEncrypter); err != nil {
		t.Fatal(err)
	}
	return armor("PRIVATE KEY", data)
}

// A salt is random: a JavaScript file is decrypted whatever its first bytes are.
func TestJavaScriptSalts(t *testing.T) {
	der := testDER(t, "rsa-2048")
	n := 16 - len(der)%16
	padded := append(der, bytes.Repeat([]byte{byte(n)}, n)...)
	for _, salt := range [][]byte{der[:16], {0x30, 0x82}, {0x30, 4, 2, 0, 2, 0},
		{0x30, 4, 0x30, 0, 4, 0}} {
		_, report, err := ParsePrivateKey(javaScript(t, salt, []byte("pw"), padded), []byte("pw"))
		if err != nil || report.Container != JavaScript {
			t.Errorf("salt %x: %v", salt, err)
		}
	}
}

func TestPadding(t *testing.T) {
	der := testDER(t, "rsa-2048")
	n := 16 - len(der)%16
	if n < 2 {
		t.Fatalf("the test needs a key with more than %d bytes of padding", n)
	}
	good := bytes.Repeat([]byte{byte(n)}, n)
	uneven := bytes.Clone(good)
	uneven[0]++
	long := bytes.Clone(good)
	long[n-1] += 16
	for name, padding := range map[string][]byte{
		"uneven":     uneven,
		"zero":       make([]byte, n),
		"too long":   long,
		"a block on": append(bytes.Clone(good), bytes.Repeat([]byte{16}, 16)...), // padded twice
	} {
		want := ErrPassphrase
		if name == "a block on" {
			want = ErrTrailing
		}
		if _, _, err := ParsePrivateKey(javaScript(t, nil, []byte("pw"),
			append(bytes.Clone(der), padding...)), []byte("pw")); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// Broken PBES2 parameters, each built on a good file.
func TestPBES2Parameters(t *testing.T) {
	der := testDER(t, "rsa-2048")
	const sha256OID, sha512_256 = oidHMACSHA256, "1.2.840.113549.2.13"
	type params struct {
		scheme, kdf, prf, cipher string
		salt, iterations         []byte
		keyLength                []byte
		iv                       []byte
		ciphertext               []byte
		extra                    int
	}
	build := func(change func(*params)) []byte {
		p := params{oidPBES2, oidPBKDF2, sha256OID, oidAES256CBC, []byte("saltsalt"), []byte{1},
			nil, make([]byte, 16), bytes.Clone(der[:len(der)&^15]), 0}
		change(&p)
		extra := func(b *cryptobyte.Builder, at int) {
			if p.extra == at {
				b.AddASN1NULL()
			}
		}
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addAlgorithm(b, p.scheme, func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addAlgorithm(b, p.kdf, func(b *cryptobyte.Builder) {
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1OctetString(p.salt)
							addInteger(b, p.iterations)
							if p.keyLength != nil {
								addInteger(b, p.keyLength)
							}
							if p.prf != "" {
								addAlgorithm(b, p.prf, addNull)
							}
							extra(b, 1)
						})
						extra(b, 2)
					})
					addAlgorithm(b, p.cipher, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString(p.iv)
						extra(b, 3)
					})
					extra(b, 4)
				})
				extra(b, 5)
			})
			b.AddASN1OctetString(p.ciphertext)
		})
		return armor(labelEncrypted, b.BytesOrPanic())
	}
	unsupported := func(what string) error { return &UnsupportedError{What: what} }
	for _, test := range []struct {
		name   string
		change func(*params)
		want   error
	}{
		{"as it is", func(p *params) {}, ErrPassphrase},
		{"key length fits", func(p *params) { p.keyLength = []byte{32} }, ErrPassphrase},
		{"empty salt", func(p *params) { p.salt = nil }, ErrPassphrase},
		{"key length of another cipher", func(p *params) {
			p.keyLength = []byte{16}
		}, ErrMalformed},
		{"long key length", func(p *params) {
			p.keyLength = bytes.Repeat([]byte{1}, 100)
		}, ErrMalformed},
		{"no iterations", func(p *params) { p.iterations = nil }, ErrKDFCost},
		{"one iteration too many", func(p *params) {
			p.iterations = big.NewInt(MaxIterations + 1).Bytes()
		}, ErrKDFCost},
		{"four bytes of iterations", func(p *params) {
			p.iterations = []byte{1, 0, 0, 0}
		}, ErrKDFCost},
		{"iterations beyond 64 bits", func(p *params) {
			p.iterations = bytes.Repeat([]byte{1}, 20)
		}, ErrKDFCost},
		{"SHA-512/256", func(p *params) {
			p.prf = sha512_256
		}, unsupported("the pseudorandom function " + sha512_256)},
		{"AES-256-GCM", func(p *params) {
			p.cipher = "2.16.840.1.101.3.4.1.46"
		}, unsupported("the cipher 2.16.840.1.101.3.4.1.46")},
		{"unknown scheme", func(p *params) {
			p.scheme = "1.2.3"
		}, unsupported("the encryption scheme 1.2.3")},
		{"endless scheme", func(p *params) {
			p.scheme = "1.2" + strings.Repeat(".3", 50)
		}, unsupported("the encryption scheme unknown")},
		{"unknown KDF", func(p *params) {
			p.kdf = "1.2.3"
		}, unsupported("the key derivation 1.2.3")},
		{"short IV", func(p *params) { p.iv = p.iv[:15] }, ErrMalformed},
		{"long IV", func(p *params) { p.iv = append(p.iv, 0) }, ErrMalformed},
		{"no ciphertext", func(p *params) { p.ciphertext = nil }, ErrMalformed},
		{"half a block", func(p *params) { p.ciphertext = p.ciphertext[:40] }, ErrMalformed},
		{"one block", func(p *params) { p.ciphertext = p.ciphertext[:16] }, ErrPassphrase},
		{"more in PBKDF2", func(p *params) { p.extra = 1 }, ErrMalformed},
		{"more after PBKDF2", func(p *params) { p.extra = 2 }, ErrMalformed},
		{"more after the IV", func(p *params) { p.extra = 3 }, ErrMalformed},
		{"more after the cipher", func(p *params) { p.extra = 4 }, ErrMalformed},
		{"more after PBES2", func(p *params) { p.extra = 5 }, ErrMalformed},
	} {
		if _, _, err := ParsePrivateKey(build(test.change), []byte("pw")); !sameError(err,
			test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	block, _ := pem.Decode(build(func(*params) {}))
	if _, _, err := ParsePrivateKey(armor(labelEncrypted, append(block.Bytes, 0)),
		[]byte("pw")); !errors.Is(err, ErrTrailing) {
		t.Errorf("a byte more: %v", err)
	}
	raw := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 64))
	_, _, err := ParsePrivateKey(
		[]byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"+raw+"\n-----END ENCRYPTED PRIVATE "+
			"KEY-----"), nil)
	if !errors.Is(err, ErrLabel) {
		t.Errorf("noise: %v", err)
	}
}
