// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// importPolicy decides the vectors that neither of the two clients' behaviour decides: nil loads.
var importPolicy = map[string]error{
	"ossl-pbes2-aes256-sha1-absent-prf": nil, "ossl-pbes2-aes128-sha256": nil,
	"ossl-pbes2-aes192-sha384": nil,
	"ossl-pbes2-aes256-sha224": nil, "ossl-pbes2-iter1": nil, "ossl-pkcs1-plain": nil,
	"ossl-4096-pkcs1-plain": nil,
	"rsa-8192":              nil, "pem-leading-text": nil, "pem-leading-blank-lines": nil,
	"pem-utf8-bom":        nil,
	"pem-trailing-spaces": nil,
	"pem-one-line":        nil, "pem-public-then-private": nil,

	"ossl-pbes2-3des": fault.ErrPrivateKey, "ossl-scrypt": fault.ErrPrivateKey,
	"ossl-scrypt-utf8pw-params": fault.ErrPrivateKey,
	"ossl-legacy-pem-aes256":    fault.ErrPrivateKey, "ossl-legacy-pem-aes128": fault.ErrPrivateKey,
	"ossl-legacy-pem-3des":   fault.ErrPrivateKey,
	"ossl-legacy-pem-utf8pw": fault.ErrPrivateKey, "ossl-pbes1-3des": fault.ErrPrivateKey,
	"rsa-pss": fault.ErrPrivateKey, "rsa-2048-e3": fault.ErrPrivateKey,
	"rsa-3prime":      fault.ErrPrivateKey,
	"pem-two-private": fault.ErrPrivateKey, "pem-trailing-der-garbage": fault.ErrPrivateKey,
	"pem-wrong-label-rsa":           fault.ErrPrivateKey,
	"pem-label-encrypted-but-plain": fault.ErrPrivateKey,
	"pem-pkcs1-under-private-key":   fault.ErrPrivateKey,
	"js-pw-label-encrypted":         fault.ErrPrivateKey,
}

// damagedCiphertext are vectors whose damage looks like a wrong passphrase.
var damagedCiphertext = map[string]bool{
	"js-pw-corrupt-last-block": true, "js-pw-corrupt-salt": true, "js-pw-corrupt-iv": true,
	"js-pw-truncated-16":       true,
	"py-pw-corrupt-last-block": true,
}

// convertible are the encryptions that are refused with a command that mends them.
var convertible = []string{"ossl-pbes2-3des", "ossl-scrypt", "ossl-legacy-pem", "ossl-pbes1"}

func importVerdict(t testing.TB, c testkit.Case) error {
	t.Helper()
	switch c.Expected.Suggested {
	case testkit.Accept:
		return nil
	case testkit.Policy:
		want, ok := importPolicy[c.Name]
		if !ok {
			t.Fatal("the policy says nothing of this vector")
		}
		return want
	}
	if damagedCiphertext[c.Name] {
		return fault.ErrPassphrase
	}
	return fault.ErrPrivateKey
}

func passwordOf(t testing.TB, c testkit.Case) Secret {
	if c.Password == nil {
		return nil
	}
	return secret(t, *c.Password)
}

func TestImportVectors(t *testing.T) {
	cases := testkit.Vectors(t, testkit.PrivateKey)
	known := make(map[string]bool)
	loaded := 0
	for _, c := range cases {
		known[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			s, _ := weakStore(t, nil)
			text := c.File("private_key")
			before := bytes.Clone(text)
			if c.Name == "mismatched-public" { // only together are they wrong
				text = append(append(text, '\n'), c.File("public_key")...)
				before = bytes.Clone(text)
			}
			report, err := s.ImportPEM(t.Context(), text, passwordOf(t, c))
			if !bytes.Equal(text, before) {
				t.Error("the text was the caller's")
			}
			want := importVerdict(t, c)
			if (err == nil) != (want == nil) || want != nil && !errors.Is(err, want) {
				t.Fatalf("got %v, want %v", err, want)
			}
			if err != nil {
				checkImportRefusal(t, c, s, err)
				return
			}
			loaded++
			if report.Fingerprint != c.Expected.SPKISHA256 ||
				c.Expected.Bits != 0 && report.Bits != c.Expected.Bits {
				t.Errorf("%+v, want %s of %d bits", *report, c.Expected.SPKISHA256, c.Expected.Bits)
			}
			if encrypted := c.Password != nil &&
				*c.Password != ""; encrypted != (report.KDF != "") ||
				encrypted != (report.Iterations > 0) ||
				report.Weak != (encrypted && report.Iterations < 600_000) || report.Format == "" {
				t.Errorf("%+v", *report)
			}
			if keys := s.Keys(); len(keys) != 1 || keys[0].Fingerprint != report.Fingerprint ||
				!keys[0].Retired.IsZero() {
				t.Errorf("%+v", keys)
			}
			if !strings.HasPrefix(c.Name, "rsa-8192") { // an operation with it takes a while
				if plain, err := s.OpenEnvelope(t.Context(), sealTo(t, s, "hello")); err != nil ||
					string(plain) != "hello" {
					t.Errorf("%q, %v", plain, err)
				}
			}
		})
	}
	if len(cases) != 100 || loaded < 40 {
		t.Errorf("%d vectors, of which %d load", len(cases), loaded)
	}
	for name := range importPolicy {
		if !known[name] {
			t.Errorf("no vector %s", name)
		}
	}
}

func checkImportRefusal(t testing.TB, c testkit.Case, s *Store, err error) {
	t.Helper()
	if len(s.Keys()) != 0 {
		t.Error("refused, and there is a key")
	}
	for _, word := range []string{"openssl"} {
		for _, prefix := range convertible {
			if strings.HasPrefix(c.Name, prefix) && !strings.Contains(err.Error(), word) {
				t.Errorf("%q is not in: %v", word, err)
			}
		}
	}
	if c.Password != nil && *c.Password != "" && strings.Contains(err.Error(), *c.Password) {
		t.Error("the passphrase is in the error")
	}
}

// Every vector that loads is refused with a superfluous, a missing or another passphrase.
func TestImportWrongPassphrase(t *testing.T) {
	s, _ := weakStore(t, nil)
	tried := 0
	for _, c := range testkit.Vectors(t, testkit.PrivateKey) {
		if importVerdict(t, c) != nil || c.Name == "mismatched-public" {
			continue
		}
		text := c.File("private_key")
		if c.Password == nil || *c.Password == "" {
			_, err := s.ImportPEM(t.Context(), text, secret(t, "superfluous"))
			wantError(t, c.Name+": superfluous", err, fault.ErrPassphrase)
			continue
		}
		if strings.Contains(c.Name, "00000") || strings.Contains(c.Name, "sha512") {
			continue // costly
		}
		tried++
		for _, p := range []Secret{nil, secret(t, ""), secret(t, *c.Password+" ")} {
			_, err := s.ImportPEM(t.Context(), text, p)
			wantError(t, c.Name, err, fault.ErrPassphrase)
		}
	}
	if tried < 20 || len(s.Keys()) != 0 {
		t.Errorf("%d vectors tried, %d keys", tried, len(s.Keys()))
	}
	_, err := s.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-2048"), &testSecret{})
	if !errors.Is(err, fault.ErrClosed) || errors.Is(err, fault.ErrPrivateKey) {
		t.Errorf("zero secret: %v", err)
	}
	_, err = s.ImportPEM(t.Context(), make([]byte, keyfile.MaxPEMSize+1), nil)
	wantError(t, "too large", err, fault.ErrPrivateKey)
}

func TestImportTwice(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	first := primaryOf(t, s)
	text := testkit.KeyPEM(t, "rsa-2048")
	report, err := s.ImportPEM(t.Context(), text, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := s.Keys()
	if len(keys) != 2 || keys[0].Fingerprint != report.Fingerprint ||
		keys[1].Fingerprint != first || keys[1].Retired.IsZero() {
		t.Errorf("%+v", keys)
	}
	testkit.Unchanged(t, "the same again", dir, func() {
		again, err := s.ImportPEM(t.Context(), text, nil)
		if err != nil || *again != *report {
			t.Errorf("%+v, %v", again, err)
		}
	})
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Unchanged(t, "a retired one", dir, func() {
		_, err = s.ImportPEM(t.Context(), text, nil)
		wantError(t, "retired", err, fault.ErrInvalidRequest)
	})
	if err := s.Delete(t.Context(), report.Fingerprint); err != nil {
		t.Fatal(err)
	}
	if _, err = s.ImportPEM(t.Context(), text, nil); err != nil {
		t.Errorf("deleted before: %v", err)
	}
}

func TestExportPEM(t *testing.T) {
	s, _ := weakStore(t, nil)
	if err := errors.Join(s.adopt(storedKey(t, "rsa-3072")), s.Rotate(t.Context())); err != nil {
		t.Fatal(err)
	}
	pass := secret(t, passphrase)
	primary, retired := primaryOf(t, s), publicOf(t, "rsa-3072").Fingerprint()
	for _, p := range []*testSecret{nil, {}, secret(t, ""), secret(t, "1234567")} {
		_, err := s.ExportPEM(t.Context(), "", p)
		wantError(t, "short", err, fault.ErrInvalidRequest)
	}
	for _, fp := range []string{"x", strings.Repeat("0", 64), primary[:63], primary + "0"} {
		_, err := s.ExportPEM(t.Context(), fp, pass)
		wantError(t, fp, err, fault.ErrInvalidRequest)
	}
	texts := make(map[string]bool)
	for _, c := range []struct {
		ask, want string
	}{{"", primary}, {strings.ToUpper(retired), retired}} {
		text, err := s.ExportPEM(t.Context(), c.ask, pass)
		if err != nil {
			t.Errorf("%q: %v", c.ask, err)
			continue
		}
		if block, rest := pem.Decode(text); block == nil || block.Type != "ENCRYPTED PRIVATE KEY" ||
			len(rest) != 0 || texts[string(text)] {
			t.Errorf("%q: %s", c.ask, text)
		}
		texts[string(text)] = true
		if c.want == primary {
			continue // openssl reads it, below
		}
		other, _ := weakStore(t, nil)
		report, err := other.ImportPEM(t.Context(), text, pass)
		if err != nil {
			t.Fatal(err)
		}
		want := Info{Kind: "RSA", Fingerprint: c.want, Bits: report.Bits, Format: "PBES2",
			KDF: "PBKDF2-HMAC-SHA256", Iterations: 600_000}
		got := *report
		if got.Created.IsZero() || !got.Activated.Equal(got.Created) || !got.Retired.IsZero() {
			t.Errorf("%+v", got)
		}
		got.Locked, got.Created, got.Activated = false, time.Time{}, time.Time{}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if plain, err := other.OpenEnvelope(t.Context(), sealTo(t, other, "x")); err != nil ||
			string(plain) != "x" {
			t.Errorf("%q, %v", plain, err)
		}
	}
	if pass.Len() != len(passphrase) {
		t.Error("the passphrase was the caller's")
	}
	if plain, err := s.OpenEnvelope(t.Context(), sealTo(t, s, "x")); err != nil ||
		string(plain) != "x" {
		t.Errorf("after the exports: %q, %v", plain, err)
	}
}

func TestOpenSSLReadsExport(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip(err)
	}
	s, _ := weakStore(t, nil)
	if err := s.adopt(storedKey(t, "client-4096")); err != nil {
		t.Fatal(err)
	}
	for _, pass := range []string{"pässwörd-ключ-🔑"} {
		text, err := s.ExportPEM(t.Context(), "", secret(t, pass))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(openssl, "pkey", "-in", file, "-passin", "env:SEALEDCHAT_TEST_PASS",
			"-pubout")
		cmd.Env = append(os.Environ(), "SEALEDCHAT_TEST_PASS="+pass)
		out, err := cmd.Output()
		if err != nil || string(out) != string(testkit.PublicPEM(t, "client-4096")) {
			t.Errorf("%s, %v", out, err)
		}
	}
}

// An import is a rotation: the key before has its grace.
func TestImportKeepsGrace(t *testing.T) {
	s, _ := weakStore(t, &Options{Rotation: Rotation{Grace: time.Hour}})
	e := sealTo(t, s, "x")
	if _, err := s.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-2048"), nil); err != nil {
		t.Fatal(err)
	}
	if plain, err := s.OpenEnvelope(t.Context(), e); err != nil || string(plain) != "x" {
		t.Errorf("%q, %v", plain, err)
	}
}
