// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// What sealing and opening allocate beyond crypto/rsa and AES-GCM alone. Times are for the benchmarks.
const (
	mostAllocs     = 6
	mostSmallBytes = 8 << 10 // that do not depend on the payload
)

// allocated is the number of allocations and bytes of one f, at the least of some rounds: the runtime allocates too.
func allocated(f func()) (allocs, size float64) {
	const rounds, runs = 3, 4
	f()
	for round := range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			f()
		}
		runtime.ReadMemStats(&after)
		a, s := float64(after.Mallocs-before.Mallocs)/runs, float64(after.TotalAlloc-before.TotalAlloc)/runs
		if round == 0 || a < allocs {
			allocs = a
		}
		if round == 0 || s < size {
			size = s
		}
	}
	return allocs, size
}

// beyond fails if f allocates more than base and the limits.
func beyond(t *testing.T, what string, base, f func(), mostBytes float64) {
	t.Helper()
	baseAllocs, baseBytes := allocated(base)
	allocs, size := allocated(f)
	t.Logf("%s: %.1f allocations and %.0f bytes beyond the %.1f and %.0f of the cryptography", what, allocs-baseAllocs, size-baseBytes, baseAllocs, baseBytes)
	if allocs-baseAllocs > mostAllocs {
		t.Errorf("%s: %.1f allocations beyond the cryptography's, want %d at most", what, allocs-baseAllocs, mostAllocs)
	}
	if size-baseBytes > mostBytes {
		t.Errorf("%s: %.0f bytes beyond the cryptography's, want %.0f at most", what, size-baseBytes, mostBytes)
	}
}

func TestSealAllocations(t *testing.T) {
	key := publicOf(t, "server-4096")
	for _, size := range benchSizes[:3] {
		plaintext := randomBytes(size.n)
		seal := func(dst []byte) []byte {
			text, err := key.rsa.AppendSealed(dst, &envelope.Envelope{}, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		floor := sealFloor(t, key, plaintext)
		beyond(t, "Seal/"+size.name, floor, func() { seal(nil) }, 1.4*float64(size.n)+mostSmallBytes)
		reused := seal(nil)[:0]
		beyond(t, "Seal/"+size.name+" into a buffer", floor, func() { seal(reused) }, mostSmallBytes)
	}
}

func TestOpenAllocations(t *testing.T) {
	key, err := hybrid.NewPrivateKey(storedKey(t, "client-4096"))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range benchSizes[:3] {
		e, err := sealEnvelope(key.Public(), randomBytes(size.n))
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

// A chat's JSON is written into one buffer, and what an answer's text becomes is one string.
func TestChatAllocations(t *testing.T) {
	const n = 1 << 20
	text := string(bytes.Repeat([]byte("Two lines,\nand a \"word\" in quotes, in every so many bytes of ordinary text. "), n/77))
	request := ask(text)
	if _, size := allocated(func() {
		if _, err := request.encode(); err != nil {
			t.Fatal(err)
		}
	}); size > 1.2*n {
		t.Errorf("encoding allocates %.0f bytes for %d", size, n)
	}
	answer := []byte(completionJSON(text, ""))
	if _, size := allocated(func() {
		var r ChatResponse
		if err := r.decodeJSON(answer); err != nil || r.Text() != text {
			t.Fatal(err)
		}
	}); size > 1.2*n {
		t.Errorf("decoding allocates %.0f bytes for %d", size, n)
	}
}
