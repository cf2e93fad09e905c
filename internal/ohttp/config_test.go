// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"
)

func TestConfigs(t *testing.T) {
	a, b := newKey(t, 1, X25519).config, newKey(t, 2, XWing).config
	list := AppendConfigs(nil, a, b)
	// A configuration of a KEM that nobody knows, and one with another AEAD, are skipped.
	unknown := []byte{9, 0xab, 0xcd, 1, 0, 4, 0, 1, 0, 2}
	other := append(bytes.Clone(a.encoded[:len(a.encoded)-2]), 0, 3)
	mixed := bytes.Clone(list)
	for _, c := range [][]byte{unknown, other} {
		mixed = append(binary.BigEndian.AppendUint16(mixed, uint16(len(c))), c...)
	}
	for name, list := range map[string][]byte{"ours": list, "with others": mixed} {
		got, err := ParseConfigs(list)
		if err != nil || len(got) != 2 || !got[0].Equal(a) || !got[1].Equal(b) {
			t.Fatalf("%s: %v, %v", name, got, err)
		}
		if c, err := Choose(got); err != nil || c.ID() != 2 || c.KEM() != XWing {
			t.Errorf("%s: chose %v, %v", name, c, err)
		}
		if got[1].Fingerprint() != sha256.Sum256(b.Encoded()) {
			t.Error("fingerprint")
		}
	}
	if got, err := ParseConfigs(mixed[len(list):]); err != nil || len(got) != 0 {
		t.Errorf("only others: %v, %v", got, err)
	}
	if _, err := Choose(nil); err != ErrNoSuite {
		t.Error(err)
	}
	if c, err := Choose([]*Config{a}); err != nil || c != a {
		t.Error(c, err)
	}
	// More algorithms than ours are no obstacle.
	two := bytes.Clone(a.encoded)
	two[len(two)-5] = 8
	two = append(two, 0, 3, 0xff, 0xff)
	if got, err := ParseConfigs(append([]byte{0, byte(len(two))}, two...)); err != nil ||
		len(got) != 1 {
		t.Errorf("two pairs of algorithms: %v, %v", got, err)
	}
}

func TestMalformedConfigs(t *testing.T) {
	a := newKey(t, 1, X25519).config
	good := AppendConfigs(nil, a)
	for n := range len(good) {
		if got, err := ParseConfigs(good[:n]); err != ErrConfig {
			t.Errorf("cut to %d bytes: %v, %v", n, got, err)
		}
		if got, err := ParseConfigs(append(bytes.Clone(good), good[:n]...)); n > 0 &&
			err != ErrConfig {
			t.Errorf("a good one, and one cut to %d bytes: %v, %v", n, got, err)
		}
	}
	change := func(at int, b ...byte) []byte { // of the encoded configuration
		bad := bytes.Clone(good)
		copy(bad[2+at:], b)
		return bad
	}
	xwing := newKey(t, 1, XWing).config
	unreduced := AppendConfigs(nil, xwing)
	copy(unreduced[2+3:], []byte{0xff, 0xff, 0xff})
	n := len(a.encoded)
	odd := append(bytes.Clone(a.encoded[:n-6]), 0, 5, 0, 9, 0, 9, 0)
	for name, list := range map[string][]byte{
		"no algorithms":                 change(n-6, 0, 0),
		"algorithms of 3 bytes":         change(n-6, 0, 3),
		"algorithms beyond the end":     change(n-6, 0, 8),
		"algorithms of 5 bytes":         append([]byte{0, byte(len(odd))}, odd...),
		"length 0":                      {0, 0},
		"length beyond the end":         append([]byte{0xff, 0xff}, good[2:]...),
		"a byte after the last":         append(bytes.Clone(good), 0),
		"an ML-KEM key that is not one": unreduced,
		"X-Wing with an X25519 key":     change(1, 0x64, 0x7a),
		"an unknown KEM without a key":  {0, 9, 1, 0xab, 0xcd, 0, 4, 0, 1, 0, 2},
		"a good one, then a malformed":  append(bytes.Clone(good), change(n-6, 0, 3)...),
		"a malformed one, then a good":  append(change(n-6, 0, 3), good...),
		"an unknown KEM, then malformed": append([]byte{0, 10, 9, 0xab, 0xcd, 1, 0, 4, 0, 1, 0, 2},
			0, 1, 1),
	} {
		if got, err := ParseConfigs(list); err != ErrConfig || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestPrivateKeys(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		seed := key.Seed()
		if len(seed) != key.config.kem.seed {
			t.Fatalf("seed of %d bytes", len(seed))
		}
		k, err := NewPrivateKey(key.config.id, key.config.kem.id, seed)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if !k.Config().Equal(key.config) {
			t.Error("the seed makes another key")
		}
		sealed, _ := seal(t, key.config, []byte("q"))
		if _, got, err := openRequest(sealed, one{k}); err != nil || string(got) != "q" {
			t.Errorf("%q, %v", got, err)
		}
		for _, n := range []int{0, 31, 33} {
			if _, err := NewPrivateKey(1, key.config.kem.id, make([]byte, n)); err == nil {
				t.Errorf("a seed of %d bytes was taken", n)
			}
		}
	})
	if _, err := GenerateKey(1, 0x0010); err != ErrNoSuite {
		t.Error(err)
	}
	if _, err := NewPrivateKey(1, 0x0010, make([]byte, 32)); err != ErrNoSuite {
		t.Error(err)
	}
}
