// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
)

var testDataKey = bytes.Repeat([]byte{0x5a}, 32)

func lookupTest(generation uint32) ([]byte, error) {
	if generation != 3 {
		return nil, errNoGeneration
	}
	return testDataKey, nil
}

var errNoGeneration = errors.New("no such generation")

func TestDataRoundTrip(t *testing.T) {
	for _, label := range []string{"", "notes", strings.Repeat("x", MaxLabelSize), "\xff\x00"} {
		for _, size := range []int{0, 1, 15, 16, 17, 1 << 20} {
			plaintext := bytes.Repeat([]byte{7}, size)
			sealed, err := SealData(testDataKey, 3, label, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			if len(sealed) != size+DataOverhead {
				t.Errorf("%d bytes for %d", len(sealed), size)
			}
			before := bytes.Clone(sealed)
			for range 2 { // opening changes nothing
				got, err := OpenData(lookupTest, label, sealed)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, plaintext) || !bytes.Equal(sealed, before) {
					t.Errorf("%d bytes: another plaintext, or the input changed", size)
				}
			}
			again, _ := SealData(testDataKey, 3, label, plaintext)
			if bytes.Equal(again[9:41], sealed[9:41]) || bytes.Equal(again[41:53], sealed[41:53]) {
				t.Error("salt or nonce is not fresh")
			}
		}
	}
	if !bytes.Equal(testDataKey, bytes.Repeat([]byte{0x5a}, 32)) {
		t.Error("the data key was changed")
	}
}

// Sealed data opens with nothing but the standard library and the format's description.
func TestDataFormat(t *testing.T) {
	sealed, err := SealData(testDataKey, 3, "notes", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if string(sealed[:9]) != "SCDR\x01\x00\x00\x00\x03" {
		t.Errorf("header %q", sealed[:9])
	}
	info := "\x00\x1asealedchat data at rest v1\x00\x05notes"
	key, err := hkdf.Key(sha256.New, testDataKey, sealed[9:41], info, 32)
	if err != nil {
		t.Fatal(err)
	}
	if got := openGCM(t, key, sealed[41:], sealed[:41]); string(got) != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestDataRefuses(t *testing.T) {
	sealed, err := SealData(testDataKey, 3, "notes", []byte("hello, world"))
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"", "Notes", "notes ", "note", "notes\x00",
		strings.Repeat("x", MaxLabelSize+1)} {
		if _, err := OpenData(lookupTest, label, sealed); !errors.Is(err, ErrDecryption) {
			t.Errorf("label %.20q: %v", label, err)
		}
	}
	anyGeneration := func(uint32) ([]byte, error) { return testDataKey, nil }
	for i := range sealed {
		for bit := range 8 {
			sealed[i] ^= 1 << bit
			if _, err := OpenData(anyGeneration, "notes", sealed); !errors.Is(err, ErrDecryption) {
				t.Errorf("byte %d, bit %d: %v", i, bit, err)
			}
			sealed[i] ^= 1 << bit
		}
		if _, err := OpenData(anyGeneration, "notes", sealed[:i]); !errors.Is(err, ErrDecryption) {
			t.Errorf("cut to %d: %v", i, err)
		}
	}
	if _, err := OpenData(anyGeneration, "notes", append(bytes.Clone(sealed), 0)); !errors.Is(err,
		ErrDecryption) {
		t.Errorf("a byte more: %v", err)
	}
	otherKey := func(uint32) ([]byte, error) { return make([]byte, 32), nil }
	if _, err := OpenData(otherKey, "notes", sealed); !errors.Is(err, ErrDecryption) {
		t.Errorf("another data key: %v", err)
	}
	shortKey := func(uint32) ([]byte, error) { return make([]byte, 31), nil }
	if _, err := OpenData(shortKey, "notes", sealed); !errors.Is(err, ErrInvalid) {
		t.Errorf("short data key: %v", err)
	}
	other, err := SealData(testDataKey, 4, "notes", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenData(lookupTest, "notes", other); !errors.Is(err, errNoGeneration) {
		t.Errorf("unknown generation: %v", err)
	}
	if _, err := OpenData(lookupTest, "notes", sealed); err != nil {
		t.Errorf("in the end: %v", err)
	}
	if _, err := SealData(make([]byte, 16), 3, "", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("sealing with 16 bytes: %v", err)
	}
	if _, err := SealData(testDataKey, 3, strings.Repeat("x", MaxLabelSize+1), nil); !errors.Is(err,
		ErrInvalid) {
		t.Errorf("long label: %v", err)
	}
	large := make([]byte, MaxDataSize+DataOverhead+1)
	if _, err := SealData(testDataKey, 3, "", large[:MaxDataSize+1]); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large plaintext: %v", err)
	}
	if _, err := OpenData(lookupTest, "", large); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large input: %v", err)
	}
}

// No two pairs of purpose and label derive the same key.
func TestDataInfo(t *testing.T) {
	seen := make(map[string]string)
	for _, label := range []string{"", "a", "aa", "\x00\x01a", dataPurpose, dataInfo(""),
		dataInfo("a"), "\x00", "\x00\x00"} {
		info := dataInfo(label)
		if other, ok := seen[info]; ok {
			t.Errorf("%q and %q share a key", label, other)
		}
		seen[info] = label
	}
}
