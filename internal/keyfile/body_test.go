// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

func TestBodyRefuses(t *testing.T) {
	other := testKey(t, "client-4096")
	for _, test := range []struct {
		name   string
		change func(*Body)
	}{
		{"two primaries", func(b *Body) { b.Keys[0].State = Primary }},
		{"two next", func(b *Body) { b.Keys[0].State, b.Keys[1].State = Next, Next }},
		{"state 0", func(b *Body) { b.Keys[0].State = 0 }},
		{"state 4", func(b *Body) { b.Keys[0].State = 4 }},
		{"no key", func(b *Body) { b.Keys[0].Key = nil }},
		{"empty key", func(b *Body) { b.Keys[0].Key = new(RSAKey) }},
		{"key twice", func(b *Body) { b.Keys[0].Key = b.Keys[1].Key }},
		{"key without Qinv", func(b *Body) { b.Keys[0].Key.Qinv = nil }},
		{"leading zero", func(b *Body) { k := b.Keys[0].Key; k.P = append([]byte{0}, k.P...) }},
		{"long integer", func(b *Body) { b.Keys[0].Key.P = other.N }},
		{"small modulus", func(b *Body) { k := b.Keys[0].Key; k.N = k.N[1:] }},
		{"large modulus", func(b *Body) { b.Keys[0].Key.N = bytes.Repeat([]byte{1}, 1025) }},
		{"exponent 3", func(b *Body) { b.Keys[0].Key.E = []byte{3} }},
		{"too many keys", func(b *Body) { b.Keys = slices.Repeat(b.Keys, MaxKeys) }},
		{"no origin", func(b *Body) { b.Pins[0].Origin = "" }},
		{"long origin", func(b *Body) { b.Pins[0].Origin = strings.Repeat("a", MaxOriginSize+1) }},
		{"origin with space", func(b *Body) { b.Pins[0].Origin = "https://a b" }},
		{"origin with line end", func(b *Body) { b.Pins[0].Origin = "https://a\n" }},
		{"origin beyond ASCII", func(b *Body) { b.Pins[0].Origin = "https://é" }},
		{"origin of invalid UTF-8", func(b *Body) { b.Pins[0].Origin = "https://\xff" }},
		{"origin twice", func(b *Body) { b.Pins[0].Origin = b.Pins[1].Origin }},
		{"too many pins", func(b *Body) { b.Pins = make([]Pin, MaxPins+1) }},
		{"short data key", func(b *Body) { b.DataKeys[0].Key = make([]byte, 31) }},
		{"long data key", func(b *Body) { b.DataKeys[0].Key = make([]byte, 33) }},
		{"no data key", func(b *Body) { b.DataKeys[0].Key = nil }},
		{"generation twice", func(b *Body) { b.DataKeys[1].Generation = 1 }},
		{"generations descend", func(b *Body) { slices.Reverse(b.DataKeys) }},
		{"too many data keys", func(b *Body) { b.DataKeys = make([]DataKey, MaxDataKeys+1) }},
		{"1969", func(b *Body) { b.Rotated = time.Unix(-1, 0) }},
		{"1970 itself", func(b *Body) { b.Keys[0].Created = time.Unix(0, 0) }},
		{"2263", func(b *Body) { b.Pins[0].Accepted = time.Unix(0, math.MaxInt64).Add(1) }},
		{"the year 1", func(b *Body) { b.DataKeys[0].Created = time.Time{}.Add(1) }},
	} {
		b := testBody(t)
		test.change(b)
		if _, err := Seal(b, testMasterKey(t)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// The largest body that Seal accepts is one that ParseHeader and Open read.
func TestLargestBody(t *testing.T) {
	b := new(Body)
	k := testKey(t, "rsa-2048")
	for i := range MaxKeys {
		c := *k
		c.N = bytes.Clone(k.N)
		binary.BigEndian.PutUint32(c.N[8:], uint32(i))
		b.Keys = append(b.Keys, Entry{State: Retired, Key: &c})
	}
	for i := range MaxPins {
		b.Pins = append(b.Pins, Pin{Origin: fmt.Sprintf("%0*d", MaxOriginSize, i)})
	}
	for i := range MaxDataKeys {
		b.DataKeys = append(b.DataKeys, DataKey{Generation: uint32(i), Key: make([]byte, 32)})
	}
	m := testMasterKey(t)
	file, err := Seal(b, m)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(f, m)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Keys) != MaxKeys || len(got.Pins) != MaxPins || len(got.DataKeys) != MaxDataKeys {
		t.Error("something is missing")
	}
	// 1,000 keys of 8,191 bits with integers as long as these go past 16 MiB
	huge := bytes.Repeat([]byte{0x7f}, 1024)
	for i := range b.Keys {
		c := *k
		c.N = append(binary.BigEndian.AppendUint32(nil, 0x7f000000+uint32(i)), huge[4:]...)
		c.D, c.P, c.Q, c.Dp, c.Dq, c.Qinv = huge, huge, huge, huge, huge, huge
		b.Keys[i].Key = &c
	}
	if _, err := Seal(b, m); !errors.Is(err, ErrTooLarge) {
		t.Errorf("beyond 16 MiB: %v", err)
	}
}

func inLocked(b []byte) *locked.Buffer {
	memory, _ := locked.NewWith(locked.BestEffort, len(b))
	copy(memory.Bytes(), b)
	return memory
}

func TestBodyCutAndCounts(t *testing.T) {
	memory, err := testBody(t).marshal(locked.BestEffort)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Destroy()
	body := memory.Bytes()
	for n := range body {
		cut := inLocked(body[:n])
		if _, err := parseBody(cut); !errors.Is(err, ErrDamaged) && n > 0 {
			t.Errorf("cut to %d: %v", n, err)
		}
		if cut.Bytes() != nil {
			t.Fatalf("cut to %d: the buffer was not wiped", n)
		}
	}
	for what, bad := range map[string][]byte{
		"a byte more":    append(bytes.Clone(body), 0),
		"65,535 keys":    append(append([]byte{1}, make([]byte, 24)...), 0xff, 0xff),
		"65,535 pins":    append(append([]byte{1}, make([]byte, 26)...), 0xff, 0xff),
		"too many datas": append(append([]byte{1}, make([]byte, 28)...), 0xff, 0xff),
	} {
		if _, err := parseBody(inLocked(bad)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, version := range []byte{0, 4, 255} {
		if _, err := parseBody(inLocked(append([]byte{version}, body[1:]...))); !errors.Is(err,
			ErrVersion) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// Keys that the caller adds and data keys are wiped with the body.
func TestBodyWipe(t *testing.T) {
	b := testBody(t)
	keys := []*locked.Buffer{b.Keys[0].Key.memory, b.Keys[1].Key.memory}
	secrets := [][]byte{b.DataKeys[0].Key, b.DataKeys[1].Key}
	b.Keys = append(b.Keys, Entry{})
	b.Wipe()
	for i, k := range keys {
		if k.Bytes() != nil {
			t.Errorf("key %d outlived Wipe", i)
		}
	}
	for i, s := range secrets {
		if !allZero(s) {
			t.Errorf("secret %d outlived Wipe", i)
		}
	}
	b.Wipe()
}

func TestStateString(t *testing.T) {
	for s, want := range map[State]string{Primary: "primary", Next: "next", Retired: "retired",
		9: "State(9)"} {
		if s.String() != want {
			t.Errorf("%d is %q", s, s)
		}
	}
}
