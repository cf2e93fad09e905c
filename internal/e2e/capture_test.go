// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// What this client sends has to open with programs that share no code with it.

// openWithPython needs nothing but Python's cryptography. Arguments: the key in PEM, the envelope.
// It prints the plaintext.
const openWithPython = `
import base64, json, sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

key = serialization.load_pem_private_key(open(sys.argv[1], "rb").read(), None)
envelope = json.load(open(sys.argv[2], "rb"))
assert envelope["version"] == "1.0" and envelope["algorithm"] == "hybrid-aes256-rsa4096"
assert envelope["key_algorithm"] == "RSA-OAEP-SHA256" and envelope["payload_algorithm"] == "AES-256-GCM"
b64 = lambda text: base64.b64decode(text, validate=True)
data_key = key.decrypt(b64(envelope["encrypted_aes_key"]), padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
assert len(data_key) == 32
payload = {name: b64(text) for name, text in envelope["encrypted_payload"].items()}
assert len(payload["nonce"]) == 12 and len(payload["tag"]) == 16
sys.stdout.buffer.write(AESGCM(data_key).decrypt(payload["nonce"], payload["ciphertext"] + payload["tag"], None))
`

// captureRequest has a client send prompt and returns the files with the server's key and the
// request's body.
func captureRequest(t *testing.T, prompt string) (keyFile, bodyFile string) {
	t.Helper()
	upload := &recorder{Handler: http.NotFoundHandler()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pki/public_key", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(testkit.PublicPEM(t, "server-4096"))
	})
	mux.Handle("POST /v1/chat/secure_completion", upload)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	if _, err := startClient(t, srv.URL, nil).Chat(testkit.Within(t, 20*time.Second),
		ask(prompt)); err == nil {
		t.Fatal("the stub answered")
	}
	dir := t.TempDir()
	keyFile, bodyFile = filepath.Join(dir, "key.pem"), filepath.Join(dir, "body.json")
	for name, content := range map[string][]byte{keyFile: testkit.KeyPEM(t, "server-4096"),
		bodyFile: upload.last()} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return keyFile, bodyFile
}

const capturedPrompt = "größer \u2028 \"quoted\" </script> 🔑"

func checkCaptured(t *testing.T, plaintext []byte) {
	t.Helper()
	var request struct {
		Model    string
		Messages []struct{ Role, Content string }
	}
	if err := json.Unmarshal(plaintext, &request); err != nil {
		t.Fatalf("%v in %q", err, plaintext)
	}
	if request.Model != "test-model" || len(request.Messages) != 1 ||
		request.Messages[0].Content != capturedPrompt {
		t.Errorf("the program opened %s", plaintext)
	}
}

// SEALEDCHAT_PYTHON names an interpreter that has to have cryptography: with it, nothing is
// skipped.
func TestCapturedRequestOpensWithPython(t *testing.T) {
	t.Parallel()
	python, demanded := os.LookupEnv("SEALEDCHAT_PYTHON")
	if !demanded {
		found, err := exec.LookPath("python3")
		if err != nil {
			t.Skip("skipped: there is no python3; SEALEDCHAT_PYTHON can name one that has the " +
				"module cryptography")
		}
		python = found
		if out, err := exec.CommandContext(testkit.Within(t, 30*time.Second), python, "-c",
			"import cryptography").CombinedOutput(); err != nil {
			t.Skipf("skipped: %s has no module cryptography (%v: %.100q); SEALEDCHAT_PYTHON can "+
				"name one that has", python, err, out)
		}
	}
	keyFile, bodyFile := captureRequest(t, capturedPrompt)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(testkit.Within(t, 30*time.Second), python, "-c", openWithPython,
		keyFile, bodyFile)
	cmd.Stderr = &stderr
	plaintext, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", python, err, &stderr)
	}
	checkCaptured(t, plaintext)
}

// The openssl program unwraps the key. It has no AES-GCM, so the standard library does that half.
func TestCapturedRequestOpensWithOpenSSL(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("skipped: there is no openssl program")
	}
	keyFile, bodyFile := captureRequest(t, capturedPrompt)
	body, err := os.ReadFile(bodyFile)
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Payload struct{ Ciphertext, Nonce, Tag []byte } `json:"encrypted_payload"`
		Key     []byte                                  `json:"encrypted_aes_key"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testkit.Within(t, 30*time.Second), openssl, "pkeyutl", "-decrypt",
		"-inkey", keyFile,
		"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt",
		"rsa_mgf1_md:sha256")
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = bytes.NewReader(e.Key), &stderr
	dataKey, err := cmd.Output()
	if err != nil || len(dataKey) != 32 {
		t.Fatalf("openssl unwraps %d bytes: %v\n%s", len(dataKey), err, &stderr)
	}
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err := gcm.Open(nil, e.Payload.Nonce, append(e.Payload.Ciphertext, e.Payload.Tag...),
		nil)
	if err != nil {
		t.Fatal(err)
	}
	checkCaptured(t, plaintext)
}
