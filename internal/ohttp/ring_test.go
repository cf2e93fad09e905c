// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"slices"
	"testing"
	"time"
)

func TestRing(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(h int) time.Time { return now.Add(time.Duration(h) * time.Hour) }
	clock := now
	r := NewRing(func() time.Time { return clock })
	add := func(kem uint16, life Lifetime) *PrivateKey {
		t.Helper()
		id, err := r.FreeID()
		if err != nil {
			t.Fatal(err)
		}
		k, err := GenerateKey(id, kem)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Add(k, life); err != nil {
			t.Fatal(err)
		}
		return k
	}
	published := func(want ...uint8) {
		t.Helper()
		var got []uint8
		for _, c := range r.Configs() {
			got = append(got, c.ID())
		}
		if !slices.Equal(got, want) {
			t.Errorf("published %v, want %v", got, want)
		}
	}
	published()
	add(X25519, Lifetime{})
	old := add(XWing, Lifetime{Retire: at(10), Expire: at(20)})
	add(XWing, Lifetime{Publish: at(9), Retire: at(30), Expire: at(40)})
	published(1, 0)
	if r.Key(2, XWing) == nil {
		t.Error("a key that is not published yet does not open")
	}
	if r.Key(2, X25519) != nil || r.Key(3, XWing) != nil {
		t.Error("a key that does not exist")
	}
	clock = at(9)
	published(2, 1, 0)
	clock = at(10)
	published(2, 0)
	if r.Key(1, XWing) != old {
		t.Error("a retired key does not open")
	}
	if next := r.Expire(); !next.Equal(at(20)) {
		t.Errorf("next expiry %v", next)
	}
	k, _ := GenerateKey(1, XWing)
	if err := r.Add(k, Lifetime{}); err != ErrKeyID {
		t.Errorf("an id in use: %v", err)
	}
	clock = at(20).Add(-1)
	if r.Key(1, XWing) == nil || old.Seed() == nil {
		t.Error("a key expired early")
	}
	clock = at(20)
	if next := r.Expire(); !next.Equal(at(40)) || old.Seed() != nil {
		t.Errorf("next expiry %v; the key is wiped: %v", next, old.Seed() == nil)
	}
	if r.Key(1, XWing) != nil {
		t.Error("an expired key opens")
	}
	if err := r.Add(k, Lifetime{}); err != nil {
		t.Errorf("an id that is free again: %v", err)
	}
	if id, err := r.FreeID(); id != 3 || err != nil {
		t.Errorf("next id %d, %v; 2 is in use", id, err)
	}
	if !r.SetLifetime(1, Lifetime{Expire: clock}) || r.Key(1, XWing) != nil || k.Seed() != nil {
		t.Error("SetLifetime did not expire a key")
	}
	if r.SetLifetime(1, Lifetime{}) {
		t.Error("SetLifetime of a key that is gone")
	}
	first := r.Key(0, X25519)
	r.Close()
	r.Close()
	if first.Seed() != nil || r.Key(0, X25519) != nil {
		t.Error("Close left a key")
	}
	k, _ = GenerateKey(1, X25519)
	if err := r.Add(k, Lifetime{}); err != ErrUsed {
		t.Errorf("Add after Close: %v", err)
	}
}

func TestRingOfAllIDs(t *testing.T) {
	r := NewRing(nil)
	defer r.Close()
	for i := range 256 {
		id, err := r.FreeID()
		if err != nil || int(id) != i {
			t.Fatal(id, err)
		}
		k, err := GenerateKey(id, X25519)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Add(k, Lifetime{}); err != nil {
			t.Fatal(err)
		}
	}
	if id, err := r.FreeID(); err != ErrKeyID {
		t.Error(id, err)
	}
	r.SetLifetime(100, Lifetime{Expire: time.Now()})
	if id, err := r.FreeID(); id != 100 || err != nil {
		t.Error(id, err)
	}
	if got, err := ParseConfigs(AppendConfigs(nil, r.Configs()...)); err != nil || len(got) != 255 {
		t.Error(len(got), err)
	}
}

// TestRingOpens asks for keys that the ring does not have: the error is the same for each, and no work is done.
func TestRingOpens(t *testing.T) {
	r := NewRing(nil)
	defer r.Close()
	k, _ := GenerateKey(5, XWing)
	if err := r.Add(k, Lifetime{}); err != nil {
		t.Fatal(err)
	}
	sealed, _ := seal(t, k.Config(), []byte("q"))
	x, got, err := openRequest(sealed, r)
	if err != nil || string(got) != "q" || x.KeyID() != 5 {
		t.Fatalf("%q, %v", got, err)
	}
	again, _, err := openRequest(sealed, r)
	if err != nil || again.ID() != x.ID() {
		t.Error("a replay has another ID")
	}
	other, _ := seal(t, k.Config(), []byte("q"))
	if y, _, err := openRequest(other, r); err != nil || y.ID() == x.ID() {
		t.Error("another request has the same ID")
	}
	for _, i := range []int{0, 1, 2, 3, 4, 5, 6} {
		bad := slices.Clone(sealed)
		bad[i] ^= 1
		if _, _, err := openRequest(bad, r); err != ErrUnknownKey {
			t.Errorf("byte %d of the header: %v", i, err)
		}
	}
}
