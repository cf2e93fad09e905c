// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
)

func gcmOf(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm
}

func newKey(t testing.TB, id uint8, kem uint16) one {
	t.Helper()
	k, err := GenerateKey(id, kem)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return one{k}
}

// forKEMs runs f for every KEM.
func forKEMs(t *testing.T, f func(t *testing.T, key one)) {
	for _, k := range kems {
		t.Run(fmt.Sprintf("%#04x", k.id), func(t *testing.T) { f(t, newKey(t, 7, k.id)) })
	}
}

func seal(t testing.TB, c *Config, message []byte) ([]byte, *Request) {
	t.Helper()
	q, err := NewRequest(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	sealed, err := q.Seal(nil, message)
	if err != nil {
		t.Fatal(err)
	}
	return sealed, q
}

func openRequest(sealed []byte, keys Keys) (*Exchange, []byte, error) {
	x, err := Open(bytes.NewReader(sealed), keys, 0)
	if err != nil {
		return nil, nil, err
	}
	message, err := io.ReadAll(x.Request())
	return x, message, err
}

// sealAnswer seals pieces, each as a chunk of its own, the last one as the final one.
func sealAnswer(t testing.TB, x *Exchange, pieces ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := x.Response(&b)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pieces {
		if _, err := io.WriteString(w, p); err != nil {
			t.Fatal(err)
		}
		if i < len(pieces)-1 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// again returns q as it was before its answer was read, since tests open many answers of one
// request.
func again(q *Request) *Request {
	return &Request{config: q.config, head: q.head, secret: bytes.Clone(q.secret)}
}

func readAnswer(q *Request, sealed []byte) ([]byte, error) {
	r, err := again(q).Response(bytes.NewReader(sealed), 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// exchange makes one exchange with an answer of three chunks.
func exchange(t *testing.T, key one) (q *Request, request, answer []byte) {
	t.Helper()
	request, q = seal(t, key.config, []byte("the question"))
	x, message, err := openRequest(request, key)
	if err != nil || string(message) != "the question" {
		t.Fatalf("%q, %v", message, err)
	}
	return q, request, sealAnswer(t, x, "the ", "answer ", "to it")
}

func TestExchange(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		for _, size := range []int{0, 1, MaxChunk - 1, MaxChunk, MaxChunk + 1, 3*MaxChunk + 5} {
			message := bytes.Repeat([]byte{'q'}, size)
			sealed, q := seal(t, key.config, message)
			chunks := max(1, (size+MaxChunk-1)/MaxChunk)
			if want := headerLen + key.config.kem.enc + size + chunks*tagSize + (chunks-1)*4 +
				1; len(sealed) != want {
				t.Errorf("%d bytes are sealed in %d, want %d", size, len(sealed), want)
			}
			x, got, err := openRequest(sealed, key)
			if err != nil || !bytes.Equal(got, message) {
				t.Fatalf("%d bytes: %d bytes, %v", size, len(got), err)
			}
			answer := sealAnswer(t, x, string(message))
			if got, err := readAnswer(q, answer); err != nil || !bytes.Equal(got, message) {
				t.Fatalf("answer of %d bytes: %d bytes, %v", size, len(got), err)
			}
			var b bytes.Buffer
			q2, _ := NewRequest(key.config)
			w, err := q2.Writer(&b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(w, iotest.OneByteReader(bytes.NewReader(message))); err != nil {
				t.Fatal(err)
			}
			if err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			if b.Len() != len(sealed) {
				t.Errorf("Writer made %d bytes, Seal %d", b.Len(), len(sealed))
			}
			if _, got, err := openRequest(b.Bytes(), key); err != nil ||
				!bytes.Equal(got, message) {
				t.Fatalf("written: %d bytes, %v", len(got), err)
			}
		}
	})
}

func TestTruncatedAnswer(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		q, _, answer := exchange(t, key)
		if got, err := readAnswer(q, answer); err != nil || string(got) != "the answer to it" {
			t.Fatalf("%q, %v", got, err)
		}
		finalAt := len(answer) - tagSize - len("to it")
		for n := range len(answer) {
			got, err := readAnswer(q, answer[:n])
			want := ErrTruncated
			if n >= finalAt+tagSize {
				want = ErrDecryption // a final chunk ends where the stream ends
			}
			if !errors.Is(err, want) {
				t.Fatalf("cut to %d of %d bytes: %q, %v, want %v", n, len(answer), got, err, want)
			}
			if !bytes.HasPrefix([]byte("the answer "), got) {
				t.Fatalf("cut to %d: got %q", n, got)
			}
		}
	})
}

func TestTruncatedRequest(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		q, err := NewRequest(key.config)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w, _ := q.Writer(&b)
		io.WriteString(w, "the ")
		w.Flush()
		io.WriteString(w, "question")
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		for n := range b.Len() {
			if _, got, err := openRequest(b.Bytes()[:n], key); !errors.Is(err, ErrTruncated) &&
				err != ErrDecryption {
				t.Fatalf("cut to %d of %d bytes: %q, %v", n, b.Len(), got, err)
			}
		}
	})
}

func TestFlippedAnswer(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		q, _, answer := exchange(t, key)
		for i := range len(answer) * 8 {
			bad := bytes.Clone(answer)
			bad[i/8] ^= 1 << (i % 8)
			got, err := readAnswer(q, bad)
			if err == nil {
				t.Fatalf("bit %d flipped: %q", i, got)
			}
			if !bytes.HasPrefix([]byte("the answer to it"), got) {
				t.Fatalf("bit %d flipped: handed out %q", i, got)
			}
		}
	})
}

func TestFlippedRequest(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		sealed, _ := seal(t, key.config, []byte("q"))
		step := 1
		if len(sealed) > 500 {
			step = 7 // at least one bit of every byte of X-Wing's enc, every one across bytes
		}
		for i := 0; i < len(sealed)*8; i += step {
			bad := bytes.Clone(sealed)
			bad[i/8] ^= 1 << (i % 8)
			_, got, err := openRequest(bad, key)
			if err == nil {
				t.Fatalf("bit %d flipped: %q", i, got)
			}
			if i/8 < headerLen && err != ErrUnknownKey {
				t.Fatalf("bit %d of the header flipped: %v", i, err)
			}
		}
	})
}

// TestSwapped opens the answer to another request, of the same key and of the same message.
func TestSwapped(t *testing.T) {
	forKEMs(t, func(t *testing.T, key one) {
		q1, request, answer1 := exchange(t, key)
		q2, _, answer2 := exchange(t, key)
		for i, x := range []struct {
			q      *Request
			answer []byte
		}{{q1, answer2}, {q2, answer1}} {
			if got, err := readAnswer(x.q, x.answer); err != ErrDecryption || len(got) > 0 {
				t.Errorf("%d: %q, %v", i, got, err)
			}
		}
		// A request for one key does not open with another one, also if it has the same id.
		if _, got, err := openRequest(request, newKey(t, key.config.id,
			key.config.kem.id)); err != ErrDecryption || len(got) > 0 {
			t.Errorf("another key: %q, %v", got, err)
		}
	})
}

// chunksOf splits an answer into its nonce and its chunks with their lengths. All are shorter than
// 48 bytes.
func chunksOf(answer []byte) (nonce []byte, chunks [][]byte) {
	nonce, answer = answer[:32], answer[32:]
	for answer[0] != 0 {
		n := int(answer[0]) + 1
		chunks, answer = append(chunks, answer[:n]), answer[n:]
	}
	return nonce, append(chunks, answer)
}

func TestRearranged(t *testing.T) {
	key := newKey(t, 1, X25519)
	q, _, answer := exchange(t, key)
	nonce, c := chunksOf(answer)
	if len(c) != 3 {
		t.Fatal(len(c))
	}
	asFinal := func(chunk []byte) []byte { return append([]byte{0}, chunk[1:]...) }
	asOther := append([]byte{byte(len(c[2]) - 1)}, c[2][1:]...)
	for name, chunks := range map[string][][]byte{
		"reordered":                    {c[1], c[0], c[2]},
		"duplicated":                   {c[0], c[0], c[1], c[2]},
		"first dropped":                {c[1], c[2]},
		"middle dropped":               {c[0], c[2]},
		"final dropped":                {c[0], c[1]},
		"only the final":               {c[2]},
		"another as final":             {c[0], asFinal(c[1])},
		"final as another, then final": {c[0], c[1], asOther, c[2]},
		"final as another":             {c[0], c[1], asOther},
		"bytes after the final":        {c[0], c[1], c[2], {0}},
		"final twice":                  {c[0], c[1], c[2], c[2]},
		"no chunk":                     {},
		"an empty final":               {c[0], c[1], {0}},
	} {
		got, err := readAnswer(q, bytes.Join(append([][]byte{nonce}, chunks...), nil))
		if err != ErrDecryption && err != ErrTruncated {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// The lengths' form is not authenticated: other forms of the same number are the same message.
	longer := append([]byte{0x40, c[0][0]}, c[0][1:]...)
	if got, err := readAnswer(q, bytes.Join([][]byte{nonce, longer, c[1],
		{0xc0, 0, 0, 0, 0, 0, 0, 0}, c[2][1:]}, nil)); err != nil ||
		string(got) != "the answer to it" {
		t.Errorf("longer lengths: %q, %v", got, err)
	}
}

func TestSizes(t *testing.T) {
	key := newKey(t, 1, X25519)
	q, _, answer := exchange(t, key)
	nonce := answer[:32]
	for name, x := range map[string]struct {
		chunk []byte
		want  error
	}{
		"2^62-1 bytes":        {bytes.Repeat([]byte{0xff}, 8), ErrTooLarge},
		"one byte too many":   {[]byte{0x80, 0, 0x40, 0x11}, ErrTooLarge},
		"all that is allowed": {[]byte{0x80, 0, 0x40, 0x10}, ErrTruncated},
		"empty":               {append([]byte{16}, make([]byte, 16)...), ErrEmptyChunk},
		"less than a tag":     {[]byte{15}, ErrEmptyChunk},
		"a long final one":    {make([]byte, 1+MaxChunk+tagSize+1), ErrTooLarge},
		"a full final one":    {make([]byte, 1+MaxChunk+tagSize), ErrDecryption},
	} {
		sealed := append(bytes.Clone(nonce), x.chunk...)
		src := &askedFor{Reader: bytes.NewReader(sealed)}
		r, err := again(q).Response(src, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Read(make([]byte, 1))
		if err != x.want {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
		if x.want == ErrTooLarge && len(x.chunk) <= 8 && src.most > firstRead {
			t.Errorf("%s: %d bytes allocated for it", name, src.most)
		}
		if _, again := r.Read(make([]byte, 1)); again != err {
			t.Errorf("%s: then %v", name, again)
		}
	}
	// A reader that accepts larger chunks gets them.
	big := make([]byte, 3*MaxChunk)
	sealed, _ := seal(t, key.config, nil)
	x, err := Open(bytes.NewReader(sealed), key, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAnswer(aes256, x.secret, x.head[headerLen:], nonce)
	if err != nil {
		t.Fatal(err)
	}
	left := uint64(9)
	out, err := appendChunk(bytes.Clone(nonce), big, false, a.seal, &left)
	if err != nil {
		t.Fatal(err)
	}
	out, _ = appendChunk(out, big, true, a.seal, &left)
	for max, want := range map[int]error{3 * MaxChunk: nil, 3*MaxChunk - 1: ErrTooLarge} {
		q := &Request{config: key.config, head: x.head}
		y, err := Open(bytes.NewReader(sealed), key, 0)
		if err != nil {
			t.Fatal(err)
		}
		q.secret = y.secret
		r, _ := q.Response(bytes.NewReader(out), max)
		if got, err := io.ReadAll(r); err != want || err == nil && len(got) != 6*MaxChunk {
			t.Errorf("at most %d bytes a chunk: %d bytes, %v", max, len(got), err)
		}
	}
}

// TestTooManyChunks runs the counters out, which a message would do after 2^32 chunks.
func TestTooManyChunks(t *testing.T) {
	key := newKey(t, 1, X25519)
	sealed, q := seal(t, key.config, []byte("q"))
	x, _, err := openRequest(sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := x.Response(&b)
	if err != nil {
		t.Fatal(err)
	}
	w.left = 2
	for i, want := range []error{nil, nil, ErrTooMany, ErrTooMany} {
		io.WriteString(w, "x")
		if err := w.Flush(); err != want {
			t.Errorf("chunk %d: %v, want %v", i, err, want)
		}
	}
	if err := w.Finish(); err != ErrTooMany {
		t.Errorf("final: %v", err)
	}
	r, _ := q.Response(&b, 0)
	r.left = 1
	if got, err := io.ReadAll(r); err != ErrTooMany || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestUsedOnce(t *testing.T) {
	key := newKey(t, 1, X25519)
	sealed, q := seal(t, key.config, []byte("q"))
	if _, err := q.Seal(nil, nil); err != ErrUsed {
		t.Errorf("Seal twice: %v", err)
	}
	if _, err := q.Writer(io.Discard); err != ErrUsed {
		t.Errorf("Writer after Seal: %v", err)
	}
	x, _, err := openRequest(sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	w, err := x.Response(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Response(io.Discard); err != ErrUsed {
		t.Errorf("Response twice: %v", err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != ErrUsed {
		t.Errorf("Write after Finish: %v", err)
	}
	for name, f := range map[string]func() error{"Flush": w.Flush, "Finish": w.Finish} {
		if err := f(); err != ErrUsed {
			t.Errorf("%s after Finish: %v", name, err)
		}
	}
	if _, err := q.Response(bytes.NewReader(nil), 0); err != nil {
		t.Error(err)
	}
	if _, err := q.Response(bytes.NewReader(nil), 0); err != ErrUsed {
		t.Errorf("client's Response twice: %v", err)
	}
	_, q = seal(t, key.config, nil)
	q.Close()
	if _, err := q.Response(bytes.NewReader(nil), 0); err != ErrUsed {
		t.Errorf("client's Response after Close: %v", err)
	}
	x, err = Open(bytes.NewReader(sealed), key, 0)
	if err != nil {
		t.Fatal(err)
	}
	x.Close()
	if _, err := x.Request().Read(make([]byte, 1)); err != ErrUsed {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := x.Response(io.Discard); err != ErrUsed {
		t.Errorf("Response after Close: %v", err)
	}
}

// askedFor notes the most bytes that a Read had room for.
type askedFor struct {
	io.Reader
	most int
}

func (a *askedFor) Read(p []byte) (int, error) {
	a.most = max(a.most, len(p))
	return a.Reader.Read(p)
}
