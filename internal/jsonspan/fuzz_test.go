// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func addTexts(add func(string)) {
	for _, s := range slices.Concat(validTexts, invalidTexts) {
		add(s)
		add(`{"a":` + s + `,"\u0062":[` + s + `, 1 ]}`)
		add("[ " + s + "\n,{}]")
	}
	for _, depth := range []int{3, 63, 64, 65, 101} {
		add(nest(`[`, `1`, `]`, depth))
		add(nest(`{"a":`, `{}`, `}`, depth))
		add(nest(`[`, ``, `]`, depth)[1:])
	}
}

// depthOf measures a valid text with encoding/json.
func depthOf(t *testing.T, data []byte) (deepest int) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	for depth := 0; ; {
		token, err := decoder.Token()
		if err == io.EOF {
			return deepest
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

func FuzzValid(f *testing.F) {
	addTexts(func(s string) {
		f.Add([]byte(s), MaxDepth)
		f.Add([]byte(s), 2)
	})
	f.Fuzz(func(t *testing.T, data []byte, maxDepth int) {
		err := Valid(data, maxDepth)
		if json.Valid(data) && utf8.Valid(data) {
			if depth := depthOf(t, data); depth > max(maxDepth, 0) {
				if !errors.Is(err, ErrDepth) {
					t.Fatalf("depth %d: %v", depth, err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
		} else if maxDepth >= MaxDepth && err == nil ||
			err != nil && !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrDepth) {
			t.Fatalf("invalid: %v", err)
		} else if err == nil {
			t.Fatal("accepted, but not valid")
		}
	})
}

type nameValue struct{ name, value string }

// membersOf reads an object with encoding/json, repeated names and all.
func membersOf(t *testing.T, data []byte) (members []nameValue) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if _, err := decoder.Token(); err != nil {
		t.Fatal(err)
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			t.Fatal(err)
		}
		members = append(members, nameValue{name.(string), string(bytes.Trim(value, " \t\r\n"))})
	}
	return members
}

func FuzzMembers(f *testing.F) {
	addTexts(func(s string) { f.Add([]byte(s)) })
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzElements(t, data)
		var got []nameValue
		members, err := checkedMembers(data, MaxDepth)
		for m := range members {
			if data[m.Start] != '"' || !bytes.HasPrefix(data[m.Start+1:], m.Name) ||
				!bytes.HasSuffix(data[:m.End], m.Value) {
				t.Fatalf("%q: the spans of %q are off", data, m.Name)
			}
			name := string(Unescape(nil, m.Name))
			if !m.Is(name) || m.Is(name+"x") || m.Is("x"+name) || name != "" && m.Is(name[1:]) {
				t.Fatalf("%q is not %q", m.Name, name)
			}
			if Valid(m.Value, MaxDepth) != nil || len(m.Value) != len(bytes.TrimSpace(m.Value)) {
				t.Fatalf("value %q", m.Value)
			}
			got = append(got, nameValue{name, string(m.Value)})
		}
		if object := json.Valid(data) && utf8.Valid(data) &&
			KindOf(data) == Object; object != (err == nil) {
			t.Fatalf("an object: %v, but %v", object, err)
		}
		if err != nil {
			if len(got) > 0 {
				t.Fatal("members and an error")
			}
			return
		}
		if want := membersOf(t, data); !slices.Equal(got, want) {
			t.Fatalf("got %q\nwant %q", got, want)
		}
	})
}

func fuzzElements(t *testing.T, data []byte) {
	var got []string
	elements, err := checkedElements(data, MaxDepth)
	for e := range elements {
		got = append(got, string(e))
	}
	var want []json.RawMessage
	array := utf8.Valid(data) && json.Unmarshal(data, &want) == nil && KindOf(data) == Array
	if array != (err == nil) {
		t.Fatalf("an array: %v, but %v", array, err)
	}
	if array && !slices.EqualFunc(got, want, func(a string, b json.RawMessage) bool {
		return a == string(b)
	}) {
		t.Fatalf("got %q\nwant %q", got, want)
	}
}

func FuzzCut(f *testing.F) {
	addTexts(func(s string) {
		f.Add([]byte(s), uint64(0b01))
		f.Add([]byte(s), uint64(0b10))
	})
	for mask := range 16 {
		f.Add([]byte("{ \"a\":1 ,\"b\": [2,3],\n\"a\" :{} , \"d\":\"\\\"\" } "), uint64(mask))
	}
	f.Fuzz(func(t *testing.T, data []byte, mask uint64) {
		i := 0
		drop := func(Member) bool { i++; return mask>>((i-1)%64)&1 != 0 }
		got, err := checkedCut(nil, data, MaxDepth, drop)
		if object := json.Valid(data) && utf8.Valid(data) &&
			KindOf(data) == Object; object != (err == nil) {
			t.Fatalf("an object: %v, but %v", object, err)
		}
		if err != nil {
			return
		}
		if !json.Valid(got) {
			t.Fatalf("%q is not valid", got)
		}
		all := membersOf(t, data)
		if i != len(all) {
			t.Fatalf("asked %d times about %d members", i, len(all))
		}
		var want []nameValue
		for i, m := range all {
			if mask>>(i%64)&1 == 0 {
				want = append(want, m)
			}
		}
		if kept := membersOf(t, got); !slices.Equal(kept, want) {
			t.Fatalf("got %q\nwant %q", kept, want)
		}
		if len(want) == len(all) && !bytes.Equal(got, data) {
			t.Fatalf("nothing to drop, but %q", got)
		}
		rest := data // what is kept stays in its order
		for _, c := range got {
			at := bytes.IndexByte(rest, c)
			if at < 0 {
				t.Fatalf("%q is not part of %q", got, data)
			}
			rest = rest[at+1:]
		}
		i = 0
		own := bytes.Clone(data)
		if inPlace, err := checkedCut(own[:0], own, MaxDepth, drop); err != nil ||
			!bytes.Equal(inPlace, got) {
			t.Fatalf("in place: %q, %v, want %q", inPlace, err, got)
		}
	})
}

func FuzzUnescape(f *testing.F) {
	addTexts(func(s string) { f.Add([]byte(s)) })
	for _, s := range []string{``, `\`, `\u`, `\u00`, `a\/b\u002b`, `\ud83d\ude00`, `\ud83d`,
		`\ude00\ud83d`, `\ud83d\ud83d\ude00`, `\ud83d\u0041`, `\\u0041`, `\x\n`, `é\u00e9\t`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		got := Unescape(nil, s)
		if len(got) > len(s) {
			t.Fatalf("%q became longer: %q", s, got)
		}
		own := bytes.Clone(s)
		if inPlace := Unescape(own, own); !bytes.Equal(inPlace, got) {
			t.Fatalf("in place: %q, want %q", inPlace, got)
		}
		if text := Text(s); text != string(got) {
			t.Fatalf("%q as text: %q, want %q", s, text, got)
		}
		if Equal(s, string(got)+"x") {
			t.Fatalf("%q equals %qx", s, got)
		}
		quoted := slices.Concat([]byte{'"'}, s, []byte{'"'})
		if Valid(quoted, 0) != nil {
			return
		}
		var want string
		if err := json.Unmarshal(quoted, &want); err != nil || string(got) != want {
			t.Fatalf("%q: %q, want %q, %v", s, got, want, err)
		}
		if !Equal(s, want) {
			t.Fatalf("%q does not equal %q", s, want)
		}
	})
}

func FuzzAppendString(f *testing.F) {
	addTexts(func(s string) { f.Add(s) })
	for _, s := range []string{"", "\"", "\\", "/<>&", "\b\f\n\r\t\v\x00\x1f\x7f",
		"\u2028\u2029\u2027\ufffd", "\xff\xe2\x80", "\xe2\x80\xa8\xed\xa0\x80", "日本語 é 😀 – “x”",
		strings.Repeat("x", 63) + "\n" + strings.Repeat("y\n", 200) + strings.Repeat("z", 1000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := "before\"" + encodeText(t, s) + "\""
		got := AppendString([]byte("before"), s)
		if string(got) != want {
			t.Fatalf("%q\nbecame %s\nwant   %s", s, got, want)
		}
		var theirs, ours string
		if err := errors.Join(json.Unmarshal([]byte(`"`+encodeJSON(t, s)+`"`), &theirs),
			json.Unmarshal(got[len("before"):], &ours)); err != nil || ours != theirs {
			t.Fatalf("%q\nbecame %q, %v\nwant   %q", s, ours, err, theirs)
		}
	})
}

// encodeText is what encoding/json makes of s, without the quotes. Of a byte that is no UTF-8 it is
// the escape of U+FFFD: encoding/json writes that until Go 1.26, and the character itself later.
func encodeText(t *testing.T, s string) string {
	var text strings.Builder
	for len(s) > 0 {
		n := 0
		for n < len(s) {
			r, size := utf8.DecodeRuneInString(s[n:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			n += size
		}
		text.WriteString(encodeJSON(t, s[:n]))
		if s = s[n:]; len(s) > 0 {
			text.WriteString(`\ufffd`)
			s = s[1:]
		}
	}
	return text.String()
}

func encodeJSON(t *testing.T, s string) string {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(strings.TrimPrefix(text.String(), `"`), "\"\n")
}
