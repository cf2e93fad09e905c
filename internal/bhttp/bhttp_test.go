// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// str is a length-prefixed string, section a field section of known length.
func str(s string) string { return string(AppendVarint(nil, uint64(len(s)))) + s }

func section(namesAndValues ...string) string {
	lines := ""
	for _, s := range namesAndValues {
		lines += str(s)
	}
	return str(lines)
}

func get(path string) string {
	return "\x00" + str("GET") + str("https") + str("a.example") + str(path)
}

func TestInvalid(t *testing.T) {
	control := func(method, scheme, authority, path string) string {
		return "\x00" + str(method) + str(scheme) + str(authority) + str(path)
	}
	header := func(namesAndValues ...string) string { return get("/") + section(namesAndValues...) }
	const ok = "\x01\x40\xc8"
	for name, x := range map[string]struct{ part, text string }{
		"a response for a request":       {"framing", "\x01\x40\xc8"},
		"framing 4":                      {"framing", "\x04" + get("/")[1:]},
		"no method":                      {"method", control("", "https", "a", "/")},
		"a method with a space":          {"method", control("GET ", "https", "a", "/")},
		"a method with a line break":     {"method", control("GET\n", "https", "a", "/")},
		"CONNECT":                        {"method", control("CONNECT", "https", "a", "/")},
		"no scheme":                      {"scheme", control("GET", "", "a", "/")},
		"a scheme in upper case":         {"scheme", control("GET", "HTTPS", "a", "/")},
		"a scheme with a colon":          {"scheme", control("GET", "https:", "a", "/")},
		"an authority with a user":       {"authority", control("GET", "https", "u@a", "/")},
		"an authority with a path":       {"authority", control("GET", "https", "a/b", "/")},
		"an authority with NUL":          {"authority", control("GET", "https", "a\x00", "/")},
		"an authority that is not ASCII": {"authority", control("GET", "https", "ä", "/")},
		"no path":                        {"path", control("GET", "https", "a", "")},
		"a relative path":                {"path", control("GET", "https", "a", "b")},
		"a whole URL":                    {"path", control("GET", "https", "a", "https://a/")},
		"a path with a space":            {"path", control("GET", "https", "a", "/ HTTP/1.1")},
		"a path with CR LF":              {"path", control("GET", "https", "a", "/\r\nx: y")},
		"a path with a fragment":         {"path", control("GET", "https", "a", "/#b")},
		"a star without OPTIONS":         {"path", control("GET", "https", "a", "*")},
		"an empty name":                  {"field name", header("", "v")},
		"an upper-case name":             {"field name", header("Accept", "v")},
		"a name with a space":            {"field name", header("a b", "v")},
		"a name with a colon":            {"field name", header("a:b", "v")},
		"a pseudo-field":                 {"field name", header(":path", "/")},
		"an unknown pseudo-field":        {"field name", header(":x", "/")},
		"a name with a line break":       {"field name", header("a\r\nb", "v")},
		"a name that is not ASCII":       {"field name", header("ä", "v")},
		"connection":                     {"field name", header("connection", "close")},
		"proxy-connection":               {"field name", header("proxy-connection", "close")},
		"keep-alive":                     {"field name", header("keep-alive", "1")},
		"transfer-encoding":              {"field name", header("transfer-encoding", "chunked")},
		"upgrade":                        {"field name", header("upgrade", "h2c")},
		"te":                             {"te", header("te", "gzip")},
		"a value with CR":                {"field value", header("a", "b\rc")},
		"a value with LF":                {"field value", header("a", "b\nc")},
		"a value with NUL":               {"field value", header("a", "b\x00c")},
		"a value with DEL":               {"field value", header("a", "b\x7fc")},
		"a value after a space":          {"field value", header("a", " b")},
		"a value before a tab":           {"field value", header("a", "b\t")},
		"two hosts": {"host",
			header("host", "a.example", "host", "a.example")},
		"another host than the authority": {"host", header("host", "b.example")},
		"a host with a user": {"host",
			control("GET", "https", "", "/") + section("host", "u@b")},
		"a length that is none": {"content-length", header("content-length", "x")},
		"a negative length":     {"content-length", header("content-length", "-1")},
		"a length with a sign":  {"content-length", header("content-length", "+0")},
		"an empty length":       {"content-length", header("content-length", "")},
		"a length of 2^62": {"content-length",
			header("content-length", "4611686018427387904")},
		"two lengths": {"content-length",
			header("content-length", "0", "content-length", "0")},
		"a length without content": {"content-length", header("content-length", "1")},
		"a length of less":         {"content-length", header("content-length", "1") + str("ab")},
		"a length of more": {"content-length",
			header("content-length", "3") + str("ab") + "\x00"},
		"a name beyond the section":         {"field section", get("/") + str("\x05a")},
		"a value beyond the section":        {"field section", get("/") + str("\x01a\x05b")},
		"a length cut by the section's end": {"field section", get("/") + "\x03\x01a\x40\x00\x00"},
		"padding that is not zero":          {"padding", header() + "\x00\x00\x00\x00\x01"},
		"a second message":                  {"padding", header() + "\x00\x00" + ok},
		"a trailer with an upper-case name": {"field name", header() + "\x00" + section("A", "b")},
		"a trailer with a pseudo-field": {"field name",
			header() + "\x00" + section(":status", "200")},
		"a length in the trailer": {"trailer", header() + "\x00" + section("content-length", "0")},
		"a host in the trailer":   {"trailer", header() + "\x00" + section("host", "a.example")},
		"an empty name, indeterminate trailer": {"field name",
			"\x02" + get("/")[1:] + "\x00\x00\x01\x20\x00\x00"},
		"R a request for a response": {"framing", get("/")},
		"R status 99":                {"status", "\x01\x40\x63"},
		"R status 600":               {"status", "\x01\x42\x58"},
		"R status 0":                 {"status", "\x01\x00"},
		"R status 101":               {"status", "\x01\x40\x65\x00" + ok[1:]},
		"R an informational with a bad field": {"field name",
			"\x01\x40\x66" + section("A", "b") + ok[1:]},
		"R a bad field": {"field name", ok + section("A", "b")},
		"R content of another length": {"content-length",
			ok + section("content-length", "1") + str("ab")},
		"R content of another length, in parts": {"content-length",
			"\x03\x40\xc8" + str("content-length") + str("3") + "\x00" + str("a") + str("b") +
				"\x00\x00"},
	} {
		_, err := decode([]byte(x.text), strings.HasPrefix(name, "R "), Limits{})
		var f *FormatError
		if !errors.As(err, &f) || f.Part != x.part {
			t.Errorf("%s: %v, want a *FormatError about %s", name, err, x.part)
		}
	}
	for name, text := range map[string]string{
		"OPTIONS *":                 control("OPTIONS", "https", "a", "*"),
		"te: trailers":              header("te", "trailers"),
		"the same host":             header("host", "A.example"),
		"an empty value":            header("a", ""),
		"a value that is not ASCII": header("a", "ä"),
		"a tab inside":              header("a", "b\tc"),
		"the right length":          header("content-length", "2") + str("ab"),
		"R HEAD's length":           ok + section("content-length", "51"),
		"R a length of no content":  ok + section("content-length", "0"),
		"longer forms of all numbers": "\x40\x00\x40\x03GET\x80\x00\x00\x05https" +
			"\xc0\x00\x00\x00\x00\x00\x00\x01a\x01/\x40\x00\x40\x00\x40\x00",
	} {
		if _, err := decode([]byte(text), strings.HasPrefix(name, "R "), Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEncodeRefuses encodes messages that the decoder refuses.
func TestEncodeRefuses(t *testing.T) {
	good := Request{"POST", "https", "a", "/", nil}
	for name, m := range map[string]message{
		"method":      {q: &Request{"A B", "https", "a", "/", nil}},
		"path":        {q: &Request{"GET", "https", "a", "/\n", nil}},
		"field name":  {q: &Request{"GET", "https", "a", "/", []Field{{"A", "b"}}}},
		"field value": {q: &Request{"GET", "https", "a", "/", []Field{{"a", "b\r\nc: d"}}}},
		"content-length": {p: &Response{nil, 200, []Field{{"content-length", "1"}}},
			content: []byte("ab")},
		"trailer": {q: &good, trailer: []Field{{"host", "a"}}},
		"te":      {p: &Response{nil, 200, []Field{{"te", "x"}}}},
		"status":  {p: &Response{nil, 600, nil}},
	} {
		_, known := m.known(0)
		_, indeterminate := m.indeterminate(1, 0)
		for _, err := range []error{known, indeterminate} {
			var f *FormatError
			if !errors.As(err, &f) || f.Part != name {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// Without content, a length is wrong in a request; a response may be the answer to HEAD.
	m := message{q: &Request{"GET", "https", "a", "/", []Field{{"content-length", "1"}}}}
	if _, err := m.known(0); err == nil {
		t.Error("a request with a length and no content was encoded")
	}
	for _, i := range []Informational{{101, nil}, {200, nil}, {99, nil},
		{103, []Field{{"A", ""}}}} {
		m := message{p: &Response{[]Informational{i}, 200, nil}}
		if _, err := m.known(0); err == nil {
			t.Errorf("%v was encoded", i)
		}
		if _, err := m.indeterminate(1, 0); err == nil {
			t.Errorf("%v was encoded", i)
		}
	}
}

func TestLimits(t *testing.T) {
	huge := strings.Repeat("\xff", 8) // 2^62-1
	fields := func(n int) string {
		return section(strings.Split(strings.Repeat("a,b,", n), ",")[:2*n]...)
	}
	limits := Limits{Head: 100, Fields: 5, Content: 10, Padding: 4}
	for name, x := range map[string]struct {
		text string
		want error
	}{
		"a method of 2^62 bytes":  {"\x00" + huge, ErrTooLarge},
		"a header of 2^62 bytes":  {get("/") + huge, ErrTooLarge},
		"a name of 2^62 bytes":    {"\x02" + get("/")[1:] + huge, ErrTooLarge},
		"a value of 2^62 bytes":   {"\x02" + get("/")[1:] + str("a") + huge, ErrTooLarge},
		"content of 2^62 bytes":   {get("/") + "\x00" + huge, ErrTooLarge},
		"a piece of 2^62 bytes":   {"\x02" + get("/")[1:] + "\x00" + huge, ErrTooLarge},
		"a trailer of 2^62 bytes": {get("/") + "\x00\x00" + huge, ErrTooLarge},
		"a long path":             {get("/" + strings.Repeat("a", 100)), ErrTooLarge},
		"a long header":           {get("/") + section("a", strings.Repeat("b", 79)), ErrTooLarge},
		"a header that fits":      {get("/") + section("a", strings.Repeat("b", 78)), nil},
		"a header and a trailer": {get("/") + section("a", strings.Repeat("b", 40)) + "\x00" +
			section("a", strings.Repeat("b", 41)), ErrTooLarge},
		"6 fields":                {get("/") + fields(6), ErrTooLarge},
		"5 fields":                {get("/") + fields(5), nil},
		"3 fields and 3 trailers": {get("/") + fields(3) + "\x00" + fields(3), ErrTooLarge},
		"11 bytes of content":     {get("/") + "\x00" + str("01234567890"), ErrTooLarge},
		"10 bytes of content":     {get("/") + "\x00" + str("0123456789"), nil},
		"11 bytes in two pieces": {"\x02" + get("/")[1:] + "\x00" + str("012345") +
			str("67890") + "\x00\x00", ErrTooLarge},
		"10 bytes in two pieces": {"\x02" + get("/")[1:] + "\x00" + str("01234") +
			str("56789") + "\x00\x00", nil},
		"5 bytes of padding": {get("/") + "\x00\x00\x00" + "\x00\x00\x00\x00\x00", ErrTooLarge},
		"4 bytes of padding": {get("/") + "\x00\x00\x00" + "\x00\x00\x00\x00", nil},
		"R 6 informational responses": {"\x01" + strings.Repeat("\x40\x66\x00", 6) + "\x40\xc8",
			ErrTooLarge},
		"R 5 informational responses": {"\x01" + strings.Repeat("\x40\x66\x00", 5) + "\x40\xc8",
			nil},
		"R an endless line of them": {"\x03" + strings.Repeat("\x40\x66\x00", 1000), ErrTooLarge},
	} {
		m, err := decode([]byte(x.text), strings.HasPrefix(name, "R "), limits)
		if err != x.want {
			t.Errorf("%s: %+v, %v, want %v", name, m, err, x.want)
		}
	}
	// The reader does not allocate what a message states: memory follows what has arrived. This
	// one states 64 MiB, of which 600 bytes arrive.
	text := get("/") + "\x00\x84\x00\x00\x00" + strings.Repeat("a", 600)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := decode([]byte(text), false, Limits{}); err != ErrTruncated {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 100<<10 {
		t.Errorf("%d bytes are allocated for 600 bytes of content", n)
	}
}

// TestTruncated cuts messages with a body of each form at every byte.
func TestTruncated(t *testing.T) {
	for _, m := range []message{
		{q: &Request{"POST", "https", "a", "/x", []Field{{"a", "b"}}}, content: []byte("content"),
			trailer: []Field{{"t", "u"}}},
		{p: &Response{[]Informational{{103, []Field{{"l", "m"}}}}, 200, []Field{{"a", "b"}}},
			content: []byte("content"), trailer: []Field{{"t", "u"}}},
	} {
		known, err := m.known(0)
		if err != nil {
			t.Fatal(err)
		}
		indeterminate, err := m.indeterminate(3, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{known, indeterminate} {
			whole := 0
			for n := range len(b) {
				got, err := decode(b[:n], m.p != nil, Limits{})
				if err == nil {
					whole++ // before the header, the content or the trailer
					if len(got.trailer) > 0 ||
						len(got.content) != 0 && !bytes.Equal(got.content, m.content) {
						t.Errorf("cut to %d of %d bytes: %+v", n, len(b), got)
					}
				} else if err != ErrTruncated {
					t.Errorf("cut to %d of %d bytes: %v", n, len(b), err)
				}
			}
			if whole != 3 {
				t.Errorf("%d beginnings of the message are messages, want 3", whole)
			}
		}
	}
}

func TestBothForms(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 5000)
	for _, pad := range []int{0, 1, 7, 256, 4096} {
		for _, m := range []message{
			{q: &Request{"POST", "https", "a", "/x?y=z", []Field{{"a", "b"}, {"a", ""}}},
				content: content, trailer: []Field{{"t", "u"}}},
			{p: &Response{[]Informational{{103, nil}}, 599, []Field{{"content-length", "50000"}}},
				content: content},
			{p: &Response{nil, 204, nil}},
		} {
			for _, pieces := range []int{0, 1, 3, 1000} {
				b, err := m.known(pad)
				if pieces > 0 {
					b, err = m.indeterminate(pieces, pad)
				}
				if err != nil {
					t.Fatal(err)
				}
				bare, _ := m.known(0)
				if pieces > 0 {
					bare, _ = m.indeterminate(pieces, 0)
				}
				if pad > 0 && (len(b)%pad != 0 || len(b)-len(bare) >= pad) {
					t.Errorf("%d bytes are padded to %d, for a multiple of %d", len(bare), len(b),
						pad)
				}
				if got, err := decode(b, m.p != nil, Limits{}); err != nil || !got.equal(m) {
					t.Errorf("pad %d, %d pieces: %v", pad, pieces, err)
				}
			}
		}
	}
}

// pipe is a Source of what is written to it. It blocks like a connection.
type pipe struct{ *io.PipeReader }

func (p pipe) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(p, b[:])
	return b[0], err
}

// TestAsItComes reads each piece before the next one is written.
func TestAsItComes(t *testing.T) {
	pr, pw := io.Pipe()
	var e Encoder
	head, err := e.ResponseHead(nil, 200, nil)
	if err != nil {
		t.Fatal(err)
	}
	go pw.Write(head)
	p, body, err := ReadResponse(pipe{pr}, Limits{})
	if err != nil || p.Status != 200 {
		t.Fatal(p, err)
	}
	buf := make([]byte, 100)
	for _, piece := range []string{"one", "two", "three"} {
		b := e.Content(nil, []byte(piece))
		go pw.Write(b)
		n, err := body.Read(buf)
		if err != nil || string(buf[:n]) != piece {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	end, err := e.End(nil, []Field{{"t", "u"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() { pw.Write(end); pw.Close() }()
	if n, err := body.Read(buf); n != 0 || err != io.EOF || len(body.Trailer()) != 1 {
		t.Fatal(n, err, body.Trailer())
	}
	if _, err := body.Read(buf); err != io.EOF {
		t.Error(err)
	}
}

// brokenSource gives b, and then an error of its own.
type brokenSource struct{ *bytes.Reader }

var errBroken = errors.New("the line is broken")

func (s brokenSource) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err == io.EOF {
		err = errBroken
	}
	return n, err
}

func (s brokenSource) ReadByte() (byte, error) {
	b, err := s.Reader.ReadByte()
	if err == io.EOF {
		err = errBroken
	}
	return b, err
}

// TestBrokenSource breaks off where a message could end: only io.EOF is its end.
func TestBrokenSource(t *testing.T) {
	text := get("/") + section("a", "b") + str("content") + section("t", "u")
	for n := range len(text) + 1 {
		_, body, err := ReadRequest(brokenSource{bytes.NewReader([]byte(text[:n]))}, Limits{})
		if err == nil {
			_, err = body.ReadAll()
		}
		if !errors.Is(err, ErrTruncated) || !errors.Is(err, errBroken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestSmallReads(t *testing.T) {
	text := "\x02" + get("/")[1:] + "\x00" + str("one") + str("two") + "\x00\x00\x00\x00"
	_, body, err := ReadRequest(bytes.NewReader([]byte(text)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := body.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	if err := iotest.TestReader(body, []byte("onetwo")); err != nil {
		t.Error(err)
	}
}

func TestVarint(t *testing.T) {
	for _, v := range []uint64{0, 63, 64, 16383, 16384, 1<<30 - 1, 1 << 30, 1<<62 - 1} {
		b := AppendVarint(nil, v)
		got, size, err := ReadVarint(bytes.NewReader(b))
		if got != v || size != len(b) || err != nil {
			t.Errorf("%d: %d, %d bytes, %v", v, got, size, err)
		}
		for n := range len(b) {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, _, err := ReadVarint(bytes.NewReader(b[:n])); err != want {
				t.Errorf("%d cut to %d bytes: %v", v, n, err)
			}
		}
	}
	for text, want := range map[string]uint64{
		"\xc2\x19\x7c\x5e\xff\x14\xe8\x8c": 151288809941952652, "\x9d\x7f\x3e\x7d": 494878333,
		"\x7b\xbd": 15293, "\x25": 37, "\x40\x25": 37} {
		// RFC 9000, appendix A.1
		if got, _, err := ReadVarint(strings.NewReader(text)); got != want || err != nil {
			t.Errorf("%x: %d, %v", text, got, err)
		}
	}
}

func TestEncoderOrder(t *testing.T) {
	for name, f := range map[string]func(e *Encoder){
		"content first": func(e *Encoder) { e.Content(nil, []byte("x")) },
		"end first":     func(e *Encoder) { e.End(nil, nil, 0) },
		"two heads": func(e *Encoder) {
			e.ResponseHead(nil, 200, nil)
			e.ResponseHead(nil, 200, nil)
		},
		"head after end": func(e *Encoder) {
			e.ResponseHead(nil, 200, nil)
			e.End(nil, nil, 0)
			e.ResponseHead(nil, 200, nil)
		},
		"informational after the head": func(e *Encoder) {
			e.ResponseHead(nil, 200, nil)
			e.Informational(nil, 103, nil)
		},
		"content before the final head": func(e *Encoder) {
			e.Informational(nil, 103, nil)
			e.Content(nil, []byte("x"))
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(&Encoder{})
		}()
	}
}
