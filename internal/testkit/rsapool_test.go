// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import "testing"

func TestPairedKeys(t *testing.T) {
	seen := make(map[string]bool)
	for n := range PairedKeys {
		key, err := PairedKey(n)
		if err != nil {
			t.Fatal(n, err)
		}
		if seen[key.N.String()] || key.N.BitLen() != 2048 {
			t.Fatalf("key %d is there twice, or has %d bits", n, key.N.BitLen())
		}
		seen[key.N.String()] = true
	}
}
