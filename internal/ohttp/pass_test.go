// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"io"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// writes counts what a Writer hands to its stream.
type writes struct {
	bytes.Buffer
	calls int
}

func (w *writes) Write(p []byte) (int, error) {
	w.calls++
	return w.Buffer.Write(p)
}

// passedChunks returns the lengths of an answer's chunks as they stand in it.
func passedChunks(t *testing.T, answer []byte) (lengths []int) {
	t.Helper()
	r := bytes.NewReader(answer[32:])
	for {
		n, _, err := bhttp.ReadVarint(r)
		if err == io.EOF {
			return lengths
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return append(lengths, r.Len())
		}
		lengths = append(lengths, int(n))
		r.Seek(int64(n), io.SeekCurrent)
	}
}

// TestPass checks that pieces of all lengths arrive, in full chunks and in one Write each, behind
// what was buffered before them, and that they are left as they are.
func TestPass(t *testing.T) {
	key := newKey(t, 1, X25519)
	text := bytes.Repeat([]byte("passed on "), 7000)
	for _, n := range []int{0, 1, PassChunk - 1, PassChunk, PassChunk + 1, 4 * PassChunk} {
		for _, buffered := range []string{"", "before"} {
			sealed, q := seal(t, key.config, []byte("q"))
			x, _, err := openRequest(sealed, key)
			if err != nil {
				t.Fatal(err)
			}
			var b writes
			w, err := x.Response(&b)
			if err != nil {
				t.Fatal(err)
			}
			piece := bytes.Clone(text[:n])
			io.WriteString(w, buffered)
			if err := w.Pass(piece); err != nil || b.calls != min(n, 1) {
				t.Fatalf("%d bytes: %v, in %d writes", n, err, b.calls)
			}
			if _, err := readAnswer(again(q), b.Bytes()); err == nil {
				t.Errorf("%d bytes: whole without an end", n)
			}
			if n > 0 {
				for i, c := range passedChunks(t, b.Bytes()) {
					if full := PassChunk + tagSize; c > full || i > 1 && i < n/PassChunk && c < full {
						t.Errorf("%d bytes: chunk %d has %d", n, i, c)
					}
				}
			}
			if err := w.PassLast(piece); err != nil || b.calls != min(n, 1)+1 {
				t.Fatalf("%d bytes: %v, in %d writes", n, err, b.calls)
			}
			if !bytes.Equal(piece, text[:n]) {
				t.Errorf("%d bytes: the caller's bytes are not as they were", n)
			}
			want := buffered + string(text[:n]) + string(text[:n])
			if got, err := readAnswer(q, b.Bytes()); err != nil || string(got) != want {
				t.Errorf("%d bytes behind %q: got %d, %v", n, buffered, len(got), err)
			}
			for _, f := range []func([]byte) error{w.Pass, w.PassLast} {
				if err := f([]byte("more")); err != ErrUsed {
					t.Errorf("behind the end: %v", err)
				}
			}
		}
	}
}

// TestPassFails checks that a Writer whose stream fails, or whose chunks are used up, seals nothing
// further, and is wiped.
func TestPassFails(t *testing.T) {
	key := newKey(t, 1, X25519)
	sealed, _ := seal(t, key.config, []byte("q"))
	for name, want := range map[string]error{"the stream": errBroken, "the chunks": ErrTooMany} {
		for _, last := range []bool{false, true} {
			x, _, err := openRequest(sealed, key)
			if err != nil {
				t.Fatal(err)
			}
			var dst io.Writer = brokenWriter{}
			if want == ErrTooMany {
				dst = &bytes.Buffer{}
			}
			w, err := x.Response(dst)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, "buffered")
			plain, pass := w.plain, w.Pass
			if want == ErrTooMany {
				w.left = 2
			}
			if last {
				pass = w.PassLast
			}
			if err := pass(make([]byte, 2*PassChunk)); err != want {
				t.Errorf("%s: %v", name, err)
			}
			if !isZero(plain) || w.done != nil || w.Pass([]byte("x")) == nil {
				t.Errorf("%s: the Writer goes on", name)
			}
		}
	}
}

// TestPassChunk holds PassChunk to what it is for: with its length, its tag and the header of a
// frame, a chunk is as long as the largest record of TLS.
func TestPassChunk(t *testing.T) {
	length := len(bhttp.AppendVarint(nil, PassChunk+tagSize))
	if PassChunk > MaxChunk || 9+length+PassChunk+tagSize != 1<<14 {
		t.Errorf("%d bytes of plaintext fill a record with %d", PassChunk,
			9+length+PassChunk+tagSize)
	}
}

// TestWriterUsesBuffer checks that chunks that fit are sealed in the caller's memory, the head of
// the message among them, and that the Writer lets go of it.
func TestWriterUsesBuffer(t *testing.T) {
	key := newKey(t, 1, X25519)
	for _, size := range []int{0, 10, 200, 1 << 10} {
		sealed, q := seal(t, key.config, []byte("q"))
		x, _, err := openRequest(sealed, key)
		if err != nil {
			t.Fatal(err)
		}
		var b writes
		w, err := x.Response(&b)
		if err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, size)
		w.UseBuffer(buffer)
		for _, piece := range []string{"one", "two"} {
			if err := w.Pass([]byte(piece)); err != nil {
				t.Fatal(err)
			}
		}
		if size >= 200 && !bytes.HasSuffix(b.Bytes(), buffer[:2+3+tagSize-1]) {
			t.Errorf("%d bytes: sealed elsewhere", size)
		}
		if err := w.PassLast(nil); err != nil || w.out != nil {
			t.Errorf("%d bytes: %v, %d kept", size, err, cap(w.out))
		}
		if got, err := readAnswer(q, b.Bytes()); err != nil || string(got) != "onetwo" {
			t.Errorf("%d bytes: %q, %v", size, got, err)
		}
	}
}
