// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	stdbase64 "encoding/base64"
	"math/rand/v2"
	"testing"
)

// The package uses a library's base64, which has assembly for some processors. These tests compare
// its results and its refusals with those of the standard library. Both skip line breaks, which
// decode never gets.

func TestBase64EveryLength(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range 400 {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		checkBase64(t, data)
		text := stdbase64.StdEncoding.AppendEncode(nil, data)
		checkDecode(t, text)
		if n > 0 { // one wrong byte, anywhere
			for range 10 {
				damaged := bytes.Clone(text)
				damaged[r.IntN(len(damaged))] = byte(r.Uint32())
				checkDecode(t, damaged)
			}
		}
	}
}

// Every byte in every place of a block that is decoded at once.
func TestBase64EveryByte(t *testing.T) {
	for at := range 80 {
		for c := range 256 {
			text := bytes.Repeat([]byte("Qx+/"), 30)
			text[at] = byte(c)
			checkDecode(t, text)
		}
	}
}

func FuzzBase64(f *testing.F) {
	for _, s := range []string{"", "QQ==", "QR==", "QUI=", "QUJ=", "QUJD", "QU=D", "Q===", "====",
		"QUJD\n", "QUJDQUI=\n\n\n\n", "QUJD-_==", "\xff\xff\xff\xff",
		string(bytes.Repeat([]byte("+/aZ"), 40)) + "QQ=="} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkBase64(t, data)
		checkDecode(t, data)
	})
}

// checkBase64 encodes as Append does, apart and in place, and decodes that again.
func checkBase64(t *testing.T, data []byte) {
	t.Helper()
	want := stdbase64.StdEncoding.AppendEncode(nil, data)
	got := fenced(t, len(want), func(dst []byte) { encode(dst, data, apart) })
	if !bytes.Equal(got, want) {
		t.Fatalf("%x\nbecame %s\nwant   %s", data, got, want)
	}
	for _, slack := range []int{4, 5, 100} { // bytes between the end of the text and that of data
		memory := fenced(t, len(want)+slack, func(memory []byte) {
			src := memory[len(memory)-len(data):]
			copy(src, data)
			encode(memory[:len(want)], src, len(memory)-len(data))
		})
		if !bytes.Equal(memory[:len(want)], want) {
			t.Fatalf("%x\nin place, slack %d, became %s\nwant %s", data, slack, memory[:len(want)],
				want)
		}
	}
	checkDecode(t, want)
}

// checkDecode decodes text, which may be anything without line breaks, apart and in place.
func checkDecode(t *testing.T, text []byte) {
	t.Helper()
	if len(text)%4 != 0 || bytes.ContainsAny(text, "\r\n") {
		return // encoded refuses it
	}
	want, wantErr := stdbase64.StdEncoding.Strict().DecodeString(string(text))
	if wantErr == nil && stdbase64.StdEncoding.EncodeToString(want) != string(text) {
		t.Fatalf("%q: the standard library takes what is not canonical", text)
	}
	n := len(text) / 4 * 3 // as encoded counts
	switch {
	case bytes.HasSuffix(text, []byte("==")):
		n -= 2
	case bytes.HasSuffix(text, []byte("=")):
		n--
	}
	for _, lead := range []int{apart, 3, 4, 24, 25} {
		var err error
		var got []byte
		if lead == apart {
			got = fenced(t, max(n, 0), func(dst []byte) { err = decode(dst, text, lead, "field") })
		} else {
			memory := fenced(t, lead+len(text), func(memory []byte) {
				copy(memory[lead:], text)
				err = decode(memory[:max(n, 0)], memory[lead:], lead, "field")
			})
			got = memory[:max(n, 0)]
		}
		if (err == nil) != (wantErr == nil) || (err == nil && !bytes.Equal(got, want)) {
			t.Fatalf("%q, lead %d\n got %x, %v\nwant %x, %v", text, lead, got, err, want, wantErr)
		}
	}
}

// fenced returns n bytes between others, and fails if those change.
func fenced(t *testing.T, n int, f func([]byte)) []byte {
	t.Helper()
	const post = 128
	memory := bytes.Repeat([]byte{0x5a}, post+n+post)
	f(memory[post : post+n])
	if pad := bytes.Repeat([]byte{0x5a}, post); !bytes.Equal(memory[:post], pad) ||
		!bytes.Equal(memory[post+n:], pad) {
		t.Fatalf("%d bytes: written outside", n)
	}
	return memory[post : post+n]
}
