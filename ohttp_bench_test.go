// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// BenchmarkOHTTPClient is what a client does for a request and an answer of 1 KiB: sealing, and opening. x-v1 is the ratio of
// its CPU time to that of version 1, x-v1-protected the same into protected memory, as Complete does it.
func BenchmarkOHTTPClient(b *testing.B) {
	ctx := b.Context()
	plaintext, _ := ask(strings.Repeat("x", 1024-80)).encode()
	content := []byte(testkit.CompletionJSON(strings.Repeat("y", 750), ""))
	g := fakes.NewGateway(b, nil)
	oblivious := ohttpClient(b, "https://gateway.test", func(c *Config) { c.Transport = fakes.Direct(g) })
	v1 := startClient(b, "https://gateway.test", nil)
	v1.server.key, v1.server.fetched = publicOf(b, "server-4096"), time.Now()
	for _, c := range []*SecureCompletionClient{oblivious, v1} {
		if err := c.Warm(ctx); err != nil {
			b.Fatal(err)
		}
	}
	answers := map[*SecureCompletionClient]func(*sealedRequest) *httpx.Answer{
		oblivious: func(r *sealedRequest) *httpx.Answer { return answerOHTTP(b, g, r, content) },
		v1:        func(r *sealedRequest) *httpx.Answer { return answerV1(b, r, content) },
	}
	round := func(c *SecureCompletionClient, into hybrid.Alloc) time.Duration {
		start := testkit.CPUTime()
		r, err := c.wire.seal(ctx, chatRequest(plaintext, true), &callOptions{})
		spent := testkit.CPUTime() - start
		if err != nil {
			b.Fatal(err)
		}
		a := answers[c](r)
		start = testkit.CPUTime()
		if _, err := c.wire.open(r, a, into); err != nil {
			b.Fatal(err)
		}
		r.release()
		return spent + testkit.CPUTime() - start
	}
	memory := locked.NewArena(locked.BestEffort)
	defer memory.Close()
	var secret *Secret
	into := func(n int) (room []byte, err error) {
		secret.Destroy()
		secret, room, err = newRoom(memory, n)
		return room, err
	}
	defer func() { secret.Destroy() }()
	var base, own, baseProtected, ownProtected []time.Duration
	for b.Loop() {
		base, own = append(base, round(v1, nil)), append(own, round(oblivious, nil))
		baseProtected, ownProtected = append(baseProtected, round(v1, into)), append(ownProtected, round(oblivious, into))
	}
	b.ReportMetric(float64(testkit.Median(own))/float64(testkit.Median(base)), "x-v1")
	b.ReportMetric(float64(testkit.Median(ownProtected))/float64(testkit.Median(baseProtected)), "x-v1-protected")
	b.ReportMetric(float64(testkit.Median(own).Microseconds()), "µs-client")
	b.ReportMetric(float64(testkit.Median(base).Microseconds()), "µs-v1-client")
}

// answerOHTTP seals content as the gateway does.
func answerOHTTP(b *testing.B, g *fakes.Gateway, r *sealedRequest, content []byte) *httpx.Answer {
	x, err := ohttp.Open(r.http.Body, g.Ring, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	_, _ = io.Copy(io.Discard, x.Request())
	message, err := bhttp.AppendResponse(nil, &bhttp.Response{Status: 200, Header: []bhttp.Field{{Name: "content-type", Value: "application/json"}}}, content, nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := x.Response(&sealed)
	if err != nil {
		b.Fatal(err)
	}
	_, _ = w.Write(message)
	_ = w.Finish()
	return &httpx.Answer{Status: 200, Header: http.Header{"Content-Type": {ohttp.TypeResponse}}, Body: sealed.Bytes()}
}

func answerV1(b *testing.B, r *sealedRequest, content []byte) *httpx.Answer {
	e, err := fakes.Seal(r.key.RSA.Public(), content)
	if err != nil {
		b.Fatal(err)
	}
	return &httpx.Answer{Status: 200, Body: envelope.Append(nil, e)}
}
