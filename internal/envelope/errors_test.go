// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
)

type badEdit struct {
	edit
	field string // of the error
}

// Edits of either form that make it bad.
func badEdits() (bad []badEdit) {
	add := func(field, old string, news ...string) {
		for _, s := range news {
			bad = append(bad, badEdit{edit{old, s}, field})
		}
	}
	// values that no member accepts
	others := []string{`null`, `""`, `1`, `1.0`, `true`, `[]`, `{}`, `["PEER"]`, `"PEER"`}

	// The text as a whole.
	add("", "", ``, ` `, `null`, `1`, `"PEER"`, `[]`, `[{}]`, `PEER`, `{`, `{}}`,
		`<html>PEER</html>`, "data: {}\n\n", "\x1f\x8b\x08", strings.Repeat("[", 200_000))
	add("", `{"version"`, "\xef\xbb\xbf{\"version\"", `{version`, `{'version'`, `{,"version"`,
		`["version"`, `{"x":"PEER`+"\xff"+`","version"`, "{\"x\":\"\xed\xa0\x80\",\"version\"",
		`{"x":NaN,"version"`, `{"x":01,"version"`, `{"x":"\x","version"`,
		"{\"x\":\"\n\",\"version\"", "\v{\"version\"", "\u00a0{\"version\"")
	add("", `{"version"`, `{"x":[`+nested(99)+`],"version"`,
		`{"x":`+strings.Repeat(`{"x":`, 900)+`1`+strings.Repeat(`}`, 900)+`,"version"`,
		`{"x":`+nested(100_000)+`,"version"`)
	add("", `GCM"}`, `GCM"`, `GCM",}`, `GCM"}}`, `GCM"}{}`, `GCM"} PEER`, "GCM\"}\x00",
		`GCM"}{"version":"1.0"}`, `GCM"]`, "GCM\"}\xef\xbb\xbf", `GCM`, `GCM"},`,
		`GCM","processed_at":NaN}`, `GCM","processed_at":1.}`)
	add("", `,"algorithm"`, ` "algorithm"`, `,,"algorithm"`, `;"algorithm"`)
	add("", `"nonce":"`+b64(sampleNonce),
		"\"nonce\":\""+b64(sampleNonce)[:8]+"\n"+b64(sampleNonce)[8:],
		"\"nonce\":\"\r\n"+b64(sampleNonce))
	add("version", "", `{}`, `{"choices":[],"object":"chat.completion","id":"PEER"}`,
		`{"error":{"message":"PEER"}}`, `{"Version":"1.0"}`)

	// Labels.
	for _, label := range []struct{ name, value string }{
		{"version", `"1.0"`}, {"algorithm", `"hybrid-aes256-rsa4096"`},
		{"key_algorithm", `"RSA-OAEP-SHA256"`}, {"payload_algorithm", `"AES-256-GCM"`},
	} {
		member, inside := `"`+label.name+`":`+label.value, strings.Trim(label.value, `"`)
		for _, value := range append(others, `"`+inside+` "`, `" `+inside+`"`, `"`+inside+`\u0000"`,
			`"`+inside[:len(inside)-1]+`"`, `"`+inside+`0"`, `["`+inside+`"]`,
			`{"x":"`+inside+`"}`) {
			add(label.name, member, `"`+label.name+`":`+value)
		}
		add(label.name, member, member+`,`+member, member+`,"`+label.name+`":null`,
			`"`+label.name+`":null,`+member,
			`"\u00`+hex(label.name[0])+label.name[1:]+`":"PEER",`+member)
	}
	add("version", `"version":"1.0"`, `"Version":"1.0"`, `"version ":"1.0"`, `"x":"1.0"`,
		`"version":"2.0"`, `"version":"1"`, `"version":"1.00"`, `"version":"1,0"`,
		`"version":"１.0"`)
	add("algorithm", `"hybrid-aes256-rsa4096"`, `"Hybrid-AES256-RSA4096"`,
		`"hybrid-aes128-rsa4096"`, `"hybrid-aes256-rsa2048"`, `"none"`)
	add("algorithm", `"algorithm":"hy`, `"Algorithm":"hy`, `"ALGORITHM":"hy`)
	add("key_algorithm", `"RSA-OAEP-SHA256"`, `"RSA-OAEP"`, `"RSA-OAEP-SHA1"`, `"rsa-oaep-sha256"`,
		`"RSA1_5"`)
	add("payload_algorithm", `"AES-256-GCM"`, `"AES-128-GCM"`, `"AES-256-CBC"`, `"aes-256-gcm"`)

	// The payload object.
	const payload = "encrypted_payload"
	for _, value := range slices.DeleteFunc(slices.Clone(others), func(s string) bool {
		return s == `{}`
	}) {
		add(payload, `"encrypted_payload":{`, `"encrypted_payload":`+value+`,"x":{`)
	}
	add(payload, `"encrypted_payload":{`, `"Encrypted_Payload":{`,
		`"encrypted_payload":{},"encrypted_payload":{`,
		`"encrypted_payload":null,"encrypted_payload":{`)
	add(payload, `GCM"}`, `GCM","encrypted_payload":{}}`,
		`GCM","encrypted_payl\u006fad":{"nonce":"PEER"}}`)
	add(payload+".nonce", `"encrypted_payload":{`, `"encrypted_payload":{},"x":{`,
		`"encrypted_payload":{"Nonce":"PEER"},"x":{`)

	// Nonce and wrapped key, in both forms the same.
	nonce, nonceField := quoted(sampleNonce), payload+".nonce"
	add(nonceField, nonce, others...)
	add(nonceField, nonce, nonce+`,"nonce":`+nonce, nonce+`,"nonce":null`,
		nonce+`,"\u006eonce":"PEER"`, `[`+nonce+`]`, `{"nonce":`+nonce+`}`,
		`"`+strings.Repeat("A", 1<<20)+`"`)
	for _, n := range []int{1, 7, 8, 11, 13, 14, 15, 16, 128, 129} {
		add(nonceField, nonce, quoted(make([]byte, n)))
	}
	for _, s := range badBase64(b64(sampleNonce)) {
		add(nonceField, nonce, `"`+s+`"`)
	}
	add(nonceField, `"nonce"`, `"Nonce"`, `"NONCE"`, `"nonce "`, `"iv"`)

	key, keyField := quoted(sampleKey), "encrypted_aes_key"
	add(keyField, key, others...)
	add(keyField, key, key+`,"encrypted_aes_key":`+key, key+`,"encrypted_aes_key":null`,
		key+`,"encrypted_\u0061es_key":"PEER"`, `[`+key+`]`)
	for _, n := range []int{1, 32, 128, MinWrappedKey - 1, MaxWrappedKey + 1, MaxWrappedKey + 2,
		MaxWrappedKey + 3, 1 << 20} {
		add(keyField, key, quoted(make([]byte, n)))
	}
	add(keyField, key, strings.TrimSuffix(key, `=="`)+`"`, strings.TrimSuffix(key, `="`)+`"`,
		strings.TrimSuffix(key, `"`)+`="`, strings.TrimSuffix(key, `=="`)+`"`,
		strings.TrimSuffix(key, `"`)+`AAAA"`)
	add(keyField, key, strings.TrimSuffix(key, `Q=="`)+`R=="`,
		strings.TrimSuffix(key, `Q=="`)+`f=="`, strings.TrimSuffix(key, `=="`)+`\n="`,
		strings.TrimSuffix(key, `=="`)+`=\n"`)
	for _, s := range badBase64(b64(sampleKey)[:16]) {
		add(keyField, `"encrypted_aes_key":"`+b64(sampleKey)[:16], `"encrypted_aes_key":"`+s)
	}
	add(keyField, `"encrypted_aes_key"`, `"Encrypted_AES_Key"`, `"encrypted_key"`)

	// The ciphertext's text where both forms have the same.
	ciphertextField := payload + ".ciphertext"
	start := b64(sampleText)[:16]
	for _, s := range badBase64(start) {
		add(ciphertextField, `"ciphertext":"`+start, `"ciphertext":"`+s)
	}
	for _, value := range slices.DeleteFunc(slices.Clone(others), func(s string) bool {
		return s == `"PEER"`
	}) {
		add(ciphertextField, `"ciphertext":"`, `"ciphertext":`+value+`,"x":"`)
	}
	add(ciphertextField, `"ciphertext":"`, `"Ciphertext":"`, `"ciphertext":"AAAA","ciphertext":"`,
		`"ciphertext":null,"ciphertext":"`)
	add("processed_at", `GCM"}`, `GCM","processed_at":1,"processed_at":1}`,
		`GCM","processed_at":null,"processed_at":"PEER"}`)
	return bad
}

// Edits that make the separate form bad.
func badSeparate() (bad []badEdit) {
	add := func(field, old string, news ...string) {
		for _, s := range news {
			bad = append(bad, badEdit{edit{old, s}, "encrypted_payload." + field})
		}
	}
	tag, text := quoted(sampleTag), quoted(sampleText)
	add("tag", tag, `null`, `""`, `1`, `true`, `[]`, `{}`, `"PEER"`, tag+`,"tag":`+tag,
		tag+`,"tag":null`, tag+`,"\u0074ag":"PEER"`, `[`+tag+`]`)
	for _, n := range []int{1, 4, 8, 12, 13, 14, 15, 17, 18, 32, 1 << 20} {
		add("tag", tag, quoted(make([]byte, n)))
	}
	for _, s := range badBase64(b64(sampleTag)[:16]) {
		add("tag", `"tag":"`+b64(sampleTag)[:16], `"tag":"`+s)
	}
	inside := strings.TrimSuffix(tag, `=="`) // two letters before the padding hold 4 unused bits
	add("tag", tag, inside[:len(inside)-1]+`x=="`, inside+`"`, inside+`="`, inside+`==="`,
		inside+`=\n="`)
	inside = strings.TrimSuffix(text, `="`) // three letters hold 2
	add("ciphertext", text, `""`, `"="`, `"=="`, `"===="`, `"A==="`, inside[:len(inside)-1]+`d="`,
		inside+`"`, inside+`=="`, inside+`\n"`, inside+`AA=\n\n\n\n"`)
	return bad
}

func badAppended() (bad []badEdit) {
	text := quoted(sampleText, sampleTag)
	for _, n := range []int{0, 1, 15, 16} {
		bad = append(bad, badEdit{edit{text, quoted(make([]byte, n))},
			"encrypted_payload.ciphertext"})
	}
	for _, s := range []string{`null`, `""`, `0`, `false`} {
		bad = append(bad, badEdit{edit{`,"nonce"`, `,"tag":` + s + `,"nonce"`},
			"encrypted_payload.tag"})
	}
	return bad
}

// badTexts calls f with every bad text there is.
func badTexts(t testing.TB, f func(text, field string)) {
	for _, bad := range badEdits() {
		f(bad.apply(t, separate), bad.field)
		f(bad.apply(t, appended), bad.field)
	}
	for _, bad := range badSeparate() {
		f(bad.apply(t, separate), bad.field)
	}
	for _, bad := range badAppended() {
		f(bad.apply(t, appended), bad.field)
	}
}

func TestParseErrors(t *testing.T) {
	n := 0
	badTexts(t, func(text, field string) {
		n++
		e, err := Parse([]byte(text), never)
		var format *FormatError
		if !errors.As(err, &format) {
			t.Errorf("%.2000s\n%v, want a FormatError of %q", text, err, field)
			return
		}
		if format.Field != field || format.Reason == "" {
			t.Errorf("%.2000s\n%v, want one of %q", text, err, field)
		}
		if message := err.Error(); strings.Contains(message, "PEER") || len(message) > 80 ||
			!strings.HasPrefix(message, "envelope: "+field) {
			t.Errorf("%.2000s\nthe error says %q", text, message)
		}
		if e.Sealed != nil || e.WrappedKey != nil || e.HasProcessedAt {
			t.Errorf("%.2000s\nan error and an envelope", text)
		}
	})
	t.Logf("%d bad texts", n)
}

func TestParseReasons(t *testing.T) {
	for _, test := range []struct {
		edit
		want string
	}{
		{edit{``, `{`}, "envelope: not valid JSON"},
		{edit{``, nested(101)}, "envelope: nested too deep"},
		{edit{``, `[{}]`}, "envelope: not an object"},
		{edit{`"version":"1.0",`, ``}, "envelope: version: missing"},
		{edit{`"1.0"`, `"2.0"`}, `envelope: version: not "1.0"`},
		{edit{`{"version"`, `{"version":null,"version"`}, "envelope: version: repeated"},
		{edit{quoted(sampleNonce), quoted(make([]byte, 15))},
			"envelope: encrypted_payload.nonce: not 12 bytes"},
		{edit{quoted(sampleNonce), `12`}, "envelope: encrypted_payload.nonce: not a string"},
		{edit{quoted(sampleNonce), `"12"`},
			"envelope: encrypted_payload.nonce: not standard padded base64"},
		{edit{quoted(sampleTag), quoted(make([]byte, 17))},
			"envelope: encrypted_payload.tag: not 16 bytes"},
		{edit{quoted(sampleText), `""`}, "envelope: encrypted_payload.ciphertext: too short"},
		{edit{quoted(sampleKey), quoted(make([]byte, 2048))},
			"envelope: encrypted_aes_key: not as long as an RSA ciphertext"},
	} {
		if _, err := Parse([]byte(test.apply(t, separate)), never); err == nil ||
			err.Error() != test.want {
			t.Errorf("%s: %v, want %s", test.new, err, test.want)
		}
	}
}

// An envelope that is cut short anywhere is refused.
func TestParseTruncated(t *testing.T) {
	for _, text := range []string{separate, appended} {
		for i := range len(text) {
			if _, err := Parse([]byte(text[:i]), never); err == nil {
				t.Errorf("accepted: %s", text[:i])
			}
		}
	}
}

// Padding inside the payload, where one step of its decoding ends and the next one begins.
func TestParsePaddingBetweenPieces(t *testing.T) {
	for _, piece := range []int{1024, 4096, 8192, 12288} {
		for _, padding := range []string{"=", "=="} {
			text := []byte(strings.Repeat("A", 20_000))
			copy(text[piece-len(padding):], padding)
			doc := edit{quoted(sampleText), `"` + string(text) + `"`}.apply(t, separate)
			if _, err := Parse([]byte(doc), never); err == nil {
				t.Errorf("%s before %d: accepted", padding, piece)
			}
		}
	}
}

// Refusing an envelope for its size takes no memory of that size.
func TestParseAllocatesWithinCaps(t *testing.T) {
	huge := `"` + strings.Repeat("A", 8<<20) + `"`
	for _, e := range []edit{
		{quoted(sampleKey), huge}, {quoted(sampleNonce), huge}, {quoted(sampleTag), huge},
		{quoted(sampleText), huge}, {`"1.0"`, huge}, {`"version"`, huge + `:1,"version"`},
		{`GCM"}`, `GCM","processed_at":` + strings.Repeat("9", 8<<20) + `}`},
		{`{"version"`, strings.Repeat("[", 8<<20)},
		{quoted(sampleKey), strings.ReplaceAll(huge, "A", `\/`)},
	} {
		data := []byte(e.apply(t, separate))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = Parse(data, 1000)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("%.30s…: %d bytes allocated", e.new, n)
		}
	}
}

func TestAppend(t *testing.T) {
	for _, test := range []struct {
		form  TagForm
		at    float64
		has   bool
		suffx string
	}{
		{Separate, 0, false, ``}, {Appended, 0, false, ``}, {Separate, 1763800000, false, ``},
		{Separate, math.NaN(), true, ``}, {Appended, math.Inf(-1), true, ``},
		{Separate, 0, true, `,"processed_at":0`}, {Appended, 1763800000.25, true,
			`,"processed_at":1763800000.25`}, {Separate, -1, true, `,"processed_at":-1`},
		{Separate, 1e300, true, `,"processed_at":1e+300`},
		{Separate, 5e-324, true, `,"processed_at":5e-324`},
		{Separate, 123456789012345680000, true, `,"processed_at":123456789012345680000`},
	} {
		want := edit{`GCM"}`, `GCM"` + test.suffx + `}`}.apply(t,
			map[TagForm]string{Separate: separate, Appended: appended}[test.form])
		e := sample(test.form)
		e.ProcessedAt, e.HasProcessedAt = test.at, test.has
		got := Append([]byte("before "), &e)
		if string(got) != "before "+want {
			t.Errorf("%v at %v:\n got %s\nwant before %s", test.form, test.at, got, want)
		}
		if n := Size(&e); n != len(want) {
			t.Errorf("%v at %v: size %d, want %d", test.form, test.at, n, len(want))
		}
	}
	for n := range NonceSize + TagSize {
		for _, f := range []func(*Envelope){func(e *Envelope) {
			Append(nil, e)
		}, func(e *Envelope) { Size(e) }} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%d sealed bytes: no panic", n)
					}
				}()
				f(&Envelope{Sealed: make([]byte, n, 100)})
			}()
		}
	}
}

func TestAllocations(t *testing.T) {
	for _, n := range []int{1, 100, 1 << 20} {
		for _, form := range []TagForm{Separate, Appended} {
			e := Envelope{Sealed: make([]byte, NonceSize+n+TagSize), WrappedKey: sampleKey,
				TagForm: form, ProcessedAt: 1763800000.123, HasProcessedAt: true}
			text := bytes.ReplaceAll(Append(nil, &e), []byte("/"), []byte(`\/`))
			data := make([]byte, len(text))
			if n := testing.AllocsPerRun(10, func() {
				copy(data, text)
				if _, err := Parse(data, never); err != nil {
					t.Error(err)
				}
			}); n > 1 {
				t.Errorf("Parse: %v allocations", n)
			}
			if n := testing.AllocsPerRun(10, func() { Append(nil, &e) }); n != 1 {
				t.Errorf("Append: %v allocations", n)
			}
			sized := make([]byte, 0, Size(&e))
			if n := testing.AllocsPerRun(10, func() { Append(sized, &e) }); n != 0 {
				t.Errorf("Append into room: %v allocations", n)
			}
		}
	}
}

func hex(c byte) string {
	return string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])
}
