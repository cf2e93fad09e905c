// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package hybrid_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// The benchmarks here compare with the floor: the same RSA and AES-GCM operations of the standard
// library over buffers that are there already, with no envelope around them. Floor and ours
// alternate within one process, so that a busy machine slows both; x-floor is the ratio of the
// medians of their CPU time.
//
//	go test -run '^$' -bench 'Seal|Open' ./internal/hybrid

var benchSizes = []struct {
	name string
	n    int
}{{"1KiB", 1 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}, {"10MiB", 10 << 20}}

func BenchmarkSeal(b *testing.B) {
	key := publicOf(b, "server-4096")
	for _, size := range benchSizes {
		b.Run(size.name, func(b *testing.B) {
			plaintext := randomBytes(size.n)
			against(b, size.n, sealFloor(b, "server-4096", plaintext), func() {
				if _, err := key.AppendSealed(nil, &envelope.Envelope{}, plaintext); err != nil {
					b.Fatal(err)
				}
			}, nil)
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	key, err := hybrid.NewPrivateKey(testkit.Key(b, "client-4096"))
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range benchSizes {
		b.Run(size.name, func(b *testing.B) {
			e, err := seal(key.Public(), randomBytes(size.n))
			if err != nil {
				b.Fatal(err)
			}
			text := envelope.Append(nil, e)
			body := bytes.Clone(text)
			against(b, size.n, openFloor(b, key.RSA(), e), func() {
				e, err := envelope.Parse(body, size.n)
				if err == nil {
					_, err = key.Open(&e, nil)
				}
				if err != nil {
					b.Fatal(err)
				}
			}, func() { copy(body, text) })
		})
	}
}

// sealFloor wraps a new AES key with RSA, and encrypts with it.
func sealFloor(tb testing.TB, name string, plaintext []byte) func() {
	dst := make([]byte, 0, len(plaintext)+envelope.NonceSize+envelope.TagSize)
	public := &testkit.Key(tb, name).PublicKey
	return func() {
		dataKey := randomBytes(hybrid.DataKeySize)
		if _, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, dataKey, nil); err != nil {
			tb.Fatal(err)
		}
		floorGCM(tb, dataKey).Seal(dst, nil, plaintext, nil)
	}
}

// openFloor unwraps the AES key with RSA, and decrypts with it.
func openFloor(tb testing.TB, key *rsa.PrivateKey, e *envelope.Envelope) func() {
	sealed := bytes.Clone(e.Sealed)
	wrapped := bytes.Clone(e.WrappedKey)
	dst := make([]byte, 0, len(sealed))
	return func() {
		dataKey, err := rsa.DecryptOAEP(sha256.New(), nil, key, wrapped, nil)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := floorGCM(tb, dataKey).Open(dst, nil, sealed, nil); err != nil {
			tb.Fatal(err)
		}
	}
}

func floorGCM(tb testing.TB, key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		tb.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		tb.Fatal(err)
	}
	return aead
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// against runs floor and ours in turn. prepare, if not nil, comes before each run of ours and is
// not counted.
func against(b *testing.B, size int, floor, ours, prepare func()) {
	if prepare == nil {
		prepare = func() {}
	}
	var base, own []time.Duration
	clock := func(samples []time.Duration, f func()) []time.Duration {
		start := testkit.CPUTime()
		f()
		return append(samples, testkit.CPUTime()-start)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		base = clock(base, floor)
		prepare()
		b.StartTimer()
		own = clock(own, ours)
	}
	b.ReportMetric(float64(testkit.Median(own))/float64(max(testkit.Median(base), 1)), "x-floor")
}

func publicOf(t testing.TB, name string) *hybrid.PublicKey {
	t.Helper()
	k, err := hybrid.ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func seal(k *hybrid.PublicKey, plaintext []byte) (*envelope.Envelope, error) {
	e := &envelope.Envelope{}
	_, err := k.Seal(nil, e, plaintext)
	e.Sealed = bytes.Clone(e.Sealed)
	return e, err
}
