// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// countingConn counts what is written.
type countingConn struct {
	net.Conn
	written *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.written.Add(int64(len(p)))
	return c.Conn.Write(p)
}

// After Warm a request opens no connection, fetches no key and makes none; over HTTP/2 the large
// X-Public-Key header crosses the wire once.
func TestWarmRequest(t *testing.T) {
	g := startGateway(t, testkit.AnswerText("fine"), nil)
	var fetches, posts, connections atomic.Int64
	srv := testkit.TLSServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("%s over %s, want HTTP/2", r.URL.Path, r.Proto)
		}
		switch r.URL.Path {
		case hybrid.PathPublicKey:
			fetches.Add(1)
		case hybrid.PathCompletion:
			posts.Add(1)
		}
		g.ServeHTTP(w, r)
	}))
	var written atomic.Int64
	transport := sealedchat.DefaultTransport()
	transport.TLSClientConfig.RootCAs = testkit.ClientTransport(srv).TLSClientConfig.RootCAs
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		connections.Add(1)
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return countingConn{c, &written}, err
	}
	keys := storedKeys(t, "client-4096")
	client := startClient(t, srv.URL, func(c *sealedchat.Config) {
		c.Transport, c.Keys = transport, keys
	})
	if err := client.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if connections.Load() != 1 || fetches.Load() != 1 || posts.Load() != 0 {
		t.Fatalf("Warm: %d connections, %d fetches, %d posts", connections.Load(), fetches.Load(),
			posts.Load())
	}
	before := keys.Keys()
	chat := func() int64 {
		start := written.Load()
		if _, err := client.Chat(t.Context(), ask("?")); err != nil {
			t.Fatal(err)
		}
		return written.Load() - start
	}
	first, second := chat(), chat()
	for range 3 {
		chat()
	}
	if connections.Load() != 1 || fetches.Load() != 1 || posts.Load() != 5 {
		t.Errorf("5 chats: %d connections, %d fetches, %d posts", connections.Load(),
			fetches.Load(), posts.Load())
	}
	if after := keys.Keys(); len(after) != len(before) ||
		after[0].Fingerprint != before[0].Fingerprint {
		t.Errorf("keys were %v and are %v", before, after)
	}
	// Huffman coding takes some
	if header := int64(len(headerOf(t, "client-4096"))); first-second < header*2/3 {
		t.Errorf("the first request wrote %d bytes, the second %d: the header of %d bytes "+
			"went again", first, second, header)
	}
}

// headerOf is a stored key as it stands in a request.
func headerOf(t *testing.T, name string) string {
	t.Helper()
	key, err := hybrid.ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return key.Header()
}
