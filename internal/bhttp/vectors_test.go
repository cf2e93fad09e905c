// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"testing"
)

// vectors are the examples of RFC 9292 in testdata/vectors.json, which names their sources.
func vectors(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var in map[string]string
	if err := json.Unmarshal(text, &in); err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]byte)
	for _, name := range []string{"figure8", "figure9", "figure11", "figure13", "rfc9458request",
		"rfc9458response"} {
		if out[name], err = hex.DecodeString(in[name]); err != nil || len(out[name]) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return out
}

// message is a whole message, request or response.
type message struct {
	q       *Request
	p       *Response
	content []byte
	trailer []Field
}

func decode(b []byte, response bool, limits Limits) (message, error) {
	var m message
	var body *Body
	var err error
	src := bytes.NewReader(b)
	if response {
		m.p, body, err = ReadResponse(src, limits)
	} else {
		m.q, body, err = ReadRequest(src, limits)
	}
	if err == nil {
		m.content, err = body.ReadAll()
	}
	if err == nil {
		m.trailer = body.Trailer()
	}
	return m, err
}

func isResponse(b []byte) bool { return b[0]&1 == 1 }

// known encodes m with a known length.
func (m message) known(pad int) ([]byte, error) {
	if m.p != nil {
		return AppendResponse(nil, m.p, m.content, m.trailer, pad)
	}
	return AppendRequest(nil, m.q, m.content, m.trailer, pad)
}

// indeterminate encodes m with its content in the given number of pieces at least.
func (m message) indeterminate(pieces, pad int) ([]byte, error) {
	var e Encoder
	var b []byte
	var err error
	if m.p != nil {
		for _, i := range m.p.Informational {
			if b, err = e.Informational(b, i.Status, i.Header); err != nil {
				return nil, err
			}
		}
		b, err = e.ResponseHead(b, m.p.Status, m.p.Header)
	} else {
		b, err = requestHead(&e, b, m.q)
	}
	if err != nil {
		return nil, err
	}
	size := max(1, len(m.content)/pieces)
	for c := m.content; len(c) > 0; {
		n := min(size, len(c))
		b, c = e.Content(b, c[:n]), c[n:]
	}
	return e.End(b, m.trailer, pad)
}

var curlHeader = []Field{
	{"user-agent", "curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"},
	{"host", "www.example.com"},
	{"accept-language", "en, mi"},
}

// examples are the messages of the vectors.
var examples = map[string]message{
	"figure8": {q: &Request{"GET", "https", "", "/hello.txt", curlHeader}},
	"figure9": {q: &Request{"GET", "https", "", "/hello.txt", curlHeader}},
	"figure11": {p: &Response{
		[]Informational{
			{102, []Field{{"running", `"sleep 15"`}}},
			{103, []Field{{"link", "</style.css>; rel=preload; as=style"},
				{"link", "</script.js>; rel=preload; as=script"}}},
		}, 200, []Field{
			{"date", "Mon, 27 Jul 2009 12:28:53 GMT"},
			{"server", "Apache"},
			{"last-modified", "Wed, 22 Jul 2009 19:15:56 GMT"},
			{"etag", `"34aa387-d-1568eb00"`},
			{"accept-ranges", "bytes"},
			{"content-length", "51"},
			{"vary", "Accept-Encoding"},
			{"content-type", "text/plain"},
		}}, content: []byte("Hello World! My content includes a trailing CRLF.\r\n")},
	"figure13": {p: &Response{nil, 200, nil},
		content: []byte("This content contains CRLF.\r\n"), trailer: []Field{{"trailer", "text"}}},
	"rfc9458request":  {q: &Request{"GET", "https", "example.com", "/", nil}},
	"rfc9458response": {p: &Response{nil, 200, nil}},
}

func (m message) equal(o message) bool {
	return reflect.DeepEqual(m.q, o.q) && reflect.DeepEqual(m.p, o.p) &&
		bytes.Equal(m.content, o.content) && reflect.DeepEqual(m.trailer, o.trailer)
}

func TestVectors(t *testing.T) {
	for name, b := range vectors(t) {
		want := examples[name]
		m, err := decode(b, isResponse(b), Limits{})
		if err != nil || !m.equal(want) {
			t.Errorf("%s: %+v, %v", name, m, err)
			continue
		}
		var got []byte
		if b[0] < 2 {
			got, err = m.known(0)
		} else {
			got, err = m.indeterminate(1, 0)
		}
		// The examples of RFC 9458 leave out what is empty, and one of RFC 9292 is padded.
		if err != nil || !bytes.Equal(bytes.TrimRight(got, "\x00"), bytes.TrimRight(b, "\x00")) {
			t.Errorf("%s encodes to\n%x, %v, want\n%x", name, got, err, b)
		}
	}
}

// TestVectorTruncation takes bytes off the examples' ends: what is left is the same message, or
// refused.
func TestVectorTruncation(t *testing.T) {
	may := map[string]int{"figure8": 2, "figure9": 12, "figure11": 1, "figure13": 0,
		"rfc9458request": 0, "rfc9458response": 0}
	for name, b := range vectors(t) {
		want, n := examples[name], len(b)
		for n >= 0 {
			m, err := decode(b[:n], isResponse(b), Limits{})
			if off := len(b) - n; off <= may[name] && (err != nil || !m.equal(want)) {
				t.Errorf("%s without its last %d bytes: %v", name, off, err)
			} else if off > may[name] && err != ErrTruncated && !isBoundary(name, n) {
				t.Errorf("%s cut to %d bytes: %v", name, n, err)
			}
			n--
		}
	}
}

// requestHead starts a request of indeterminate length. The package reads them and writes none.
func requestHead(e *Encoder, dst []byte, q *Request) ([]byte, error) {
	declared, err := declaredLength(q.Header)
	if err == nil {
		err = q.check()
	}
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = q.appendControl(AppendVarint(dst, indeterminateRequest))
	dst = append(appendFields(dst, q.Header), 0)
	e.length, e.state, e.declared = len(dst)-start, atContent, declared
	return dst, nil
}

// isBoundary names the other places where RFC 9292 lets a message end. It is then another message,
// and only what carries the message can tell.
func isBoundary(name string, n int) bool {
	switch name {
	case "figure8", "figure9":
		return n == 23 // after the control data
	case "figure11":
		return n == 111 || n == 314 // after the final status, and before the content
	case "figure13":
		return n == 3 || n == 4 || n == 34 // before the header, the content and the trailer
	}
	return false
}
