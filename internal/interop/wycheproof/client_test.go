// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package wycheproof

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"testing"

	"github.com/c2sp/wycheproof"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// These tests give the cases to the exported API of sealedchat, as answers to a client. A plaintext
// is no chat completion: so ErrResponseSchema means that the envelope was opened, and ErrDecryption
// or ErrEnvelope that it was not.

// answers is a server that answers every request with the same envelope.
type answers struct {
	key  []byte // the server's, PEM
	body []byte
}

func (a *answers) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	body := a.body
	if req.Method == http.MethodGet {
		body = a.key
	}
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
		Request: req,
		Body:    io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

// newClient returns a client whose key is the one in the PEM file.
func newClient(t *testing.T, privateKey []byte) (*sealedchat.SecureCompletionClient, *answers,
	error) {
	t.Helper()
	keys, err := sealedchat.NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if _, err := keys.ImportPEM(t.Context(), privateKey, nil); err != nil {
		return nil, nil, err
	}
	server := &answers{key: testkit.PublicPEM(t, "rsa-3072")}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "https://server.invalid", Trust: sealedchat.TrustHTTPS(), Keys: keys,
		Transport: server,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client, server, nil
}

// outcome is the result of an envelope for the client.
func outcome(t *testing.T, client *sealedchat.SecureCompletionClient, server *answers, wrapped,
	nonce, ciphertext, tag []byte) error {
	t.Helper()
	b64 := base64.StdEncoding.EncodeToString
	body, err := json.Marshal(map[string]any{
		"version": "1.0", "algorithm": "hybrid-aes256-rsa4096", "encrypted_aes_key": b64(wrapped),
		"encrypted_payload": map[string]string{"ciphertext": b64(ciphertext), "nonce": b64(nonce),
			"tag": b64(tag)},
	})
	if err != nil {
		t.Fatal(err)
	}
	server.body = body
	_, err = client.Chat(t.Context(), &sealedchat.ChatRequest{
		Model: "m", Messages: []sealedchat.Message{sealedchat.UserMessage("?")},
	})
	for _, class := range []error{sealedchat.ErrResponseSchema, sealedchat.ErrDecryption,
		sealedchat.ErrEnvelope} {
		if errors.Is(err, class) {
			return class
		}
	}
	t.Fatalf("unexpected outcome: %v", err)
	return nil
}

func TestGCMThroughClient(t *testing.T) {
	client, server, err := newClient(t, testkit.KeyPEM(t, "rsa-2048"))
	if err != nil {
		t.Fatal(err)
	}
	public := &testkit.Key(t, "rsa-2048").PublicKey
	got := make(map[error]int)
	for _, group := range load[gcmGroup](t, "aes_gcm_test.json", "AES-GCM").TestGroups {
		for _, test := range group.Tests {
			wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, test.Key, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := sealedchat.ErrDecryption
			switch {
			case len(test.Nonce) != nonceSize || len(test.Message) == 0:
				want = sealedchat.ErrEnvelope
			case test.Result == valid && len(test.Key) == keySize && len(test.Additional) == 0:
				want = sealedchat.ErrResponseSchema
			}
			class := outcome(t, client, server, wrapped, test.Nonce, test.Ciphertext, test.Tag)
			if class != want {
				t.Errorf("case %d (%s, %s): %v, want %v", test.ID, test.Result, test.Comment, class,
					want)
			}
			got[class]++
		}
	}
	if len(got) != 3 {
		t.Errorf("want some cases of each outcome: %v", got)
	}
	t.Log(got)
}

func TestOAEPThroughClient(t *testing.T) {
	got := make(map[error]int)
	refused := 0 // keys that cannot be imported: three primes, or an exponent under 65537
	for _, bits := range []int{2048, 3072, 4096} {
		name := fmt.Sprintf("rsa_oaep_%d_sha256_mgf1sha256_test.json", bits)
		oaepGroups(t, name, got, &refused)
	}
	oaepGroups(t, "rsa_oaep_misc_test.json", got, &refused)
	if got[sealedchat.ErrResponseSchema] == 0 || got[sealedchat.ErrDecryption] == 0 {
		t.Errorf("want some cases of each outcome: %v", got)
	}
	t.Log(got, refused, "keys refused")
}

func oaepGroups(t *testing.T, name string, got map[error]int, refused *int) {
	t.Helper()
	if _, err := fs.Stat(wycheproof.TestVectors, name); err != nil {
		t.Fatal(err)
	}
	for _, group := range load[oaepGroup](t, name, "RSAES-OAEP").TestGroups {
		if group.SHA != oaepHash || group.MGFSHA != oaepHash || group.KeySize < minRSABits ||
			group.KeySize > maxRSABits {
			continue
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: group.Key})
		client, server, err := newClient(t, text)
		if err != nil {
			if !errors.Is(err, sealedchat.ErrPrivateKey) {
				t.Fatalf("%s: %v", name, err)
			}
			*refused++
			continue
		}
		for _, test := range group.Tests {
			isKey := len(test.Message) == keySize
			key := make([]byte, keySize)
			if isKey {
				key = test.Message
			}
			nonce, ciphertext, tag := seal(t, key)
			want := sealedchat.ErrDecryption
			switch {
			case len(test.Wrapped) != (group.KeySize+7)/8:
				want = sealedchat.ErrEnvelope
			case test.Result == valid && isKey && len(test.Label) == 0:
				want = sealedchat.ErrResponseSchema
			}
			class := outcome(t, client, server, test.Wrapped, nonce, ciphertext, tag)
			if class != want {
				t.Errorf("%s, case %d (%s, %s): %v, want %v", name, test.ID, test.Result,
					test.Comment, class, want)
			}
			got[class]++
		}
	}
}

// seal seals a text that is no chat completion.
func seal(t *testing.T, key []byte) (nonce, ciphertext, tag []byte) {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	sealed := aead.Seal(nil, nil, []byte("not a chat completion"), nil)
	end := len(sealed) - tagSize
	return sealed[:nonceSize], sealed[nonceSize:end], sealed[end:]
}
