// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// TestSealParts seals the same message however it is cut into parts.
func TestSealParts(t *testing.T) {
	key := newKey(t, 1, X25519)
	message := make([]byte, 3*MaxChunk+5)
	for i := range message {
		message[i] = byte(i % 251)
	}
	for _, size := range []int{0, 1, MaxChunk - 1, MaxChunk, MaxChunk + 1, 2 * MaxChunk,
		len(message)} {
		want, _ := seal(t, key.config, message[:size])
		for _, cuts := range [][2]int{{0, 0}, {0, size}, {size, size}, {size / 3, size / 2},
			{min(1, size), max(size-1, min(1, size))},
			{min(MaxChunk, size), max(size-MaxChunk, min(MaxChunk, size))}} {
			q, err := NewRequest(key.config)
			if err != nil {
				t.Fatal(err)
			}
			buffer := make([]byte, min(size, MaxChunk))
			got, err := q.SealParts([]byte("before"), buffer, message[:cuts[0]],
				message[cuts[0]:cuts[1]], nil, message[cuts[1]:size])
			if err != nil || !bytes.HasPrefix(got, []byte("before")) {
				t.Fatal(err)
			}
			got = got[len("before"):]
			if len(got) != len(want) {
				t.Errorf("%d bytes cut at %v: %d bytes, want %d", size, cuts, len(got), len(want))
			}
			if _, opened, err := openRequest(got, key); err != nil ||
				!bytes.Equal(opened, message[:size]) {
				t.Errorf("%d bytes cut at %v: %d bytes, %v", size, cuts, len(opened), err)
			}
			if _, err := q.SealParts(nil, nil, []byte("x")); err != ErrUsed {
				t.Errorf("a second time: %v", err)
			}
			q.Close()
		}
	}
}

// wholeAnswer seals an answer in pieces of so many bytes, each in a chunk, with its length declared
// or not.
func wholeAnswer(t testing.TB, x *Exchange, content []byte, piece, declared int) []byte {
	t.Helper()
	var sealed bytes.Buffer
	w, err := x.Response(&sealed)
	if err != nil {
		t.Fatal(err)
	}
	var header []bhttp.Field
	if declared >= 0 {
		header = []bhttp.Field{{Name: "content-length", Value: strconv.Itoa(declared)}}
	}
	var e bhttp.Encoder
	b, err := e.ResponseHead(nil, 200, header)
	if err != nil {
		t.Fatal(err)
	}
	for len(content) > 0 {
		n := min(piece, len(content))
		_, _ = w.Write(e.Content(b, content[:n]))
		_ = w.Flush()
		b, content = b[:0], content[n:]
	}
	if declared < 0 {
		b, err = e.End(b, nil, 512)
	} else {
		b = append(b, 0, 0) // whatever was declared
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return sealed.Bytes()
}

// grown remembers what it made.
type grown struct{ made [][]byte }

func (g *grown) grow(content []byte, size int) ([]byte, error) {
	larger := make([]byte, size)
	copy(larger, content)
	clear(content)
	g.made = append(g.made, larger)
	return larger, nil
}

// readWhole reads an answer. made is the memory that was made for the content, batches that for
// sealed chunks.
func readWhole(q *Request, src io.Reader, limit int64) (content []byte, made, batches [][]byte,
	err error) {
	var g grown
	w := &Whole{MaxChunk: 64 << 10, Limit: limit, Grow: g.grow,
		Batch: func(size int) ([]byte, error) {
			batches = append(batches, make([]byte, size))
			return batches[len(batches)-1], nil
		}}
	_, content, err = again(q).ReadWhole(src, w)
	return content, g.made, batches, err
}

func TestReadWhole(t *testing.T) {
	key := newKey(t, 1, X25519)
	text := bytes.Repeat([]byte("what is opened, and wiped where it was opened. "), 5000)
	for _, size := range []int{0, 1, 100, 4096, 16000, 70000, len(text)} {
		for _, piece := range []int{7 + size/50, 16300, 40000} {
			for _, declared := range []int{-1, size} {
				name := fmt.Sprintf("%d bytes by %d, %d declared", size, piece, declared)
				sealed, q := seal(t, key.config, []byte("q"))
				x, _, err := openRequest(sealed, key)
				if err != nil {
					t.Fatal(err)
				}
				answer := wholeAnswer(t, x, text[:size], piece, declared)
				for _, from := range []func(io.Reader) io.Reader{iotest.HalfReader,
					iotest.DataErrReader} {
					got, made, batches, err := readWhole(q, from(bytes.NewReader(answer)),
						int64(size))
					if err != nil || !bytes.Equal(got, text[:size]) {
						t.Fatalf("%s: %d bytes, %v", name, len(got), err)
					}
					if declared >= 0 && len(made) != 1 {
						t.Errorf("%s: the memory grew %d times", name, len(made))
					}
					if small := len(answer) < firstRead; small != (len(batches) == 1) {
						t.Errorf("%s: %d batches", name, len(batches))
					}
					checkWiped(t, name, append(batches, made[:len(made)-1]...))
				}
			}
		}
	}
}

// checkWiped sees that no text is left in a batch, nor in memory that was outgrown.
func checkWiped(t *testing.T, name string, made [][]byte) {
	t.Helper()
	for _, b := range made {
		if bytes.Contains(b, []byte("opened")) {
			t.Errorf("%s: text is left behind", name)
		}
	}
}

// Every answer that is not whole is an error, and leaves nothing.
func TestReadWholeRefuses(t *testing.T) {
	key := newKey(t, 1, X25519)
	text := bytes.Repeat([]byte("what is opened. "), 8000)
	sealed, q := seal(t, key.config, []byte("q"))
	x, _, err := openRequest(sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	answer := wholeAnswer(t, x, text, 16000, -1)
	refused := func(name string, src io.Reader, limit int64, want error) {
		t.Helper()
		got, made, batches, err := readWhole(q, src, limit)
		if !errors.Is(err, want) || got != nil {
			t.Errorf("%s: %d bytes, %v; want %v", name, len(got), err, want)
		}
		checkWiped(t, name, append(made, batches...))
	}
	limit := int64(len(text))
	for _, n := range []int{0, 1, 31, 32, 33, 34, 100, 16050, 50000, 70000, len(answer) - 1} {
		want := ErrTruncated
		if n == len(answer)-1 {
			want = ErrDecryption // the final chunk ends where the stream ends
		}
		refused(fmt.Sprintf("cut after %d", n), bytes.NewReader(answer[:n]), limit, want)
		broken := io.MultiReader(bytes.NewReader(answer[:n]), iotest.ErrReader(errBroken))
		refused(fmt.Sprintf("broken after %d", n), broken, limit, errBroken)
		other := bytes.Clone(answer)
		other[max(n, 33)] ^= 1
		_, _, _, err := readWhole(q, bytes.NewReader(other), limit)
		if err == nil {
			t.Errorf("altered at %d: taken", n)
		}
	}
	refused("too large", bytes.NewReader(answer), limit-1, bhttp.ErrTooLarge)
	refused("more behind it", io.MultiReader(bytes.NewReader(answer), bytes.NewReader([]byte{0})),
		limit, ErrDecryption)

	huge := append(bytes.Clone(answer[:32]), bhttp.AppendVarint(nil, 1<<30)...)
	refused("a huge chunk", io.MultiReader(bytes.NewReader(huge),
		bytes.NewReader(make([]byte, 1<<20))), limit, ErrTooLarge)
	empty := append(bytes.Clone(answer[:32]), bhttp.AppendVarint(nil, 16)...)
	refused("an empty chunk", io.MultiReader(bytes.NewReader(empty),
		bytes.NewReader(make([]byte, 1<<20))), limit, ErrEmptyChunk)
	endless := append(bytes.Clone(answer[:32]), 0)
	refused("an endless final chunk", io.MultiReader(bytes.NewReader(endless),
		bytes.NewReader(make([]byte, 1<<20))), limit, ErrTooLarge)
}

// Lengths that are declared and do not come, and memory that is not to be had.
func TestReadWholeDeclared(t *testing.T) {
	key := newKey(t, 1, X25519)
	for _, declared := range []int{0, 4, 6, 1 << 40} {
		sealed, q := seal(t, key.config, []byte("q"))
		x, _, err := openRequest(sealed, key)
		if err != nil {
			t.Fatal(err)
		}
		answer := wholeAnswer(t, x, []byte("hello"), 5, declared)
		_, made, _, err := readWhole(q, bytes.NewReader(answer), 1<<50)
		if _, malformed := errors.AsType[*bhttp.FormatError](err); !malformed {
			t.Errorf("%d declared of 5: %v", declared, err)
		}
		if len(made) != 1 || len(made[0]) > maxDeclared+1 {
			t.Errorf("%d declared: made %d, %d bytes", declared, len(made), len(made[0]))
		}
		q.secret = bytes.Clone(q.secret)
		none := errors.New("no memory")
		for n := range 2 {
			w := &Whole{Limit: 100,
				Grow: func([]byte, int) ([]byte, error) { return nil, none },
				Batch: func(size int) ([]byte, error) {
					if n == 0 {
						return nil, none
					}
					return make([]byte, size), nil
				}}
			if _, _, err := again(q).ReadWhole(bytes.NewReader(answer), w); err != none {
				t.Errorf("without memory: %v", err)
			}
		}
	}
}
