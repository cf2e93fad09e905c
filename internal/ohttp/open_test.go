// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"testing"
)

// TestOpenByKey checks that a request opens with the key and the suite that its header names, and
// that a replay has the same ID.
func TestOpenByKey(t *testing.T) {
	k, _ := GenerateKey(5, XWing)
	defer k.Close()
	r := one{k}
	sealed, _ := seal(t, k.Config(), []byte("q"))
	x, got, err := openRequest(sealed, r)
	if err != nil || string(got) != "q" {
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
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, _, err := openRequest(bad, r); err != ErrUnknownKey {
			t.Errorf("byte %d of the header: %v", i, err)
		}
	}
}
