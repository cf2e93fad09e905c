// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func specFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "spec", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSpecExample checks every value of SPEC.md's worked example.
func TestSpecExample(t *testing.T) {
	type sealedValues struct {
		AESKey      string `json:"aes_key"`
		Nonce       string `json:"nonce"`
		Tag         string `json:"tag"`
		Fingerprint string `json:"recipient_fingerprint"`
	}
	var values struct {
		Headers           map[string]string `json:"headers"`
		Request, Response sealedValues
	}
	if err := json.Unmarshal(specFile(t, "values.json"), &values); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name, key string
		want      sealedValues
	}{{"request", "server-4096", values.Request}, {"response", "client-4096", values.Response}} {
		t.Run(x.name, func(t *testing.T) {
			key, err := hybrid.NewPrivateKey(storedKey(t, x.key))
			if err != nil {
				t.Fatal(err)
			}
			if key.Public().Fingerprint() != x.want.Fingerprint {
				t.Errorf("fingerprint %s, want %s", key.Public().Fingerprint(), x.want.Fingerprint)
			}
			text := specFile(t, x.name+".envelope.json")
			e, err := envelope.Parse(bytes.Clone(text), len(text))
			if err != nil {
				t.Fatal(err)
			}
			if again := envelope.Append(nil, &e); !bytes.Equal(again, text) {
				t.Errorf("written again it is\n%s\nwant\n%s", again, text)
			}
			dataKey, err := rsa.DecryptOAEP(sha256.New(), nil, key.RSA(), e.WrappedKey, nil)
			if err != nil || hex.EncodeToString(dataKey) != x.want.AESKey {
				t.Fatalf("unwrapped %x (%v), want %s", dataKey, err, x.want.AESKey)
			}
			n := len(e.Sealed) - envelope.TagSize
			if nonce := hex.EncodeToString(e.Sealed[:envelope.NonceSize]); nonce != x.want.Nonce {
				t.Errorf("nonce %s, want %s", nonce, x.want.Nonce)
			}
			if tag := hex.EncodeToString(e.Sealed[n:]); tag != x.want.Tag {
				t.Errorf("tag %s, want %s", tag, x.want.Tag)
			}
			// Plain AES-GCM, beside the code that is tested.
			block, err := aes.NewCipher(dataKey)
			if err != nil {
				t.Fatal(err)
			}
			gcm, err := cipher.NewGCM(block)
			if err != nil {
				t.Fatal(err)
			}
			want := specFile(t, x.name+".json")
			if got, err := gcm.Open(nil, e.Sealed[:envelope.NonceSize], e.Sealed[envelope.NonceSize:], nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("plain GCM: %q, %v", got, err)
			}
			if got, err := key.Open(&e, nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("open: %q, %v", got, err)
			}
		})
	}
	text, err := url.PathUnescape(values.Headers[hybrid.HeaderPublicKey])
	if err != nil {
		t.Fatal(err)
	}
	if key, err := ParsePublicKey([]byte(text)); err != nil || key.Fingerprint() != values.Response.Fingerprint {
		t.Errorf("X-Public-Key: %v, %v", key, err)
	}
	if hybrid.PercentEncode(testkit.PublicPEM(t, "client-4096")) != values.Headers[hybrid.HeaderPublicKey] {
		t.Error("X-Public-Key is encoded differently")
	}
	if err := chatjson.CheckRequest(specFile(t, "request.json")); err != nil {
		t.Error(err)
	}
	if err := checkCompletion(specFile(t, "response.json"), values.Headers[hybrid.HeaderPayloadID], TierStandard); err != nil {
		t.Error(err)
	}
}
