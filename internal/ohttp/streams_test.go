// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/iotest"
)

// TestGivenUp closes a Writer without Finish: the bytes it wrote must not be a message.
func TestGivenUp(t *testing.T) {
	key := newKey(t, 1, XWing)
	sealed, q := seal(t, key.config, []byte("q"))
	x, _, err := openRequest(sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, _ := x.Response(&b)
	io.WriteString(w, "part")
	w.Flush()
	io.WriteString(w, "more")
	w.Close()
	if err := w.Finish(); err != ErrUsed {
		t.Error(err)
	}
	if got, err := readAnswer(q, b.Bytes()); err != ErrTruncated || string(got) != "part" {
		t.Errorf("%q, %v", got, err)
	}
}

var errBroken = errors.New("the line is broken")

type brokenWriter struct{}

func (brokenWriter) Write(p []byte) (int, error) { return 0, errBroken }

func TestBrokenStreams(t *testing.T) {
	key := newKey(t, 1, X25519)
	q, request, answer := exchange(t, key)
	for n := range len(answer) {
		src := io.MultiReader(bytes.NewReader(answer[:n]), iotest.ErrReader(errBroken))
		r, _ := again(q).Response(src, 0)
		if _, err := io.ReadAll(r); !errors.Is(err, ErrTruncated) || !errors.Is(err, errBroken) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	// Read by read, in halves and with data beside io.EOF, it is the same message.
	for _, f := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader,
		iotest.DataErrReader} {
		r, _ := again(q).Response(f(bytes.NewReader(answer)), 0)
		if got, err := io.ReadAll(r); err != nil || string(got) != "the answer to it" {
			t.Errorf("%q, %v", got, err)
		}
	}
	x, _, err := openRequest(request, key)
	if err != nil {
		t.Fatal(err)
	}
	w, _ := x.Response(brokenWriter{})
	io.WriteString(w, "x")
	if err := w.Flush(); err != errBroken {
		t.Error(err)
	}
	if err := w.Finish(); err != errBroken {
		t.Errorf("Finish: %v", err)
	}
}

// TestAsItComes reads each chunk before the next one is written.
func TestAsItComes(t *testing.T) {
	key := newKey(t, 1, XWing)
	sealed, q := seal(t, key.config, []byte("q"))
	x, _, err := openRequest(sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	w, _ := x.Response(pw)
	r, _ := q.Response(pr, 0)
	b := make([]byte, 100)
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Wait()
		wg.Go(func() {
			fmt.Fprintf(w, "event %d", i)
			w.Flush()
		})
		n, err := r.Read(b)
		if want := fmt.Sprintf("event %d", i); err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v, want %q", b[:n], err, want)
		}
	}
	wg.Wait()
	wg.Go(func() { w.Finish(); pw.Close() })
	if n, err := r.Read(b); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	wg.Wait()
}

// TestUseBuffer checks that chunks that fit are opened in the memory of the caller, and that Close
// clears it.
func TestUseBuffer(t *testing.T) {
	const text = "opened in the caller's memory"
	for _, size := range []int{MaxChunk + Overhead + 1, 40, 1} {
		k, err := GenerateKey(1, X25519)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		q, err := NewRequest(k.Config())
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := q.Seal(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		x, err := Open(bytes.NewReader(sealed), one{k}, 0)
		if err != nil {
			t.Fatal(err)
		}
		var answer bytes.Buffer
		w, err := x.Response(&answer)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, text)
		_ = w.Flush()
		_, _ = io.WriteString(w, text)
		_ = w.Finish()
		r, err := q.Response(&answer, 0)
		if err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, size)
		r.UseBuffer(buffer)
		var got []byte
		for {
			b, err := r.ReadByte()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if fits := size > len(text)+Overhead; fits && !bytes.Contains(buffer, []byte(text)) {
				t.Fatalf("%d bytes: opened elsewhere", size)
			}
			got = append(got, b)
		}
		r.Close()
		if string(got) != text+text || bytes.Contains(buffer, []byte("opened")) {
			t.Errorf("%d bytes: got %q, left %q", size, got, buffer)
		}
	}
}
