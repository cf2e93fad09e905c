// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"strings"
	"testing"
)

// The parts of the sample envelope. Its base64 has slashes and pluses, and an uneven length
// everywhere but in the nonce.
var (
	sampleNonce  = []byte("\xfb\xef\xbe123456789")
	sampleText   = []byte("\xff\xff\xff a ciphertext as long as its plaintext")
	sampleTag    = []byte("\xfb\xef\xbe0123456789abc")
	sampleKey    = append([]byte("\xff\xfe\xfd"), bytes.Repeat([]byte{0xa5}, MinWrappedKey-3)...)
	sampleSealed = bytes.Join([][]byte{sampleNonce, sampleText, sampleTag}, nil)
)

const never = math.MaxInt32 // is a payload too large

func b64(b ...[]byte) string { return base64.StdEncoding.EncodeToString(bytes.Join(b, nil)) }

// separate and appended are the sample in the two forms; every case below is an edit of one of
// them.
var (
	separate = `{"version":"1.0","algorithm":"hybrid-aes256-rsa4096",` +
		`"encrypted_payload":{"ciphertext":"` + b64(sampleText) +
		`","nonce":"` + b64(sampleNonce) + `","tag":"` + b64(sampleTag) +
		`"},"encrypted_aes_key":"` + b64(sampleKey) +
		`","key_algorithm":"RSA-OAEP-SHA256","payload_algorithm":"AES-256-GCM"}`
	appended = `{"version":"1.0","algorithm":"hybrid-aes256-rsa4096",` +
		`"encrypted_payload":{"ciphertext":"` + b64(sampleText, sampleTag) +
		`","nonce":"` + b64(sampleNonce) + `"},"encrypted_aes_key":"` + b64(sampleKey) +
		`","key_algorithm":"RSA-OAEP-SHA256","payload_algorithm":"AES-256-GCM"}`
)

type edit struct{ old, new string }

func (e edit) apply(t testing.TB, s string) string {
	t.Helper()
	if e.old == "" {
		return e.new
	}
	if strings.Count(s, e.old) != 1 {
		t.Fatalf("%.60q stands %d times in the sample", e.old, strings.Count(s, e.old))
	}
	return strings.Replace(s, e.old, e.new, 1)
}

func quoted(b ...[]byte) string { return `"` + b64(b...) + `"` }

// edits of either form that leave the value as it is.
func goodEdits() []edit {
	unicode := func(s string) string { // every character escaped
		var b strings.Builder
		for _, c := range []byte(s) {
			b.WriteString(`\u00` + string("0123456789abcdef"[c>>4]) +
				string("0123456789ABCDEF"[c&15]))
		}
		return b.String()
	}
	key, nonce := b64(sampleKey), b64(sampleNonce)
	return []edit{
		{`{"version"`, " \t\r\n{\n\"version\""},
		{`GCM"}`, "GCM\"\n} \r\n\t"},
		{`"version":"1.0",`, `"version" : "1.0" , `},
		{`"1.0"`, `"1\u002e0"`},
		{`"hybrid-aes256-rsa4096"`, `"` + unicode(Algorithm) + `"`},
		{`"version"`, `"` + unicode("version") + `"`},
		{`"nonce"`, `"n\u006fnce"`},
		{`"ciphertext"`, `"` + unicode("ciphertext") + `"`},
		{`,"key_algorithm":"RSA-OAEP-SHA256"`, ``},
		{`,"payload_algorithm":"AES-256-GCM"`, ``},
		{key, strings.ReplaceAll(key, "/", `\/`)},
		{nonce, strings.ReplaceAll(nonce, "+", `\u002b`)},
		{nonce, unicode(nonce)},
		{key, unicode(key)},
		{b64(sampleText[:30]), unicode(b64(sampleText[:30]))},
		{`{"version"`,
			`{"Version":"PEER","VERSION":1,"ver\u0000sion":2,"version ":3,"":null,"version"`},
		{`"nonce"`,
			`"Nonce":"PEER","nonce\n":1,"version":"2.0","encrypted_payload":{"nonce":1},"nonce"`},
		{`{"version"`, `{"nonce":"PEER","tag":null,"ciphertext":{},"version"`},
		{`{"version"`, `{"x":1,"x":2,"encrypted_aes_kez":[` + nested(98) + `],"version"`},
		{`{"version"`, `{"\ud800":"\udfff","é":"日本","version"`},
		{`GCM"}`, `GCM","processed_at":null}`}, {`GCM"}`, `GCM","processed_at":"1763800000"}`},
		{`GCM"}`, `GCM","processed_at":true}`},
		{`GCM"}`, `GCM","processed_at":{"processed_at":1}}`}, {`GCM"}`, `GCM","processed_at":[1]}`},
		{`GCM"}`, `GCM","processed_at":1e400}`},
		{`GCM"}`, `GCM","processed_at":-1e400}`}, {`GCM"}`, `GCM","Processed_at":1}`},
		{`GCM"}`, `GCM","processed_at":1.` + strings.Repeat("0", maxNumber) + `}`},
	}
}

// nested is an array inside an array and so on, n deep.
func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

func sample(form TagForm) Envelope {
	return Envelope{Sealed: sampleSealed, WrappedKey: sampleKey, TagForm: form}
}

func equal(a, b *Envelope) bool {
	return bytes.Equal(a.Sealed, b.Sealed) && bytes.Equal(a.WrappedKey, b.WrappedKey) &&
		a.TagForm == b.TagForm &&
		a.HasProcessedAt == b.HasProcessedAt &&
		math.Float64bits(a.ProcessedAt) == math.Float64bits(b.ProcessedAt)
}

func checkParse(t *testing.T, text string, want Envelope) {
	t.Helper()
	data := []byte(text)
	e, err := Parse(data, len(sampleText))
	if err != nil {
		t.Errorf("%s\n%v", text, err)
		return
	}
	if !equal(&e, &want) {
		t.Errorf("%s\n got %+v\nwant %+v", text, e, want)
	}
	if &e.Sealed[0] != &data[0] || cap(e.Sealed) != cap(data) {
		t.Errorf("%s\nSealed does not lie where data did", text)
	}
	clear(data[:cap(data)])
	if !bytes.Equal(e.WrappedKey, want.WrappedKey) {
		t.Errorf("%s\nWrappedKey lies in data", text)
	}
}

func TestParse(t *testing.T) {
	for form, text := range map[TagForm]string{Separate: separate, Appended: appended} {
		checkParse(t, text, sample(form))
		for _, edit := range goodEdits() {
			checkParse(t, edit.apply(t, text), sample(form))
		}
	}
	checkParse(t, `{"payload_algorithm":"AES-256-GCM","encrypted_aes_key":`+quoted(
		sampleKey)+`,"encrypted_payload":{"tag":`+quoted(sampleTag)+
		`,"nonce":`+quoted(sampleNonce)+`,"ciphertext":`+quoted(
		sampleText)+`},"algorithm":"hybrid-aes256-rsa4096","version":"1.0"}`, sample(Separate))
}

func TestParseProcessedAt(t *testing.T) {
	for text, want := range map[string]float64{
		"1763800000": 1763800000, "1763800000.25": 1763800000.25, "0": 0,
		"-0": math.Copysign(0, -1), "-5": -5, "1e-400": 0, "1.5E+3": 1500,
		"1.7976931348623157e308": math.MaxFloat64, "5e-324": math.SmallestNonzeroFloat64,
		"12345678901234567890123456789012345678901234567890": 1.2345678901234567890123456789e49,
		"1." + strings.Repeat("0", maxNumber-2):              1,
	} {
		e := sample(Separate)
		e.ProcessedAt, e.HasProcessedAt = want, true
		checkParse(t, edit{`GCM"}`, `GCM","processed_at":` + text + `}`}.apply(t, separate), e)
		checkParse(t, edit{`{"version"`, `{"proc\u0065ssed_at" : ` + text + ` , "version"`}.apply(t,
			separate), e)
	}
}

// Sizes around those of the steps in which the payload is decoded, and sizes that fill the text to
// its end.
func TestParseSizes(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 11, 12, 13, 3071, 3072, 3073, 3*3072 - 1, 3 * 3072,
		3*3072 + 1, 100_000} {
		for _, form := range []TagForm{Separate, Appended} {
			for _, keySize := range []int{MinWrappedKey, 384, 511, 512, MaxWrappedKey} {
				want := Envelope{Sealed: make([]byte, NonceSize+n+TagSize),
					WrappedKey: bytes.Repeat([]byte{7}, keySize), TagForm: form}
				for i := range want.Sealed {
					want.Sealed[i] = byte(i * i >> 3)
				}
				text := Append(nil, &want)
				got, err := Parse(bytes.Clone(text), n)
				if err != nil || !equal(&got, &want) {
					t.Fatalf("payload %d, form %d, key %d: %v", n, form, keySize, err)
				}
				if _, err := Parse(text, n-1); !errors.Is(err, ErrTooLarge) {
					t.Fatalf("payload %d, form %d, at most %d: %v", n, form, n-1, err)
				}
			}
		}
	}
}

func TestParseTooLarge(t *testing.T) {
	for _, text := range []string{separate, appended} {
		for _, limit := range []int{len(sampleText) - 1, 1, 0, -1, math.MinInt} {
			e, err := Parse([]byte(text), limit)
			if !errors.Is(err, ErrTooLarge) || e.Sealed != nil {
				t.Errorf("limit %d: %v", limit, err)
			}
		}
		if _, err := Parse([]byte(text), math.MaxInt); err != nil {
			t.Errorf("no limit: %v", err)
		}
	}
}

// Texts that other decoders accept as base64, as edits of the 16 letters that stand for 12 bytes.
func badBase64(letters string) []string {
	return []string{
		letters[:15] + "-", letters[:15] + "_", "-" + letters[1:], letters[:8] + "=" + letters[9:],
		letters[:8] + "==" + letters[10:], letters[:14] + "= ",
		letters[:8] + `\n` + letters[8:], letters[:8] + `\r\n` + letters[8:], letters + `\n`,
		`\n` + letters, letters[:8] + `\n\n\n\n` + letters[8:],
		letters[:12] + `\r\n` + letters[14:],
		letters[:8] + `\u000a\u000D\n\n` + letters[8:], letters[:8] + " " + letters[9:],
		letters[:8] + "    " + letters[8:], letters[:8] + `\t` + letters[9:],
		letters[:8] + `\u0000` + letters[9:], letters[:8] + `\f` + letters[9:],
		letters[:8] + "\u00a0" + letters[10:], letters[:8] + "é" + letters[10:],
		letters[:8] + `\\` + letters[9:],
		letters[:8] + `\"` + letters[9:], letters[:12] + "====", letters + "====",
		letters[:12] + "A===", letters[:15], letters[:13], letters + "A", letters + "=",
		letters + "==", "%" + letters[1:],
	}
}
