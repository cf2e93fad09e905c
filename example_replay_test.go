// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// countingCache is a ReplayCache that counts what it refused, for a metric. Gateways that share
// their keys share a cache in the same way: Claim and Release ask a server that all of them reach.
type countingCache struct {
	sealedchat.ReplayCache
	refused atomic.Int64
}

func (c *countingCache) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool,
	error) {
	fresh, err := c.ReplayCache.Claim(ctx, id, client, until)
	if err == nil && !fresh {
		c.refused.Add(1)
	}
	return fresh, err
}

// recorder stands for somebody on the way, who sends each request once more when it has been
// answered.
type recorder struct{ next http.RoundTripper }

func (t recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPost {
		return t.next.RoundTrip(req)
	}
	sealed, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req, again := req.Clone(req.Context()), req.Clone(req.Context())
	req.Body, again.Body = io.NopCloser(bytes.NewReader(sealed)),
		io.NopCloser(bytes.NewReader(sealed))
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if second, err := t.next.RoundTrip(again); err == nil {
		_ = second.Body.Close()
	}
	return resp, nil
}

func ExampleReplayCache() {
	cache := &countingCache{ReplayCache: sealedchat.NewReplayCache(10_000)}
	url, _, transport, stop := startGateway(paris,
		sealedchat.GatewayConfig{AllowUnauthenticated: true, Replay: cache})
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(),
		Transport: recorder{transport},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Chat(context.Background(), &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{
			sealedchat.UserMessage("What is the capital of France?")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text())
	fmt.Println("refused:", cache.refused.Load())
	// Output:
	// Paris.
	// refused: 1
}
