// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// newKeyAES128 is a key whose configuration offers both AEADs.
func newKeyAES128(t testing.TB, id uint8, kem uint16) one {
	t.Helper()
	seed, err := NewSeed(kem)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewPrivateKeyAES128(id, kem, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return one{k}
}

// only128 is a configuration that a peer of another make may list: AES-128-GCM alone.
func only128(t testing.TB, c *Config) *Config {
	t.Helper()
	n := len(c.encoded) - 2 - 8 // the two pairs, and their length
	encoded := append(bytes.Clone(c.encoded[:n]), 0, 4, 0, 1, 0, 1)
	got, err := ParseConfigs(append(binary.BigEndian.AppendUint16(nil, uint16(len(encoded))),
		encoded...))
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	return got[0]
}

// A key that offers both AEADs opens requests of either, answers with the request's, and opens
// neither as the other.
func TestTwoAEADs(t *testing.T) {
	for _, k := range kems {
		key := newKeyAES128(t, 7, k.id)
		if !bytes.HasSuffix(key.config.encoded, []byte{0, 8, 0, 1, 0, 2, 0, 1, 0, 1}) ||
			!key.OffersAES128() {
			t.Fatalf("%x", key.config.encoded)
		}
		parsed, err := ParseConfigs(AppendConfigs(nil, key.config))
		if err != nil || len(parsed) != 1 || parsed[0].AES128() {
			t.Fatalf("of both, AES-256-GCM: %v, %v", parsed, err)
		}
		for _, c := range []*Config{parsed[0], only128(t, key.config)} {
			sealed, q := seal(t, c, []byte("question"))
			x, got, err := openRequest(sealed, key)
			if err != nil || string(got) != "question" || x.ID() != q.ID() {
				t.Fatalf("%q, %v", got, err)
			}
			answer := sealAnswer(t, x, "an", "swer")
			if want := c.aead.key + 2*(tagSize+1) + len("answer"); len(answer) != want {
				t.Errorf("%d bytes of answer, want %d", len(answer), want)
			}
			if got, err := readAnswer(q, answer); err != nil || string(got) != "answer" {
				t.Errorf("%q, %v", got, err)
			}
			sealed[6] ^= 3 // the other AEAD
			if _, got, err := openRequest(sealed, key); err != ErrDecryption {
				t.Errorf("as the other AEAD: %q, %v", got, err)
			}
			sealed[6] = 3
			if _, got, err := openRequest(sealed, key); err != ErrUnknownKey {
				t.Errorf("as a third AEAD: %q, %v", got, err)
			}
		}
		plain := newKey(t, 7, k.id)
		sealed, _ := seal(t, plain.config, nil)
		sealed[6] = 1
		if _, got, err := openRequest(sealed, plain); err != ErrUnknownKey || plain.OffersAES128() {
			t.Errorf("AES-128-GCM, which is not offered: %q, %v", got, err)
		}
	}
}

// The same seed makes the same configuration as before, and another one with the second AEAD.
func TestAES128IsAnotherConfiguration(t *testing.T) {
	both := newKeyAES128(t, 7, X25519)
	k, err := NewPrivateKey(7, X25519, both.Seed())
	if err != nil {
		t.Fatal(err)
	}
	if k.Config().Equal(both.config) || k.Config().Fingerprint() == both.config.Fingerprint() ||
		len(both.config.encoded) != len(k.config.encoded)+4 {
		t.Errorf("%x\n%x", both.config.encoded, k.config.encoded)
	}
}

// X-Wing counts for more than AES-256-GCM.
func TestPreference(t *testing.T) {
	both, plain := newKeyAES128(t, 1, XWing), newKey(t, 2, XWing)
	x25519 := newKeyAES128(t, 3, X25519)
	best := []*Config{plain.config, only128(t, both.config), x25519.config,
		only128(t, x25519.config)}
	for i := range best {
		rest := append(append([]*Config(nil), best[i+1:]...), best[i])
		if c, err := Choose(rest); err != nil || c != best[i] {
			t.Errorf("%d: chose %v, %v", i, c, err)
		}
		for j := range best {
			if got := Compare(best[i], best[j]); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("Compare %d %d: %d", i, j, got)
			}
		}
	}
}

func TestSuitesOfAList(t *testing.T) {
	config := func(kem uint16, public int, pairs ...uint16) []byte {
		b := binary.BigEndian.AppendUint16([]byte{1}, kem)
		b = append(b, make([]byte, public)...)
		b = binary.BigEndian.AppendUint16(b, uint16(2*len(pairs)))
		for _, p := range pairs {
			b = binary.BigEndian.AppendUint16(b, p)
		}
		return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	var many, other []byte
	for i := range uint16(2000) {
		many = append(many, config(0x4000+i, 1, 1, 1)...)
		other = append(other, config(XWing, 1216, 1, 3)...)
	}
	for want, list := range map[string][]byte{
		"X-Wing (0x647a) with HKDF-SHA256 (0x0001) and ChaCha20Poly1305 (0x0003), P-256 (0x0010) " +
			"with HKDF-SHA512 (0x0003) and AES-256-GCM (0x0002)": append(
			config(XWing, 1216, 1, 3), config(0x0010, 65, 3, 2)...),
		"X25519 (0x0020) with 0x0099 and 0xffff":                                     config(X25519, 32, 0x99, 0xffff),
		"0xabcd, ML-KEM-768 (0x0041)":                                                append(config(0xabcd, 9), config(0x41, 9)...),
		"0x4000, 0x4001, 0x4002, 0x4003, 0x4004, 0x4005, 0x4006, 0x4007, and others": many,
		"X-Wing (0x647a) with HKDF-SHA256 (0x0001) and ChaCha20Poly1305 (0x0003)":    other,
		"": {0, 1, 0},
	} {
		if got := Suites(list); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		if got := Suites(append(list, 0, 9, 1)); strings.Contains(got, "%") {
			t.Error(got)
		}
	}
	for n := range 60 { // cut anywhere
		_ = Suites(append(config(X25519, 32, 1, 3), many...)[:n])
	}
}
