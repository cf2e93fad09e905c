// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
)

func TestParseBaseURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://h":                       "https://h",
		"HTTPS://h":                       "https://h",
		"https://h/":                      "https://h",
		"https://h///":                    "https://h",
		"https://h/a/b":                   "https://h/a/b",
		"https://h/a/b//":                 "https://h/a/b",
		"https://h/a/./b/../c":            "https://h/a/c",
		"https://h/../..":                 "https://h",
		"https://h:8443/x":                "https://h:8443/x",
		"https://h:1":                     "https://h:1",
		"https://h:65535":                 "https://h:65535",
		"https://[::1]:443/p":             "https://[::1]:443/p",
		"https://[fe80::1%25eth0]/":       "https://[fe80::1%25eth0]",
		"https://192.0.2.1":               "https://192.0.2.1",
		"https://h/a%23b":                 "https://h/a%23b",
		"https://h/a%3Fb":                 "https://h/a%3Fb",
		"http://127.0.0.1:1":              "http://127.0.0.1:1",
		"http://localhost/x/":             "http://localhost/x",
		"https://api.example.com/v1%2Fx/": "https://api.example.com/v1%2Fx",
		"https://api.example.com/%2F(%2F": "https://api.example.com/%2F(%2F",
	} {
		u, err := parseBaseURL(text, true)
		if err != nil || u.String() != want {
			t.Errorf("%q: %v, %v; want %q", text, u, err, want)
		}
		if u, err := parseBaseURL(text, false); strings.HasPrefix(want, "http:") && !errors.Is(err, ErrInsecureURL) {
			t.Errorf("%q: %v, %v", text, u, err)
		}
	}
}

func TestParseBaseURLRefuses(t *testing.T) {
	insecure := []string{
		"", "h", "h/path", "//h", "/path", "ftp://h", "ws://h", "wss://h", "httpss://h", "file:///etc/passwd", "localhost:8080",
		"javascript:alert(1)", "data:text/plain,x", "unix:///x",
	}
	malformed := []string{
		"https://", "https:///path", "https:h", "https:/h", "https://:443", "https://?", "https://u@h", "https://u:marker@h", "https://@h",
		"https://:@h", "https://h?", "https://h/?", "https://h?marker=1", "https://h#", "https://h/#", "https://h/#f", "https://h/p#marker",
		"https://h:", "https://h:0", "https://h:00", "https://h:65536", "https://h:99999", "https://h:x", "https://h:-1", "https://h:+1",
		"https://h:1:2", "https://h\n", "https://h/\x00", "https://h/\x7f", "https://h\r\nX: y", " https://h", "https://h h", "https://[::1",
		"https://[::1]x", "https://[marker]:1", "https://h/%zz", "https://%zz", "127.0.0.1:80", ":", "https://h/%",
	}
	for _, text := range append(insecure, malformed...) {
		u, err := parseBaseURL(text, true)
		if err == nil {
			t.Errorf("%q is taken as %q", text, u)
			continue
		}
		if strings.Contains(err.Error(), "marker") || strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("%q: the error repeats it: %v", text, err)
		}
	}
	for _, text := range insecure {
		if _, err := parseBaseURL(text, true); !errors.Is(err, ErrInsecureURL) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseBaseURL(f *testing.F) {
	for _, s := range []string{"https://h/a/", "http://[::1]:80/../x", "https://u@h?q#f", "https://h/%2F/", "https://h:0", "HTTPS://H"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := parseBaseURL(text, false)
		if err != nil {
			return
		}
		if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" ||
			strings.HasSuffix(u.EscapedPath(), "/") {
			t.Fatalf("%q became %#v", text, u)
		}
		again, err := parseBaseURL(u.String(), false)
		if err != nil || again.String() != u.String() {
			t.Fatalf("%q became %q, and that %v, %v", text, u, again, err)
		}
		if _, err := http.NewRequest(http.MethodGet, u.String()+pathPublicKey, nil); err != nil {
			t.Fatalf("%q became %q: %v", text, u, err)
		}
	})
}

func TestDefaultTransport(t *testing.T) {
	a, b := DefaultTransport(), DefaultTransport()
	if a == b || a.TLSClientConfig == b.TLSClientConfig {
		t.Error("transports are shared")
	}
	if a.TLSClientConfig.MinVersion != tls.VersionTLS12 || a.TLSClientConfig.InsecureSkipVerify || !a.ForceAttemptHTTP2 || a.Proxy == nil ||
		!a.DisableCompression || a.MaxIdleConnsPerHost < 100 || a.IdleConnTimeout <= 0 || a.TLSHandshakeTimeout <= 0 || a.HTTP2 == nil ||
		a.HTTP2.SendPingTimeout <= 0 {
		t.Errorf("got %+v", a)
	}
}

func TestCappedReader(t *testing.T) {
	const size = 1000
	data := bytes.Repeat([]byte("x"), size)
	readers := map[string]func(io.Reader) io.Reader{
		"plain": func(r io.Reader) io.Reader { return r }, "one byte": iotest.OneByteReader, "half": iotest.HalfReader, "EOF with data": iotest.DataErrReader,
	}
	for name, wrap := range readers {
		for limit := int64(size - 2); limit <= size+2; limit++ {
			got, err := readAll(&cappedReader{r: wrap(bytes.NewReader(data)), left: limit, limit: limit}, -1)
			if limit >= size && (err != nil || !bytes.Equal(got, data)) {
				t.Errorf("%s, limit %d: %d bytes, %v", name, limit, len(got), err)
			}
			if limit < size && (!errors.Is(err, ErrTooLarge) || int64(len(got)) != limit) {
				t.Errorf("%s, limit %d: %d bytes, %v", name, limit, len(got), err)
			}
		}
	}
	broken := errors.New("broken")
	got, err := readAll(&cappedReader{r: io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), left: size, limit: size}, size)
	if err != broken || len(got) != size {
		t.Errorf("an error at the limit: %d bytes, %v", len(got), err)
	}
	if got, err := readAll(&cappedReader{r: strings.NewReader("")}, 0); err != nil || len(got) != 0 {
		t.Errorf("limit 0: %q, %v", got, err)
	}
	if _, err := readAll(&cappedReader{r: strings.NewReader("x")}, 0); !errors.Is(err, ErrTooLarge) {
		t.Errorf("limit 0, one byte: %v", err)
	}
}

// A peer's promise of a size reserves no memory worth mentioning.
func TestReadAllBelievesNobody(t *testing.T) {
	got, err := readAll(strings.NewReader("short"), 1<<40)
	if err != nil || string(got) != "short" || cap(got) > 2<<20 {
		t.Errorf("%q, cap %d, %v", got, cap(got), err)
	}
	for _, size := range []int64{-1 << 62, -1, 0, 1, 4, 5, 6} {
		if got, err := readAll(strings.NewReader("short"), size); err != nil || string(got) != "short" {
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
		got, err := readAll(&cappedReader{r: r, left: limit, limit: limit}, size)
		if want := data[:min(int64(len(data)), limit)]; !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, limit %d", len(got), len(data), limit)
		}
		if tooLarge := int64(len(data)) > limit; errors.Is(err, ErrTooLarge) != tooLarge || (err == nil) == tooLarge {
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

func TestReadBodyEncodings(t *testing.T) {
	data := bytes.Repeat([]byte("some text, "), 500)
	packed := zipped(t, data)
	const limit = 1 << 20
	for _, c := range []struct {
		name, encoding string
		body           []byte
		ok             bool
	}{
		{"none", "", data, true}, {"identity", "identity", data, true}, {"case", " GZip ", packed, true}, {"x-gzip", "x-gzip", packed, true},
		{"not gzip", "gzip", data, false}, {"empty", "gzip", nil, false}, {"cut in the head", "gzip", packed[:5], false},
		{"cut in the middle", "gzip", packed[:len(packed)/2], false}, {"cut in the trailer", "gzip", packed[:len(packed)-1], false},
		{"trailing garbage", "gzip", append(bytes.Clone(packed), "garbage"...), false},
		{"trailing zeros", "gzip", append(bytes.Clone(packed), 0, 0, 0, 0), false},
		{"bad checksum", "gzip", append(bytes.Clone(packed[:len(packed)-8]), 1, 2, 3, 4, packed[len(packed)-4], packed[len(packed)-3], 0, 0), false},
		{"br", "br", data, false}, {"deflate", "deflate", data, false}, {"zstd", "zstd", data, false}, {"twice", "gzip, gzip", packed, false},
		{"list", "identity, gzip", packed, false},
	} {
		for _, length := range []int64{int64(len(c.body)), -1} {
			r := respond(200, string(c.body), "Content-Encoding", c.encoding)
			r.ContentLength = length
			got, err := readBody(r, limit)
			if c.ok && (err != nil || !bytes.Equal(got, data)) || !c.ok && (err == nil || errors.Is(err, ErrTooLarge)) {
				t.Errorf("%s, length %d: %d bytes, %v", c.name, length, len(got), err)
			}
			s := newSealedServer(t)
			s.keyPEM = func() *http.Response {
				r := respond(200, string(c.body), "Content-Encoding", c.encoding)
				r.ContentLength = length
				return r
			}
			_, err = s.client(t, nil).ServerKey(t.Context())
			if want := map[bool]error{true: ErrPublicKey, false: ErrConnection}[c.ok]; !errors.Is(err, want) { // it is no key, but it was read
				t.Errorf("%s: the client says %v", c.name, err)
			}
		}
	}
}

// The cap holds before and after decompression.
func TestReadBodyLimits(t *testing.T) {
	bomb := zipped(t, make([]byte, 32<<20))
	start := time.Now()
	got, err := readBody(respond(200, string(bomb), "Content-Encoding", "gzip"), 1<<20)
	if !errors.Is(err, ErrTooLarge) || len(got) != 1<<20 || cap(got) > 4<<20 {
		t.Errorf("a bomb: %d bytes, cap %d, %v", len(got), cap(got), err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a bomb takes %v", d)
	}
	for d, want := range map[int64]error{-1: ErrTooLarge, 0: nil, 1: nil} {
		const size = 100_000
		r := respond(200, string(zipped(t, make([]byte, size))), "Content-Encoding", "gzip")
		r.ContentLength = -1
		if got, err := readBody(r, size+d); !errors.Is(err, want) || want == nil && len(got) != size {
			t.Errorf("limit %+d: %d bytes, %v", d, len(got), err)
		}
	}
	// Compressed it may not be larger either, although little comes out: many empty members.
	empty := bytes.Repeat(zipped(t, nil), 1000)
	for _, length := range []int64{int64(len(empty)), -1} {
		r := respond(200, string(empty), "Content-Encoding", "gzip")
		r.ContentLength = length
		if _, err := readBody(r, int64(len(empty)-1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("compressed size over the limit: %v", err)
		}
	}
	// Of an error's body the beginning is enough, and its length no error.
	s := newSealedServer(t)
	s.answer = func(*sealedQuestion) *http.Response {
		return respond(418, `plain words `+strings.Repeat("x", 10*maxErrorBody))
	}
	_, err = s.client(t, nil).Chat(t.Context(), ask("x"))
	if e, ok := errors.AsType[*APIError](err); !ok || e.StatusCode != 418 || !strings.HasPrefix(e.Detail, "plain words") {
		t.Errorf("a long error: %v", err)
	}
}

func TestValidAPIKey(t *testing.T) {
	for c := range 256 {
		err := validAPIKey([]byte{'k', byte(c), 'k'})
		if good := c > ' ' && c < 0x7f; (err == nil) != good || err != nil && !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("byte %#x: %v", c, err)
		}
		if c != 'k' && err != nil && strings.Contains(err.Error(), "k\\") {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	for n, ok := range map[int]bool{0: false, 1: true, 4096: true, 4097: false} {
		if err := validAPIKey(bytes.Repeat([]byte("k"), n)); (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestPercentEncode(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	got := percentEncode(all)
	plain := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
	for i, c := range all {
		want := string(c)
		if !strings.ContainsRune(plain, rune(c)) || c >= 0x80 {
			want = "%" + strings.ToUpper(string("0123456789abcdef"[i>>4])+string("0123456789abcdef"[i&15]))
		}
		if !strings.HasPrefix(got, want) {
			t.Fatalf("byte %#x: %.10q, want %q", i, got, want)
		}
		got = got[len(want):]
	}
	if got != "" {
		t.Errorf("left: %q", got)
	}
}

func TestNewUUID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newUUID()
		if !chatjson.IsUUID(id) || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("got %q", id)
		}
		seen[id] = true
	}
}

func TestSeenAnswers(t *testing.T) {
	var s seenAnswers
	id := func(i int) (b [32]byte) { b[0], b[1], b[2] = byte(i), byte(i>>8), byte(i>>16); return b }
	for i := range maxSeen {
		if !s.add(id(i)) || s.add(id(i)) {
			t.Fatalf("%d", i)
		}
	}
	if s.add(id(0)) || !s.add(id(maxSeen)) || len(s.set) != maxSeen || len(s.ring) != maxSeen {
		t.Error("the set is full: the oldest goes, and only that")
	}
	if !s.add(id(0)) || s.add(id(2)) || len(s.set) != maxSeen {
		t.Error("the oldest was not forgotten, or another was")
	}
}
