// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// An RSA key that stays in ordinary memory is known to MemoryReport until it is wiped; or it is
// refused.
func TestKeyInOrdinaryMemory(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	for policy, want := range map[locked.Policy]error{locked.BestEffort: nil, locked.Off: nil,
		locked.Required: fault.ErrMemoryLimit} {
		s, _ := weakStore(t, &Options{Memory: policy})
		whole := storedKey(t, "rsa-2048")
		bare := &rsa.PrivateKey{PublicKey: whole.PublicKey, D: whole.D, Primes: whole.Primes}
		k, err := hybrid.NewPrivateKey(bare) // without crypto/rsa's own form, it cannot be moved
		if err != nil {
			t.Fatal(err)
		}
		before := locked.Report().Unlocked
		if err := s.protect(k); !errors.Is(err, want) || k.Locked() {
			t.Errorf("%v: %v, locked %t", policy, err, k.Locked())
		}
		now := locked.Report()
		if more := now.Unlocked - before; (want == nil) != (more >= int64(whole.Size())) ||
			want == nil && now.Level != locked.Wiped {
			t.Errorf("%v: %v", policy, now)
		}
		e, err := sealEnvelope(k.Public(), []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Open(e, nil); err != nil {
			t.Errorf("%v: %v", policy, err)
		}
		k.Wipe()
		if n := locked.Report().Unlocked; n != before {
			t.Errorf("%v: %d bytes are counted of a wiped key", policy, n-before)
		}
	}
}
