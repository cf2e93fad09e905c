// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// round is one exchange of 1 KiB in each direction, binary HTTP included. It returns the time of
// the client and the time of the gateway.
func round(b *testing.B, key one, content []byte) (client, gateway time.Duration) {
	fail := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	began := time.Now()
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{Method: "POST", Scheme: "https",
		Authority: "a.example", Path: "/v1/chat/completions",
		Header: []bhttp.Field{{Name: "authorization", Value: "Bearer key"},
			{Name: "content-type", Value: "application/json"}}}, content, nil, 0)
	fail(err)
	q, err := NewRequest(key.config)
	fail(err)
	sealed, err := q.Seal(nil, message)
	fail(err)
	client = time.Since(began)

	began = time.Now()
	x, err := Open(bytes.NewReader(sealed), key, 0)
	fail(err)
	_, body, err := bhttp.ReadRequest(x.Request(), bhttp.Limits{})
	fail(err)
	got, err := body.ReadAll()
	fail(err)
	var answer bytes.Buffer
	w, err := x.Response(&answer)
	fail(err)
	message, err = bhttp.AppendResponse(nil, &bhttp.Response{Status: 200}, got, nil, 0)
	fail(err)
	_, err = w.Write(message)
	fail(err)
	fail(w.Finish())
	x.Close()
	gateway = time.Since(began)

	began = time.Now()
	r, err := q.Response(&answer, 0)
	fail(err)
	_, body, err = bhttp.ReadResponse(r, bhttp.Limits{})
	fail(err)
	got, err = body.ReadAll()
	fail(err)
	q.Close()
	client += time.Since(began)
	if !bytes.Equal(got, content) {
		b.Fatal("another answer")
	}
	return client, gateway
}

// envelopeRound is the cryptography of the first protocol's request and answer, without its format.
func envelopeRound(b *testing.B, server, own *rsa.PrivateKey, content []byte) (client,
	gateway time.Duration) {
	sealTo := func(k *rsa.PublicKey, plain []byte) (wrapped, sealed []byte) {
		secret := make([]byte, 32)
		rand.Read(secret)
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, k, secret, nil)
		if err != nil {
			b.Fatal(err)
		}
		block, _ := aes.NewCipher(secret)
		gcm, _ := cipher.NewGCMWithRandomNonce(block)
		return wrapped, gcm.Seal(nil, nil, plain, nil)
	}
	open := func(k *rsa.PrivateKey, wrapped, sealed []byte) []byte {
		secret, err := rsa.DecryptOAEP(sha256.New(), nil, k, wrapped, nil)
		if err != nil {
			b.Fatal(err)
		}
		block, _ := aes.NewCipher(secret)
		gcm, _ := cipher.NewGCMWithRandomNonce(block)
		plain, err := gcm.Open(nil, nil, sealed, nil)
		if err != nil {
			b.Fatal(err)
		}
		return plain
	}
	began := time.Now()
	wrapped, sealed := sealTo(&server.PublicKey, content)
	client = time.Since(began)
	began = time.Now()
	got := open(server, wrapped, sealed)
	wrapped, sealed = sealTo(&own.PublicKey, got)
	gateway = time.Since(began)
	began = time.Now()
	open(own, wrapped, sealed)
	return client + time.Since(began), gateway
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkRounds interleaves one round of each kind, and reports medians, and how many times
// longer RSA-4096 takes.
//
//	go test -run '^$' -bench Rounds ./internal/ohttp
func BenchmarkRounds(b *testing.B) {
	content := bytes.Repeat([]byte("x"), 1024)
	server, own := testkit.Key(b, "server-4096"), testkit.Key(b, "client-4096")
	keys := map[string]one{"xwing": newKey(b, 1, XWing), "x25519": newKey(b, 2, X25519)}
	client, gateway := map[string][]time.Duration{}, map[string][]time.Duration{}
	for b.Loop() {
		for name, key := range keys {
			c, g := round(b, key, content)
			client[name], gateway[name] = append(client[name], c), append(gateway[name], g)
		}
		c, g := envelopeRound(b, server, own, content)
		client["rsa"], gateway["rsa"] = append(client["rsa"], c), append(gateway["rsa"], g)
	}
	for _, name := range []string{"xwing", "x25519", "rsa"} {
		c, g := median(client[name]), median(gateway[name])
		b.ReportMetric(float64(c.Microseconds()), name+"-client-µs")
		b.ReportMetric(float64(g.Microseconds()), name+"-gateway-µs")
		if name != "rsa" {
			b.ReportMetric(float64(median(client["rsa"]))/float64(c), "rsa/"+name+"-client")
			b.ReportMetric(float64(median(gateway["rsa"]))/float64(g), "rsa/"+name+"-gateway")
		}
	}
}

// BenchmarkChunks streams 1,000 events of 100 bytes, each in a chunk of its own.
func BenchmarkChunks(b *testing.B) {
	key := newKey(b, 1, XWing)
	event := bytes.Repeat([]byte("x"), 100)
	for b.Loop() {
		sealed, q := seal(b, key.config, nil)
		x, _, err := openRequest(sealed, key)
		if err != nil {
			b.Fatal(err)
		}
		var answer bytes.Buffer
		w, _ := x.Response(&answer)
		for range 1000 {
			w.Write(event)
			w.Flush()
		}
		w.Finish()
		r, _ := q.Response(&answer, 0)
		if n, err := io.Copy(io.Discard, r); n != 100_000 || err != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkSizes reports how many bytes sealing adds.
func BenchmarkSizes(b *testing.B) {
	for b.Loop() {
		for _, k := range kems {
			key := newKey(b, 1, k.id)
			sealed, _ := seal(b, key.config, nil)
			x, _, err := openRequest(sealed, key)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(len(sealed)), fmt.Sprintf("%#04x-request-B", k.id))
			b.ReportMetric(float64(len(sealAnswer(b, x, ""))), "answer-B")
		}
	}
}
