// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestCappedReader(t *testing.T) {
	const size = 1000
	data := bytes.Repeat([]byte("x"), size)
	readers := map[string]func(io.Reader) io.Reader{
		"plain": func(r io.Reader) io.Reader {
			return r
		}, "one byte": iotest.OneByteReader, "half": iotest.HalfReader,
		"EOF with data": iotest.DataErrReader,
	}
	for name, wrap := range readers {
		for limit := int64(size - 2); limit <= size+2; limit++ {
			got, err := ReadAll(Capped(wrap(bytes.NewReader(data)), limit), -1)
			if limit >= size && (err != nil || !bytes.Equal(got, data)) {
				t.Errorf("%s, limit %d: %d bytes, %v", name, limit, len(got), err)
			}
			if limit < size && (!errors.Is(err, fault.ErrTooLarge) || int64(len(got)) != limit) {
				t.Errorf("%s, limit %d: %d bytes, %v", name, limit, len(got), err)
			}
		}
	}
	broken := errors.New("broken")
	got, err := ReadAll(Capped(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)),
		size), size)
	if err != broken || len(got) != size {
		t.Errorf("an error at the limit: %d bytes, %v", len(got), err)
	}
	if got, err := ReadAll(Capped(strings.NewReader(""), 0), 0); err != nil || len(got) != 0 {
		t.Errorf("limit 0: %q, %v", got, err)
	}
	if _, err := ReadAll(Capped(strings.NewReader("x"), 0), 0); !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("limit 0, one byte: %v", err)
	}
}

// A peer's promise of a size reserves no memory worth mentioning.
func TestReadAllBelievesNobody(t *testing.T) {
	got, err := ReadAll(strings.NewReader("short"), 1<<40)
	if err != nil || string(got) != "short" || cap(got) > 2<<20 {
		t.Errorf("%q, cap %d, %v", got, cap(got), err)
	}
	for _, size := range []int64{-1 << 62, -1, 0, 1, 4, 5, 6} {
		if got, err := ReadAll(strings.NewReader("short"), size); err != nil ||
			string(got) != "short" {
			t.Errorf("size %d: %q, %v", size, got, err)
		}
	}
}

func FuzzReadAll(f *testing.F) {
	f.Add([]byte("hello"), int64(5), int64(5), byte(0))
	f.Add(bytes.Repeat([]byte("x"), 2000), int64(-1), int64(512), byte(1))
	f.Add([]byte{}, int64(1<<40), int64(0), byte(2))
	f.Fuzz(func(t *testing.T, data []byte, size, limit int64, how byte) {
		limit = max(limit, 0)
		var r io.Reader = bytes.NewReader(data)
		switch how % 4 {
		case 1:
			r = iotest.OneByteReader(r)
		case 2:
			r = iotest.HalfReader(r)
		case 3:
			r = iotest.DataErrReader(r)
		}
		got, err := ReadAll(Capped(r, limit), size)
		if want := data[:min(int64(len(data)), limit)]; !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, limit %d", len(got), len(data), limit)
		}
		if tooLarge := int64(len(data)) > limit; errors.Is(err, fault.ErrTooLarge) != tooLarge ||
			(err == nil) == tooLarge {
			t.Fatalf("%d bytes, limit %d: %v", len(data), limit, err)
		}
	})
}

func zipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func answered(status int, body []byte, encoding string, length int64) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Encoding": {encoding}},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: length,
	}
}

func TestReadBodyEncodings(t *testing.T) {
	data := bytes.Repeat([]byte("some text, "), 500)
	packed := zipped(t, data)
	const limit = 1 << 20
	for _, c := range []struct {
		name, encoding string
		body           []byte
		ok             bool
	}{
		{"none", "", data, true}, {"identity", "identity", data, true},
		{"case", " GZip ", packed, true}, {"x-gzip", "x-gzip", packed, true},
		{"not gzip", "gzip", data, false}, {"empty", "gzip", nil, false},
		{"cut in the head", "gzip", packed[:5], false},
		{"cut in the middle", "gzip", packed[:len(packed)/2], false},
		{"cut in the trailer", "gzip", packed[:len(packed)-1], false},
		{"trailing garbage", "gzip", append(bytes.Clone(packed), "garbage"...), false},
		{"trailing zeros", "gzip", append(bytes.Clone(packed), 0, 0, 0, 0), false},
		{"bad checksum", "gzip", append(bytes.Clone(packed[:len(packed)-8]), 1, 2, 3, 4,
			packed[len(packed)-4], packed[len(packed)-3], 0, 0), false},
		{"br", "br", data, false}, {"deflate", "deflate", data, false},
		{"zstd", "zstd", data, false}, {"twice", "gzip, gzip", packed, false},
		{"list", "identity, gzip", packed, false},
	} {
		for _, length := range []int64{int64(len(c.body)), -1} {
			got, err := readBody(answered(200, c.body, c.encoding, length), limit)
			if c.ok && (err != nil || !bytes.Equal(got, data)) ||
				!c.ok && (err == nil || errors.Is(err, fault.ErrTooLarge)) {
				t.Errorf("%s, length %d: %d bytes, %v", c.name, length, len(got), err)
			}
			_, err = Exchange(roundTrip(func(*http.Request) (*http.Response, error) {
				return answered(200, c.body, c.encoding, length), nil
			}), httptest.NewRequest(http.MethodGet, "https://h/", nil), limit)
			if (err == nil) != c.ok || !c.ok && !errors.Is(err, fault.ErrConnection) {
				t.Errorf("%s: the exchange says %v", c.name, err)
			}
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// The cap holds before and after decompression.
func TestReadBodyLimits(t *testing.T) {
	bomb := zipped(t, make([]byte, 32<<20))
	start := testkit.CPUTime()
	got, err := readBody(answered(200, bomb, "gzip", int64(len(bomb))), 1<<20)
	if !errors.Is(err, fault.ErrTooLarge) || len(got) != 1<<20 || cap(got) > 4<<20 {
		t.Errorf("a bomb: %d bytes, cap %d, %v", len(got), cap(got), err)
	}
	if d := testkit.CPUTime() - start; d > 5*time.Second {
		t.Errorf("a bomb takes %v of CPU", d)
	}
	for d, want := range map[int64]error{-1: fault.ErrTooLarge, 0: nil, 1: nil} {
		const size = 100_000
		r := answered(200, zipped(t, make([]byte, size)), "gzip", -1)
		if got, err := readBody(r, size+d); !errors.Is(err, want) ||
			want == nil && len(got) != size {
			t.Errorf("limit %+d: %d bytes, %v", d, len(got), err)
		}
	}
	// Compressed it may not be larger either, although little comes out: many empty members.
	empty := bytes.Repeat(zipped(t, nil), 1000)
	for _, length := range []int64{int64(len(empty)), -1} {
		r := answered(200, empty, "gzip", length)
		if _, err := readBody(r, int64(len(empty)-1)); !errors.Is(err, fault.ErrTooLarge) {
			t.Errorf("compressed size over the limit: %v", err)
		}
	}
}
