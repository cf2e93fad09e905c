// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// aheadSource notes when a Read had room for more than the bytes that had come allow.
type aheadSource struct {
	io.Reader
	come, most int
	t          *testing.T
}

func (a *aheadSource) Read(p []byte) (int, error) {
	a.most = max(a.most, len(p))
	if allowed := max(readAhead, a.come); len(p) > allowed {
		a.t.Errorf("room for %d bytes after %d", len(p), a.come)
	}
	n, err := a.Reader.Read(p)
	a.come += n
	return n, err
}

// TestReadsFarAhead checks that a Reader takes large pieces of what is long, not before as much has
// come, and never into other memory than what it was given.
func TestReadsFarAhead(t *testing.T) {
	key := newKey(t, 1, X25519)
	message := bytes.Repeat([]byte("0123456789abcdef"), 40<<10)
	sealed, _ := seal(t, key.config, message)
	src := &aheadSource{Reader: bytes.NewReader(sealed), t: t}
	x, err := Open(src, key, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if got, err := io.ReadAll(x.Request()); err != nil || !bytes.Equal(got, message) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if src.most != farAhead {
		t.Errorf("at most %d bytes at once", src.most)
	}
	sealed, q := seal(t, key.config, nil)
	if x, _, err = openRequest(sealed, key); err != nil {
		t.Fatal(err)
	}
	answer := sealAnswer(t, x, string(message[:MaxChunk]), string(message))
	src = &aheadSource{Reader: bytes.NewReader(answer), t: t}
	r, err := q.Response(src, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.UseBuffer(make([]byte, readAhead))
	if got, err := io.ReadAll(r); err != nil || len(got) != MaxChunk+len(message) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if src.most > readAhead {
		t.Errorf("%d bytes at once, into other memory", src.most)
	}
}

// readCounter counts Reads.
type readCounter struct {
	io.Reader
	reads int
}

func (c *readCounter) Read(p []byte) (int, error) {
	c.reads++
	return c.Reader.Read(p)
}

// TestLargeFinalChunk checks that a final chunk, whose length nobody says ahead, is not read byte
// by byte, with new memory for each: anybody on the way can send one.
func TestLargeFinalChunk(t *testing.T) {
	const most = 64 << 10
	for size, want := range map[int]error{most + tagSize: ErrDecryption, 2 * most: ErrTooLarge} {
		_, q := seal(t, newKey(t, 1, X25519).config, nil)
		src := &readCounter{Reader: bytes.NewReader(make([]byte, 32+1+size))}
		r, err := q.Response(src, most)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if src.reads > 10 {
			t.Errorf("%d bytes: %d reads", size, src.reads)
		}
	}
}
