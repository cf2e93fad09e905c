// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// naiveEnvelope is the protocol's envelope as a program writes it that thinks no further.
type naiveEnvelope struct {
	Version          string         `json:"version"`
	Algorithm        string         `json:"algorithm"`
	EncryptedPayload naiveEncrypted `json:"encrypted_payload"`
	EncryptedAESKey  []byte         `json:"encrypted_aes_key"`
	KeyAlgorithm     string         `json:"key_algorithm"`
	PayloadAlgorithm string         `json:"payload_algorithm"`
}

type naiveEncrypted struct {
	Ciphertext []byte `json:"ciphertext"`
	Nonce      []byte `json:"nonce"`
	Tag        []byte `json:"tag"`
}

// naiveClient does what the client does with encoding/json, crypto/rsa and ordinary memory, and
// nothing about secrets.
type naiveClient struct {
	url    string
	key    *rsa.PrivateKey
	public string // PEM, percent-encoded
	server *rsa.PublicKey
}

func naiveGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (c *naiveClient) complete(prompt string) error {
	body, err := json.Marshal(map[string]any{
		"model": "test-model", "messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		return err
	}
	key, nonce := make([]byte, 32), make([]byte, 12)
	_, _ = rand.Read(key)
	_, _ = rand.Read(nonce)
	gcm, err := naiveGCM(key)
	if err != nil {
		return err
	}
	sealed := gcm.Seal(nil, nonce, body, nil)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, c.server, key, nil)
	if err != nil {
		return err
	}
	text, err := json.Marshal(naiveEnvelope{
		"1.0", "hybrid-aes256-rsa4096", naiveEncrypted{sealed[:len(sealed)-16], nonce,
			sealed[len(sealed)-16:]},
		wrapped, "RSA-OAEP-SHA256", "AES-256-GCM",
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, c.url+"/v1/chat/secure_completion",
		bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("X-Public-Key", c.public)
	req.Header.Set("X-Payload-ID", rand.Text())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var e naiveEnvelope
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the gateway answers %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		return err
	}
	if key, err = rsa.DecryptOAEP(sha256.New(), nil, c.key, e.EncryptedAESKey, nil); err != nil {
		return err
	}
	if gcm, err = naiveGCM(key); err != nil {
		return err
	}
	p := e.EncryptedPayload
	plaintext, err := gcm.Open(nil, p.Nonce, append(p.Ciphertext, p.Tag...), nil)
	if err != nil {
		return err
	}
	var answer sealedchat.ChatResponse
	return json.Unmarshal(plaintext, &answer)
}

// cpu is the processor time of this process so far.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCompleteAgainstNaive makes rounds of both kinds in turn, with a gateway in another
// process, and reports the processor time of Complete in that of the naive client: "x-naive", the
// median over groups of 10 rounds.
func BenchmarkCompleteAgainstNaive(b *testing.B) {
	gateway := startMemoryProcess(b, "gateway")
	gateway.sendSecret(testkit.KeyPEM(b, "server-4096"))
	said := strings.Fields(gateway.answer("gateway"))
	if len(said) != 3 {
		b.Fatalf("the gateway says %q", said)
	}
	addr, pin := said[0], said[1]

	keys, err := sealedchat.NewEphemeralKeyStore(
		&sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}})
	if err != nil {
		b.Fatal(err)
	}
	defer keys.Close()
	if _, err := keys.ImportPEM(b.Context(), testkit.KeyPEM(b, "client-4096"), nil); err != nil {
		b.Fatal(err)
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "http://" + addr, Trust: sealedchat.Pin(pin), Keys: keys, InsecureAllowHTTP: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	// a copy of its own: testkit.Key's is shared
	block, _ := pem.Decode(testkit.KeyPEM(b, "client-4096"))
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	naive := &naiveClient{
		url: "http://" + addr, key: parsed.(*rsa.PrivateKey),
		server: &testkit.Key(b, "server-4096").PublicKey,
		public: url.PathEscape(string(testkit.PublicPEM(b, "client-4096"))),
	}
	prompt := randomText(memoryPromptSize)
	careful := func() error {
		body := sealedchat.NewSecret(fmt.Appendf(nil,
			`{"model":"test-model","messages":[{"role":"user","content":"%s"}]}`, prompt))
		defer body.Destroy()
		answer, err := client.Complete(context.Background(), body)
		if err != nil {
			return err
		}
		answer.Body.Destroy()
		return nil
	}
	group := func(round func() error) time.Duration {
		begin := cpu(b)
		for range 10 {
			if err := round(); err != nil {
				b.Fatal(err)
			}
		}
		return cpu(b) - begin
	}
	group(careful) // connections, keys and caches
	simple := func() error { return naive.complete(string(prompt)) }
	group(simple)
	var ratios []float64
	var each [2]time.Duration
	for b.Loop() {
		n, c := group(simple), group(careful)
		ratios = append(ratios, float64(c)/float64(n))
		each[0], each[1] = each[0]+n, each[1]+c
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-naive")
	b.ReportMetric(each[0].Seconds()*1e3/float64(10*len(ratios)), "ms-naive")
	b.ReportMetric(each[1].Seconds()*1e3/float64(10*len(ratios)), "ms-complete")
}
