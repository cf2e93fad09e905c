// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"errors"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// Keys that nomyo saved can move into a store.
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

// migrate moves the key that made describes. theirs is the description that Python gives of it.
// other is a folder with another key.
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
	want := sealedchat.KeyInfo{
		Kind:        "RSA",
		Fingerprint: theirs.Fingerprint,
		Bits:        4096,
		Format:      "PKCS#8",
		Public:      true,
	}
	if made.Password != "" { // what cryptography calls its best available encryption
		want = sealedchat.KeyInfo{
			Kind: "RSA", Fingerprint: theirs.Fingerprint, Bits: made.Bits, Format: "PBES2",
			KDF: "PBKDF2-HMAC-SHA256", Iterations: 2048, Weak: true, Public: true,
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
		if len(keys) != 2 || keys[0].Fingerprint != theirs.Fingerprint ||
			!keys[0].Retired.IsZero() ||
			keys[0].Bits != theirs.Bits || keys[1].Fingerprint != old ||
			keys[1].Retired.IsZero() {
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

	// The key goes back to nomyo.
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

// importRefused imports the key in ways that must fail and must leave the store as it is.
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

// A gateway with a key that nomyo made has the fingerprint that Python computes.
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

// nomyoFinds lets nomyo chat with a gateway that has nomyo's own key.
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
