// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package testkit has the tools that the tests of several packages share: the stored vectors and
// keys, servers that answer as a vector says, a recorder of everything that crosses a connection,
// and a check for goroutines that do not end.
//
// Only tests import it. It imports the standard library alone, so that every package of the module
// can use it.
package testkit

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const moduleLine = "module github.com/seed-017344ad/sealedchat"

// Dir returns the root of the repository: the nearest folder, from the working directory upwards,
// whose go.mod is this module's.
func Dir(t testing.TB) string {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	dir, err := rootOf(wd)
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	return dir
}

func rootOf(dir string) (string, error) {
	for start := dir; ; {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			for line := range strings.Lines(string(mod)) {
				if strings.TrimSpace(line) == moduleLine {
					return dir, nil
				}
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod with %q above %s", moduleLine, start)
		}
		dir = up
	}
}

// keys caches what Key has parsed, by file; parsing an RSA-4096 key takes milliseconds.
var keys sync.Map // file name -> func() (*rsa.PrivateKey, error)

// Key returns the stored test key testdata/keys/<name>.pem: "server-4096", "client-4096",
// "other-4096", "rsa-3072" or "rsa-2048". All callers share one value. A test that wipes or changes
// a key parses [KeyPEM] instead.
func Key(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	file := keyFile(t, name)
	once, _ := keys.LoadOrStore(file, sync.OnceValues(func() (*rsa.PrivateKey, error) {
		return readKey(file)
	}))
	key, err := once.(func() (*rsa.PrivateKey, error))()
	if err != nil {
		t.Fatalf("testkit: key %s: %v", name, err)
	}
	return key
}

// KeyPEM returns the PKCS#8 PEM of a stored test key, in a slice of the caller's own.
func KeyPEM(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(keyFile(t, name))
	if err != nil {
		t.Fatalf("testkit: key %s: %v", name, err)
	}
	return text
}

// PublicPEM returns the PEM SubjectPublicKeyInfo of a stored test key, as a server serves it.
func PublicPEM(t testing.TB, name string) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(Key(t, name).Public())
	if err != nil {
		t.Fatalf("testkit: key %s: %v", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func keyFile(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(Dir(t), "testdata", "keys", name+".pem")
}

func readKey(file string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is not one PRIVATE KEY block", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T", file, key)
	}
	return private, nil
}
