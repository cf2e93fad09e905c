// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"io"
	"net/http"
	"sync"
)

// Sent is a request body that is wiped when nobody reads it any more: a transport may go on reading
// after it has returned an answer.
type Sent struct {
	mu      sync.Mutex
	pieces  [][]byte // nil once they are wiped
	size    int
	free    func([]byte) // takes a piece that is wiped; may be nil
	readers int
	over    bool
}

// NewSent makes a body of pieces, which are the Sent's from then on. It wipes each one to its
// capacity, and hands it to free, which may be nil.
func NewSent(free func([]byte), pieces ...[]byte) *Sent {
	s := &Sent{pieces: pieces, free: free}
	for _, p := range pieces {
		s.size += len(p)
	}
	return s
}

// Len is the size of the body.
func (s *Sent) Len() int { return s.size }

// Attach makes the body that of req, also for a transport that sends it a second time.
func (s *Sent) Attach(req *http.Request) {
	req.ContentLength = int64(s.size)
	req.GetBody = func() (io.ReadCloser, error) { return s.open(), nil }
	req.Body = s.open()
}

// Look calls look with all of the body in one piece, before Finish. look keeps nothing of it.
func (s *Sent) Look(look func(body []byte)) {
	s.mu.Lock()
	pieces := s.pieces
	s.mu.Unlock()
	if len(pieces) == 1 {
		look(pieces[0])
		return
	}
	whole := make([]byte, 0, s.size)
	for _, p := range pieces {
		whole = append(whole, p...)
	}
	defer clear(whole)
	look(whole)
}

func (s *Sent) open() io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers++
	return &sentReader{s: s}
}

// Finish ends the owner's interest.
func (s *Sent) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.wipeIfDone()
}

func (s *Sent) wipeIfDone() {
	if !s.over || s.readers > 0 {
		return
	}
	for _, p := range s.pieces {
		p = p[:cap(p)]
		clear(p)
		if s.free != nil {
			s.free(p)
		}
	}
	s.pieces = nil
}

type sentReader struct {
	s      *Sent
	piece  int // that is read next, from at on
	at     int
	closed bool
}

func (r *sentReader) Read(p []byte) (n int, err error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	for n < len(p) && r.piece < len(r.s.pieces) {
		more := copy(p[n:], r.s.pieces[r.piece][r.at:])
		n, r.at = n+more, r.at+more
		if r.at == len(r.s.pieces[r.piece]) {
			r.piece, r.at = r.piece+1, 0
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
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
