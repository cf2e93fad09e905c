// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		``: "", `a`: "a", `日本`: "日本", `\"\\\/\b\f\n\r\t`: "\"\\/\b\f\n\r\t", `a\/b\u002bc`: "a/b+c",
		`\\u0041`: `\u0041`, `\\\u0041`: `\A`,
		`\u0041\u00e9\u20AC\uffff`: "Aé€\uffff", `\u0000`: "\x00", `x\ud83d\ude00y`: "x😀y",
		`\uD83D\uDE00`: "😀", `\uDBFF\uDFFF`: "\U0010ffff", `\ud800\udc00`: "\U00010000",
		`\ud800`: "\ufffd", `\ud800x`: "\ufffdx", `\ud800\n`: "\ufffd\n",
		`\ude00\ud83d`: "\ufffd\ufffd", `\ud83d\u0041`: "\ufffdA", `\ud83dzzde00`: "\ufffdzzde00",
		`\ud83d\\de00`: "\ufffd\\de00", `\ud83d\ud83d\ude00`: "\ufffd😀", `\udc00`: "\ufffd",
		// Text that is no valid escape stays.
		`\`: `\`, `a\`: `a\`, `\x`: `\x`, `\u`: `\u`, `\u123`: `\u123`, `\u12g4\n`: "\\u12g4\n",
		`\ud83d\u12`: "\ufffd\\u12", `\U0041`: `\U0041`,
	} {
		if got := Unescape(nil, []byte(in)); string(got) != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		own := []byte(in)
		got := Unescape(own, own)
		if string(got) != want {
			t.Errorf("%q in place: %q, want %q", in, got, want)
		}
		if len(got) > 0 && &got[0] != &own[0] {
			t.Errorf("%q in place: moved", in)
		}
		earlier := append([]byte("before"), in...)
		if got := Unescape(earlier[:0], earlier[6:]); string(got) != want {
			t.Errorf("%q moved down: %q, want %q", in, got, want)
		}
		roomy := make([]byte, 3, 64)
		if got := Unescape(roomy, []byte(in)); string(got) != want || cap(got) != cap(roomy) {
			t.Errorf("%q into other memory: %q of %d bytes, want %q", in, got, cap(got), want)
		}
	}
}

func TestIs(t *testing.T) {
	for _, test := range []struct {
		inside, name string
		want         bool
	}{
		{``, "", true}, {`nonce`, "nonce", true}, {`\u006eonce`, "nonce", true},
		{`nonc\u0065`, "nonce", true}, {`\u006E\u006f\u006e\u0063\u0065`, "nonce", true},
		{`a\/b`, "a/b", true}, {`\n`, "\n", true}, {`\\n`, `\n`, true}, {`\ud83d\ude00`, "😀", true},
		{`é\n`, "é\n", true}, {`\u00e9`, "é", true}, {`\ud800`, "\ufffd", true},
		{`Nonce`, "nonce", false}, {`nonce`, "Nonce", false}, {`nonce `, "nonce", false},
		{`nonc`, "nonce", false}, {`nonce`, "nonc", false}, {``, "a", false}, {`a`, "", false},
		{`\u006eonc`, "nonce", false}, {`\u006eoncex`, "nonce", false},
		{`\u006eonce\u0000`, "nonce", false}, {`\u004eonce`, "nonce", false}, {`\u006e`, "", false},
		{`\n`, `\n`, false}, {`\u0041`, `\u0041`, false}, {`\ud83d\ude00`, "\ufffd", false},
		{`\ud800`, "\xff", false}, {`\ufffd`, "\xff", false}, {`\ufffd`, "", false},
		{`\u00e9`, "\xe9", false},
		// K and s have other forms that case folding would match
		{`ſ`, "s", false}, {`\u017f`, "s", false}, {`\x`, `\x`, false}, {`\`, `\`, false},
	} {
		if got := (Member{Name: []byte(test.inside)}).Is(test.name); got != test.want {
			t.Errorf("%q is %q: %v", test.inside, test.name, got)
		}
	}
}

func TestCut(t *testing.T) {
	for _, test := range []struct{ in, drop, want string }{
		{`{}`, "a", `{}`},
		{" {\n} ", "a", " {\n} "},
		{`{"a":1}`, "", `{"a":1}`},
		{`{"a":1}`, "a", `{}`},
		{` { "a" : 1 } `, "a", ` {  } `},
		{`{"a":1,"b":2,"c":3}`, "", `{"a":1,"b":2,"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "a", `{"b":2,"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "b", `{"a":1,"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "c", `{"a":1,"b":2}`},
		{`{"a":1,"b":2,"c":3}`, "ab", `{"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "ac", `{"b":2}`},
		{`{"a":1,"b":2,"c":3}`, "bc", `{"a":1}`},
		{`{"a":1,"b":2,"c":3}`, "abc", `{}`},
		{`{"a":1,"b":{"a":[",","}"]},"a":"\",\"","c":3}`, "a", `{"b":{"a":[",","}"]},"c":3}`},
		{"{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}\n", "a", "{\n  \"b\": 2,\n  \"c\": 3\n}\n"},
		{"{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}\n", "b", "{\n  \"a\": 1,\n  \"c\": 3\n}\n"},
		{"{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}\n", "c", "{\n  \"a\": 1,\n  \"b\": 2\n}\n"},
		{"{ \"a\" : 1 , \"b\" : 2\t}", "a", "{ \"b\" : 2\t}"},
	} {
		drop := func(m Member) bool {
			return len(m.Name) == 1 && bytes.Contains([]byte(test.drop), m.Name)
		}
		got, err := checkedCut([]byte("before "), []byte(test.in), 3, drop)
		if err != nil || string(got) != "before "+test.want {
			t.Errorf("%q without %q: %q, %v, want %q", test.in, test.drop, got, err, test.want)
		}
		own := []byte(test.in)
		got, err = checkedCut(own[:0], own, 3, drop)
		if err != nil || string(got) != test.want || &got[0] != &own[0] {
			t.Errorf("%q without %q in place: %q, %v, want %q", test.in, test.drop, got, err,
				test.want)
		}
	}

	for text, want := range map[string]error{
		``: ErrSyntax, `{"a":1,}`: ErrSyntax, `{"a":1`: ErrSyntax, `{"a":1}x`: ErrSyntax,
		`{"a":1 "b":2}`: ErrSyntax, `[]`: errKind, `null`: errKind, `{"a":[[[1]]]}`: ErrDepth,
	} {
		got, err := checkedCut([]byte("before"), []byte(text), 3, func(Member) bool {
			t.Errorf("%q: asked to drop", text)
			return true
		})
		if !errors.Is(err, want) || string(got) != "before" {
			t.Errorf("%q: %q, %v, want %v", text, got, err, want)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	data := []byte(`{"model":"m","\u0073tream":true,"messages":[` +
		`{"role":"user","content":"a \"quoted\" word"},{},[1,2]],"n":1e3}`)
	bad := []byte(`{"a":[1,2,{"b":"\x"}]}`)
	scratch := make([]byte, 0, len(data))
	found := 0
	for name, f := range map[string]func(){
		"Valid":     func() { _ = Valid(data, 100) },
		"Valid bad": func() { _ = Valid(bad, 100) },
		"MembersOf": func() {
			if Valid(data, 100) != nil {
				return
			}
			for m := range MembersOf(data) {
				if m.Is("stream") {
					found++
				}
				if KindOf(m.Value) != Array {
					continue
				}
				for e := range ElementsOf(m.Value) {
					found += len(e)
				}
			}
		},
		"Unescape": func() { scratch = Unescape(scratch, data) },
		"Cut": func() {
			scratch, _ = checkedCut(scratch[:0], data, 100, func(m Member) bool {
				return m.Is("stream")
			})
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if found == 0 {
		t.Error("nothing found")
	}
	// The loop allocates closures, whose number does not grow with the length of the text.
	walk := func(data []byte) func() {
		return func() {
			members, _ := checkedMembers(data, 100)
			for m := range members {
				found += len(m.Value)
			}
		}
	}
	long := []byte(`{"a":1` + strings.Repeat(`,"b":["x"]`, 10_000) + `}`)
	if few, many := testing.AllocsPerRun(
		100, walk(data)), testing.AllocsPerRun(10, walk(long)); few > 5 || many != few {
		t.Errorf("Members: %v and %v allocations", few, many)
	}
	if n := testing.AllocsPerRun(100, func() {
		_, _ = checkedCut(nil, data, 100, func(Member) bool { return false })
	}); n > 1 {
		t.Errorf("Cut into nil: %v allocations", n)
	}
}
