// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"crypto/sha256"
	"net/http"
	"net/url"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

const (
	maxClientKeys     = 4096    // keys that are kept parsed
	maxClientKeyBytes = 8 << 20 // and how much memory they take, about
)

// clientKeys keeps the public keys of the clients that were here last, so that each is parsed once
// and not with every request. The zero value is ready; safe for concurrent use.
//
// Invariant: known and order have the same entries, and bytes is the sum of their sizes.
type clientKeys struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*list.Element // by the digest of the header
	order list.List                           // of *clientKey; used last in front
	bytes int
}

type clientKey struct {
	id   [sha256.Size]byte
	key  *hybrid.PublicKey
	size int
}

// parse reads an X-Public-Key header, whose length the caller has bounded.
func (c *clientKeys) parse(escaped string) (*hybrid.PublicKey, *refusal) {
	id := sha256.Sum256([]byte(escaped))
	if key := c.get(id); key != nil {
		return key, nil
	}
	text, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "X-Public-Key is not percent-encoded")
	}
	key, err := hybrid.ParsePublicKey([]byte(text))
	if err != nil {
		p := refuse(http.StatusBadRequest,
			"X-Public-Key is not an RSA public key of 2048 to 8192 bits in PEM")
		p.cause = err
		return nil, p
	}
	c.put(id, key)
	return key, nil
}

func (c *clientKeys) get(id [sha256.Size]byte) *hybrid.PublicKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.known[id]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*clientKey).key
}

func (c *clientKeys) put(id [sha256.Size]byte, key *hybrid.PublicKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[id]; ok { // another request of the same client was faster
		return
	}
	if c.known == nil {
		c.known = make(map[[sha256.Size]byte]*list.Element)
	}
	size := 2*len(key.DER()) + 768 // DER, the modulus once more, and the small parts
	e := &clientKey{id: id, key: key, size: size}
	c.known[id] = c.order.PushFront(e)
	c.bytes += e.size
	for c.order.Len() > maxClientKeys || c.bytes > maxClientKeyBytes {
		last := c.order.Remove(c.order.Back()).(*clientKey)
		delete(c.known, last.id)
		c.bytes -= last.size
	}
}
