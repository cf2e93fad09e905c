// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import "strings"

// tokens marks the characters of a token (RFC 9110, section 5.6.2).
var tokens = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
			c < 128 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if !tokens[s[i]] {
			return false
		}
	}
	return s != ""
}

// isVisible reports whether s consists of visible ASCII characters, none of which is in except.
func isVisible(s, except string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || strings.IndexByte(except, s[i]) >= 0 {
			return false
		}
	}
	return true
}

// check refuses control data and header fields that HTTP does not allow in a request.
func (q *Request) check() error {
	switch {
	case !isToken(q.Method):
		return &FormatError{"method", "not a token"}
	case q.Method == "CONNECT":
		return &FormatError{"method", "CONNECT has no meaning here"}
	case !isScheme(q.Scheme):
		return &FormatError{"scheme", "not a scheme in lower case"}
	case !isVisible(q.Authority, "/?#@\\"):
		return &FormatError{"authority", "a character that may not stand there"}
	case !isVisible(q.Path, "#") ||
		!strings.HasPrefix(q.Path, "/") && (q.Path != "*" || q.Method != "OPTIONS"):
		return &FormatError{"path", "not an absolute path"}
	}
	hosts := 0
	for _, f := range q.Header {
		if f.Name != "host" {
			continue
		}
		hosts++
		if hosts > 1 || q.Authority != "" && !strings.EqualFold(f.Value, q.Authority) ||
			!isVisible(f.Value, "/?#@\\") {
			return &FormatError{"host", "not one host, or another one than the authority"}
		}
	}
	return checkFields(q.Header)
}

// isScheme reports whether s is a URI scheme in lower case (RFC 3986, section 3.1).
func isScheme(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (i == 0 ||
			(c < '0' || c > '9') && c != '+' && c != '-' && c != '.') {
			return false
		}
	}
	return s != ""
}

// checkStatus refuses a status outside the range of informational or of final responses.
func checkStatus(status uint64, informational bool) error {
	switch {
	case informational && (status < 100 || status > 199 || status == 101),
		!informational && (status < 200 || status > 599):
		return &FormatError{"status", "out of range"}
	}
	return nil
}

func checkFields(fields []Field) error {
	for _, f := range fields {
		if err := f.check(); err != nil {
			return err
		}
	}
	return nil
}

// check applies RFC 9113, sections 8.2.1 and 8.2.2, to one field line. Pseudo-fields are refused:
// the control data takes their place.
func (f Field) check() error {
	if !isToken(f.Name) {
		return &FormatError{"field name", "not a token"}
	}
	for i := range len(f.Name) {
		if c := f.Name[i]; c >= 'A' && c <= 'Z' {
			return &FormatError{"field name", "not in lower case"}
		}
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return &FormatError{"field name", "belongs to a connection"}
	case "te":
		if f.Value != "trailers" {
			return &FormatError{"te", "belongs to a connection"}
		}
	}
	for i := range len(f.Value) {
		c := f.Value[i]
		if c < ' ' && c != '\t' || c == 0x7f {
			return &FormatError{"field value", "a control character"}
		}
		if (i == 0 || i == len(f.Value)-1) && (c == ' ' || c == '\t') {
			return &FormatError{"field value", "white space around it"}
		}
	}
	return nil
}

// checkTrailer refuses fields that frame or route a message. They come too late in a trailer (RFC
// 9110, section 6.5.1).
func checkTrailer(fields []Field) error {
	for _, f := range fields {
		switch f.Name {
		case "content-length", "host", "te", "authorization", "content-type", "content-encoding":
			return &FormatError{"trailer", "a field that may not stand there"}
		}
	}
	return checkFields(fields)
}
