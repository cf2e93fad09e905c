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
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// Passphrases, some of which are no ASCII.
const (
	asciiPassword   = ` it's "quoted" \ $PATH % `
	unicodePassword = "Grüße, 世界 e\u0301 👩🏽‍🚀"
)

// keyStep is what a new nomyo client does: generate and save a key, or load one; and then chat, if
// there is a Request.
type keyStep struct {
	Generate string         `json:"generate,omitempty"` // folder
	Bits     int            `json:"bits,omitempty"`     // 0 = what nomyo generates
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

// openssl runs the command with the password in its environment, and returns what it prints.
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

// soon is a context for what should take a second at most.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), scriptDeadline)
	t.Cleanup(cancel)
	return ctx
}

// secret returns a Secret for the length of the test; nil for "".
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

// persistent returns what CreateKeyStore or OpenKeyStore makes of dir.
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

// snapshot is a store's folder: what is in each file. Locks come and go.
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

// sealedTo demands that the site's last request asked for an answer to this key.
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

// What ExportPEM writes is read by openssl and by nomyo.
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
	// What openssl makes of it comes back as the same key.
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

// Keys that nomyo saved move into a store.
func TestMigration(t *testing.T) {
	needPython(t)
	certs, dir := newCertificates(t), t.TempDir()
	s := newSite(t, certs, &upstream{}, nil, nil)
	steps := []keyStep{
		{Generate: filepath.Join(dir, "plain")}, // as nomyo makes them when it is given a folder
		{Generate: filepath.Join(dir, "ascii"), Password: asciiPassword, Bits: 2048},
		{Generate: filepath.Join(dir, "unicode"), Password: unicodePassword, Bits: 2048},
		{Generate: filepath.Join(dir, "short"), Password: "x", Bits: 3072}, // nomyo takes any
	}
	for i, o := range runKeys(t, certs, steps...) {
		if o.Error != "" {
			t.Fatalf("nomyo did not generate key %d: %v", i, o.outcome)
		}
		other := steps[(i+1)%len(steps)].Generate
		t.Run(filepath.Base(steps[i].Generate), func(t *testing.T) {
			migrate(t, s, certs, steps[i], o, other)
		})
	}
}

// migrate moves the key that made says; theirs is what Python says of it. other is a folder with
// another key.
func migrate(t *testing.T, s *site, certs *certificates, made keyStep, theirs keyOutcome,
	other string) {
	private := readFile(t, filepath.Join(made.Generate, "private_key.pem"))
	public := readFile(t, filepath.Join(made.Generate, "public_key.pem"))
	both := append(bytes.Clone(private), public...)
	dir := filepath.Join(t.TempDir(), "store")
	store := persistent(t, dir, sealedchat.CreateKeyStore)
	importRefused(t, store, dir, made.Password, private,
		readFile(t, filepath.Join(other, "public_key.pem")))

	old := publicKey(t, store).Fingerprint()
	report, err := store.ImportPEM(soon(t), both, secret(t, made.Password))
	if err != nil {
		t.Fatal(err)
	}
	want := sealedchat.KeyInfo{Kind: "RSA", Fingerprint: theirs.Fingerprint, Bits: 4096, Format: "PKCS#8", Public: true}
	if made.Password != "" { // what cryptography calls its best available encryption
		want = sealedchat.KeyInfo{
			Kind: "RSA", Fingerprint: theirs.Fingerprint, Bits: made.Bits, Format: "PBES2", KDF: "PBKDF2-HMAC-SHA256", Iterations: 2048, Weak: true, Public: true,
		}
	}
	got := *report
	got.Locked, got.Created, got.Activated = false, time.Time{}, time.Time{}
	if got != want || report.Created.IsZero() || theirs.Bits != want.Bits {
		t.Errorf("report %+v, want %+v", *report, want)
	}
	if k, err := sealedchat.ParsePublicKey(public); err != nil ||
		k.Fingerprint() != theirs.Fingerprint {
		t.Errorf("public_key.pem: %v, %v; want %s", k, err, theirs.Fingerprint)
	}
	inUse := func(store *sealedchat.KeyStore) {
		t.Helper()
		keys := store.Keys()
		if len(keys) != 2 || keys[0].Fingerprint != theirs.Fingerprint || !keys[0].Retired.IsZero() ||
			keys[0].Bits != theirs.Bits || keys[1].Fingerprint != old || keys[1].Retired.IsZero() {
			t.Fatalf("keys %+v", keys)
		}
		if err := chatWith(t, s, certs, publicKey(t, gatewayKeys).Fingerprint(),
			store); err != nil {
			t.Fatal(err)
		}
		sealedTo(t, s, theirs.Fingerprint)
	}
	inUse(store)
	before := snapshot(t, dir)
	report.Public = false // this time without the public key
	if again, err := store.ImportPEM(soon(t), private, secret(t, made.Password)); err != nil ||
		*again != *report {
		t.Errorf("once more: %+v, %v", again, err)
	}
	store.Close()
	wrong := "not " + storePassphrase
	if _, err := sealedchat.OpenKeyStore(soon(t), dir, secret(t, wrong), nil); !errors.Is(err,
		sealedchat.ErrPassphrase) {
		t.Errorf("opened with a wrong passphrase: %v", err)
	}
	if !reflect.DeepEqual(snapshot(t, dir), before) {
		t.Error("importing the same key again, or a wrong passphrase, changed the store")
	}
	store = persistent(t, dir, sealedchat.OpenKeyStore)
	inUse(store)

	// And back to nomyo.
	text, err := store.ExportPEM(soon(t), theirs.Fingerprint, secret(t, storePassphrase))
	if err != nil {
		t.Fatal(err)
	}
	o := runKeys(t, certs, keyStep{
		Private:  writeFile(t, "private_key.pem", text),
		Public:   filepath.Join(made.Generate, "public_key.pem"),
		Password: storePassphrase, BaseURL: s.url, Request: say("back again"),
	})[0]
	if got := served(t, o.outcome).text(); got != "back again" ||
		o.Fingerprint != theirs.Fingerprint {
		t.Errorf("answer %q with key %s", got, o.Fingerprint)
	}
}

// importRefused imports the key in ways that must fail and leave the store as it is.
func importRefused(t *testing.T, store *sealedchat.KeyStore, dir, password string, private,
	otherPublic []byte) {
	t.Helper()
	before, keys := snapshot(t, dir), store.Keys()
	wrong := []string{storePassphrase} // superfluous for a plain file
	if password != "" {
		wrong = append(wrong, password+" ", strings.ToUpper(password)+"\x00", "")
	}
	for _, p := range wrong {
		if r, err := store.ImportPEM(soon(t), private, secret(t, p)); !errors.Is(err,
			sealedchat.ErrPassphrase) || r != nil {
			t.Errorf("with the passphrase %q: %+v, %v", p, r, err)
		}
	}
	for name, text := range map[string][]byte{
		"another key's public_key.pem": append(bytes.Clone(private), otherPublic...),
		"the public key alone":         otherPublic,
		"half a file":                  private[:len(private)/2],
	} {
		if r, err := store.ImportPEM(soon(t), text, secret(t, password)); !errors.Is(err,
			sealedchat.ErrPrivateKey) || r != nil {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if !reflect.DeepEqual(store.Keys(), keys) || !reflect.DeepEqual(snapshot(t, dir), before) {
		t.Error("a refused import changed the store")
	}
}

// A gateway with a key of nomyo's making is known by the fingerprint that Python computes.
func TestGatewayWithImportedKey(t *testing.T) {
	needPython(t)
	certs, dir := newCertificates(t), t.TempDir()
	made := keyStep{Generate: filepath.Join(dir, "keys"), Password: asciiPassword, Bits: 2048}
	theirs := runKeys(t, certs, made)[0]
	if theirs.Error != "" {
		t.Fatal(theirs.outcome)
	}
	private := readFile(t, filepath.Join(made.Generate, "private_key.pem"))
	for name, keys := range map[string]*sealedchat.KeyStore{
		"ephemeral":  ephemeral(t),
		"persistent": persistent(t, filepath.Join(dir, "store"), sealedchat.CreateKeyStore),
	} {
		t.Run(name, func(t *testing.T) {
			old := publicKey(t, keys).Fingerprint()
			s := newSite(t, certs, &upstream{}, func(c *sealedchat.GatewayConfig) {
				c.Keys = keys
			}, nil)
			if err := chatWith(t, s, certs, old, clientKeys); err != nil {
				t.Fatalf("before the import: %v", err)
			}
			if _, err := keys.ImportPEM(soon(t), private, secret(t, made.Password)); err != nil {
				t.Fatal(err)
			}
			if err := chatWith(t, s, certs, theirs.Fingerprint, clientKeys); err != nil {
				t.Errorf("pinned: %v", err)
			}
			if err := chatWith(t, s, certs, strings.ToUpper(theirs.Fingerprint),
				clientKeys); err != nil {
				t.Errorf("pinned in upper case: %v", err)
			}
			posts := len(s.wire.arrivals(http.MethodPost))
			for _, pin := range []string{old, publicKey(t, clientKeys).Fingerprint(),
				theirs.Fingerprint[1:] + "0"} {
				err := chatWith(t, s, certs, pin, clientKeys)
				if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok {
					t.Errorf("another pin: %v", err)
				}
			}
			if n := len(s.wire.arrivals(http.MethodPost)); n != posts {
				t.Errorf("%d requests were sealed to a key that is not the pinned one", n-posts)
			}
			nomyoFinds(t, s, certs, made, theirs.Fingerprint)
		})
	}
}

// nomyoFinds has nomyo chat with a gateway that has nomyo's own key.
func nomyoFinds(t *testing.T, s *site, certs *certificates, made keyStep, fingerprint string) {
	t.Helper()
	o := runKeys(t, certs, keyStep{
		Private: filepath.Join(made.Generate, "private_key.pem"), Password: made.Password,
		BaseURL: s.url, Request: say("to myself"),
	})[0]
	if got := served(t, o.outcome).text(); got != "to myself" || o.Fingerprint != fingerprint {
		t.Errorf("answer %q with key %s", got, o.Fingerprint)
	}
}
