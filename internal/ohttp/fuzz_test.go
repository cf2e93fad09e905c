// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// FuzzConfigs checks that a list that parses is written again as it was.
func FuzzConfigs(f *testing.F) {
	_, v := vectors(f)
	c, err := parseConfig(v.KeyConfig)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(AppendConfigs(nil, c))
	f.Add(AppendConfigs(nil, v.fixed(f, XWing).config, v.fixed(f, X25519).config))
	f.Add([]byte{0, 10, 9, 0xab, 0xcd, 1, 0, 4, 0, 1, 0, 2})
	f.Fuzz(func(t *testing.T, list []byte) {
		configs, err := ParseConfigs(list)
		if err != nil {
			if err != ErrConfig || configs != nil {
				t.Fatalf("%v, %v", configs, err)
			}
			return
		}
		for _, c := range configs {
			again, err := ParseConfigs(AppendConfigs(nil, c))
			if err != nil || len(again) != 1 || !again[0].Equal(c) ||
				!bytes.Contains(list, c.encoded) {
				t.Fatalf("%x: %v", c.encoded, err)
			}
			if _, err := NewRequest(c); err != nil {
				t.Fatalf("nothing can be sealed to %x: %v", c.encoded, err)
			}
		}
	})
}

// fixed is a key of the vector's secret, for a suite that this package uses: the same one in every
// run.
func (v vector) fixed(t testing.TB, kem uint16) one {
	t.Helper()
	k, err := NewPrivateKey(v.KeyConfig[0], kem, v.SKR)
	if err != nil {
		t.Fatal(err)
	}
	return one{k}
}

// documented reports whether err is one that reading may end with.
func documented(err error) bool {
	for _, e := range []error{ErrTruncated, ErrDecryption, ErrTooLarge, ErrEmptyChunk,
		ErrUnknownKey} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// FuzzRequest opens requests for a key that is known: only the draft's own example is one.
func FuzzRequest(f *testing.F) {
	_, v := vectors(f)
	key := v.key(f)
	f.Add([]byte(v.EncapsulatedRequest))
	f.Add([]byte(v.EncapsulatedRequest[:headerLen+32]))
	f.Add(append(bytes.Clone([]byte(v.EncapsulatedRequest[:headerLen+32])), 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff))
	f.Add(append(bytes.Clone([]byte(v.EncapsulatedRequest[:headerLen+32])),
		append([]byte{16}, make([]byte, 16)...)...))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		_, got, err := openRequest(sealed, key)
		if err != nil && !documented(err) {
			t.Fatalf("undocumented: %v", err)
		}
		if !bytes.HasPrefix(v.Request, got) || err == nil && !bytes.Equal(got, v.Request) {
			t.Fatalf("%x opened to %x, %v", sealed, got, err)
		}
	})
}

// FuzzAnswer opens answers to the draft's request.
func FuzzAnswer(f *testing.F) {
	_, v := vectors(f)
	config := v.key(f).config
	f.Add([]byte(v.EncapsulatedResponse))
	f.Add([]byte(v.EncapsulatedResponse[:len(v.EncapsulatedResponse)-17]))
	f.Add(append(bytes.Clone([]byte(v.ResponseNonce)), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff))
	f.Add(append(bytes.Clone([]byte(v.ResponseNonce)), append([]byte{16}, make([]byte, 16)...)...))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		q := &Request{config: config, head: v.EncapsulatedRequest[:headerLen+32],
			secret: bytes.Clone(v.Secret)}
		r, err := q.Response(bytes.NewReader(sealed), 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil && !documented(err) {
			t.Fatalf("undocumented: %v", err)
		}
		if !bytes.HasPrefix(v.Response, got) || err == nil && !bytes.Equal(got, v.Response) {
			t.Fatalf("%x opened to %x, %v", sealed, got, err)
		}
	})
}
