// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"encoding/json"
	"strings"
	"testing"
)

const mebibyte = 1 << 20

func benchmarkTexts() map[string][]byte {
	fill := func(s string) string { return strings.Repeat(s, 10*mebibyte/len(s)) }
	return map[string][]byte{
		"base64": []byte(`{"ciphertext":"` + fill("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY+") +
			`"}`),
		"prose": []byte(`{"content":"` +
			fill(`The quick brown fox, it is said, jumps over the lazy dog.\n`) + `"}`),
		"unicode": []byte(`{"content":"` +
			fill(`Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. 日本語も。`) + `"}`),
		"chats": []byte(`[` +
			fill(`{"role":"user","content":"Hello, \"you\"","n":[1,2.5,true,null]},`) + `1]`),
	}
}

func BenchmarkValid(b *testing.B) {
	for name, text := range benchmarkTexts() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				if err := Valid(text, 100); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncodingJSONValid(b *testing.B) {
	text := benchmarkTexts()["base64"]
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		json.Valid(text)
	}
}

func BenchmarkMembers(b *testing.B) {
	for name, text := range benchmarkTexts() {
		if KindOf(text) != Object {
			continue
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				members, err := checkedMembers(text, 100)
				if err != nil {
					b.Fatal(err)
				}
				for m := range members {
					if m.Is("other") {
						b.Fatal("other")
					}
				}
			}
		})
	}
}

func BenchmarkUnescape(b *testing.B) {
	text := benchmarkTexts()["prose"]
	dst := make([]byte, len(text))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		Unescape(dst, text)
	}
}
