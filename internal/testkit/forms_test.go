// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// marker has the characters that encodings treat in different ways: letters, blanks, a quote, a
// backslash, a line break, + / % = and two scripts, one of them outside the first plane of UTF-16.
const marker = "zq marker \"é\\\n+/%=?\U0001f511 end"

// encodings has one way to write each encoding in full.
var encodings = map[string]func(string) string{
	"JSON": func(s string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			if c < 0x80 {
				fmt.Fprintf(&b, `\u%04x`, c)
			} else {
				b.WriteByte(c)
			}
		}
		return b.String()
	},
	"percent": func(s string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
		return b.String()
	},
	"base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"hex":    func(s string) string { return hex.EncodeToString([]byte(s)) },
	"gzip": func(s string) string {
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		zw.Write([]byte(s))
		zw.Close()
		return b.String()
	},
}

// planted has the marker in every form by itself and in nested ones.
func planted(t *testing.T) map[string]string {
	std, hexed := encodings["base64"](marker), encodings["hex"](marker)
	quoted, err := json.Marshal(marker)
	if err != nil {
		t.Fatal(err)
	}
	python := "" // as Python's json writes it
	for _, r := range string(quoted) {
		switch {
		case r < 0x80:
			python += string(r)
		case r < 0x10000:
			python += fmt.Sprintf(`\u%04x`, r)
		default:
			python += `\uD83D\uDD11`
		}
	}
	inTool, err := json.Marshal(map[string]string{"arguments": `{"x":` + string(quoted) + `}`})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{
		"plain":                "before" + marker + "after",
		"JSON":                 string(quoted),
		"JSON, ASCII":          python,
		"JSON, all escaped":    `\` + `\n` + encodings["JSON"](marker) + `\`,
		"JSON, slash":          strings.ReplaceAll(string(quoted), "/", `\/`),
		"JSON, in JSON":        string(inTool),
		"percent, path":        "/p/" + url.PathEscape(marker),
		"percent, after a cut": "%4" + url.PathEscape(marker),
		"percent, form":        "a=%zz&q=" + url.QueryEscape(marker),
		"percent, lower":       strings.ToLower(encodings["percent"](marker)),
		"percent, upper":       "100%" + encodings["percent"](marker) + "%4",
		"percent, twice":       url.PathEscape(url.PathEscape(marker)),
		"hex":                  hexed,
		"hex, upper, odd":      "f" + strings.ToUpper(hexed),
		"base64, std":          std,
		"base64, raw":          strings.TrimRight(std, "="),
		"base64, URL":          base64.URLEncoding.EncodeToString([]byte(marker)),
		"base64, broken lines": slices.Collect(lines(std, 7))[0] +
			strings.Join(slices.Collect(lines(std, 7))[1:], "\r\n "),
		"base64, twice":         encodings["base64"](std),
		"base64 in JSON":        strings.ReplaceAll(std, "/", `\/`),
		"base64 in JSON, lines": strings.Join(slices.Collect(lines(std, 9)), `\r\n`),
		"base64 in JSON, all":   encodings["JSON"](std),
		"base64 in percent":     url.QueryEscape(std),
		"base64 in percent all": encodings["percent"](std),
		"base64 in a path":      "/v1/chat/" + strings.TrimRight(std, "="),
		"JSON in base64":        encodings["base64"](python),
		"percent in base64":     encodings["base64"](encodings["percent"](marker)),
		"percent in JSON":       encodings["JSON"](url.PathEscape(marker)),
		"JSON in percent":       url.PathEscape(python),
		"gzip":                  encodings["gzip"]("before" + marker),
		"JSON in gzip":          encodings["gzip"](python),
		"cut gzip":              encodings["gzip"](strings.Repeat(marker, 50))[:60],
		"second gzip": encodings["gzip"]("first") + "\x1f\x8b\x08 none" +
			encodings["gzip"](marker),
		"base64 of gzip": encodings["base64"](encodings["gzip"](marker)),
	}
	// Every alignment, in the middle of other base64 and of other digits.
	for before := range 4 {
		for after := range 4 {
			name := fmt.Sprintf("base64, %d before, %d after", before, after)
			all[name] = encodings["base64"](strings.Repeat("x", before) + marker +
				strings.Repeat("y", after))
			all[name+", digits"] = strings.Repeat("A", before) + strings.TrimRight(std, "=") +
				strings.Repeat("B", after)
		}
	}
	return all
}

const chunkedHeader = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

// chunked is a request whose body comes in chunks of size bytes.
func chunked(body string, size int) string {
	var b strings.Builder
	b.WriteString(chunkedHeader)
	i := 0
	for chunk := range lines(body, size) {
		if i++; i%3 == 0 {
			fmt.Fprintf(&b, "%X;name=value\r\n%s\r\n", len(chunk), chunk)
		} else {
			fmt.Fprintf(&b, "%03x\r\n%s\r\n", len(chunk), chunk)
		}
	}
	b.WriteString("0\r\n\r\n")
	return b.String()
}

// lines cuts s into pieces of n bytes.
func lines(s string, n int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for chunk := range slices.Chunk([]byte(s), n) {
			if !yield(string(chunk)) {
				return
			}
		}
	}
}

func reverse(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

// mixed writes s with a random choice of escapes for each byte or character.
func mixed(rnd *rand.Rand, encoding, s string) string {
	var b strings.Builder
	switch encoding {
	case "percent":
		for _, c := range []byte(s) {
			if c == '%' || rnd.IntN(2) == 0 {
				fmt.Fprintf(&b, []string{"%%%02x", "%%%02X"}[rnd.IntN(2)], c)
			} else {
				b.WriteByte(c)
			}
		}
	case "JSON":
		short := map[rune]string{'"': `\"`, '\\': `\\`, '/': `\/`, '\n': `\n`, '\r': `\r`,
			'\t': `\t`, '\b': `\b`, '\f': `\f`}
		for _, r := range s {
			escape, ok := short[r]
			switch n := rnd.IntN(3); {
			case n == 0 && r < 0x10000:
				fmt.Fprintf(&b, []string{`\u%04x`, `\u%04X`}[rnd.IntN(2)], r)
			case ok && (n == 1 || r == '\\'):
				b.WriteString(escape)
			default:
				b.WriteRune(r)
			}
		}
	case "base64":
		text := []byte([]string{base64.StdEncoding.EncodeToString([]byte(s)),
			base64.RawURLEncoding.EncodeToString([]byte(s))}[rnd.IntN(2)])
		for _, c := range text {
			b.WriteByte(c)
			if rnd.IntN(10) == 0 {
				b.WriteString([]string{"\n", "\r\n", "\r\n\t"}[rnd.IntN(3)])
			}
		}
	case "hex":
		for _, c := range []byte(s) {
			fmt.Fprintf(&b, []string{"%02x", "%02X"}[rnd.IntN(2)], c)
		}
	case "gzip":
		return encodings["gzip"](s)
	}
	return b.String()
}

// found reports whether the marker comes up in one of the forms of data.
func found(data, marker string) bool {
	hit := false
	forms([]byte(data), func(_ string, text []byte) {
		hit = hit || bytes.Contains(text, []byte(marker))
	})
	return hit
}

func TestFormsAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	names := []string{"JSON", "percent", "base64", "hex", "gzip"}
	const around = `zZ09 +/-_="'{}:.,\` + "\n"
	noise := func() string {
		var b strings.Builder
		for range rnd.IntN(20) {
			b.WriteByte(around[rnd.IntN(len(around)-2)]) // no backslash before the JSON
		}
		return b.String()
	}
	for range 1000 {
		text, how := marker, []string{}
		for range 1 + rnd.IntN(2) {
			how = append(how, names[rnd.IntN(len(names))])
			if !utf8.ValidString(text) {
				how[len(how)-1] = "base64" // JSON cannot carry it
			}
			text = noise() + mixed(rnd, how[len(how)-1], noise()+text+noise()) + noise()
		}
		if rnd.IntN(2) == 0 {
			how = append(how, "chunks")
			text = chunked(text, 1+rnd.IntN(9))
		}
		if !found(text, marker) {
			t.Fatalf("seed %d: not found: %s: %q", seed, how, text)
		}
		if found(text, "zq marker of another kind") {
			t.Fatalf("seed %d: found what is not there: %s: %q", seed, how, text)
		}
	}
}

func FuzzForms(f *testing.F) {
	for name, encode := range encodings {
		f.Add([]byte(`{"x":"`), []byte(`"}`), name)
		f.Add([]byte(encode("before")), []byte(encode("after")), name)
	}
	f.Add([]byte(chunkedHeader+"ff\r\n"), []byte("\r\n0\r\n\r\n"), "plain")
	f.Add([]byte(chunkedHeader+"fffffffffffffffff\r\n"), []byte("\x1f\x8b\x08"), "plain")
	f.Add([]byte(`\ud83d`), []byte(`\ud83d\u`), "JSON")
	f.Fuzz(func(t *testing.T, before, after []byte, name string) {
		if len(before)+len(after) > 4<<10 {
			t.Skip("slow")
		}
		text := marker
		if encode := encodings[name]; encode != nil {
			text = encode(text)
		}
		// A cut escape or digit would change the meaning of the text after it.
		before = append(before, '|')
		if name == "hex" || name == "base64" {
			before = before[:len(before)-1]
			after = append([]byte("|"), after...)
		}
		if name == "hex" {
			before = bytes.TrimRight(before, " \t\r\n")
		}
		if !found(string(before)+text+string(after), marker) {
			t.Errorf("%s not found between %q and %q", name, before, after)
		}
	})
}

func BenchmarkForms(b *testing.B) {
	for _, size := range []int{10 << 10, 1 << 20} {
		random := make([]byte, size)
		rnd := rand.NewChaCha8([32]byte{})
		rnd.Read(random)
		text := []byte(`{"ciphertext":"` + base64.StdEncoding.EncodeToString(random) + `"}`)
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				forms(text, func(string, []byte) {})
			}
		})
	}
}
