// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

const (
	passphrase  = "correct horse battery staple"
	passphrase2 = "another horse, other battery"
)

// storedPrimes have 1024 bits each. Any two make an RSA key of 2048 bits, so that tests need not generate keys.
var storedPrimes = [...]string{
	"9kpVW3JUw7yCRzKYW9xvFvYLNJ4U6O4mZj1NjYtKYVTBLvZ7xgmpLeVRf2H357hnfUsl48K6vWbDfTps50jhQ34kVxrfPbUcoWtBp+3COK/AsHTIgqLja2pBe9JvitqaRmkZQBVo2ojKy3SoxtXEnJgMtx8uq+NVVZbDLp0/UkU",
	"5bWZPxt41sk3ib5iOiqwfB6Vv+/xpi7zVLHEtsXWXpkzKk0Jraj7RM3DQfp7wSuDIFHed6hd7j2WLO9pvsQatEUN6mhnvaS01ahdRtN9Mp0+iiqdodebhI/87kq2gqSLK5dnTJAio+auBkhLGatJeh0VMOgwmpb3Q1lgyxfcX/k",
	"0biLNyb+OHtfkcFUI+8TrbawIOOaVJ5EIYQuExxTZsCAy19hSkLKyEWMDii3StZMFjYvY+gLRN14o8qOg1WYr+aoYULeA+f/X+RtsoWHFV4MISvlrfOIiT+cFCFmuR6zuxEKdy9nzr/RndLu9D7RMOMfa446ri5vvafm2+bwkhs",
	"9SvQcEFF/afz89d4mo9YZpQd1+jGxqHFZLkIi+ltX2biXDHxFeN3pZl0Zw8A5sT21jB8Kegf498x3mn/BX6ThYawS5KZC1/dePyj73bbjKBj0304eVgBznXAmNP8H2Xa2PblscqYrwIdEEQy0LEvbu0KOlyMURZ6vuScIMSpAjs",
	"0L6d8ckhoDjF6LEhrTBukb6AY1KCzt4zN12RpaoTqeVqYlBkaD/OIPllZhuYWWweNNYOPOXN6sjUPDL/t+tFL0X37w0fjdobD/civeH/yuhQet/5EBMXKP8VNEIY8zBWNv1mR7p9gI05sDv5Yk4cbVMp9QxCtv/OYv2FDg3Xrbc",
	"3DbuL26q5bOo4XV+tgHYKVmJn0AFyIEe3HxcjYSBPG2vWlhCPra2pVUU0kq1ASx3PKWzh0r0WV/uYlbZIXwU9vzaUfIaDLzHFsVlOfW/8EIrQafl8bvrsuvELvJUmiVPjDWGkIogiH/8lr5KbzVnvSai+2AHLLg+Y8fzNcGj2Ks",
	"yBt7Ufn2bJxQPR/GOT54Tq6c+TMD/FOBLphol3AWX6RQJeKvOzF89WBKrnNk58UwEukedAvyvbUKLkn/ZCYWzRDNquKvWvo/fkxEkqi3Ima4KcwLETEg7OWFI64y9qHKdI7PBHKpHVQMfea4u0mwiZt4Y/5wY9NyyV/P9YwfNg8",
	"5sCyQE12xjNL+8BmBwK1iBDH2LJ6N5Y6RpmvDQonDUhPYUjy7bUZ9qJQPuFJPcfz9MFrCp1LlYmhHrcYGyZc90Gi0+yzPFzh1L9d8XWRnTMnsaojkXLFVpg5QhfFJBRDNZqi1bOCCAZaGDLiZUyvh7XtpTqFfAqNScIHGtmC0m8",
	"3mk4C5YWDWZJLpkvvw23RqhLK44Ha3evaA2Kbewhhb6bnWEcadjRRkP7hrA20JxsqCaDbfkOCB0P+9H9k/6UPNyuqwrBetfBpPzJPWVpRoDQII/TStOPLNoPmF1HTq7lOtJUwKD8CY4xe1KS4qT/pVij4PCstSCCxSj0Taf16Js",
	"+DUPdIAYWOMNEw7kHE8SE5WKq0BFIu/grV5FmG9b8dPnmLUd35/6LMVdMqm0w0vtJev87r3HJ2sipqHbPIe3XwZRGsamZ3EQwcXF+v/jsVryUwd5HO9aTy01Ew5gOEUr+kxLvzyaOTYSP/UVaFjwb63zyDtWDkLiZ5FHRh0urHE",
	"wL4qcLgwPwajavEylSWR3G/G653/Hm7F4AGeq/VYwoWOSPJdMGhbCu5q+G2iGDJANP1TGedaCYgBB0a6inS6P4rZlmBrnD0vybSjbMWVvUgeeq5BKzhE27ib/PMpnfU9GQ93xliHrSauMoyVs9STP4T1UQ1rdmxInKVveMMD9SM",
	"3+okmDxfhik3nRWF2rLCyqDM+4MvTDWXZFzegNmBb4hwqGzGbmyLr/nW42S1WtvKrx3CctI5HLqHFoI2TyQIeK6CKzekJFR8MkuIYyRBBY/VJ5iR9nOdedIv6u4hJHvHlDsqSIJ0k6QXg/iKhJnek4+Ap4amBXOy/dNRaRI0S/k",
	"5yIL1GRGAUuQjGivxTEo6JNhk6ixoINk+6dkK3PKDO/4vWc2UY0PgkNjvE8dUFBgn0XBdCcnq9Di672oHc7KDustlEkz8vyid6205bhSmpXBYnWw1/y52LtyExa+5cqdGSe67SwhMLpJeGRzuk9y8BZmYI+B8vRik25PNiuPRCs",
	"52D/9L2/vhL4yqaEfXRqkJXYrWM7W9Qy+GQhCaw7xeebLTx8LTyktebpWEj+G3o7ZDlxo6F63F8qxdEkaqu63WPHgJhpM2vQHrIcw+4cXgFgQX0ayrgcOWsuRpvTZK5lN/+xxhOUGpHP6Y/zYB+M1+h0vyhyzl+YNG4WOPf+se0",
	"3q5BLYRTijznXg8fiVbtF9+RuMcaRxhB0kUDXW1nzCl0/hV8jl6IwGBRYOvc77jexvBNpC4eSuYmyUZYeNjrs8YMYWq0jzw9zMCXVet9C231NpRpWJQd34k6+s6pZRl3nemgsDYsWxl8G6xSvoQjPP/fKCjgTnZEZXcrWcza39c",
	"6DqMWKAtq9HIrQThZgUMKUcb6JvTbbBjYOC5GpTsiMY0bpK3scAKdIZLw04iHBwNePcr8g6bjOrANyKLbNZIGDoK4x0oAqGHMmylF03qETi8pQ/j71e4vrN8uaInrL+KmiBUdZXgVjdWj1hT8ZO+EgdjeHzv1wBai52w0ZksPeU",
	"6h5FWq+u9Mb/hoByUMuHPvDCN2G4OQxkh5ta/gKCSY3YP5pjpcBiL4dbkdH79K8y11mXnyWwWaGziKWKYuYhDAHX5cB3zMV3XUfp2n6+LdVUgrmPeIYZyfRLqSc/dfDkURmSHLOndoEIN4zcrP3Y/o03keY+LKBhkEDaDGCfC1U",
	"/eWmYXMGbZJFM0yImjb53eBhLliasXVdVH5CVh/+G93KGXzuxCFwfLcNBhMnfeIGHO6VRGqLx7xRTTvKleBzm2s3RpdBp4oUm9/zQDk9b/kOSkFOyl/R5EbIINhJXeHL/TBvvEJPKLvSBB1r4hetuQIebY1V21LoxOBtUxsMIlE",
	"2YicvtKrud+pakHrBryaVHiKwnI4uKgh30ggrEx0CywcL/MLHzQZ0UGUaxi11PoTrBs0yiLpQRxnOG1Ln2FaND39CzCNcNwLv6G0h9tsD3dfTML/zvv1AvkxQMTuqnpEkJRKLdSjWJFxvVz5MZDYGcZYRBqFMomuwZiLz1FzUZ8",
	"xi9t5cHhaU6yxbuPkQSe9uwV8EpaOKBOUad1y1tv3enrCa+5hDQDFyNeRjzF+L6HULs0C6usGSX+5KnpNgQa7rfsor8VC/Ds1hAfIWlBZbUsaJtN9ezcBmlIsX0K/B7OqgUysURNpmbdAqAXUvHdoh3kDt++MGhgPoctiblLLp0",
	"3ZenoBp2fjtPFt6UeLYkhBoOxjuVchut4rANhtkMW8+GGEFaDDpFreUop9NjVwI89pYKstF/ryzmCUrcKl+BBhKAhq/eHcU1S+gfSBspmEc7V9p81lvmIk+PFOP2DCtHbLHwWb0+13rShQFf66TaGlu7THkEX8wBHh2tnnson4U",
	"8ao00iMT0DcNP5Dug3vdExuXwNTyMBoaCUqj+VE5nSHttGtjGZd2mE1twF+ygMVUKZj/aC449B2cnwHn1lUXKfI+gyb+6t9+xj+7gqhZ4pMKPb90JXmizsFA/GXZhjM8oyqASGtpt1+E7EVSuni1S1WViOQewY1lzcUgCU3ZdXk",
	"9pM7ruo6cPCF3GnZsOOfiwqghgkubLbrLmb7RSUXaJp/LuK+l5jeihf3ZayYcYYVe1p1L9iwRExRwIO4sMkkDEoQfeTslLQgXt32IjfBQGfYAnJ870n1qfWpIfE5wWUhSs4OQAt5WhmaCWCbf9qpZbq/spf12oXqkbwBn4S02m0",
	"0D1lJFfPmMamkajzeAstcfGYuzLVj9tMoX/3f1EQVOZp4ThaBeB0dQXfMObG75cztQIa+PpoLoz5z8nrCyNU/Ijb4WKaibtghTuJeJHkl6kPoqookh+hFch0UNee1L76986JruiDiVZF515wJ3L2cTvOXQFihmD7vEWjScMWU8s",
}

// pairedKeys is how many keys there are.
const pairedKeys = len(storedPrimes) * (len(storedPrimes) - 1) / 2

// pairedKey makes key number n, modulo pairedKeys. It is the caller's to wipe.
func pairedKey(n int) (*rsa.PrivateKey, error) {
	i, j := 0, 1
	for n = n % pairedKeys; n > 0; n-- {
		if j++; j == len(storedPrimes) {
			i, j = i+1, i+2
		}
	}
	p, err := storedPrime(i)
	if err != nil {
		return nil, err
	}
	q, err := storedPrime(j)
	if err != nil {
		return nil, err
	}
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
		D:         new(big.Int).ModInverse(big.NewInt(65537), phi), Primes: []*big.Int{p, q},
	}
	key.Precompute()
	return key, key.Validate()
}

func storedPrime(i int) (*big.Int, error) {
	b, err := base64.RawStdEncoding.DecodeString(storedPrimes[i])
	return new(big.Int).SetBytes(b), err
}

func TestPairedKeys(t *testing.T) {
	seen := make(map[string]bool)
	for n := range pairedKeys {
		key, err := pairedKey(n)
		if err != nil {
			t.Fatal(n, err)
		}
		if seen[key.N.String()] || key.N.BitLen() != 2048 {
			t.Fatalf("key %d is there twice, or has %d bits", n, key.N.BitLen())
		}
		seen[key.N.String()] = true
	}
}

// maker stands in for rsa.GenerateKey: it counts, and hands out other keys each time.
type maker struct {
	first int
	made  atomic.Int64
	hook  atomic.Pointer[func(bits int) (*rsa.PrivateKey, error)] // instead of it
}

// nextPool spreads the makers of one run of the tests over the keys.
var nextPool atomic.Int64

func newMaker() *maker { return &maker{first: int(nextPool.Add(1)) * 7} }

func (m *maker) newKey(bits int) (*rsa.PrivateKey, error) {
	if hook := m.hook.Load(); hook != nil {
		return (*hook)(bits)
	}
	return m.make()
}

func (m *maker) make() (*rsa.PrivateKey, error) { return pairedKey(m.first + int(m.made.Add(1))) }

// use has f make the keys, while goroutines are running.
func (m *maker) use(f func(bits int) (*rsa.PrivateKey, error)) { m.hook.Store(&f) }

// weakly makes a store's KDF cost nothing, and its keys come from the maker that it returns.
func weakly(s *KeyStore) *maker {
	m := newMaker()
	s.kdf, s.iterations, s.newKey = []keyfile.Option{keyfile.AllowWeak}, 1, m.newKey
	return m
}

// weakStore is an ephemeral store, or one that is to be created or opened still, with [weakly].
func weakStore(t testing.TB, o *KeyStoreOptions) (*KeyStore, *maker) {
	t.Helper()
	s, err := newKeyStore(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, weakly(s)
}

// createWeak is CreateKeyStore with [weakly].
func createWeak(t testing.TB, dir string, o *KeyStoreOptions) (*KeyStore, *maker) {
	t.Helper()
	s, m := weakStore(t, o)
	if err := s.create(t.Context(), dir, secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	s.startWorker()
	return s, m
}

// tryWeak is OpenKeyStore with [weakly].
func tryWeak(t testing.TB, dir, pass string, o *KeyStoreOptions) (*KeyStore, error) {
	t.Helper()
	s, _ := weakStore(t, o)
	if err := s.open(t.Context(), dir, secret(t, pass)); err != nil {
		_ = s.Close()
		return nil, err
	}
	s.startWorker()
	return s, nil
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

func fingerprints(s *KeyStore) []string {
	var list []string
	for _, k := range s.Keys() {
		list = append(list, k.Fingerprint)
	}
	return list
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
	text, err := os.ReadFile(filepath.Join(dir, keyStoreFile))
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
