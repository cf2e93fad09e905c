// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// bodyOf is the body of a message with content, of which the source has only so much.
func bodyOf(t *testing.T, content string, cut int) *bhttp.Body {
	t.Helper()
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{
		Method: "POST", Scheme: "https", Authority: "a.test", Path: "/",
	}, []byte(content), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, body, err := bhttp.ReadRequest(bytes.NewReader(message[:len(message)-cut]), bhttp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// What is read is the content, and no more memory is taken than one piece ahead of it.
func TestReadPieces(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 513, 8 << 10, 8<<10 + 1, pieceSize, 3*pieceSize + 1} {
		var b buffers
		want := strings.Repeat("0123456789", size/10+1)[:size]
		read, err := b.readPieces(bodyOf(t, want, 0))
		if got := string(bytes.Join(read, nil)); err != nil || got != want {
			t.Errorf("%d bytes: %d came, %v", size, len(got), err)
		}
		taken := 0
		for _, p := range read {
			taken += cap(p)
		}
		if taken > size+pieceSize {
			t.Errorf("%d bytes: memory of %d", size, taken)
		}
		b.wipe(read)
		for i, p := range read {
			if p = p[:cap(p)]; bytes.Count(p, []byte{0}) != len(p) {
				t.Errorf("%d bytes: piece %d is left", size, i)
			}
		}
	}
	for _, size := range []int{100, 10 << 10, 3 * pieceSize} {
		var b buffers
		body := bodyOf(t, strings.Repeat("x", size), 50)
		if read, err := b.readPieces(body); !errors.Is(err, bhttp.ErrTruncated) || read != nil {
			t.Errorf("%d bytes, cut: %d pieces, %v", size, len(read), err)
		}
		if _, err := body.Left(); !errors.Is(err, bhttp.ErrTruncated) {
			t.Errorf("%d bytes, cut: then %v", size, err)
		}
	}
	stated := bodyOf(t, strings.Repeat("x", 1<<20), 1<<20) // and none of it comes
	var b buffers
	if left, err := stated.Left(); left != 1<<20 || err != nil {
		t.Errorf("%d stated, %v", left, err)
	}
	if _, err := b.readPieces(stated); !errors.Is(err, bhttp.ErrTruncated) {
		t.Error(err)
	}
}

// Memory that is used again holds nothing, and other memory is not taken back.
func TestBuffersHoldNothing(t *testing.T) {
	var b buffers
	for range 100 {
		p := b.get()
		if len(p) != pieceSize || bytes.Count(p, []byte{0}) != len(p) {
			t.Fatal("not wiped")
		}
		copy(p, "content of one client")
		b.wipe([][]byte{p[:7]})
	}
	for _, size := range []int{0, 1, pieceSize - 1, pieceSize + 1} {
		b.put(make([]byte, size))
	}
	for range 5 {
		if p := b.get(); len(p) != pieceSize {
			t.Errorf("%d bytes", len(p))
		}
	}
}

// At the end Left says what Read says.
func TestLeftAtTheEnd(t *testing.T) {
	body := bodyOf(t, "x", 0)
	for want := range 2 {
		left, err := body.Left()
		if left != int64(1-want) || (err == io.EOF) != (want == 1) {
			t.Errorf("%d left, %v", left, err)
		}
		_, _ = body.Read(make([]byte, 1))
	}
}
