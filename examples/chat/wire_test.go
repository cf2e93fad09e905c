// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWire(t *testing.T) {
	long := strings.Repeat("x", shownBody) + "beyond"
	var b strings.Builder
	w := &wire{out: &b, next: roundTrip(func(r *http.Request) (*http.Response, error) {
		if got, _ := io.ReadAll(r.Body); string(got) != long {
			t.Errorf("the request's body was changed: %q", got)
		}
		return &http.Response{Proto: "HTTP/1.1", Status: "200 \x1b]0;title\a",
			Header: http.Header{"A": {"b\x1b[1mc"}},
			Body:   io.NopCloser(strings.NewReader("one\ntwo\x1b" + long))}, nil
	})}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://a.invalid/p",
		strings.NewReader(long))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer sesame")
	req.Header.Set("X-Long", strings.Repeat("y", shownHeader)+"beyond")
	resp, err := w.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "one\ntwo\x1b"+long {
		t.Errorf("the answer's body was changed: %q, %v", body, err)
	}
	resp.Body.Close()
	want := "wire > POST https://a.invalid/p\nwire > Authorization: ********\nwire > X-Long: " +
		strings.Repeat("y", shownHeader) + "… 66 bytes in all\n" +
		"wire > " + strings.Repeat("x", shownBody) + "… 306 bytes in all\n" +
		"wire < HTTP/1.1 200  ]0;title \nwire < A: b [1mc\nwire < one two " +
		strings.Repeat("x", shownBody-8) + "… 314 bytes in all\n"
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWireFailure(t *testing.T) {
	var b strings.Builder
	cause := errors.New("what the peer said")
	w := &wire{out: &b, next: roundTrip(func(*http.Request) (*http.Response, error) {
		return nil, cause
	})}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://a.invalid/p", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.RoundTrip(req); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
	if b.String() != "wire > GET https://a.invalid/p\nwire < no answer\n" {
		t.Errorf("printed %q", b.String())
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456",
		1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
