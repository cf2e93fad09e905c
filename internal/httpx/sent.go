// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// Sent is a request body in the clear that is wiped when nobody reads it any more: a transport may
// go on reading after it has returned an answer.
type Sent struct {
	mu      sync.Mutex
	b       []byte
	readers int
	over    bool
}

// NewSent makes b a body. It is the Sent's from then on.
func NewSent(b []byte) *Sent { return &Sent{b: b} }

// Len is the size of the body.
func (s *Sent) Len() int { return len(s.b) }

// Attach makes b the body of req, also for a transport that sends it a second time.
func (s *Sent) Attach(req *http.Request) {
	req.ContentLength = int64(len(s.b))
	req.GetBody = func() (io.ReadCloser, error) { return s.open(), nil }
	req.Body = s.open()
}

func (s *Sent) open() io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers++
	return &sentReader{s: s, r: bytes.NewReader(s.b)}
}

// Finish ends the owner's interest.
func (s *Sent) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.wipeIfDone()
}

func (s *Sent) wipeIfDone() {
	if s.over && s.readers == 0 {
		clear(s.b)
	}
}

type sentReader struct {
	s      *Sent
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
