// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"errors"
	"testing"
)

// seeds adds the examples of both kinds, and messages that are wrong in one place.
func seeds(f *testing.F, response bool) {
	for _, b := range vectors(f) {
		if isResponse(b) == response {
			f.Add(b)
		}
	}
	if response {
		f.Add([]byte("\x03\x40\x66\x00\x40\xc8\x00\x01a\x02bc\x00\x01t\x01u\x00\x00\x00"))
		f.Add([]byte("\x01\x40\xc8\x00\xff\xff\xff\xff\xff\xff\xff\xff"))
		return
	}
	f.Add([]byte("\x02\x03GET\x05https\x01a\x01/\x01a\x01b\x00\x01x\x02yz\x00\x01t\x01u\x00\x00"))
	f.Add([]byte(get("/") + section("content-length", "2") + str("ab") + section("t", "u")))
	f.Add([]byte(get("/") + section("A", "b\r\n")))
}

// fuzz checks that a message that decodes also encodes, in both forms, to the same message, and
// that every error is a documented one.
func fuzz(t *testing.T, b []byte, response bool) {
	m, err := decode(b, response, Limits{})
	if err != nil {
		var f *FormatError
		if err != ErrTruncated && err != ErrTooLarge && !errors.As(err, &f) {
			t.Fatalf("undocumented: %v", err)
		}
		return
	}
	known, err := m.known(0)
	if err != nil {
		t.Fatalf("known length: %v", err)
	}
	indeterminate, err := m.indeterminate(2, 16)
	if err != nil {
		t.Fatalf("indeterminate length: %v", err)
	}
	for _, again := range [][]byte{known, indeterminate} {
		if got, err := decode(again, response, Limits{}); err != nil || !got.equal(m) {
			t.Fatalf("%x became %x: %v", b, again, err)
		}
	}
}

func FuzzRequest(f *testing.F) {
	seeds(f, false)
	f.Fuzz(func(t *testing.T, b []byte) { fuzz(t, b, false) })
}

func FuzzResponse(f *testing.F) {
	seeds(f, true)
	f.Fuzz(func(t *testing.T, b []byte) { fuzz(t, b, true) })
}
