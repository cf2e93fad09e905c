// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// sentPieces makes a body of text in pieces, and returns their memory.
func sentPieces(text string, size int) (pieces [][]byte) {
	for b := []byte(text); len(b) > 0; b = b[min(size, len(b)):] {
		piece := append(make([]byte, 0, size+7), b[:min(size, len(b))]...)
		copy(piece[len(piece):cap(piece)], "unused!")
		pieces = append(pieces, piece)
	}
	return pieces
}

// TestSentPieces checks that a body is read as one, however it lies in memory, by every reader.
func TestSentPieces(t *testing.T) {
	text := strings.Repeat("some text ", 50)
	for _, size := range []int{1, 7, 499, 500, 501} {
		s := NewSent(nil, sentPieces(text, size)...)
		if s.Len() != len(text) {
			t.Errorf("%d bytes", s.Len())
		}
		req := &http.Request{}
		s.Attach(req)
		if err := iotest.TestReader(req.Body, []byte(text)); err != nil {
			t.Errorf("pieces of %d: %v", size, err)
		}
		again, _ := req.GetBody()
		if got, err := io.ReadAll(again); err != nil || string(got) != text {
			t.Errorf("pieces of %d, again: %q, %v", size, got, err)
		}
		s.Look(func(body []byte) {
			if string(body) != text {
				t.Errorf("pieces of %d: looked at %q", size, body)
			}
		})
	}
	empty := NewSent(nil)
	req := &http.Request{}
	empty.Attach(req)
	if got, err := io.ReadAll(req.Body); err != nil || len(got) > 0 || req.ContentLength != 0 {
		t.Errorf("nothing: %q, %v", got, err)
	}
	empty.Finish()
}

// TestSentWipes checks that the memory of a body is wiped and freed once: when its owner and its
// last reader are done with it, and not before.
func TestSentWipes(t *testing.T) {
	pieces := sentPieces(strings.Repeat("secret", 9), 10)
	kept := append([][]byte(nil), pieces...)
	freed := 0
	s := NewSent(func(b []byte) {
		if freed++; bytes.Count(b, []byte{0}) != len(b) || cap(b) != 17 {
			t.Errorf("freed with %q", b)
		}
	}, pieces...)
	req := &http.Request{}
	s.Attach(req)
	another, _ := req.GetBody()
	one := make([]byte, 1)
	closing := func() { _ = req.Body.Close() }
	for _, step := range []func(){s.Finish, closing, closing} {
		step()
		if n, err := another.Read(one); n != 1 || err != nil || freed != 0 {
			t.Fatalf("%d freed with a reader: %d, %v", freed, n, err)
		}
	}
	_ = another.Close()
	for _, b := range kept {
		if b = b[:cap(b)]; bytes.Count(b, []byte{0}) != len(b) {
			t.Errorf("left: %q", b)
		}
	}
	s.Finish()
	if freed != len(kept) {
		t.Errorf("%d of %d pieces freed", freed, len(kept))
	}
	if _, err := another.Read(one); err != http.ErrBodyReadAfterClose {
		t.Errorf("a closed reader: %v", err)
	}
	late, _ := req.GetBody() // of a transport that sends the body once more
	if got, err := io.ReadAll(late); err != nil || len(got) > 0 {
		t.Errorf("after the end: %q, %v", got, err)
	}
}

type panickingTripper struct{}

func (panickingTripper) RoundTrip(*http.Request) (*http.Response, error) { panic("the transport") }

// TestSentWipesInPanic checks that a body is wiped whose transport panics, and closes nothing.
func TestSentWipesInPanic(t *testing.T) {
	content := []byte("the prompt")
	s := NewSent(nil, content)
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://a.example", nil)
	s.Attach(req)
	func() {
		defer func() { _ = recover() }()
		defer s.Finish()
		_, _ = RoundTrip(panickingTripper{}, req)
	}()
	if len(bytes.Trim(content, "\x00")) > 0 {
		t.Errorf("%q is left", content)
	}
}
