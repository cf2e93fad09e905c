// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func testKey(t testing.TB, b byte) *Key {
	t.Helper()
	k, err := NewKey(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// fullLine has every member.
func fullLine() *Line {
	return &Line{
		Seq: 7, Generation: 2, Prev: [32]byte{1,
			0xab}, Begins: 3, Torn: 5, TornSum: [32]byte{9}, Lost: 4,
		Event: []byte(`"type":"note"`),
	}
}

func TestLine(t *testing.T) {
	key := testKey(t, 1)
	for what, l := range map[string]*Line{
		"least": {Seq: 1, Generation: 1, Event: []byte(`"a":1`)},
		"most": {Seq: maxSeq, Generation: 1<<32 - 1, Begins: maxSeq, Torn: MaxLine, Lost: maxSeq,
			Event: []byte(`"mac":"x","seq":"y"`)},
		"full":   fullLine(),
		"torn":   {Seq: 2, Generation: 1, Torn: 1, Event: []byte(`"a":1`)},
		"lost":   {Seq: 2, Generation: 1, Lost: 1, Event: []byte(`"a":1`)},
		"begins": {Seq: 2, Generation: 1, Begins: 1, Event: []byte(`"a":1`)},
	} {
		text := key.Append([]byte("before"), l)
		text = bytes.TrimSuffix(bytes.TrimPrefix(text, []byte("before")), []byte("\n"))
		if !json.Valid(text) || bytes.ContainsRune(text, '\n') {
			t.Errorf("%s: %s", what, text)
		}
		got, err := Parse(text)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(l) || !key.Fits(text, got) {
			t.Errorf("%s: %s: read as %+v, %v", what, text, got, err)
		}
		if testKey(t, 2).Fits(text, got) {
			t.Errorf("%s: it fits another key", what)
		}
	}
}

// Every change of one byte is no line any more, or one that does not fit.
func TestChangedLines(t *testing.T) {
	key := testKey(t, 1)
	text := bytes.TrimSuffix(key.Append(nil, fullLine()), []byte("\n"))
	for at := range text {
		for bit := range 8 {
			changed := bytes.Clone(text)
			changed[at] ^= 1 << bit
			if l, err := Parse(changed); err == nil && key.Fits(changed, l) {
				t.Errorf("bit %d of byte %d: %s", bit, at, changed)
			}
		}
		for _, changed := range [][]byte{text[:at], text[at+1:], append(bytes.Clone(text[:at]),
			append([]byte(" "), text[at:]...)...)} {
			if l, err := Parse(changed); err == nil && key.Fits(changed, l) {
				t.Errorf("byte %d: %s", at, changed)
			}
		}
	}
}

func TestParseRefusals(t *testing.T) {
	whole := string(bytes.TrimSuffix(testKey(t, 1).Append(nil, fullLine()), []byte("\n")))
	for what, text := range map[string]string{
		"empty":               "",
		"text":                strings.Repeat("x", 300),
		"line feed":           whole + "\n",
		"no seq":              strings.Replace(whole, `"seq":7`, `"seq":`, 1),
		"zero seq":            strings.Replace(whole, `"seq":7`, `"seq":0`, 1),
		"leading zero":        strings.Replace(whole, `"seq":7`, `"seq":07`, 1),
		"negative seq":        strings.Replace(whole, `"seq":7`, `"seq":-7`, 1),
		"large seq":           strings.Replace(whole, `"seq":7`, `"seq":9007199254740993`, 1),
		"huge seq":            strings.Replace(whole, `"seq":7`, `"seq":99999999999999999999`, 1),
		"large generation":    strings.Replace(whole, `"key":2`, `"key":4294967296`, 1),
		"space":               strings.Replace(whole, `,"key"`, `, "key"`, 1),
		"other order":         strings.Replace(whole, `{"seq":7,"key":2`, `{"key":2,"seq":7`, 1),
		"upper-case digits":   strings.Replace(whole, `"prev":"01ab`, `"prev":"01AB`, 1),
		"short prev":          strings.Replace(whole, `"prev":"01`, `"prev":"`, 1),
		"long prev":           strings.Replace(whole, `"prev":"01`, `"prev":"0101`, 1),
		"no digits":           strings.Replace(whole, `"prev":"01`, `"prev":"0x`, 1),
		"torn without sum":    strings.Replace(whole, `,"torn_sha256"`, `,"torn_sha1"`, 1),
		"torn of too much":    strings.Replace(whole, `"torn":5`, `"torn":65537`, 1),
		"nothing torn":        strings.Replace(whole, `"torn":5`, `"torn":0`, 1),
		"no event":            strings.Replace(whole, `,"type":"note"`, ``, 1),
		"empty event":         strings.Replace(whole, `"type":"note"`, ``, 1),
		"upper-case mac name": strings.Replace(whole, `"mac"`, `"MAC"`, 1),
		"mac not last":        strings.TrimSuffix(whole, "}") + `,"x":1}`,
		"too long":            strings.Replace(whole, "note", strings.Repeat("x", MaxLine), 1),
	} {
		if text == whole {
			t.Errorf("%s: nothing was changed", what)
		}
		if l, err := Parse([]byte(text)); !errors.Is(err, ErrLine) {
			t.Errorf("%s: %+v, %v", what, l, err)
		}
	}
}

func TestUnfinished(t *testing.T) {
	head := Head{Seq: 41}
	for text, want := range map[string]bool{
		"":                              true,
		"{":                             true,
		`{"seq":4`:                      true,
		`{"seq":42`:                     true,
		`{"seq":42,"key":1,"prev":"00"`: true,
		"{\"seq\":42,\x00\x00":          true,
		"\x00\x00":                      true,
		"x":                             false,
		`{"seq":43`:                     false,
		`{"seq":421,"key":1`:            false,
		`{"seq":42, `:                   false,
		"\x00{":                         false,
		`{"seq":42,"key":` + strings.Repeat("1", MaxLine): false,
	} {
		if got := Unfinished([]byte(text), head); got != want {
			t.Errorf("%.40q: %v", text, got)
		}
	}
}

// FuzzParse: what parses is written again as the same bytes, but for the code.
func FuzzParse(f *testing.F) {
	key := testKey(f, 1)
	f.Add(bytes.TrimSuffix(key.Append(nil, fullLine()), []byte("\n")))
	f.Add(bytes.TrimSuffix(key.Append(nil, &Line{Seq: 1, Generation: 1, Event: []byte(`"a":1`)}),
		[]byte("\n")))
	f.Add([]byte(`{"seq":1,"key":1,"prev":"`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := Parse(text)
		if err != nil {
			if !errors.Is(err, ErrLine) {
				t.Fatal(err)
			}
			return
		}
		key := testKey(t, 1)
		fits, mac := key.Fits(text, l), l.MAC
		again := bytes.TrimSuffix(key.Append(nil, l), []byte("\n"))
		if n := len(text) - tailSize; !bytes.Equal(again[:n], text[:n]) ||
			len(again) != len(text) ||
			fits != (mac == l.MAC) {
			t.Errorf("%q is written again as %q", text, again)
		}
	})
}

// A key that was wiped writes and checks nothing that the key would, and its hash holds nothing of
// it.
func TestWipe(t *testing.T) {
	key := testKey(t, 1)
	text := bytes.TrimSuffix(key.Append(nil, fullLine()), []byte("\n"))
	line, err := Parse(text)
	if err != nil || !key.Fits(text, line) {
		t.Fatal(err)
	}
	before := fmt.Sprintf("%+v", key.mac)
	key.Wipe()
	if after := fmt.Sprintf("%+v", key.mac); key.Fits(text, line) || after == before {
		t.Errorf("the key is left: %s", after)
	}
	(*Key)(nil).Wipe()
}
