// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"unicode/utf8"
)

func nest(open, inner, closing string, n int) string {
	return strings.Repeat(open, n) + inner + strings.Repeat(closing, n)
}

var validTexts = []string{
	`null`, `true`, `false`, `0`, `-0`, `7`, `-12`, `10.50`, `1e5`, `1E+5`, `1e-05`, `0.0e0`,
	`1e400`, `123456789012345678901234567890`,
	`""`, `"a"`, `"\"\\\/\b\f\n\r\t"`, `"\u0000\uD83D\ude00\uabcd"`, `"\ud800"`,
	`"\udc00x\ud800\u0041"`, "\"\x7f\u0080\u2028\U0001F600\"",
	`[]`, `{}`, " [ ] ", " { } ", "\t\r\n 1 \n\r\t", `[1,"a",null,true,[],{}]`, ` [ 1 , 2 ] `,
	`[[],[]]`, `[{},{}]`,
	`{"a":1}`, `{"a":1,"a":2}`, `{"":""}`, " { \"a\" : [ { } ] , \"b\" : { \"c\" : null } } ",
	`{"a}":"]","b":"{\"[\\"}`,
	`"0123456789abcdef0123456789abcdef"`, `"日本語、日本語、日本語"`,
}

var invalidTexts = []string{
	``, ` `, "\xef\xbb\xbf1", "\xef\xbb\xbf{}", `nul`, `nulll`, `Null`, `tru`, `True`, `fals`,
	`falsey`, `NaN`, `Infinity`, `-Infinity`, `undefined`,
	`+1`, `-`, `--1`, `01`, `-01`, `00`, `1.`, `.5`, `-.5`, `1.e5`, `1e`, `1e+`, `1e-`, `1ee5`,
	`1e5.5`, `0x10`, `1_000`, `1a`, `1 2`, `١`,
	`"`, `"a`, `"\"`, `"\`, `"\x41"`, `"\'"`, `"\u"`, `"\u12"`, `"\u123"`, `"\u12g4"`, `"\u12G4"`,
	`"\u12/4"`, `"\u12:4"`, `"\u12@4"`, "\"\\u12`4\"", `"\U0041"`, `"\u 123"`, `"\ud83d\u12"`,
	`'a'`, "\"\n\"", "\"\x00\"", "\"\x1f\"",
	`"01234567` + "\x1f" + `"`, `"a"b`, `"a" "b"`, "\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"",
	"\"\xc0\xaf\"", "\xff", "\"\xf4\x90\x80\x80\"",
	`[`, `]`, `[1`, `[1,`, `[1,]`, `[,1]`, `[,]`, `[1 2]`, `[1:2]`, `[1}`, `[[]`, `[]]`, `[]1`,
	`["a"`, `[[1]}`, `["a":1]`,
	`{`, `}`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{,}`, `{,"a":1}`, `{"a"}`,
	`{"a",1}`, `{"a"1}`, `{"a"::1}`, `{"a":1 "b":2}`, `{a:1}`, `{1:1}`, `{null:1}`,
	`{"a":1]`, `{"a":[}`, `{"a":[1}]`, `{"a\`, `{"a\x":1}`, "{\"a\n\":1}", `{}{}`, `{} x`,
	`{"a":1}}`, `{"a":}`, `{"a":,"b":1}`, `[{"a":1]}`, `{[]:1}`, `{{}:1}`,
	"\v1", "\f1", "\u00a01", "1\x00", "/**/1", "1//", `{"a":1} /*x*/`, "\x1e{}", "data: {}",
}

func TestValid(t *testing.T) {
	for _, s := range validTexts {
		if !json.Valid([]byte(s)) {
			t.Errorf("%q: the table is wrong", s)
		}
		if err := Valid([]byte(s), MaxDepth); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range invalidTexts {
		if json.Valid([]byte(s)) && utf8.ValidString(s) {
			t.Errorf("%q: the table is wrong", s)
		}
		if err := Valid([]byte(s), MaxDepth); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %v, want ErrSyntax", s, err)
		}
	}
}

// A valid text cut short anywhere is not valid, except for numbers.
func TestValidTruncated(t *testing.T) {
	for _, s := range validTexts {
		for i := range len(s) {
			cut := s[:i]
			want := json.Valid([]byte(cut)) && utf8.ValidString(cut)
			if got := Valid([]byte(cut), MaxDepth) == nil; got != want {
				t.Errorf("%q: valid = %v, want %v", cut, got, want)
			}
		}
	}
}

// Every short text over an alphabet of JSON's own characters.
func TestValidExhaustive(t *testing.T) {
	alphabets := []string{`{}[]",:0 \u`, `-+.eE019`, `"\u0aFn/ `}
	if testing.Short() {
		alphabets = alphabets[1:2]
	}
	for _, alphabet := range alphabets {
		text := make([]byte, 0, 5)
		var try func()
		try = func() {
			if got, want := Valid(text, MaxDepth) == nil, json.Valid(text); got != want {
				t.Errorf("%q: valid = %v, want %v", text, got, want)
			}
			if len(text) == cap(text) {
				return
			}
			for i := range len(alphabet) {
				text = append(text, alphabet[i])
				try()
				text = text[:len(text)-1]
			}
		}
		try()
	}
}

// Strings are scanned eight bytes at a time: the test has every byte at every place of eight.
func TestValidStringBytes(t *testing.T) {
	for size := range 20 {
		for at := range size {
			for b := range 256 {
				for _, fill := range []string{"a", "\x20", "\x7f", "!", "]"} {
					text := []byte(`"` + strings.Repeat(fill, size) + `"`)
					text[1+at] = byte(b)
					want := json.Valid(text) && utf8.Valid(text)
					if got := Valid(text, 1) == nil; got != want {
						t.Fatalf("%q: valid = %v, want %v", text, got, want)
					}
				}
			}
		}
	}
}

func TestValidDepth(t *testing.T) {
	for _, test := range []struct {
		text  string
		depth int // the least that is enough
	}{
		{`1`, 0}, {`"[[["`, 0}, {`[]`, 1}, {`{}`, 1}, {`[1,2]`, 1}, {`{"a":1}`, 1}, {`[[],[]]`, 2},
		{`{"a":{},"b":[]}`, 2}, {`[[],[[]],[]]`, 3},
		{nest(`[`, ``, `]`, 100), 100}, {nest(`{"a":`, `1`, `}`, 100), 100},
		{nest(`[{"a":`, `1`, `}]`, 70), 140},
		{nest(`[`, ``, `]`, 63), 63}, {nest(`[`, ``, `]`, 64), 64}, {nest(`[`, `{}`, `]`, 64), 65},
		{nest(`[`, `1`, `]`, MaxDepth), MaxDepth}, {nest(`{"":`, `1`, `}`, MaxDepth), MaxDepth},
	} {
		if err := Valid([]byte(test.text), test.depth); err != nil {
			t.Errorf("%.20s at depth %d: %v", test.text, test.depth, err)
		}
		for _, less := range []int{test.depth - 1, 0, -1} {
			if test.depth == 0 && less == 0 {
				continue
			}
			err := Valid([]byte(test.text), less)
			if scalar := test.depth == 0; scalar && err != nil ||
				!scalar && !errors.Is(err, ErrDepth) {
				t.Errorf("%.20s at depth %d: %v", test.text, less, err)
			}
		}
	}
	deep := []byte(nest(`[`, ``, `]`, MaxDepth+1))
	for _, limit := range []int{MaxDepth, MaxDepth + 1, math.MaxInt} {
		if err := Valid(deep, limit); !errors.Is(err, ErrDepth) {
			t.Errorf("one deeper than MaxDepth, limit %d: %v", limit, err)
		}
	}
	// Which bracket closes is remembered at every depth.
	for depth := range 200 {
		text := []byte(nest(`[`, ``, `]`, depth+1))
		text[len(text)-1-depth] = '}'
		if err := Valid(text, MaxDepth); !errors.Is(err, ErrSyntax) {
			t.Errorf("a wrong bracket at depth %d: %v", depth, err)
		}
	}
}

func TestKindOf(t *testing.T) {
	for text, want := range map[string]Kind{
		`null`: Null, ``: Null, ` `: Null, `true`: Bool, "\n false": Bool, `0`: Number,
		` -1`: Number, `"true"`: String, "\t\r[]": Array, ` {}`: Object,
	} {
		if got := KindOf([]byte(text)); got != want {
			t.Errorf("%q: kind %d, want %d", text, got, want)
		}
	}
}

func TestMembers(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                            "",
		" { } ":                         "",
		`{"a":1}`:                       "1-6 a=1;",
		" {\n\"a\" :\t1 , \"b\":2}":     "3-10 a=1;13-18 b=2;",
		`{"a":1,"a":[2,{"b":3}]}`:       `1-6 a=1;7-22 a=[2,{"b":3}];`,
		`{"":"","\u0061":null}`:         `1-6 ="";7-20 \u0061=null;`,
		`{"a":{"}":"\"}\\"} ,"b":true}`: `1-18 a={"}":"\"}\\"};20-28 b=true;`,
		`{"a\\":"\\","b\"":"\\\""}`:     `1-11 a\\="\\";12-24 b\"="\\\"";`,
		`{"a":-1.5e3 ,"b":[ ]}`:         `1-11 a=-1.5e3;13-20 b=[ ];`,
	} {
		members, err := checkedMembers([]byte(text), 4)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		var got strings.Builder
		for m := range members {
			fmt.Fprintf(&got, "%d-%d %s=%s;", m.Start, m.End, m.Name, m.Value)
		}
		if got.String() != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got.String(), want)
		}
		got.Reset()
		for m := range MembersOf([]byte(text)) {
			fmt.Fprintf(&got, "%d-%d %s=%s;", m.Start, m.End, m.Name, m.Value)
		}
		if got.String() != want {
			t.Errorf("%q, unchecked:\n got %s\nwant %s", text, got.String(), want)
		}
	}
}

func TestElements(t *testing.T) {
	for text, want := range map[string]string{
		`[]`: "", " [ ] ": "", `[1]`: "1;",
		"\n[ 1 ,\"]\" , [ 2,3 ],{\"a\":[]}\t]\n": `1;"]";[ 2,3 ];{"a":[]};`,
		`[null,"\"",-1]`:                         `null;"\"";-1;`,
	} {
		elements, err := checkedElements([]byte(text), 2+1)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		var got strings.Builder
		for e := range elements {
			got.Write(append(bytes.Clone(e), ';'))
		}
		if got.String() != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got.String(), want)
		}
		got.Reset()
		for e := range ElementsOf([]byte(text)) {
			got.Write(append(bytes.Clone(e), ';'))
		}
		if got.String() != want {
			t.Errorf("%q, unchecked:\n got %s\nwant %s", text, got.String(), want)
		}
	}
	for _, text := range []string{``, ` `, `null`, `1`, ` "[1]"`, `true`} {
		for m := range MembersOf([]byte(text)) {
			t.Errorf("%q has a member %q", text, m.Name)
		}
		for e := range ElementsOf([]byte(text)) {
			t.Errorf("%q has an element %q", text, e)
		}
	}
	for m := range MembersOf([]byte(` [{"a":1}]`)) {
		t.Errorf("an array has a member %q", m.Name)
	}
	for e := range ElementsOf([]byte(` {"a":1}`)) {
		t.Errorf("an object has an element %q", e)
	}
}

// A text that is wrong anywhere yields nothing.
func TestWalkErrors(t *testing.T) {
	type test struct {
		text   string
		object error // of Members
		array  error // of Elements
	}
	tests := []test{
		{`null`, errKind, errKind}, {`1`, errKind, errKind}, {`"{}"`, errKind, errKind},
		{` true`, errKind, errKind},
		{`[]`, errKind, nil}, {`{}`, nil, errKind}, {`[{"a":1}]`, errKind, nil},
		{`{"a":[1]}`, nil, errKind},
		{`{"a":1,"b":[[[[1]]]]}`, ErrDepth, ErrDepth}, {`[1,[[[[1]]]]]`, ErrDepth, ErrDepth},
		{`{"a":1,"b":[1,]}`, ErrSyntax, ErrSyntax}, {`[1,{"a":01}]`, ErrSyntax, ErrSyntax},
		{"{\"a\":1,\"b\":\"\xff\"}", ErrSyntax, ErrSyntax},
		{`{"a":1}{}`, ErrSyntax, ErrSyntax}, {`[1]]`, ErrSyntax, ErrSyntax},
	}
	for _, text := range invalidTexts {
		tests = append(tests, test{text, ErrSyntax, ErrSyntax})
	}
	for _, test := range tests {
		members, err := checkedMembers([]byte(test.text), 3)
		if !errors.Is(err, test.object) {
			t.Errorf("Members(%q): %v, want %v", test.text, err, test.object)
		}
		for m := range members {
			if err != nil {
				t.Errorf("Members(%q) yields %q after an error", test.text, m.Name)
			}
		}
		elements, err := checkedElements([]byte(test.text), 3)
		if !errors.Is(err, test.array) {
			t.Errorf("Elements(%q): %v, want %v", test.text, err, test.array)
		}
		for e := range elements {
			if err != nil {
				t.Errorf("Elements(%q) yields %q after an error", test.text, e)
			}
		}
	}
}

// The loop may stop early, start again, and overwrite what it has been given.
func TestWalkFreely(t *testing.T) {
	data := []byte(`{"a":"x\ny" , "b":[1],"c":3}`)
	members, err := checkedMembers(data, 3)
	if err != nil {
		t.Fatal(err)
	}
	for m := range members {
		if !m.Is("a") {
			t.Fatalf("%q comes first", m.Name)
		}
		break
	}
	var names string
	for m := range members {
		names += string(m.Name)
		clear(data[:m.End])
	}
	if names != "abc" {
		t.Errorf("names %q, want abc", names)
	}

	data = []byte(`["x" , [1],3]`)
	elements, err := checkedElements(data, 3)
	if err != nil {
		t.Fatal(err)
	}
	for range elements {
		break
	}
	n := 0
	for e := range elements {
		n += len(e)
		clear(e)
	}
	if n != 3+3+1 {
		t.Errorf("%d bytes of elements, want 7", n)
	}
	// A value's capacity ends with it, so appending to one cannot reach the next.
	for m := range MembersOf([]byte(`{"a":1,"b":2}`)) {
		if cap(m.Value) != len(m.Value) {
			t.Errorf("value %s has room for %d bytes", m.Value, cap(m.Value))
		}
	}
}
