// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// testKey parses a stored key into a fresh RSAKey.
func testKey(t testing.TB, name string) *RSAKey {
	t.Helper()
	k, _, err := ParsePrivateKey(testkit.KeyPEM(t, name), nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testDER(t testing.TB, name string) []byte {
	t.Helper()
	b, _ := pem.Decode(testkit.KeyPEM(t, name))
	return b.Bytes
}

func armor(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// rawPKCS8 encodes the given integers without a check.
func rawPKCS8(version, innerVersion uint64, ints [][]byte, after ...byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Uint64(version)
		addRSAAlgorithm(b)
		b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Uint64(innerVersion)
				for _, x := range ints {
					addInteger(b, x)
				}
			})
		})
		b.AddBytes(after)
	})
	return b.BytesOrPanic()
}

func ints(k *RSAKey) [][]byte {
	var out [][]byte
	for _, field := range k.fields() {
		out = append(out, bytes.Clone(*field))
	}
	return out
}

func TestRSAKeyFromAndTo(t *testing.T) {
	for _, name := range []string{"rsa-2048", "rsa-3072", "client-4096"} {
		want := testkit.Key(t, name)
		k, err := NewRSAKey(want)
		if err != nil {
			t.Fatal(err)
		}
		if parsed := testKey(t, name); !reflect.DeepEqual(ints(k), ints(parsed)) {
			t.Errorf("%s: NewRSAKey and ParsePrivateKey differ", name)
		}
		got, err := k.PrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(want) || k.Bits() != want.N.BitLen() {
			t.Errorf("%s: another key came back", name)
		}
		der, err := x509.MarshalPKIXPublicKey(want.Public())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(k.SPKI(), der) {
			t.Errorf("%s: another SubjectPublicKeyInfo than crypto/x509's", name)
		}
		memory := k.memory
		k.Wipe()
		k.Wipe()
		if memory.Bytes() != nil || k.D != nil {
			t.Errorf("%s: Wipe left something", name)
		}
	}
}

func TestNewRSAKeyRefuses(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		if _, err := NewRSAKey(small); !errors.Is(err, ErrKeySize) {
			t.Errorf("1024 bits: %v", err)
		}
	}
	bare := *testkit.Key(t, "rsa-2048")
	bare.Precomputed = rsa.PrecomputedValues{}
	if _, err := NewRSAKey(&bare); !errors.Is(err, ErrInvalid) {
		t.Errorf("no precomputed values: %v", err)
	}
	bare.Primes = append(slices.Clone(bare.Primes), big.NewInt(3))
	if _, err := NewRSAKey(&bare); !errors.Is(err, ErrMultiPrime) {
		t.Errorf("three primes: %v", err)
	}
	wrong := *testkit.Key(t, "rsa-2048")
	wrong.D = new(big.Int).Add(wrong.D, big.NewInt(2))
	if _, err := NewRSAKey(&wrong); !errors.Is(err, ErrInconsistent) {
		t.Errorf("another D: %v", err)
	}
}

// The integers lie in the one buffer that Wipe clears.
func TestIntegersAreSpans(t *testing.T) {
	k := testKey(t, "rsa-2048")
	memory := k.memory.Bytes()
	start, end := uintptr(unsafe.Pointer(&memory[0])),
		uintptr(unsafe.Pointer(&memory[len(memory)-1]))
	for i, field := range k.fields() {
		first, last := uintptr(unsafe.Pointer(&(*field)[0])),
			uintptr(unsafe.Pointer(&(*field)[len(*field)-1]))
		if first < start || last > end {
			t.Errorf("integer %d lies elsewhere", i)
		}
	}
	k.Wipe()
	if k.D != nil || k.memory != nil {
		t.Error("something outlived Wipe")
	}
}

// Each integer changed in each possible way to be wrong by one bit at either end, or swapped
// for another: only crypto/rsa's own view of a good key gets through.
func TestInconsistentKeys(t *testing.T) {
	good := ints(testKey(t, "rsa-2048"))
	names := []string{"N", "E", "D", "P", "Q", "Dp", "Dq", "Qinv"}
	if _, _, err := ParsePrivateKey(armor("PRIVATE KEY", rawPKCS8(0, 0, good)), nil); err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, bad [][]byte, want ...error) {
		t.Helper()
		_, _, err := ParsePrivateKey(armor("PRIVATE KEY", rawPKCS8(0, 0, bad)), nil)
		for _, w := range want {
			if errors.Is(err, w) {
				return
			}
		}
		t.Errorf("%s: %v", what, err)
	}
	change := func(i int, x []byte) [][]byte {
		bad := slices.Clone(good)
		bad[i] = x
		return bad
	}
	for i, name := range names {
		for _, pos := range []int{0, len(good[i]) / 2, len(good[i]) - 1} {
			for bit := range 8 {
				x := bytes.Clone(good[i])
				x[pos] ^= 1 << bit
				if len(x) == 0 || x[0] == 0 {
					continue // not canonical: refused as ASN.1
				}
				refuse(name+" flipped", change(i, x), ErrInconsistent, ErrExponent, ErrKeySize)
			}
		}
		refuse(name+" is zero", change(i, nil), ErrInconsistent, ErrKeySize, ErrExponent)
		refuse(name+" is one", change(i, []byte{1}), ErrInconsistent, ErrKeySize, ErrExponent)
		refuse(name+" is huge", change(i, bytes.Repeat([]byte{0xff}, 1025)), ErrInconsistent,
			ErrKeySize, ErrExponent)
	}
	swapped := slices.Clone(good)
	swapped[3], swapped[4] = swapped[4], swapped[3]
	refuse("P and Q swapped without the rest", swapped, ErrInconsistent)

	// D stays right modulo P-1 and Q-1 when a multiple of (P-1)(Q-1) is added.
	n, d := new(big.Int).SetBytes(good[0]), new(big.Int).SetBytes(good[2])
	phi := new(big.Int).Add(n, big.NewInt(1))
	phi.Sub(phi, new(big.Int).SetBytes(good[3])).Sub(phi, new(big.Int).SetBytes(good[4]))
	lambda := new(big.Int).Div(phi, big.NewInt(2)) // a multiple of the least common one
	for d.Cmp(n) < 0 {
		d.Add(d, lambda)
	}
	if len(d.Bytes()) > len(good[0]) {
		t.Fatal("D is refused by its length alone: the test needs another key")
	}
	refuse("D beyond N", change(2, d.Bytes()), ErrInconsistent)
	q, p := new(big.Int).SetBytes(good[7]), new(big.Int).SetBytes(good[3])
	refuse("Qinv beyond P", change(7, q.Add(q, p).Bytes()), ErrInconsistent)
	p1 := new(big.Int).Sub(p, big.NewInt(1))
	dp := new(big.Int).SetBytes(good[5])
	refuse("Dp beyond P-1", change(5, dp.Add(dp, p1).Bytes()), ErrInconsistent)
}

func TestExponents(t *testing.T) {
	good := ints(testKey(t, "rsa-2048"))
	for _, e := range [][]byte{nil, {1}, {3}, {0xff, 0xff}, {1, 0, 0}, {1, 0, 2}, {0x80, 0, 0, 1},
		{1, 0, 0, 0, 1}, bytes.Repeat([]byte{1}, 256)} {
		bad := slices.Clone(good)
		bad[1] = e
		if _, _, err := ParsePrivateKey(armor("PRIVATE KEY", rawPKCS8(0, 0, bad)),
			nil); !errors.Is(err, ErrExponent) {
			t.Errorf("exponent %x: %v", e, err)
		}
	}
}

func TestPKCS8Forms(t *testing.T) {
	good := ints(testKey(t, "rsa-2048"))
	attributes := []byte{0xa0, 2, 0x31, 0}
	public := []byte{0x81, 2, 0, 0}
	for _, test := range []struct {
		name string
		der  []byte
		want error
	}{
		{"attributes", rawPKCS8(0, 0, good, attributes...), nil},
		{"version 1", rawPKCS8(1, 0, good), ErrPKCS8Version},
		{"version 1 with public key", rawPKCS8(1, 0, good, public...), ErrPKCS8Version},
		{"version 2", rawPKCS8(2, 0, good), ErrMalformed},
		{"public key in version 0", rawPKCS8(0, 0, good, public...), ErrMalformed},
		{"attributes twice", rawPKCS8(0, 0, good, append(attributes, attributes...)...),
			ErrMalformed},
		{"inner version 1", rawPKCS8(0, 1, good), ErrMultiPrime},
		{"inner version 2", rawPKCS8(0, 2, good), ErrMalformed},
		{"seven integers", rawPKCS8(0, 0, good[:7]), ErrMalformed},
		{"nine integers", rawPKCS8(0, 0, append(slices.Clone(good), []byte{1})), ErrMalformed},
		{"zero behind the sequence", append(rawPKCS8(0, 0, good), 0), ErrTrailing},
		{"parameters", rawAlgorithm(oidRSA, []byte{4, 0}), ErrMalformed},
		{"NULL with content", rawAlgorithm(oidRSA, []byte{5, 1, 0}), ErrMalformed},
		{"two NULLs", rawAlgorithm(oidRSA, []byte{5, 0, 5, 0}), ErrMalformed},
		{"no parameters, no key", rawAlgorithm(oidRSA, nil), ErrMalformed},
		{"twice", append(rawPKCS8(0, 0, good), rawPKCS8(0, 0, good)...), ErrTrailing},
	} {
		k, _, err := ParsePrivateKey(armor("PRIVATE KEY", test.der), nil)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if err == nil {
			k.Wipe()
		}
	}
}

// rawAlgorithm is PKCS#8 of an algorithm, without a key.
func rawAlgorithm(oid string, parameters []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Uint64(0)
		addAlgorithm(b, oid, func(b *cryptobyte.Builder) { b.AddBytes(parameters) })
		b.AddASN1OctetString(nil)
	})
	return b.BytesOrPanic()
}

func TestKeyTypes(t *testing.T) {
	for oid, want := range map[string]string{"1.2.3.4": "1.2.3.4", "1.3.101.113": "Ed448",
		"1.2" + strings.Repeat(".3", 50): "unknown"} {
		var e *KeyTypeError
		_, _, err := ParsePrivateKey(armor("PRIVATE KEY", rawAlgorithm(oid, nil)), nil)
		if !errors.As(err, &e) || e.Name != want || !strings.Contains(e.Error(), want) {
			t.Errorf("%.20s: %v", oid, err)
		}
	}
}

// PrivateKey does not trust the integers in a Body.
func TestPrivateKeyRefuses(t *testing.T) {
	for i, want := range []error{ErrInconsistent, ErrExponent, ErrInconsistent, ErrInconsistent,
		ErrInconsistent, ErrInconsistent, ErrInconsistent, ErrInconsistent} {
		k := testKey(t, "rsa-2048")
		field := *k.fields()[i]
		bit := byte(2)
		if want == ErrExponent {
			bit = 1 // makes it even
		}
		field[len(field)-1] ^= bit
		if _, err := k.PrivateKey(); !errors.Is(err, want) {
			t.Errorf("integer %d: %v, want %v", i, err, want)
		}
	}
	if _, err := new(RSAKey).PrivateKey(); !errors.Is(err, ErrKeySize) {
		t.Errorf("no key: %v", err)
	}
}

func TestPEM(t *testing.T) {
	key := string(testkit.KeyPEM(t, "rsa-2048"))
	other := string(testkit.KeyPEM(t, "rsa-3072"))
	public := string(testkit.PublicPEM(t, "rsa-2048"))
	otherPublic := string(testkit.PublicPEM(t, "rsa-3072"))
	body := strings.TrimSuffix(strings.TrimPrefix(key, "-----BEGIN PRIVATE KEY-----\n"),
		"-----END PRIVATE KEY-----\n")
	replace := func(old, new string) string {
		if !strings.Contains(key, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(key, old, new, 1)
	}
	pkcs1Public := string(armor("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&testkit.Key(t,
		"rsa-2048").PublicKey)))
	for _, test := range []struct {
		name, file string
		want       error
	}{
		{"text around", "some text\n" + key + "and more", nil},
		{"indented markers are text", " -----BEGIN PRIVATE KEY-----\n" + key, nil},
		{"public behind", key + public, nil},
		{"public before and behind", public + "\n" + key + public, nil},
		{"PKCS#1 public", key + pkcs1Public, nil},
		{"other public", key + otherPublic, ErrPublicMismatch},
		{"right and other public", public + key + otherPublic, ErrPublicMismatch},
		{"damaged public", key + strings.Replace(public, "MII", "MIJ", 1), ErrMalformed},
		{"EC public", key + string(testkit.Vector(t, testkit.PrivateKey,
			"ec-pkcs8").File("public_key")), ErrPublicMismatch},
		{"certificate", key + string(armor("CERTIFICATE", []byte{0x30, 0})), ErrLabel},
		{"empty label", strings.ReplaceAll(key, "PRIVATE KEY", ""), ErrLabel},
		{"lower-case label", strings.ReplaceAll(key, "PRIVATE KEY", "private key"), ErrLabel},
		{"label with a space more", strings.ReplaceAll(key, "PRIVATE KEY", "PRIVATE KEY "),
			ErrLabel},
		{"the same key twice", key + key, ErrMultipleKeys},
		{"two keys", other + key, ErrMultipleKeys},
		{"only public", public, ErrPublicOnly},
		{"only text", "hello\n", ErrNotPEM},
		{"four dashes", replace("-----BEGIN", "----BEGIN"), ErrNotPEM},
		{"END alone", replace("-----BEGIN PRIVATE KEY-----\n", ""), ErrNotPEM},
		{"another END", replace("END PRIVATE", "END PUBLIC"), ErrMalformed},
		{"BEGIN twice", "-----BEGIN PRIVATE KEY-----\n" + key, ErrMalformed},
		{"END cut", key[:len(key)-6], ErrMalformed},
		{"character in base64", replace("MII", "M!I"), ErrMalformed},
		{"URL base64", replace("MII", "M-I"), ErrMalformed},
		{"padding in the middle", replace("MII", "M=I"), ErrMalformed},
		{"empty block", replace(body, ""), ErrMalformed},
		{"header", replace("MII", "Comment: x\n\nMII"), ErrMalformed},
		{"NUL in base64", replace("MII", "\x00MII"), ErrMalformed},
		{"too large", key + strings.Repeat(" ", MaxPEMSize), ErrTooLarge},
		{"largest", key + strings.Repeat(" ", MaxPEMSize-len(key)), nil},
		{"nothing", "", ErrNotPEM},
		{"BEGIN line without its end", "-----BEGIN PRIVATE KEY\n", ErrNotPEM},
	} {
		k, _, err := ParsePrivateKey([]byte(test.file), nil)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if err == nil {
			k.Wipe()
		}
	}
	// One zero bit less at the end of the base64 would be another spelling of the same key.
	if i := strings.IndexByte(key, '='); i < 0 || key[i-1] == '/' {
		t.Fatal("the test needs a key with padding in its base64")
	} else if _, _, err := ParsePrivateKey([]byte(key[:i-1]+string(key[i-1]+1)+key[i:]),
		nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("base64 that is not canonical: %v", err)
	}
	var unsupported *UnsupportedError
	_, _, err := ParsePrivateKey(armor("OPENSSH PRIVATE KEY", []byte("openssh-key-v1")), nil)
	if !errors.As(err, &unsupported) || !strings.Contains(unsupported.Error(), "ssh-keygen") {
		t.Errorf("OpenSSH: %v", err)
	}
}

func TestCheckPublicBlock(t *testing.T) {
	k := testKey(t, "rsa-2048")
	otherExponent := RSAKey{N: k.N, E: []byte{1, 0, 3}}
	for _, test := range []struct {
		name string
		file []byte
		want error
	}{
		{"its own", testkit.PublicPEM(t, "rsa-2048"), nil},
		{"another", testkit.PublicPEM(t, "rsa-3072"), ErrPublicMismatch},
		{"another exponent", armor("PUBLIC KEY", otherExponent.SPKI()), ErrPublicMismatch},
		{"private", testkit.KeyPEM(t, "rsa-2048"), ErrLabel},
		{"none", nil, ErrNotPEM},
		{"bytes behind", armor("PUBLIC KEY", append(k.SPKI(), 0)), ErrTrailing},
		{"cut", armor("PUBLIC KEY", k.SPKI()[:100]), ErrMalformed},
	} {
		if err := checkPublicPEM(k, test.file); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

func TestWipeState(t *testing.T) {
	aead, wipe, err := deriveGCM(make([]byte, 32), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	gcm := reflect.ValueOf(aead).Field(0)
	block, err := aes.NewCipher(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	mode := cipher.NewCBCDecrypter(block, make([]byte, 16))
	var states [][]byte
	for _, v := range []reflect.Value{gcm, reflect.ValueOf(block), reflect.ValueOf(mode)} {
		state := unsafe.Slice((*byte)(v.UnsafePointer()), v.Type().Elem().Size())
		if allZero(state) {
			t.Errorf("%v is zero from the start", v.Type())
		}
		states = append(states, state)
	}
	wipe()
	erase.Wipe(block)
	erase.Wipe(mode)
	for i, state := range states {
		if !allZero(state) {
			t.Errorf("state %d still holds something", i)
		}
	}
}

func allZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}
