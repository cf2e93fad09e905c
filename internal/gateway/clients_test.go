// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/rsa"
	"encoding/binary"
	"math/big"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestClientKeyIsParsedOnce(t *testing.T) {
	var c clientKeys
	header := hybrid.PercentEncode(testkit.PublicPEM(t, "client-4096"))
	first, p := c.parse(header)
	if p != nil {
		t.Fatal(p)
	}
	for range 3 {
		if again, p := c.parse(header); p != nil || again != first {
			t.Fatalf("got %p, %v, want %p", again, p, first)
		}
	}
	other, p := c.parse(hybrid.PercentEncode(testkit.PublicPEM(t, "rsa-2048")))
	if p != nil || other.Fingerprint() != publicOf(t, "rsa-2048").Fingerprint() ||
		first.Fingerprint() != publicOf(t, "client-4096").Fingerprint() {
		t.Errorf("got another key: %v, %v", other, p)
	}
}

// The gateway uses it: of two clients in turn it keeps two keys.
func TestGatewayKeepsClientKeys(t *testing.T) {
	r := newRig(t, nil)
	for range 2 {
		for _, name := range []string{"client-4096", "other-4096"} {
			header := hybrid.PercentEncode(testkit.PublicPEM(t, name))
			w := r.Do(fakes.Post(t, fakes.FineRequest, hybrid.HeaderPublicKey, header))
			e, err := envelope.Parse(w.Body.Bytes(), 1<<30)
			if err != nil {
				t.Fatal(w.Code, err)
			}
			key, err := hybrid.NewPrivateKey(testkit.Key(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := key.Open(&e, nil); err != nil {
				t.Errorf("%s cannot open its answer: %v", name, err)
			}
		}
	}
	if n := len(r.s.clients.known); n != 2 {
		t.Errorf("%d keys are kept, want 2", n)
	}
}

func TestBadClientKeysAreNotKept(t *testing.T) {
	var c clientKeys
	for _, header := range []string{
		"%", "%zz", "x", hybrid.PercentEncode(testkit.PublicPEM(t, "rsa-2048")) + "x",
	} {
		for range 2 {
			if key, p := c.parse(header); key != nil || p == nil || p.status != 400 {
				t.Errorf("%.20q: %v, %v", header, key, p)
			}
		}
	}
	if len(c.known) != 0 || c.order.Len() != 0 || c.bytes != 0 {
		t.Errorf("kept: %d", len(c.known))
	}
}

// numberedKey is a public key of that many bytes for which nobody knows a private one.
func numberedKey(t testing.TB, n uint32, size int) (id [32]byte, key *hybrid.PublicKey) {
	t.Helper()
	modulus := make([]byte, size)
	modulus[0], modulus[size-1] = 0x80, 1
	binary.BigEndian.PutUint32(modulus[1:], n)
	binary.BigEndian.PutUint32(id[:], n)
	made, err := hybrid.NewPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return id, made
}

func TestClientKeysAreBounded(t *testing.T) {
	for _, size := range []int{256, 1024} {
		var c clientKeys
		first, key := numberedKey(t, 0, size)
		c.put(first, key)
		for n := range uint32(maxClientKeys + maxClientKeys/2) {
			c.put(numberedKey(t, n+1, size))
			if c.get(first) == nil { // used all the time, so kept
				t.Fatalf("%d bytes: the key that was used last is gone after %d others", size, n+1)
			}
		}
		if len(c.known) != c.order.Len() || len(c.known) > maxClientKeys ||
			c.bytes > maxClientKeyBytes ||
			len(c.known) < maxClientKeys/2 {
			t.Errorf("%d bytes: %d keys, %d in order, %d bytes", size, len(c.known), c.order.Len(),
				c.bytes)
		}
		if id, _ := numberedKey(t, 1, size); c.get(id) != nil {
			t.Errorf("%d bytes: the oldest key is still there", size)
		}
		sum := 0
		for e := c.order.Front(); e != nil; e = e.Next() {
			sum += e.Value.(*clientKey).size
		}
		if sum != c.bytes {
			t.Errorf("%d bytes: counted %d, have %d", size, c.bytes, sum)
		}
	}
}

func TestClientKeysConcurrently(t *testing.T) {
	var c clientKeys
	var headers []string
	for _, name := range []string{"client-4096", "other-4096", "rsa-3072", "rsa-2048"} {
		headers = append(headers, hybrid.PercentEncode(testkit.PublicPEM(t, name)))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				for _, h := range headers {
					if key, p := c.parse(h); p != nil || key.Header() != h {
						t.Errorf("got %v, %v", key, p)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(c.known) != len(headers) {
		t.Errorf("%d keys", len(c.known))
	}
}
