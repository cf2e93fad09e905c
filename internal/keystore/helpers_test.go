// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	passphrase  = "correct horse battery staple"
	passphrase2 = "another horse, other battery"
)

// weakly makes a store's KDF cost nothing, and its keys come from the maker that it returns.
func weakly(s *Store) *testkit.Maker {
	m := testkit.NewMaker()
	s.kdf, s.iterations, s.newKey = []keyfile.Option{keyfile.AllowWeak}, 1, m.NewKey
	return m
}

// weakStore is an ephemeral store, or one that is to be created or opened still, with [weakly].
func weakStore(t testing.TB, o *Options) (*Store, *testkit.Maker) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, weakly(s)
}

// createWeak is CreateKeyStore with [weakly].
func createWeak(t testing.TB, dir string, o *Options) (*Store, *testkit.Maker) {
	t.Helper()
	s, m := weakStore(t, o)
	if err := s.create(t.Context(), dir, secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	s.startWorker()
	return s, m
}

// tryWeak is OpenKeyStore with [weakly].
func tryWeak(t testing.TB, dir, pass string, o *Options) (*Store, error) {
	t.Helper()
	s, _ := weakStore(t, o)
	if err := s.open(t.Context(), dir, secret(t, pass)); err != nil {
		s.Close()
		return nil, err
	}
	s.startWorker()
	return s, nil
}

func openWeak(t testing.TB, dir, pass string, o *Options) *Store {
	t.Helper()
	s, err := tryWeak(t, dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// storeDir is the path of a private folder that does not exist yet.
func storeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "keys") }

func fingerprints(s *Store) []string {
	var list []string
	for _, k := range s.Keys() {
		list = append(list, k.Fingerprint)
	}
	return list
}

// primaryOf is the fingerprint of the key in use.
func primaryOf(t testing.TB, s *Store) string {
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
	if err != nil && (strings.Contains(err.Error(), passphrase) ||
		strings.Contains(err.Error(), passphrase2)) {
		t.Errorf("%s: the passphrase is in the error", what)
	}
}

// bodyOnDisk opens a keystore file as it lies on the disk.
func bodyOnDisk(t testing.TB, dir, pass string) (*keyfile.Body, *keyfile.File) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, fileName))
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

// testSecret is a Secret in ordinary memory. A nil one is like a destroyed one, as in package
// sealedchat.
type testSecret struct {
	mu    sync.Mutex
	bytes []byte // nil once destroyed
}

func (s *testSecret) Use(f func([]byte) error) error {
	if s == nil {
		return fault.ErrClosed
	}
	s.mu.Lock()
	b := s.bytes
	s.mu.Unlock()
	if b == nil {
		return fault.ErrClosed
	}
	return f(b)
}

func (s *testSecret) Len() int {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.bytes)
}

func (s *testSecret) Destroy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes = nil
}

func secret(_ testing.TB, text string) *testSecret { return &testSecret{bytes: []byte(text)} }

func publicOf(t testing.TB, name string) *hybrid.PublicKey {
	t.Helper()
	k, err := hybrid.ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// storedKey is a private copy of a stored test key, which closing a store may wipe.
func storedKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(testkit.KeyPEM(t, name))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// adopt makes key the primary key of an ephemeral store.
func (s *Store) adopt(key *rsa.PrivateKey) error {
	copied, err := keyfile.NewRSAKey(key)
	if err != nil {
		return err
	}
	return s.change(context.Background(), func(b *keyfile.Body) error {
		return s.promote(b, copied)
	})
}

// sealEnvelope seals plaintext for k.
func sealEnvelope(k *hybrid.PublicKey, plaintext []byte) (*envelope.Envelope, error) {
	e := &envelope.Envelope{}
	_, err := k.Seal(nil, e, plaintext)
	e.Sealed = bytes.Clone(e.Sealed)
	return e, err
}
