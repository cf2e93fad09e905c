// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

func TestExportRoundTrip(t *testing.T) {
	passphrase := []byte(" p\u00e4ss\x00word ")
	for _, name := range []string{"rsa-2048", "rsa-3072", "other-4096"} {
		k := testKey(t, name)
		plain, err := plainPEM(k)
		if err != nil {
			t.Fatal(err)
		}
		if want := testkit.KeyPEM(t, name); !bytes.Equal(plain, want) {
			t.Errorf("%s: plainPEM does not give the stored file", name)
		}
		encrypted, err := MarshalPBES2(k, passphrase, 1000, AllowWeak)
		if err != nil {
			t.Fatal(err)
		}
		again, err := MarshalPBES2(k, passphrase, 1000, AllowWeak)
		if err != nil {
			t.Fatal(err)
		}
		was, is := saltAndIV(t, encrypted), saltAndIV(t, again)
		if was[0] == is[0] || was[1] == is[1] {
			t.Errorf("%s: salt or IV is not fresh: %x, %x", name, was, is)
		}
		got, report, err := ParsePrivateKey(encrypted, passphrase)
		if err != nil {
			t.Fatal(err)
		}
		if *report != (Report{PBES2, "PBKDF2-HMAC-SHA256", 1000, true, false}) {
			t.Errorf("%s: report %+v", name, *report)
		}
		if !reflect.DeepEqual(ints(got), ints(k)) {
			t.Errorf("%s: another key came back", name)
		}
		block, rest := pem.Decode(encrypted)
		if block == nil || len(rest) > 0 || block.Type != "ENCRYPTED PRIVATE KEY" ||
			bytes.Contains(encrypted, []byte("\r")) {
			t.Errorf("%s: not one PEM block with LF", name)
		}
		for line := range strings.Lines(string(encrypted)) {
			if len(line) > 65 {
				t.Errorf("%s: a line of %d", name, len(line))
			}
		}
	}
}

// saltAndIV finds both in an exported key: they are its only octet strings of 16 bytes before the
// ciphertext.
func saltAndIV(t *testing.T, exported []byte) (found [2]string) {
	t.Helper()
	block, _ := pem.Decode(exported)
	rest := block.Bytes
	for i := range found {
		_, after, ok := bytes.Cut(rest, []byte{4, 16})
		if !ok || len(after) < 16 {
			t.Fatalf("no salt and IV in %x", block.Bytes[:min(len(block.Bytes), 128)])
		}
		found[i], rest = string(after[:16]), after[16:]
	}
	return found
}

func TestExportCost(t *testing.T) {
	encrypted, err := MarshalPBES2(testKey(t, "rsa-2048"), []byte("passphrase"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, report, err := ParsePrivateKey(encrypted, []byte("passphrase")); err != nil ||
		report.Iterations != 600_000 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestExportRefuses(t *testing.T) {
	k := testKey(t, "rsa-2048")
	for _, test := range []struct {
		passphrase string
		iterations int
		options    []Option
		want       error
	}{
		{"pw", 599_999, nil, ErrWeakKDF},
		{"pw", 1, nil, ErrWeakKDF},
		{"pw", -1, []Option{AllowWeak}, ErrKDFCost},
		{"pw", MaxIterations + 1, nil, ErrKDFCost},
		{"", 0, nil, ErrPassphraseNeeded},
	} {
		if _, err := MarshalPBES2(k, []byte(test.passphrase), test.iterations,
			test.options...); !errors.Is(err, test.want) {
			t.Errorf("%q, %d: %v, want %v", test.passphrase, test.iterations, err, test.want)
		}
	}
	k.D[5] ^= 1
	if _, err := plainPEM(k); !errors.Is(err, ErrInconsistent) {
		t.Errorf("inconsistent key: %v", err)
	}
	if _, err := MarshalPBES2(k, []byte("pw"), 0); !errors.Is(err, ErrInconsistent) {
		t.Errorf("inconsistent key: %v", err)
	}
	k.Wipe()
	if _, err := plainPEM(k); err == nil {
		t.Error("a wiped key was exported")
	}
}

func openssl(t *testing.T) string {
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not in PATH: what it makes of our files stays unchecked")
	}
	return path
}

// run runs openssl with the passphrases in its environment, not on its command line.
func run(t *testing.T, dir, in, out string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PASS_IN="+in, "PASS_OUT="+out)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return output
}

func TestOpenSSLReadsExport(t *testing.T) {
	path := openssl(t)
	const passphrase = "pässwörd with spaces "
	k := testKey(t, "rsa-2048")
	dir := t.TempDir()
	file, err := MarshalPBES2(k, []byte(passphrase), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := run(t, dir, passphrase, "", path, "pkcs8", "-in", "key.pem", "-passin", "env:PASS_IN")
	if !bytes.Equal(plain, testkit.KeyPEM(t, "rsa-2048")) {
		t.Error("openssl decrypts to something else")
	}
	text := run(t, dir, passphrase, "", path, "asn1parse", "-in", "key.pem")
	for _, want := range []string{"PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc", ":0927C0"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("openssl does not see %s", want)
		}
	}
	if out := run(t, dir, passphrase, "", path, "pkey", "-in", "key.pem", "-passin", "env:PASS_IN",
		"-check", "-noout"); !bytes.Contains(out, []byte("valid")) {
		t.Errorf("openssl's check: %s", out)
	}
}

// The command in every UnsupportedError converts the file.
func TestConvertCommands(t *testing.T) {
	path := openssl(t)
	converted := 0
	for _, c := range testkit.Vectors(t, testkit.PrivateKey) {
		var unsupported *UnsupportedError
		_, _, err := ParsePrivateKey(c.File("private_key"), password(c))
		if !errors.As(err, &unsupported) {
			continue
		}
		converted++
		t.Run(c.Name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "old.pem"), c.File("private_key"),
				0o600); err != nil {
				t.Fatal(err)
			}
			// for speed
			command := strings.Replace(unsupported.Command, "-iter 600000", "-iter 1000", 1)
			args := append(strings.Fields(command), "-passin", "env:PASS_IN", "-passout",
				"env:PASS_OUT")
			if args[0] != "openssl" || !strings.Contains(command, "-iter 1000 ") {
				t.Fatalf("command %q", unsupported.Command)
			}
			args[0] = path
			run(t, dir, *c.Password, "a new one", args...)
			file, err := os.ReadFile(filepath.Join(dir, "new.pem"))
			if err != nil {
				t.Fatal(err)
			}
			k, _, err := ParsePrivateKey(file, []byte("a new one"))
			if err != nil {
				t.Fatal(err)
			}
			if err := checkPublicPEM(k, c.File("public_key")); err != nil {
				t.Error(err)
			}
		})
	}
	if converted != 10 {
		t.Errorf("%d commands were tried, want 10", converted)
	}
}

// plainPEM writes a key unencrypted, as PKCS#8 in PEM in lines of 64. The caller
// clears the bytes.
func plainPEM(k *RSAKey) ([]byte, error) {
	memory, der, err := marshalPKCS8(k, locked.BestEffort)
	if err != nil {
		return nil, err
	}
	defer memory.Destroy()
	const begin, end, perLine = "-----BEGIN PRIVATE KEY-----\n", "-----END PRIVATE KEY-----\n", 48
	lines := (len(der) + perLine - 1) / perLine
	// The size is right from the start: encoding/pem would leave copies that cannot be cleared.
	out := make([]byte, 0, len(begin)+base64.StdEncoding.EncodedLen(len(der))+lines+len(end))
	out = append(out, begin...)
	for rest := der; len(rest) > 0; {
		n := min(perLine, len(rest))
		out = append(base64.StdEncoding.AppendEncode(out, rest[:n]), '\n')
		rest = rest[n:]
	}
	return append(out, end...), nil
}
