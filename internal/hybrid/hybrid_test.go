// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package hybrid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// modulus is a number of this size that looks like a modulus: parsing needs no more.
func modulus(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return n.Add(n, new(big.Int).Rsh(n, 1)).Add(n, big.NewInt(1))
}

func spki(t testing.TB, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemBlock(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// rawSPKI is a SubjectPublicKeyInfo put together by hand, with any integers and parameters.
func rawSPKI(t testing.TB, n, e *big.Int, parameters asn1.RawValue) []byte {
	t.Helper()
	inner, err := asn1.Marshal(struct{ N, E *big.Int }{n, e})
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1},
			Parameters: parameters},
		asn1.BitString{Bytes: inner, BitLength: 8 * len(inner)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// paddedSPKI are keys that crypto/x509 takes although something superfluous is in them: each would
// be a second text, with a second fingerprint, for the same key.
func paddedSPKI(t testing.TB, n *big.Int) map[string][]byte {
	t.Helper()
	marshal := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	type numbers struct{ N, E *big.Int }
	type info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	of := func(inner []byte) info {
		rsaOID := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
		return info{pkix.AlgorithmIdentifier{Algorithm: rsaOID, Parameters: asn1.NullRawValue},
			asn1.BitString{Bytes: inner, BitLength: 8 * len(inner)}}
	}
	e := big.NewInt(65537)
	good := marshal(numbers{n, e})
	padded := map[string][]byte{
		"a third number": marshal(of(marshal(struct{ N, E, X *big.Int }{n, e, e}))),
		"a member behind the key": marshal(struct {
			Algorithm pkix.AlgorithmIdentifier
			Key       asn1.BitString
			X         int
		}{of(good).Algorithm, of(good).Key, 1}),
		"a byte behind the numbers": marshal(of(append(slices.Clone(good), 0))),
	}
	for name, der := range padded {
		if _, err := x509.ParsePKIXPublicKey(der); err != nil {
			t.Logf("%s: crypto/x509 refuses it by now", name)
		}
	}
	return padded
}

func TestParsePublicKey(t *testing.T) {
	good := testkit.PublicPEM(t, "server-4096")
	block, _ := pem.Decode(good)
	for name, text := range map[string][]byte{
		"as it is":           good,
		"no final newline":   bytes.TrimSpace(good),
		"white space around": slices.Concat([]byte(" \t\r\n\n"), good, []byte("\n\n \t\r\n")),
		"CRLF":               bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")),
		"at the limit": append(slices.Clone(good),
			bytes.Repeat([]byte("\n"), 16<<10-len(good))...),
	} {
		key, err := ParsePublicKey(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sum := sha256.Sum256(block.Bytes)
		if got, want := key.Fingerprint(), hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s: fingerprint %s, want %s", name, got, want)
		}
		if !bytes.Equal(key.PEM(), good) || key.Bits() != 4096 {
			t.Errorf("%s: %d bits, PEM %s", name, key.Bits(), key.PEM())
		}
	}
	for _, bits := range []int{2048, 2049, 3072, 4096, 8191, 8192} {
		for _, e := range []int{65537, 65539, 1<<31 - 1} {
			key, err := ParsePublicKey(pemBlock("PUBLIC KEY",
				spki(t, &rsa.PublicKey{N: modulus(bits), E: e})))
			if err != nil || key.Bits() != bits {
				t.Errorf("%d bits, exponent %d: %v", bits, e, err)
			}
		}
	}
}

func TestParsePublicKeyRefusals(t *testing.T) {
	good := testkit.PublicPEM(t, "server-4096")
	block, _ := pem.Decode(good)
	der, n := block.Bytes, modulus(2048)
	e65537, null := big.NewInt(65537), asn1.NullRawValue
	rsaOf := func(bits, e int) []byte {
		return pemBlock("PUBLIC KEY", spki(t, &rsa.PublicKey{N: modulus(bits), E: e}))
	}
	public := func(der []byte) []byte { return pemBlock("PUBLIC KEY", der) }
	if _, err := ParsePublicKey(public(rawSPKI(t, n, e65537, null))); err != nil {
		t.Fatalf("the template of the cases below is refused: %v", err)
	}

	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	self := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, self, self, &ec.PublicKey, ec)
	if err != nil {
		t.Fatal(err)
	}
	unusedBits := slices.Clone(der)
	// BIT STRING: 30 82 len 30 0d oid null 03 82 len, then the count of unused bits
	unusedBits[23] = 1
	even := new(big.Int).Sub(n, big.NewInt(1))
	broken := "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n"

	for name, c := range map[string]struct {
		text []byte
		want string // in the error
	}{
		"nothing":       {nil, "empty"},
		"white space":   {[]byte(" \n\t"), "empty"},
		"words":         {[]byte("no key here"), "PEM"},
		"1024 bits":     {rsaOf(1024, 65537), "1024 bits"},
		"2047 bits":     {rsaOf(2047, 65537), "2047 bits"},
		"8193 bits":     {rsaOf(8193, 65537), "8193 bits"},
		"16384 bits":    {rsaOf(16384, 65537), "16384 bits"},
		"exponent 3":    {rsaOf(2048, 3), "exponent"},
		"exponent 1":    {rsaOf(2048, 1), "exponent"},
		"below F4":      {rsaOf(2048, 65535), "exponent"},
		"even exponent": {rsaOf(2048, 65538), "exponent"},
		"exponent 2^31": {public(rawSPKI(t, n, big.NewInt(1<<31), null)), ""},
		"exponent 2^31+1": {
			public(rawSPKI(t, n, big.NewInt(1<<31+1), null)), ""},
		"exponent 2^64+1": {public(rawSPKI(t, n,
			new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 64), big.NewInt(1)), null)), ""},
		"negative exponent":   {public(rawSPKI(t, n, big.NewInt(-65537), null)), ""},
		"negative modulus":    {public(rawSPKI(t, new(big.Int).Neg(n), e65537, null)), ""},
		"even modulus":        {public(rawSPKI(t, even, e65537, null)), "even"},
		"zero modulus":        {public(rawSPKI(t, new(big.Int), e65537, null)), ""},
		"EC":                  {public(spki(t, &ec.PublicKey)), "not RSA"},
		"Ed25519":             {public(spki(t, edPublic)), "not RSA"},
		"certificate":         {pemBlock("CERTIFICATE", certificate), "certificate"},
		"certificate, label":  {public(certificate), ""},
		"key under its label": {pemBlock("CERTIFICATE", der), "certificate"},
		"PKCS#1": {pemBlock("RSA PUBLIC KEY",
			x509.MarshalPKCS1PublicKey(&testkit.Key(t, "rsa-2048").PublicKey)), "PKCS#1"},
		"PKCS#1, label": {public(x509.MarshalPKCS1PublicKey(&testkit.Key(t,
			"rsa-2048").PublicKey)), ""},
		"private":            {testkit.KeyPEM(t, "rsa-2048"), "PRIVATE"},
		"encrypted private":  {pemBlock("ENCRYPTED PRIVATE KEY", der), "PRIVATE"},
		"public and private": {slices.Concat(good, testkit.KeyPEM(t, "rsa-2048")), "PRIVATE"},
		"other label":        {pemBlock("PUBLIC  KEY", der), ""},
		"lower-case label":   {pemBlock("public key", der), ""},
		"two blocks":         {slices.Concat(good, good), "PEM block"},
		"two keys":           {slices.Concat(good, testkit.PublicPEM(t, "rsa-2048")), "PEM block"},
		"text behind":        {append(slices.Clone(good), "# key"...), "PEM block"},
		"text before":        {append([]byte("# key\n"), good...), "begin"},
		"NUL behind":         {append(slices.Clone(good), 0), ""},
		"BOM":                {append([]byte("\xef\xbb\xbf"), good...), "begin"},
		"a broken block, then a good one": {
			append([]byte(broken), good...), ""},
		"a block of another kind without an end, then a good one": {
			append([]byte("-----BEGIN NOTHING-----\n"), good...), ""},
		"a good block, then a broken one": {
			append(slices.Clone(good), broken...), ""},
		"headers": {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY",
			Headers: map[string]string{"Comment": "x"}, Bytes: der}), "header"},
		"cut":             {good[:len(good)/2], ""},
		"no end line":     {bytes.TrimSuffix(good, []byte("-----END PUBLIC KEY-----\n")), ""},
		"empty block":     {[]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"), ""},
		"URL-safe base64": {bytes.ReplaceAll(good, []byte("+"), []byte("-")), ""},
		"DER":             {der, ""},
		"JSON string": {[]byte(`"` + strings.ReplaceAll(string(good), "\n", `\n`) + `"`),
			"JSON"},
		"JSON object":   {[]byte(`{"public_key":"-----BEGIN PUBLIC KEY-----"}`), "JSON"},
		"HTML":          {[]byte("<!doctype html><title>Login</title>"), "HTML"},
		"no parameters": {public(rawSPKI(t, n, e65537, asn1.RawValue{})), ""},
		"other parameters": {public(rawSPKI(t, n, e65537,
			asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true})), ""},
		"byte after DER": {public(append(slices.Clone(der), 0)), ""},
		"longer length":  {public(slices.Concat([]byte{0x30, 0x83, 0}, der[2:])), ""},
		"indefinite length": {
			public(slices.Concat([]byte{0x30, 0x80}, der[4:], []byte{0, 0})), ""},
		"unused bits": {public(unusedBits), ""},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := ParsePublicKey(c.text)
			if key != nil || !errors.Is(err, fault.ErrPublicKey) ||
				!strings.Contains(err.Error(), c.want) {
				t.Errorf("key %v, error %v, want ErrPublicKey with %q", key != nil, err, c.want)
			}
		})
	}
	for name, der := range paddedSPKI(t, n) {
		if key, err := ParsePublicKey(public(der)); key != nil ||
			!errors.Is(err, fault.ErrPublicKey) {
			t.Errorf("%s: error %v, want ErrPublicKey", name, err)
		}
	}
	if key, err := ParsePublicKey(append(slices.Clone(good),
		bytes.Repeat([]byte("\n"), 16<<10+1-len(good))...)); key != nil ||
		!errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("one byte above the limit: %v", err)
	}
}

func privateOf(t testing.TB, name string) *PrivateKey {
	t.Helper()
	k, err := NewPrivateKey(testkit.Key(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustSeal(t testing.TB, k *PublicKey, plaintext []byte) *envelope.Envelope {
	t.Helper()
	e, err := sealFor(k, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestSealOpen(t *testing.T) {
	for _, name := range []string{"rsa-2048", "rsa-3072", "server-4096"} {
		key := privateOf(t, name)
		for _, form := range []envelope.TagForm{envelope.Separate, envelope.Appended} {
			for _, size := range []int{1, 15, 16, 17, 1000, 1 << 20} {
				plaintext := make([]byte, size)
				_, _ = rand.Read(plaintext)
				before := slices.Clone(plaintext)
				e := mustSeal(t, key.public, plaintext)
				if !bytes.Equal(plaintext, before) {
					t.Errorf("%s: seal changed the plaintext", name)
				}
				e.TagForm = form
				body := envelope.Append(nil, e)
				if size == 1000 {
					if got, appended := testkit.OpenPlainly(t, testkit.Key(t, name),
						body); !bytes.Equal(got, plaintext) ||
						appended != (form == envelope.Appended) {
						t.Errorf("%s: the standard library opens something else", name)
					}
				}
				read, err := envelope.Parse(body, size)
				if err != nil {
					t.Fatal(err)
				}
				got, err := key.Open(&read, nil)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("%s, form %v, %d bytes: %v", name, form, size, err)
				}
			}
		}
	}
}

// Two envelopes share nothing: not the data key, not the nonce.
func TestSealIsFresh(t *testing.T) {
	key, plaintext := privateOf(t, "rsa-2048"), bytes.Repeat([]byte("a"), 64)
	nonces, bodies, wrapped, dataKeys := map[string]bool{}, map[string]bool{}, map[string]bool{},
		map[string]bool{}
	for range 50 {
		e := mustSeal(t, key.public, plaintext)
		dataKey := make([]byte, DataKeySize)
		if !key.unwrap(dataKey, e.WrappedKey) {
			t.Fatal("the data key does not unwrap")
		}
		dataKeys[string(dataKey)] = true
		nonces[string(e.Sealed[:envelope.NonceSize])] = true
		bodies[string(e.Sealed[envelope.NonceSize:][:32])] = true
		wrapped[string(e.WrappedKey)] = true
	}
	if len(nonces) != 50 || len(bodies) != 50 || len(wrapped) != 50 || len(dataKeys) != 50 {
		t.Errorf("%d nonces, %d ciphertexts, %d wrapped keys, %d data keys in 50", len(nonces),
			len(bodies), len(wrapped), len(dataKeys))
	}
}

func wrap(t testing.TB, k *PublicKey, dataKey []byte) []byte {
	t.Helper()
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, k.key, dataKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func TestOpenRefusals(t *testing.T) {
	key := privateOf(t, "rsa-2048")
	good := mustSeal(t, key.public, []byte("sixteen bytes of"))
	check := func(what string, e *envelope.Envelope) {
		t.Helper()
		size := len(e.Sealed)
		plaintext, err := key.Open(e, nil)
		if err != fault.ErrDecryption || plaintext != nil { // one value, whatever the cause
			t.Errorf("%s: %d bytes, error %v", what, len(plaintext), err)
		}
		// Opening works in place: if GCM was tried, what would have been the plaintext is wiped. So
		// this shows that a key that does not unwrap costs the same work as a tag that does not
		// fit.
		if text := e.Sealed[:size-envelope.NonceSize-envelope.TagSize]; !bytes.Equal(text,
			make([]byte, len(text))) {
			t.Errorf("%s: GCM was not tried", what)
		}
	}
	changed := func(change func(*envelope.Envelope)) *envelope.Envelope {
		e := &envelope.Envelope{Sealed: slices.Clone(good.Sealed),
			WrappedKey: slices.Clone(good.WrappedKey)}
		change(e)
		return e
	}
	if got, err := key.Open(changed(func(*envelope.Envelope) {}), nil); err != nil ||
		string(got) != "sixteen bytes of" {
		t.Fatalf("the template of the cases below does not open: %v", err)
	}
	for i := range good.Sealed { // nonce, ciphertext, tag
		check("a flipped bit in the payload", changed(func(e *envelope.Envelope) {
			e.Sealed[i] ^= 1 << (i % 8)
		}))
	}
	for i := range good.WrappedKey {
		if i < 8 || i%16 == 0 || i > len(good.WrappedKey)-8 {
			check("a flipped bit in the wrapped key", changed(func(e *envelope.Envelope) {
				e.WrappedKey[i] ^= 1 << (i % 8)
			}))
		}
	}
	n := key.public.key.N
	for what, number := range map[string]*big.Int{
		"the modulus": n, "one above it": new(big.Int).Add(n, big.NewInt(1)),
		"one below it":     new(big.Int).Sub(n, big.NewInt(1)),
		"nothing but ones": new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 2048), big.NewInt(1)),
		"zero":             new(big.Int), "one": big.NewInt(1),
	} {
		check("wrapped key: "+what, changed(func(e *envelope.Envelope) {
			number.FillBytes(e.WrappedKey)
		}))
	}
	check("another's key", changed(func(e *envelope.Envelope) {
		e.WrappedKey = mustSeal(t, key.public, []byte("x")).WrappedKey
	}))
	for _, size := range []int{0, 1, 16, 24, 31, 33, 64} {
		dataKey := make([]byte, size)
		check("a data key of another size", changed(func(e *envelope.Envelope) {
			e.WrappedKey = wrap(t, key.public, dataKey)
			if size == 16 || size == 24 { // sealed correctly under AES-128 and AES-192
				aead, err := newAEAD(dataKey)
				if err != nil {
					t.Fatal(err)
				}
				e.Sealed = aead.Seal(nil, nil, []byte("sixteen bytes of"), nil)
			}
		}))
	}
	for _, size := range []int{0, 255, 257, 384, 512} {
		e := changed(func(e *envelope.Envelope) { e.WrappedKey = make([]byte, size) })
		if plaintext, err := key.Open(e, nil); !errors.Is(err, fault.ErrEnvelope) ||
			plaintext != nil {
			t.Errorf("wrapped key of %d bytes: %v", size, err)
		}
		if !bytes.Equal(e.Sealed, good.Sealed) {
			t.Error("the payload was touched although the format is wrong")
		}
	}
}

func FuzzParsePublicKey(f *testing.F) {
	good := testkit.PublicPEM(f, "rsa-2048")
	f.Add(good)
	f.Add(append([]byte("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n"), good...))
	for _, c := range testkit.Vectors(f, testkit.ServerKey) {
		f.Add(c.File("body"))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParsePublicKey(text)
		if err != nil {
			if key != nil ||
				!errors.Is(err, fault.ErrPublicKey) && !errors.Is(err, fault.ErrTooLarge) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if key.Bits() < 2048 || key.Bits() > 8192 || key.key.E < 65537 || key.key.E%2 == 0 {
			t.Fatalf("%d bits, exponent %d", key.Bits(), key.key.E)
		}
		if n := bytes.Count(text, []byte("-----BEGIN ")); n != 1 ||
			!bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN PUBLIC KEY-----")) {
			t.Fatalf("accepted with %d blocks: %q", n, text)
		}
		again, err := ParsePublicKey(key.PEM())
		if err != nil || !bytes.Equal(again.DER(), key.DER()) ||
			again.Fingerprint() != key.Fingerprint() {
			t.Fatalf("its own PEM is another key: %v", err)
		}
	})
}

// sealFor seals plaintext for k, for tests that change something about the envelope.
func sealFor(k *PublicKey, plaintext []byte) (*envelope.Envelope, error) {
	e := &envelope.Envelope{}
	_, err := k.Seal(nil, e, plaintext)
	e.Sealed = bytes.Clone(e.Sealed)
	return e, err
}

func TestPercentEncode(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	got := PercentEncode(all)
	plain := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
	for i, c := range all {
		want := string(c)
		if !strings.ContainsRune(plain, rune(c)) || c >= 0x80 {
			want = "%" + strings.ToUpper(
				string("0123456789abcdef"[i>>4])+string("0123456789abcdef"[i&15]))
		}
		if !strings.HasPrefix(got, want) {
			t.Fatalf("byte %#x: %.10q, want %q", i, got, want)
		}
		got = got[len(want):]
	}
	if got != "" {
		t.Errorf("left: %q", got)
	}
}
