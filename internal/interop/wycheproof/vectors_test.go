// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package wycheproof

import (
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

// The parameters of the envelope. A vector with others is no envelope of ours, and is run all the
// same.
const (
	keySize   = 32 // bytes of the AES key that RSA-OAEP wraps
	nonceSize = 12
	tagSize   = 16
	// RSA-OAEP has SHA-256 as its hash and in MGF1, and an empty label; AES-GCM has no additional
	// data.
	oaepHash = "SHA-256"
	// The modulus, in bits.
	minRSABits, maxRSABits = 2048, 8192
)

// The verdicts of a vector.
const (
	valid      = "valid"
	invalid    = "invalid"
	acceptable = "acceptable" // may be refused; if not, the result has to be right
)

// hexBytes is a string of hex digits in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

// vectorFile has the members that the files used here have in common.
type vectorFile[G any] struct {
	Algorithm     string `json:"algorithm"`
	NumberOfTests int    `json:"numberOfTests"`
	TestGroups    []G    `json:"testGroups"`
}

// load reads one file of the module, and fails the test if the file has no group.
func load[G any](t *testing.T, name, algorithm string) vectorFile[G] {
	t.Helper()
	text, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var file vectorFile[G]
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if file.Algorithm != algorithm || file.NumberOfTests == 0 || len(file.TestGroups) == 0 {
		t.Fatalf("%s: algorithm %q, %d tests in %d groups", name, file.Algorithm,
			file.NumberOfTests, len(file.TestGroups))
	}
	return file
}
