// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// sentBytes is a request body in the clear that is wiped when nobody reads it any more: a transport may go on reading
// after it has returned an answer.
type sentBytes struct {
	mu      sync.Mutex
	b       []byte
	readers int
	over    bool
}

// attach makes b the body of req, also for a transport that sends it a second time.
func (s *sentBytes) attach(req *http.Request) {
	req.ContentLength = int64(len(s.b))
	req.GetBody = func() (io.ReadCloser, error) { return s.open(), nil }
	req.Body = s.open()
}

func (s *sentBytes) open() io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers++
	return &sentReader{s: s, r: bytes.NewReader(s.b)}
}

// finish ends the owner's interest.
func (s *sentBytes) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.wipeIfDone()
}

func (s *sentBytes) wipeIfDone() {
	if s.over && s.readers == 0 {
		clear(s.b)
	}
}

type sentReader struct {
	s      *sentBytes
	r      *bytes.Reader
	closed bool
}

func (r *sentReader) Read(p []byte) (int, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return r.r.Read(p)
}

func (r *sentReader) Close() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.s.readers--
		r.s.wipeIfDone()
	}
	return nil
}
