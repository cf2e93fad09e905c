// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

const testPassphrase = "correct horse battery staple"

func testTime(n int) time.Time { return time.Unix(1_700_000_000, int64(n)).UTC() }

// testBody has a bit of everything.
func testBody(t testing.TB) *Body {
	return &Body{
		Generation: 7,
		Rotations:  3,
		Rotated:    testTime(1),
		Keys: []Entry{
			{State: Retired, Created: testTime(2), Activated: testTime(3), Retired: testTime(4),
				Key: testKey(t, "rsa-2048")},
			{State: Primary, Created: testTime(5), Activated: testTime(6),
				Key: testKey(t, "rsa-3072")},
		},
		Pins: []Pin{
			{Origin: "https://api.example:8443", Fingerprint: [32]byte{1, 2, 3},
				FirstSeen: testTime(7)},
			{Origin: "https://other.example", Fingerprint: [32]byte{4}, FirstSeen: testTime(8),
				Accepted: testTime(9)},
		},
		DataKeys: []DataKey{
			{Generation: 1, Key: bytes.Repeat([]byte{0xd1}, 32), Created: testTime(10)},
			{Generation: 5, Key: bytes.Repeat([]byte{0xd5}, 32)},
		},
	}
}

func testMasterKey(t testing.TB) *MasterKey {
	t.Helper()
	k, err := NewMasterKey([]byte(testPassphrase), 2, AllowWeak)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// plain is a body in a form that reflect.DeepEqual compares.
func plain(b *Body) string {
	var s strings.Builder
	fmt.Fprint(&s, b.Generation, b.Rotations, b.Rotated)
	for _, e := range b.Keys {
		fmt.Fprintf(&s, "\n%v %v %v %v %x", e.State, e.Created, e.Activated, e.Retired, ints(e.Key))
	}
	for _, p := range b.Pins {
		fmt.Fprintf(&s, "\n%+v", p)
	}
	for _, d := range b.DataKeys {
		fmt.Fprintf(&s, "\n%+v", d)
	}
	return s.String()
}

func TestStoreRoundTrip(t *testing.T) {
	for _, want := range []*Body{testBody(t), {}, {Generation: 1<<64 - 1, Rotations: 1<<64 - 1}} {
		k := testMasterKey(t)
		file, err := Seal(want, k)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Seal(want, k)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ParseHeader(file)
		if err != nil {
			t.Fatal(err)
		}
		f2, err := ParseHeader(again)
		if err != nil {
			t.Fatal(err)
		}
		if f.BodySalt == f2.BodySalt || bytes.Equal(f.sealed[:12], f2.sealed[:12]) ||
			f.KDFSalt != f2.KDFSalt {
			t.Error("salts or nonces are not as fresh as they should be")
		}
		if !json.Valid(file) {
			t.Error("the file is not JSON")
		}
		for range 2 { // a File opens any number of times
			unlocked, err := f.Unlock([]byte(testPassphrase))
			if err != nil {
				t.Fatal(err)
			}
			locked := make([]byte, masterKeySize)
			if err := unlocked.MoveTo(locked); err != nil {
				t.Fatal(err)
			}
			got, err := Open(f, unlocked)
			if err != nil {
				t.Fatal(err)
			}
			if plain(got) != plain(want) {
				t.Errorf("got %s\nwant %s", plain(got), plain(want))
			}
			memory := got.memory
			got.Wipe()
			if memory.Bytes() != nil || got.Keys != nil || got.DataKeys != nil {
				t.Error("Wipe left something")
			}
			unlocked.Wipe()
			if !allZero(locked) {
				t.Error("the master key outlived Wipe")
			}
			if _, err := Open(f, unlocked); !errors.Is(err, ErrPassphrase) {
				t.Errorf("wiped key: %v", err)
			}
		}
	}
}

// The file opens with nothing but the standard library and the format's description.
func TestStoreFormat(t *testing.T) {
	b := testBody(t)
	file, err := Seal(b, testMasterKey(t))
	if err != nil {
		t.Fatal(err)
	}
	var j struct {
		Format, Cipher string
		Version        int
		Salt           []byte
		KDF            struct {
			Name       string
			Iterations int
			Salt       []byte
		}
		Body []byte
	}
	if err := json.Unmarshal(file, &j); err != nil {
		t.Fatal(err)
	}
	if j.Format != "sealedchat-keystore" || j.Version != 1 || j.Cipher != "AES-256-GCM" ||
		j.KDF.Name != "PBKDF2-HMAC-SHA256" || j.KDF.Iterations != 2 || len(j.KDF.Salt) != 32 ||
		len(j.Salt) != 32 {
		t.Errorf("header %+v", j)
	}
	master, err := pbkdf2.Key(sha256.New, testPassphrase, j.KDF.Salt, j.KDF.Iterations, 32)
	if err != nil {
		t.Fatal(err)
	}
	key, err := hkdf.Key(sha256.New, master, j.Salt, "sealedchat keystore v1 body", 32)
	if err != nil {
		t.Fatal(err)
	}
	head := file[:bytes.Index(file, []byte(base64.StdEncoding.EncodeToString(j.Body)))]
	got := openGCM(t, key, j.Body, head)
	want, err := b.marshal(locked.BestEffort)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("another body")
	}
}

func openGCM(t *testing.T, key, sealed, additional []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Skip("needs GCM with a given nonce: ", err)
	}
	out, err := aead.Open(nil, sealed[:12], sealed[12:], additional)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A file of version 1 as it was once written, at the full cost, opens for ever.
func TestStoredFile(t *testing.T) {
	file, err := os.ReadFile(filepath.Join("testdata", "keystore-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	if f.Iterations != MinIterations {
		t.Fatalf("%d iterations", f.Iterations)
	}
	k, err := f.Unlock([]byte(testPassphrase))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(f, k)
	if err != nil {
		t.Fatal(err)
	}
	if want := testBody(t); plain(b) != plain(want) {
		t.Errorf("got %s\nwant %s", plain(b), plain(want))
	}
	if _, err := b.Keys[1].Key.PrivateKey(); err != nil {
		t.Error(err)
	}
	if _, err := Seal(b, k); err != nil {
		t.Errorf("a key of full cost does not seal: %v", err)
	}
}

// Every single-bit change is refused, also by a key that follows a changed salt or cost, so
// that it is the authentication that refuses.
func TestStoreBitFlips(t *testing.T) {
	b := testBody(t)
	b.Keys = b.Keys[:1]
	k := testMasterKey(t)
	file, err := Seal(b, k)
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			f, err := ParseHeader(file)
			if err == nil {
				follow := *k
				follow.salt, follow.iterations = f.KDFSalt, f.Iterations
				opened++
				if _, err = Open(f, &follow); !errors.Is(err, ErrPassphrase) {
					t.Errorf("byte %d, bit %d: %v", i, bit, err)
				}
				if _, err = Open(f, k); !errors.Is(err, ErrPassphrase) {
					t.Errorf("byte %d, bit %d: %v", i, bit, err)
				}
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) &&
				!errors.Is(err, ErrKDFCost) {
				t.Errorf("byte %d, bit %d: %v", i, bit, err)
			}
			file[i] ^= 1 << bit
		}
	}
	if opened < len(file) {
		t.Errorf("only %d of %d changes came as far as Open", opened, 8*len(file))
	}
	for i := range file {
		if _, err := ParseHeader(file[:i]); err == nil {
			t.Errorf("a file cut to %d of %d bytes has a header", i, len(file))
		}
	}
	f, err := ParseHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f, k); err != nil {
		t.Errorf("in the end: %v", err)
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	file, err := Seal(testBody(t), testMasterKey(t))
	if err != nil {
		t.Fatal(err)
	}
	s := string(file)
	replace := func(pairs ...string) string {
		out := s
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(out, pairs[i]) {
				t.Fatalf("no %q in the file", pairs[i])
			}
			out = strings.Replace(out, pairs[i], pairs[i+1], 1)
		}
		return out
	}
	f, _ := ParseHeader(file)
	salt := base64.StdEncoding.EncodeToString(f.KDFSalt[:])
	body := base64.StdEncoding.EncodeToString(f.sealed)
	for _, test := range []struct {
		name, file string
		want       error
	}{
		{"empty", "", ErrDamaged},
		{"an object", "{}", ErrDamaged},
		{"only zeros", strings.Repeat("\x00", 4096), ErrDamaged},
		{"BOM", "\ufeff" + s, ErrDamaged},
		{"a space before", " " + s, ErrDamaged},
		{"a line more", s + "\n", ErrDamaged},
		{"no last line end", strings.TrimSuffix(s, "\n"), ErrDamaged},
		{"CRLF", strings.ReplaceAll(s, "\n", "\r\n"), ErrDamaged},
		{"twice", s + s, ErrDamaged},
		{"compact", strings.ReplaceAll(s, ": ", ":"), ErrDamaged},
		{"another format", replace("sealedchat-keystore", "sealedchat-keystone"), ErrDamaged},
		{"version 2", replace(`"version": 1`, `"version": 2`), ErrVersion},
		{"version 0", replace(`"version": 1`, `"version": 0`), ErrVersion},
		{"version 1.0", replace(`"version": 1`, `"version": 1.0`), ErrDamaged},
		{"version as string", replace(`"version": 1`, `"version": "1"`), ErrDamaged},
		{"another KDF", replace("PBKDF2-HMAC-SHA256", "PBKDF2-HMAC-SHA512"), ErrDamaged},
		{"another cipher", replace("AES-256-GCM", "AES-128-GCM"), ErrDamaged},
		{"no iterations", replace(`"iterations": 2`, `"iterations": 0`), ErrKDFCost},
		{"negative iterations", replace(`"iterations": 2`, `"iterations": -1`), ErrKDFCost},
		{"too many iterations", replace(`"iterations": 2`, `"iterations": 10000001`), ErrKDFCost},
		{"iterations beyond 64 bits", replace(`"iterations": 2`,
			`"iterations": 99999999999999999999`), ErrDamaged},
		{"iterations with exponent", replace(`"iterations": 2`, `"iterations": 6e5`), ErrDamaged},
		{"iterations with zero", replace(`"iterations": 2`, `"iterations": 02`), ErrDamaged},
		{"name in capitals", replace(`"version"`, `"Version"`), ErrDamaged},
		{"unknown member", replace(`"cipher"`, `"x": 1, "cipher"`), ErrDamaged},
		{"member twice", replace(`"version": 1`, `"version": 2, "version": 1`), ErrDamaged},
		{"no cipher", replace("  \"cipher\": \"AES-256-GCM\",\n", ""), ErrDamaged},
		{"escaped letter", replace("AES", `\u0041ES`), ErrDamaged},
		{"null salt", replace(`"`+salt+`"`, "null"), ErrDamaged},
		{"short salt", replace(salt, salt[:40]), ErrDamaged},
		{"long salt", replace(salt, "AAAA"+salt), ErrDamaged},
		{"salt without padding", replace(salt, strings.TrimRight(salt, "=")), ErrDamaged},
		{"salt with line end", replace(salt, salt[:4]+`\n`+salt[4:]), ErrDamaged},
		{"no body", replace(body, ""), ErrDamaged},
		{"short body", replace(body, body[:36]), ErrDamaged},
		{"body with line end", replace(body, body[:64]+"\n"+body[64:]), ErrDamaged},
		{"body with escape", replace(body, body[:64]+`\/`+body[64:]), ErrDamaged},
		{"member after the body", replace(body+`"`, body+`", "x": "`+`"`), ErrDamaged},
		{"long header", replace("{", "{"+strings.Repeat(" ", 1024)), ErrDamaged},
		{"deep header", replace("{", strings.Repeat(`{"a":`, 100)), ErrDamaged},
		{"too large", s + strings.Repeat(" ", MaxStoreSize), ErrTooLarge},
	} {
		if _, err := ParseHeader([]byte(test.file)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

func TestMasterKeys(t *testing.T) {
	passphrase := []byte(testPassphrase)
	for _, test := range []struct {
		passphrase []byte
		iterations int
		options    []Option
		want       error
	}{
		{passphrase, 599_999, nil, ErrWeakKDF},
		{passphrase, 1, nil, ErrWeakKDF},
		{passphrase, -1, []Option{AllowWeak}, ErrKDFCost},
		{passphrase, MaxIterations + 1, []Option{AllowWeak}, ErrKDFCost},
		{nil, 1, []Option{AllowWeak}, ErrPassphraseNeeded},
	} {
		if _, err := NewMasterKey(test.passphrase, test.iterations,
			test.options...); !errors.Is(err, test.want) {
			t.Errorf("%d iterations: %v, want %v", test.iterations, err, test.want)
		}
	}
	k := testMasterKey(t)
	file, err := Seal(testBody(t), k)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Unlock(nil); !errors.Is(err, ErrPassphraseNeeded) {
		t.Errorf("no passphrase: %v", err)
	}
	for _, wrong := range []string{"x", testPassphrase + " ", strings.ToUpper(testPassphrase)} {
		k, err := f.Unlock([]byte(wrong))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(f, k); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	if _, err := Open(f, testMasterKey(t)); !errors.Is(err, ErrPassphrase) {
		t.Errorf("key of another file: %v", err)
	}
	// A file of low cost opens, but is not written again at that cost.
	weak, err := f.Unlock(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Seal(&Body{}, weak); !errors.Is(err, ErrWeakKDF) {
		t.Errorf("weak key seals: %v", err)
	}
	if weak, err = f.Unlock(passphrase, AllowWeak); err != nil {
		t.Fatal(err)
	}
	if !weak.Fits(f) || weak.Iterations() != 2 {
		t.Error("the key does not fit its file")
	}
	if _, err := Seal(&Body{}, weak); err != nil {
		t.Error(err)
	}
	if err := weak.MoveTo(make([]byte, 31)); !errors.Is(err, ErrInvalid) {
		t.Errorf("31 bytes: %v", err)
	}
	weak.Wipe()
	if _, err := Seal(&Body{}, weak); !errors.Is(err, ErrInvalid) {
		t.Errorf("wiped key seals: %v", err)
	}
	if !reflect.DeepEqual(passphrase, []byte(testPassphrase)) {
		t.Error("the passphrase was changed")
	}
}

// The same tests pass where Go enforces FIPS 140-3 mode.
func TestFIPSOnly(t *testing.T) {
	if os.Getenv("KEYFILE_FIPS") != "" {
		t.Skip("inside")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v",
		"-test.run=^(TestStoreRoundTrip|TestMasterKeys|TestDataRoundTrip|TestExportRoundTrip)$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "KEYFILE_FIPS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Count(out, []byte("--- PASS")) != 4 {
		t.Errorf("%v\n%s", err, out)
	}
}

func BenchmarkOpen(b *testing.B) {
	k := testMasterKey(b)
	file, err := Seal(testBody(b), k)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, err := ParseHeader(file)
		if err != nil {
			b.Fatal(err)
		}
		body, err := Open(f, k)
		if err != nil {
			b.Fatal(err)
		}
		body.Wipe()
	}
}

func BenchmarkParsePrivateKey(b *testing.B) {
	file := testkit.KeyPEM(b, "client-4096")
	for b.Loop() {
		k, _, err := ParsePrivateKey(file, nil)
		if err != nil {
			b.Fatal(err)
		}
		k.Wipe()
	}
}
