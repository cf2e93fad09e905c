// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// Passphrases, some of them with other characters than ASCII.
const (
	asciiPassword   = ` it's "quoted" \ $PATH % `
	unicodePassword = "Grüße, 世界 e\u0301 👩🏽‍🚀"
)

// keyStep is the work of a new nomyo client: it generates and saves a key, or loads one; then it
// chats, if there is a Request.
type keyStep struct {
	Generate string         `json:"generate,omitempty"` // folder
	Bits     int            `json:"bits,omitempty"`     // 0 = the default of nomyo
	Private  string         `json:"private,omitempty"`  // path
	Public   string         `json:"public,omitempty"`   // path; "" = derived
	Password string         `json:"password,omitempty"`
	BaseURL  string         `json:"base_url,omitempty"`
	Request  map[string]any `json:"request,omitempty"`
}

type keyOutcome struct {
	outcome
	Fingerprint string `json:"fingerprint"` // as Python computes it
	Bits        int    `json:"bits"`
}

// runKeys runs the steps, one after the other, in one process, which trusts certs.
func runKeys(t *testing.T, certs *certificates, steps ...keyStep) []keyOutcome {
	t.Helper()
	input, err := json.Marshal(steps)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(soon(t), python, filepath.Join("testdata", "nomyo_keys.py"))
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = environment("SSL_CERT_FILE=" + certs.authority)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("nomyo_keys.py: %v\n%.20000s", err, stderr.Bytes())
	}
	var outcomes []keyOutcome
	if err := json.Unmarshal(stdout.Bytes(), &outcomes); err != nil || len(outcomes) != len(steps) {
		t.Fatalf("nomyo_keys.py: %d outcomes for %d steps (%v)", len(outcomes), len(steps), err)
	}
	return outcomes
}

// openssl runs the command with the password in its environment, and returns its output.
func openssl(t *testing.T, password string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(soon(t), "openssl", args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = environment("KEY_PASSWORD=" + password)
	return cmd.Output()
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("SEALEDCHAT_INTEROP") == "required" {
			t.Fatal(err)
		}
		t.Skip("no openssl to talk to: ", err)
	}
}

// soon returns a context for work that takes a second at most.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), scriptDeadline)
	t.Cleanup(cancel)
	return ctx
}

// secret returns a Secret that lasts as long as the test; nil for "".
func secret(t *testing.T, text string) *sealedchat.Secret {
	t.Helper()
	if text == "" {
		return nil
	}
	s := sealedchat.NewSecret([]byte(text))
	t.Cleanup(s.Destroy)
	return s
}

func publicKey(t *testing.T, s *sealedchat.KeyStore) *sealedchat.PublicKey {
	t.Helper()
	k, err := s.Public(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ephemeral(t *testing.T) *sealedchat.KeyStore {
	t.Helper()
	s, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

const storePassphrase = "the store's own passphrase"

type opener func(context.Context, string, *sealedchat.Secret,
	*sealedchat.KeyStoreOptions) (*sealedchat.KeyStore, error)

// persistent returns the store that CreateKeyStore or OpenKeyStore opens in dir.
func persistent(t *testing.T, dir string, open opener) *sealedchat.KeyStore {
	t.Helper()
	s, err := open(soon(t), dir, secret(t, storePassphrase),
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// snapshot returns the contents of each file in the folder of a store, except locks.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".lock") {
			continue
		}
		files[e.Name()] = string(readFile(t, filepath.Join(dir, e.Name())))
	}
	if len(files) == 0 {
		t.Fatal("no key store in ", dir)
	}
	return files
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeFile(t *testing.T, name string, text []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sealedTo fails the test if the last request to the site asked for an answer to another key.
func sealedTo(t *testing.T, s *site, fingerprint string) {
	t.Helper()
	posts := s.wire.arrivals(http.MethodPost)
	if len(posts) == 0 {
		t.Fatal("no request")
	}
	text, err := url.PathUnescape(posts[len(posts)-1].header.Get("X-Public-Key"))
	if err != nil {
		t.Fatal(err)
	}
	if k, err := sealedchat.ParsePublicKey([]byte(text)); err != nil ||
		k.Fingerprint() != fingerprint {
		t.Errorf("the answer was to be sealed to %v, %v; want %s", k, err, fingerprint)
	}
}

// chatWith sends a chat with the store's key to the site, whose key is pinned.
func chatWith(t *testing.T, s *site, certs *certificates, pin string,
	keys *sealedchat.KeyStore) error {
	t.Helper()
	const text = "who opens this?"
	client := (&pythonServer{url: s.url, fingerprint: pin, pool: certs}).client(t,
		func(c *sealedchat.Config) {
			c.Keys = keys
		})
	defer client.Close()
	r, err := client.Chat(soon(t), ask("test-model", text))
	if err == nil && r.Text() != text {
		t.Errorf("answer %q", r.Text())
	}
	return err
}

// Both openssl and nomyo read the output of ExportPEM.
func TestExportedKey(t *testing.T) {
	needPython(t)
	certs := newCertificates(t)
	s := newSite(t, certs, &upstream{}, nil, nil)
	for name, c := range map[string]struct {
		keys     *sealedchat.KeyStore
		bits     int
		password string
	}{
		"2048 bits": {ephemeral(t), 2048, asciiPassword},
		"4096 bits": {gatewayKeys, 4096, unicodePassword},
	} {
		t.Run(name, func(t *testing.T) {
			public := publicKey(t, c.keys)
			text, err := c.keys.ExportPEM(soon(t), "", secret(t, c.password))
			if err != nil {
				t.Fatal(err)
			}
			path := writeFile(t, "private_key.pem", text)
			t.Run("openssl", func(t *testing.T) {
				opensslReads(t, path, c.password, public.Fingerprint())
			})
			t.Run("nomyo", func(t *testing.T) {
				nomyoReads(t, s, certs, path, c.password, public, c.bits)
			})
		})
	}
}

func opensslReads(t *testing.T, path, password, fingerprint string) {
	needOpenSSL(t)
	der, err := openssl(t, password, "pkey", "-in", path, "-passin", "env:KEY_PASSWORD", "-pubout",
		"-outform", "DER")
	if sum := sha256.Sum256(der); err != nil || hex.EncodeToString(sum[:]) != fingerprint {
		t.Errorf("pkey: %x, %v; want %s", sum, err, fingerprint)
	}
	if out, err := openssl(t, password, "pkey", "-in", path, "-passin", "env:KEY_PASSWORD",
		"-noout", "-check"); err != nil {
		t.Errorf("pkey -check: %s, %v", out, err)
	}
	// The key that openssl converts comes back as the same key.
	plain, err := openssl(t, password, "pkcs8", "-in", path, "-passin", "env:KEY_PASSWORD")
	if err != nil {
		t.Fatalf("pkcs8: %v", err)
	}
	if r, err := ephemeral(t).ImportPEM(soon(t), plain, nil); err != nil ||
		r.Fingerprint != fingerprint || r.KDF != "" {
		t.Errorf("pkcs8: %+v, %v; want %s", r, err, fingerprint)
	}
	parts, err := openssl(t, "", "asn1parse", "-in", path)
	if err != nil {
		t.Fatalf("asn1parse: %v", err)
	}
	// 600,000
	for _, want := range []string{":PBES2", ":PBKDF2", ":0927C0", ":hmacWithSHA256",
		":aes-256-cbc"} {
		if !bytes.Contains(parts, []byte(want)) {
			t.Errorf("no %s in %s", want, parts)
		}
	}
	for _, wrong := range []string{password + " ", strings.TrimSpace(password[1:]), "x"} {
		for _, command := range []string{"pkey", "pkcs8"} {
			if out, err := openssl(t, wrong, command, "-in", path, "-passin",
				"env:KEY_PASSWORD"); err == nil || len(out) > 0 {
				t.Errorf("%s opens it with a wrong password", command)
			}
		}
	}
}

func nomyoReads(t *testing.T, s *site, certs *certificates, path, password string,
	public *sealedchat.PublicKey, bits int) {
	publicPath := writeFile(t, "public_key.pem", public.PEM())
	o := runKeys(t, certs,
		keyStep{Private: path, Password: password, BaseURL: s.url,
			Request: say("with the derived public key")},
		keyStep{Private: path, Public: publicPath, Password: password, BaseURL: s.url,
			Request: say("with public_key.pem")},
		keyStep{Private: path, Password: password + " "},
		keyStep{Private: path},
	)
	for i, text := range []string{"with the derived public key", "with public_key.pem"} {
		if got := served(t, o[i].outcome).text(); got != text {
			t.Errorf("answer %q, want %q", got, text)
		}
		if o[i].Fingerprint != public.Fingerprint() || o[i].Bits != bits {
			t.Errorf("Python loaded %s with %d bits, want %s with %d", o[i].Fingerprint, o[i].Bits,
				public.Fingerprint(), bits)
		}
	}
	sealedTo(t, s, public.Fingerprint())
	for _, refused := range o[2:] {
		if refused.Error != "ValueError" || !strings.HasPrefix(refused.Message,
			"Failed to load private key: ") || refused.Fingerprint != "" {
			t.Errorf("without the password: %v", refused.outcome)
		}
	}
}
