// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package hybrid_test

import (
	"bytes"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// What sealing and opening allocate beyond crypto/rsa and AES-GCM alone. Times are for the
// benchmarks.
const (
	mostAllocs     = 6
	mostSmallBytes = 8 << 10 // that do not depend on the payload
)

// beyond fails if f allocates more than base and the limits.
func beyond(t *testing.T, what string, base, f func(), mostBytes float64) {
	t.Helper()
	baseAllocs, baseBytes := testkit.Allocated(base)
	allocs, size := testkit.Allocated(f)
	t.Logf("%s: %.1f allocations and %.0f bytes beyond the %.1f and %.0f of the cryptography", what,
		allocs-baseAllocs, size-baseBytes, baseAllocs, baseBytes)
	if allocs-baseAllocs > mostAllocs {
		t.Errorf("%s: %.1f allocations beyond the cryptography's, want %d at most", what,
			allocs-baseAllocs, mostAllocs)
	}
	if size-baseBytes > mostBytes {
		t.Errorf("%s: %.0f bytes beyond the cryptography's, want %.0f at most", what,
			size-baseBytes, mostBytes)
	}
}

func TestSealAllocations(t *testing.T) {
	key := publicOf(t, "server-4096")
	for _, size := range benchSizes[:3] {
		plaintext := randomBytes(size.n)
		seal := func(dst []byte) []byte {
			text, err := key.AppendSealed(dst, &envelope.Envelope{}, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		floor := sealFloor(t, "server-4096", plaintext)
		beyond(t, "Seal/"+size.name, floor, func() {
			seal(nil)
		}, 1.4*float64(size.n)+mostSmallBytes)
		reused := seal(nil)[:0]
		beyond(t, "Seal/"+size.name+" into a buffer", floor, func() {
			seal(reused)
		}, mostSmallBytes)
	}
}

func TestOpenAllocations(t *testing.T) {
	key, err := hybrid.NewPrivateKey(testkit.Key(t, "client-4096"))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range benchSizes[:3] {
		e, err := seal(key.Public(), randomBytes(size.n))
		if err != nil {
			t.Fatal(err)
		}
		text := envelope.Append(nil, e)
		body := bytes.Clone(text)
		// In place, so far below 1.05 times the payload.
		beyond(t, "Open/"+size.name, openFloor(t, key.RSA(), e), func() {
			copy(body, text)
			e, err := envelope.Parse(body, size.n)
			if err == nil {
				_, err = key.Open(&e, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, mostSmallBytes)
	}
}
