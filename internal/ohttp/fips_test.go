// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestFIPS runs TestFIPSChild where the strict FIPS 140-3 mode is in force.
func TestFIPS(t *testing.T) {
	child := exec.Command(os.Args[0], "-test.run=^TestFIPSChild$", "-test.v")
	child.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestFIPSChild") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestFIPSChild(t *testing.T) {
	if !fips140.Enforced() {
		t.Skip("TestFIPS runs this with GODEBUG=fips140=only")
	}
	key := newKey(t, 1, XWing)
	q, _, answer := exchange(t, key)
	if got, err := readAnswer(q, answer); err != nil || string(got) != "the answer to it" {
		t.Errorf("X-Wing: %q, %v", got, err)
	}
	if _, err := GenerateKey(1, X25519); err != ErrNoSuite {
		t.Errorf("X25519: %v", err)
	}
	// A list with both has one configuration here; it is not malformed.
	x25519 := []byte{2, 0, 0x20}
	x25519 = append(append(x25519, make([]byte, 32)...), 0, 4, 0, 1, 0, 2)
	list := append([]byte{0, byte(len(x25519))}, x25519...)
	got, err := ParseConfigs(AppendConfigs(list, key.config))
	if err != nil || len(got) != 1 || got[0].KEM() != XWing {
		t.Errorf("%v, %v", got, err)
	}
}
