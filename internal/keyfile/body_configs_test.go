// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// testConfigs is testBody with keys for Oblivious HTTP.
func testConfigs(t testing.TB) *Body {
	b := testBody(t)
	b.Signer = bytes.Repeat([]byte{0xe1}, 32)
	b.ConfigKeys = []ConfigKey{
		{ID: 0xff, KEM: 0x647a, Seed: bytes.Repeat([]byte{0xc1}, 32), Created: testTime(11),
			Retired: testTime(12)},
		{ID: 0, KEM: 0x647a, Seed: bytes.Repeat([]byte{0xc2}, 32), Created: testTime(12)},
		// for an addition of a later version
		{ID: 1, KEM: 0xfff0, Seed: bytes.Repeat([]byte{0xc3}, 32), Created: testTime(12)},
	}
	return b
}

// testAEADs is testConfigs with a configuration that offers AES-128-GCM.
func testAEADs(t testing.TB) *Body {
	b := testConfigs(t)
	b.ConfigKeys[1].AES128 = true
	return b
}

func configs(b *Body) string { return fmt.Sprintf("%x %+v", b.Signer, b.ConfigKeys) }

func TestConfigKeysRoundTrip(t *testing.T) {
	for name, change := range map[string]func(*Body){
		"all":         func(*Body) {},
		"AES-128":     func(b *Body) { b.ConfigKeys[1].AES128 = true },
		"no keys":     func(b *Body) { b.ConfigKeys = nil },
		"nothing":     func(b *Body) { b.ConfigKeys, b.Signer = nil, nil },
		"nothing but": func(b *Body) { *b = Body{Signer: b.Signer, ConfigKeys: b.ConfigKeys} },
		"256 keys": func(b *Body) {
			b.ConfigKeys = nil
			for id := range 256 {
				b.ConfigKeys = append(b.ConfigKeys,
					ConfigKey{ID: uint8(id), Seed: make([]byte, 32)})
			}
		},
	} {
		b := testConfigs(t)
		change(b)
		file, err := Seal(b, testMasterKey(t))
		if err != nil {
			t.Fatal(name, err)
		}
		f, err := ParseHeader(file)
		if err != nil {
			t.Fatal(name, err)
		}
		m, err := f.Unlock([]byte(testPassphrase), AllowWeak)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := Open(f, m)
		if err != nil {
			t.Fatal(name, err)
		}
		if plain(got) != plain(b) || configs(got) != configs(b) {
			t.Errorf("%s: got %s %s", name, plain(got), configs(got))
		}
	}
}

// A body without these keys is written as before, so that older programs read it; one with them
// says that it is another, and so does one in which a key offers AES-128-GCM.
func TestConfigKeysBodyVersion(t *testing.T) {
	for want, b := range map[byte]*Body{1: testBody(t), 2: testConfigs(t), 3: testAEADs(t)} {
		memory, err := b.marshal(locked.BestEffort)
		if err != nil {
			t.Fatal(err)
		}
		if got := memory.Bytes()[0]; got != want {
			t.Errorf("version %d, want %d", got, want)
		}
		memory.Destroy()
	}
}

func TestConfigKeysRefused(t *testing.T) {
	for name, change := range map[string]func(*Body){
		"no signer":       func(b *Body) { b.Signer = nil },
		"an empty signer": func(b *Body) { b.Signer = []byte{} },
		"a short signer":  func(b *Body) { b.Signer = b.Signer[1:] },
		"a long signer":   func(b *Body) { b.Signer = append(b.Signer, 0) },
		"no seed":         func(b *Body) { b.ConfigKeys[0].Seed = nil },
		"a short seed":    func(b *Body) { b.ConfigKeys[1].Seed = b.ConfigKeys[1].Seed[1:] },
		"a long seed": func(b *Body) {
			b.ConfigKeys[2].Seed = append(b.ConfigKeys[2].Seed, 0)
		},
		"an id twice":        func(b *Body) { b.ConfigKeys[2].ID = 0xff },
		"too many":           func(b *Body) { b.ConfigKeys = slices.Repeat(b.ConfigKeys, 86) },
		"made before 1970":   func(b *Body) { b.ConfigKeys[0].Created = time.Unix(-1, 0) },
		"retired after 2262": func(b *Body) { b.ConfigKeys[0].Retired = maxTime.Add(1) },
	} {
		b := testConfigs(t)
		change(b)
		if _, err := Seal(b, testMasterKey(t)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigKeysCutAndCounts(t *testing.T) {
	cutAndCounts(t, testConfigs(t), configEntrySize)
}

func TestConfigKeysCutAndCountsAES128(t *testing.T) {
	cutAndCounts(t, testAEADs(t), configEntrySize+1)
	memory, err := testAEADs(t).marshal(locked.BestEffort)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Destroy()
	body := memory.Bytes()
	for name, change := range map[string]func([]byte){
		"aeads 2":              func(b []byte) { b[len(b)-1] = 2 },
		"aeads 255":            func(b []byte) { b[len(b)-1-(configEntrySize+1)] = 255 },
		"called version 2":     func(b []byte) { b[0] = 2 },
		"no key that needs it": func(b []byte) { b[len(b)-1-(configEntrySize+1)] = 0 },
		"with 2 of its 3 keys": func(b []byte) { b[len(b)-3*(configEntrySize+1)-1]-- },
	} {
		bad := bytes.Clone(body)
		change(bad)
		if _, err := parseBody(inLocked(bad)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// cutAndCounts checks a body with three keys of a size.
func cutAndCounts(t *testing.T, b *Body, entry int) {
	memory, err := b.marshal(locked.BestEffort)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Destroy()
	body := memory.Bytes()
	for n := range body {
		cut := inLocked(body[:n])
		if _, err := parseBody(cut); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(body), err)
		}
		if cut.Bytes() != nil {
			t.Fatal("the buffer was not destroyed")
		}
	}
	count := len(body) - 3*entry - 2
	for name, change := range map[string]func([]byte) []byte{
		"a byte more":      func(b []byte) []byte { return append(b, 0) },
		"one key more":     func(b []byte) []byte { b[count+1]++; return b },
		"65,535 keys":      func(b []byte) []byte { b[count], b[count+1] = 0xff, 0xff; return b },
		"one key less":     func(b []byte) []byte { b[count+1]--; return b },
		"called version 1": func(b []byte) []byte { b[0] = 1; return b },
		"an id twice":      func(b []byte) []byte { b[count+2] = 0; return b },
		"a time below zero": func(b []byte) []byte {
			b[len(b)-8-(entry-configEntrySize)] = 0x80
			return b
		},
	} {
		if _, err := parseBody(inLocked(change(bytes.Clone(body)))); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigKeysWiped(t *testing.T) {
	b := testConfigs(t)
	signer, seed := b.Signer, b.ConfigKeys[0].Seed
	b.Wipe()
	if !bytes.Equal(signer, make([]byte, 32)) || !bytes.Equal(seed, make([]byte, 32)) ||
		b.Signer != nil || b.ConfigKeys != nil {
		t.Error("something stayed behind")
	}
}

// A file with these keys as it was once written opens for ever.
func TestStoredFileWithConfigs(t *testing.T) {
	opensAs(t, "keystore-v1-configs.json", testConfigs(t))
}

// So does one in which a configuration offers AES-128-GCM. Its KDF is weak, which saves time.
func TestStoredFileWithAES128(t *testing.T) {
	opensAs(t, "keystore-v1-aes128.json", testAEADs(t), AllowWeak)
}

func opensAs(t *testing.T, name string, want *Body, options ...Option) {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	k, err := f.Unlock([]byte(testPassphrase), options...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(f, k)
	if err != nil {
		t.Fatal(err)
	}
	if plain(b) != plain(want) || configs(b) != configs(want) {
		t.Errorf("got %s %s", plain(b), configs(b))
	}
}
