// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	passphrase  = "correct horse battery staple"
	passphrase2 = "another horse, other battery"
)

// These key stores take their keys from the maker that they come with, and their KDF costs nothing.

func weakOptions(t testing.TB, o *KeyStoreOptions) (*keystore.Options, *testkit.Maker) {
	t.Helper()
	if o == nil {
		o = &KeyStoreOptions{}
	}
	options, err := o.engine()
	if err != nil {
		t.Fatal(err)
	}
	m := testkit.NewMaker()
	options.NewKey, options.WeakKDF = m.NewKey, true
	return options, m
}

// weakStore is an ephemeral store.
func weakStore(t testing.TB, o *KeyStoreOptions) (*KeyStore, *testkit.Maker) {
	t.Helper()
	options, m := weakOptions(t, o)
	store, err := keystore.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return &KeyStore{store}, m
}

// createWeak is CreateKeyStore.
func createWeak(t testing.TB, dir string, o *KeyStoreOptions) (*KeyStore, *testkit.Maker) {
	t.Helper()
	options, m := weakOptions(t, o)
	store, err := keystore.Create(t.Context(), dir, secret(t, passphrase), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return &KeyStore{store}, m
}

// tryWeak is OpenKeyStore.
func tryWeak(t testing.TB, dir, pass string, o *KeyStoreOptions) (*KeyStore, error) {
	t.Helper()
	options, _ := weakOptions(t, o)
	store, err := keystore.Open(t.Context(), dir, secret(t, pass), options)
	if err != nil {
		return nil, err
	}
	t.Cleanup(store.Close)
	return &KeyStore{store}, nil
}

func openWeak(t testing.TB, dir, pass string, o *KeyStoreOptions) *KeyStore {
	t.Helper()
	s, err := tryWeak(t, dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// storeDir is the path of a private folder that does not exist yet.
func storeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "keys") }

// snapshot describes every file in a folder: bytes, mode, and time of the last write.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		text, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		fmt.Fprintf(&b, "%s %v %v %x\n", e.Name(), info.Mode(), info.ModTime().UnixNano(), sha256.Sum256(text))
	}
	return b.String()
}

// unchanged fails the test if f changes anything in dir.
func unchanged(t testing.TB, what, dir string, f func()) {
	t.Helper()
	before := snapshot(t, dir)
	f()
	if snapshot(t, dir) != before {
		t.Errorf("%s: something changed on the disk", what)
	}
}

// primaryOf is the fingerprint of the key in use.
func primaryOf(t testing.TB, s *KeyStore) string {
	t.Helper()
	k, err := s.Public(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return k.Fingerprint()
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
	if err != nil && (strings.Contains(err.Error(), passphrase) || strings.Contains(err.Error(), passphrase2)) {
		t.Errorf("%s: the passphrase is in the error", what)
	}
}

// bodyOnDisk opens a keystore file as it lies on the disk.
func bodyOnDisk(t testing.TB, dir, pass string) (*keyfile.Body, *keyfile.File) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "keystore.json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := keyfile.ParseHeader(text)
	if err != nil {
		t.Fatal(err)
	}
	k, err := f.Unlock([]byte(pass), keyfile.AllowWeak)
	if err != nil {
		t.Fatal(err)
	}
	body, err := keyfile.Open(f, k)
	if err != nil {
		t.Fatal(err)
	}
	return body, f
}

// settle lets time pass, and everything happen that is due by then.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// keyInUse is the RSA key that a request would take now.
func keyInUse(t testing.TB, s *KeyStore) *keystore.Key {
	t.Helper()
	k, err := s.store.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.Release()
	return k
}

// wiped reports whether a key is gone, and its numbers with it.
func wiped(k *keystore.Key) bool { return k.IsWiped() }

// listedIDs are the ids and KEMs in the order of the list.
func listedIDs(t testing.TB, s *KeyStore) (ids []string) {
	t.Helper()
	configs, err := s.store.Configs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs {
		ids = append(ids, fmt.Sprintf("%s %d", ohttp.Kind(c.KEM()), c.ID()))
	}
	return ids
}

func passwordOf(t testing.TB, c testkit.Case) *Secret {
	if c.Password == nil {
		return nil
	}
	return secret(t, *c.Password)
}

const (
	childVar    = "SEALEDCHAT_TEST_CHILD" // which of storeChildren this process is to be
	childDirVar = "SEALEDCHAT_TEST_DIR"
	childArgVar = "SEALEDCHAT_TEST_ARG"
	longVar     = "SEALEDCHAT_LONG" // "1": tests with real time take longer
)

// storeChildren are what the test binary does when it runs itself again.
var storeChildren = map[string]func(t *testing.T, dir, arg string){
	"purged":  childPurged,
	"gateway": childGateway,
}

// TestStoreChild is what other tests run in processes of their own.
func TestStoreChild(t *testing.T) {
	name := os.Getenv(childVar)
	if name == "" {
		t.Skip("it is for the tests that start processes")
	}
	storeChildren[name](t, os.Getenv(childDirVar), os.Getenv(childArgVar))
}

// child is a process that is not started yet. It is killed when the test ends.
func child(t testing.TB, name, dir, arg string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestStoreChild$", "-test.v=false", "-test.count=1")
	cmd.Env = append(os.Environ(), childVar+"="+name, childDirVar+"="+dir, childArgVar+"="+arg)
	cmd.Stderr = os.Stderr
	return cmd
}

// configsOf are a gateway's key configurations.
func configsOf(t testing.TB, g *Gateway) []KeyInfo {
	t.Helper()
	keys, err := g.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(keys, func(k KeyInfo) bool { return k.Kind == "RSA" || k.Kind == "Ed25519" })
}

// signerOf is the fingerprint of the key that signs a gateway's list.
func signerOf(t testing.TB, g *Gateway) string {
	t.Helper()
	keys, err := g.Keys(t.Context())
	if err != nil || keys[len(keys)-1].Kind != "Ed25519" {
		t.Fatal(keys, err)
	}
	return keys[len(keys)-1].Fingerprint
}
