// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"testing"
)

// OpenPlainly opens an envelope with the standard library alone, so that a mistake in the seal and
// the open of this module cannot cancel itself out.
func OpenPlainly(t testing.TB, key *rsa.PrivateKey, body []byte) (plaintext []byte, appended bool) {
	t.Helper()
	var e struct {
		Version   string `json:"version"`
		Algorithm string `json:"algorithm"`
		Payload   struct {
			Ciphertext []byte  `json:"ciphertext"`
			Nonce      []byte  `json:"nonce"`
			Tag        *[]byte `json:"tag"`
		} `json:"encrypted_payload"`
		Key []byte `json:"encrypted_aes_key"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatalf("not an envelope: %v", err)
	}
	if e.Version != "1.0" || e.Algorithm != "hybrid-aes256-rsa4096" {
		t.Fatalf("version %q, algorithm %q", e.Version, e.Algorithm)
	}
	dataKey, err := rsa.DecryptOAEP(sha256.New(), nil, key, e.Key, nil)
	if err != nil || len(dataKey) != 32 {
		t.Fatalf("unwrapping gives %d bytes, %v", len(dataKey), err)
	}
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	sealed := e.Payload.Ciphertext
	if e.Payload.Tag != nil {
		sealed = append(sealed, *e.Payload.Tag...)
	}
	plaintext, err = gcm.Open(nil, e.Payload.Nonce, sealed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plaintext, e.Payload.Tag == nil
}
