// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// An RSA key that stays in ordinary memory is known to MemoryReport until it is wiped; or it is refused.
func TestKeyInOrdinaryMemory(t *testing.T) {
	for policy, want := range map[MemoryPolicy]error{MemoryBestEffort: nil, MemoryOff: nil, MemoryRequired: ErrMemoryLimit} {
		s, _ := weakStore(t, &KeyStoreOptions{Memory: policy})
		k, err := newPrivateKey(ownKey(t, "rsa-2048"))
		if err != nil {
			t.Fatal(err)
		}
		real := k.public
		if k.public, err = newPublicKey(&testkit.Key(t, "rsa-3072").PublicKey); err != nil { // so that its test fails
			t.Fatal(err)
		}
		before := MemoryReport().Unlocked
		if err := s.protect(k); !errors.Is(err, want) || k.locked() {
			t.Errorf("%v: %v, locked %t", policy, err, k.locked())
		}
		now := MemoryReport()
		if more := now.Unlocked - before; (want == nil) != (more >= int64(k.key.Size())) || want == nil && now.AllLocked {
			t.Errorf("%v: %v", policy, now)
		}
		k.public = real
		if _, err := k.open(sealedFor(t, k.public, "x")); err != nil {
			t.Errorf("%v: %v", policy, err)
		}
		k.wipe()
		if n := MemoryReport().Unlocked; n != before {
			t.Errorf("%v: %d bytes are counted of a wiped key", policy, n-before)
		}
	}
}
