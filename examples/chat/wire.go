// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const (
	shownBody   = 300 // bytes of a body that are printed
	shownHeader = 60  // bytes of a header's value
)

// wire prints the requests and answers that pass through it before TLS: a proxy that ends TLS in
// front of the server sees the same.
type wire struct {
	next http.RoundTripper
	out  io.Writer
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.GetBody != nil { // a second reader of the same bytes, so that the request stays as it is
		if r, err := req.GetBody(); err == nil {
			body, _ = io.ReadAll(io.LimitReader(r, shownBody))
			_ = r.Close()
		}
	}
	w.print(">", req.Method+" "+req.URL.String(), req.Header, body,
		max(req.ContentLength, int64(len(body))))

	resp, err := w.next.RoundTrip(req)
	if err != nil {
		fmt.Fprintln(w.out, "wire < no answer")
		return nil, err
	}
	resp.Body = &seenBody{ReadCloser: resp.Body, report: func(body []byte, size int64) {
		w.print("<", resp.Proto+" "+resp.Status, resp.Header, body, size)
	}}
	return resp, nil
}

// print writes one message. The part from the server is untrusted, so only printable characters
// pass.
func (w *wire) print(direction, first string, header http.Header, body []byte, size int64) {
	var b strings.Builder
	line := func(text string) { fmt.Fprintf(&b, "wire %s %s\n", direction, program.OneLine(text)) }
	line(first)
	for _, name := range sortedNames(header) {
		value := strings.Join(header[name], ", ")
		switch {
		case value == "": // User-Agent: net/http sends none then
			continue
		case name == "Authorization":
			value = "********"
		case len(value) > shownHeader:
			value = value[:shownHeader] + "… " + thousands(int64(len(value))) + " bytes in all"
		}
		line(name + ": " + value)
	}
	if !utf8.Valid(body) && !utf8.Valid(body[:max(0, len(body)-utf8.UTFMax)]) {
		body = fmt.Appendf(nil, "%x", body[:min(len(body), shownHeader)])
	}
	switch {
	case size > int64(len(body)):
		line(string(body) + "… " + thousands(size) + " bytes in all")
	case size > 0:
		line(string(body))
	}
	_, _ = io.WriteString(w.out, b.String())
}

func sortedNames(h http.Header) []string {
	var names []string
	for name := range h {
		names = append(names, name)
	}
	return slices.SortedFunc(slices.Values(names), cmp.Compare[string])
}

// seenBody reports the beginning and the size of the body that was read, at its end or when it is
// closed.
type seenBody struct {
	io.ReadCloser
	report func(beginning []byte, size int64)
	once   sync.Once
	start  []byte
	size   int64
}

func (s *seenBody) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.start = append(s.start, p[:min(n, shownBody-len(s.start))]...)
	s.size += int64(n)
	if err != nil {
		s.tell()
	}
	return n, err
}

func (s *seenBody) Close() error {
	s.tell()
	return s.ReadCloser.Close()
}

func (s *seenBody) tell() { s.once.Do(func() { s.report(s.start, s.size) }) }

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
