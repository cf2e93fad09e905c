// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package wycheproof

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

type oaepGroup struct {
	KeySize int      `json:"keySize"` // bits
	SHA     string   `json:"sha"`
	MGF     string   `json:"mgf"`
	MGFSHA  string   `json:"mgfSha"`
	Key     hexBytes `json:"privateKeyPkcs8"`
	Tests   []struct {
		ID      int      `json:"tcId"`
		Comment string   `json:"comment"`
		Message hexBytes `json:"msg"`
		Wrapped hexBytes `json:"ct"`
		Label   hexBytes `json:"label"`
		Result  string   `json:"result"`
	} `json:"tests"`
}

// TestOAEP runs every case of RSA-OAEP with our hash and a modulus of our sizes, in all files.
func TestOAEP(t *testing.T) {
	names, err := fs.Glob(wycheproof.TestVectors, "rsa_*oaep*_test.json")
	if err != nil {
		t.Fatal(err)
	}
	cases := make(map[string]int) // by file
	unwrapped, refused, keys, other := 0, 0, 0, 0
	for _, name := range names {
		file := load[oaepGroup](t, name, "RSAES-OAEP")
		seen := 0
		for _, group := range file.TestGroups {
			seen += len(group.Tests)
			ours := group.SHA == oaepHash && group.MGF == "MGF1" && group.MGFSHA == oaepHash
			if !ours || group.KeySize < minRSABits || group.KeySize > maxRSABits {
				other += len(group.Tests)
				continue
			}
			parsed, err := x509.ParsePKCS8PrivateKey(group.Key)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			private := parsed.(*rsa.PrivateKey)
			if private.N.BitLen() != group.KeySize {
				t.Fatalf("%s: a modulus of %d bits, not %d", name, private.N.BitLen(),
					group.KeySize)
			}
			for _, test := range group.Tests {
				cases[name]++
				got, err := rsa.DecryptOAEP(sha256.New(), nil, private, test.Wrapped, test.Label)
				if err != nil {
					refused++
				} else {
					unwrapped++
				}
				if !verdict(test.Result, err == nil, bytes.Equal(got, test.Message)) {
					t.Errorf("%s, case %d (%s, %s): %x, %v", name, test.ID, test.Result,
						test.Comment, got, err)
				}
				if len(test.Label) == 0 {
					if err == nil && len(got) == keySize {
						keys++
					}
					continue
				}
				// The envelope has no label: a key that was wrapped under one must not open.
				if _, err := rsa.DecryptOAEP(sha256.New(), nil, private, test.Wrapped,
					nil); err == nil {
					t.Errorf("%s, case %d: opened without its label", name, test.ID)
				}
			}
		}
		if seen != file.NumberOfTests {
			t.Errorf("%s: %d cases, its head says %d", name, seen, file.NumberOfTests)
		}
	}
	for _, bits := range []int{2048, 3072, 4096} {
		name := fmt.Sprintf("rsa_oaep_%d_sha256_mgf1sha256_test.json", bits)
		if cases[name] == 0 {
			t.Errorf("%s: no case was run", name)
		}
	}
	if unwrapped == 0 || refused == 0 || keys == 0 {
		t.Errorf("%d unwrapped, %d refused, %d as long as an AES key: want some of each", unwrapped,
			refused, keys)
	}
	t.Logf("%d cases from %d files: %d unwrapped (%d to an envelope's AES key), %d refused; %d "+
		"of other parameters not run",
		unwrapped+refused, len(cases), unwrapped, keys, refused, other)
}

// verdict reports whether the result of a vector allows an outcome.
func verdict(result string, accepted, right bool) bool {
	switch result {
	case valid:
		return accepted && right
	case invalid:
		return !accepted
	case acceptable:
		return !accepted || right
	}
	return false
}
