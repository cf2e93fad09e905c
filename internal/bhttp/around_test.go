// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"testing"
)

// TestAround puts the content between what AppendRequestAround made.
func TestAround(t *testing.T) {
	q := &Request{Method: "POST", Scheme: "https", Authority: "a.example", Path: "/v1/x",
		Header: []Field{{"content-type", "application/json"}}}
	for _, length := range []int{0, 1, 63, 64, 16383, 16384, 70000} {
		for _, pad := range []int{0, 1, 2, 512, 1 << 20} {
			content := bytes.Repeat([]byte("x"), length)
			want, err := AppendRequest([]byte("before"), q, content, nil, pad)
			if err != nil {
				t.Fatal(err)
			}
			around, behind, err := AppendRequestAround([]byte("before"), q, length, pad)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Concat(around[:behind], content, around[behind:]); !bytes.Equal(got,
				want) {
				t.Errorf("%d bytes, padded to %d: %d bytes, want %d", length, pad, len(got),
					len(want))
			}
		}
	}
}

func TestAroundRefuses(t *testing.T) {
	good := Request{Method: "POST", Scheme: "https", Authority: "a.example", Path: "/v1/x"}
	var format *FormatError
	for name, change := range map[string]func(*Request){
		"a method":            func(q *Request) { q.Method = "P T" },
		"a field":             func(q *Request) { q.Header = []Field{{"A", "b"}} },
		"another length":      func(q *Request) { q.Header = []Field{{"content-length", "4"}} },
		"a length of a word":  func(q *Request) { q.Header = []Field{{"content-length", "x"}} },
		"a length below zero": func(q *Request) { q.Header = []Field{{"content-length", "-1"}} },
	} {
		q := good
		change(&q)
		if b, n, err := AppendRequestAround(nil, &q, 5, 0); !errors.As(err, &format) || b != nil ||
			n != 0 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	good.Header = []Field{{"content-length", strconv.Itoa(5)}}
	if _, _, err := AppendRequestAround(nil, &good, 5, 0); err != nil {
		t.Error(err)
	}
}
