// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package wycheproof

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"slices"
	"testing"
)

type gcmGroup struct {
	NonceSize int       `json:"ivSize"` // bits, like the others
	KeySize   int       `json:"keySize"`
	TagSize   int       `json:"tagSize"`
	Tests     []gcmTest `json:"tests"`
}

type gcmTest struct {
	ID         int      `json:"tcId"`
	Comment    string   `json:"comment"`
	Key        hexBytes `json:"key"`
	Nonce      hexBytes `json:"iv"`
	Additional hexBytes `json:"aad"`
	Message    hexBytes `json:"msg"`
	Ciphertext hexBytes `json:"ct"`
	Tag        hexBytes `json:"tag"`
	Result     string   `json:"result"`
}

// TestGCM runs every case of AES-GCM. Cases with the envelope's nonce and tag sizes use the AEAD of
// the envelope, which takes the nonce from the beginning of the message. The others use the general
// AEAD.
func TestGCM(t *testing.T) {
	const name = "aes_gcm_test.json"
	file := load[gcmGroup](t, name, "AES-GCM")
	opened, refused := 0, 0
	var envelope struct{ opened, refused int } // of these, those that an envelope could carry
	for _, group := range file.TestGroups {
		if group.TagSize != 8*tagSize {
			t.Fatalf("%s: tags of %d bits", name, group.TagSize)
		}
		for _, test := range group.Tests {
			if 8*len(test.Key) != group.KeySize || 8*len(test.Nonce) != group.NonceSize {
				t.Fatalf("%s, case %d: a key of %d bytes and a nonce of %d", name, test.ID,
					len(test.Key), len(test.Nonce))
			}
			got, err := open(test)
			if err != nil {
				refused++
			} else {
				opened++
			}
			if !verdict(test.Result, err == nil, bytes.Equal(got, test.Message)) {
				t.Errorf("%s, case %d (%s, %s): %x, %v", name, test.ID, test.Result, test.Comment,
					got, err)
			}
			if len(test.Key) == keySize && len(test.Nonce) == nonceSize &&
				len(test.Additional) == 0 {
				if err != nil {
					envelope.refused++
				} else {
					envelope.opened++
				}
			}
			if test.Result == valid {
				checkSeal(t, test)
			}
		}
	}
	if opened+refused != file.NumberOfTests {
		t.Errorf("%s: %d cases, its head says %d", name, opened+refused, file.NumberOfTests)
	}
	if envelope.opened == 0 || envelope.refused == 0 {
		t.Errorf("of the envelope's parameters %d opened and %d refused: want some of each",
			envelope.opened, envelope.refused)
	}
	t.Logf("%d cases: %d opened, %d refused; of the envelope's parameters %d opened, %d refused",
		opened+refused, opened, refused, envelope.opened, envelope.refused)
}

// open opens the ciphertext of a case. The error may say that Go refuses the parameters.
func open(test gcmTest) ([]byte, error) {
	block, err := aes.NewCipher(test.Key)
	if err != nil {
		return nil, err
	}
	sealed := slices.Concat(test.Ciphertext, test.Tag)
	if len(test.Nonce) == nonceSize && len(test.Tag) == tagSize {
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		return aead.Open(nil, nil, slices.Concat(test.Nonce, sealed), test.Additional)
	}
	aead, err := cipher.NewGCMWithNonceSize(block, len(test.Nonce))
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, test.Nonce, sealed, test.Additional)
}

// checkSeal checks that the plaintext of a valid case seals to its ciphertext under its nonce, and
// that a message that the envelope's AEAD seals under a nonce of its own opens again.
func checkSeal(t *testing.T, test gcmTest) {
	t.Helper()
	block, err := aes.NewCipher(test.Key)
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := cipher.NewGCMWithNonceSize(block, len(test.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(test.Ciphertext, test.Tag)
	if got := fixed.Seal(nil, test.Nonce, test.Message, test.Additional); !bytes.Equal(got, want) {
		t.Errorf("case %d seals to %x", test.ID, got)
	}
	random, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	sealed := random.Seal(nil, nil, test.Message, test.Additional)
	if len(sealed) != nonceSize+len(test.Message)+tagSize {
		t.Errorf("case %d: %d bytes sealed to %d", test.ID, len(test.Message), len(sealed))
	}
	if got, err := random.Open(nil, nil, sealed, test.Additional); err != nil ||
		!bytes.Equal(got, test.Message) {
		t.Errorf("case %d does not open again: %v", test.ID, err)
	}
}
