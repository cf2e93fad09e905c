// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"
	"unicode/utf8"
)

// reference reads an envelope with encoding/json, with exact names and no repetition. It returns
// nil for an envelope that Parse must refuse.
func reference(data []byte, maxPayload int) *Envelope {
	if !utf8.Valid(data) || !json.Valid(data) || depth(data) > MaxDepth {
		return nil
	}
	top := object(data, "version", "algorithm", "encrypted_payload", "encrypted_aes_key",
		"key_algorithm", "payload_algorithm", "processed_at")
	if top == nil || top["encrypted_payload"] == nil {
		return nil
	}
	for name, want := range map[string]string{"version": "1.0",
		"algorithm": "hybrid-aes256-rsa4096", "key_algorithm": "RSA-OAEP-SHA256",
		"payload_algorithm": "AES-256-GCM"} {
		if value, ok := top[name]; ok || name == "version" || name == "algorithm" {
			if got, isString := text(value); !isString || got != want {
				return nil
			}
		}
	}
	payload := object(top["encrypted_payload"], "ciphertext", "nonce", "tag")
	nonce, ok1 := binary(payload["nonce"])
	sealed, ok2 := binary(payload["ciphertext"])
	key, ok3 := binary(top["encrypted_aes_key"])
	if !ok1 || !ok2 || !ok3 || len(nonce) != 12 || len(key) < 256 || len(key) > 1024 {
		return nil
	}
	e := Envelope{WrappedKey: key, TagForm: Appended}
	if value, ok := payload["tag"]; ok {
		tag, ok := binary(value)
		if !ok || len(tag) != 16 {
			return nil
		}
		e.TagForm = Separate
		sealed = append(sealed, tag...)
	}
	if len(sealed) <= 16 || len(sealed)-16 > maxPayload {
		return nil
	}
	e.Sealed = append(nonce, sealed...)
	if value := top["processed_at"]; len(value) <= maxNumber {
		var f *float64
		if json.Unmarshal(value, &f) == nil && f != nil {
			e.ProcessedAt, e.HasProcessedAt = *f, true
		}
	}
	return &e
}

func depth(data []byte) (deepest int) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	for depth := 0; ; {
		token, err := decoder.Token()
		if err == io.EOF {
			return deepest
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

// object reads the members of an object. It returns nil for any other value, and for an object in
// which one of the known names is repeated.
func object(data []byte, known ...string) map[string]json.RawMessage {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil
	}
	seen := map[string]int{}
	for decoder.More() {
		name, err := decoder.Token()
		var skipped json.RawMessage
		if err != nil || decoder.Decode(&skipped) != nil {
			return nil
		}
		seen[name.(string)]++
	}
	for _, name := range known {
		if seen[name] > 1 {
			return nil
		}
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil {
		return nil
	}
	return members
}

func text(value json.RawMessage) (string, bool) {
	var s *string
	if json.Unmarshal(value, &s) != nil || s == nil {
		return "", false
	}
	return *s, true
}

// binary accepts only canonical base64: text to which its bytes encode again.
func binary(value json.RawMessage) ([]byte, bool) {
	s, ok := text(value)
	b, err := base64.StdEncoding.DecodeString(s)
	return b, ok && err == nil && base64.StdEncoding.EncodeToString(b) == s
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{separate, appended} {
		f.Add([]byte(text), len(sampleText))
		f.Add([]byte(text), len(sampleText)-1)
		for _, edit := range goodEdits() {
			f.Add([]byte(edit.apply(f, text)), never)
		}
		for _, at := range []string{"0", "-0", "1763800000.25", "1e21", "1e-7",
			"123456789012345678", "1e400", "2.5E-10"} {
			f.Add([]byte(edit{`GCM"}`, `GCM","processed_at":` + at + `}`}.apply(f, text)), never)
		}
	}
	badTexts(f, func(text, _ string) {
		if len(text) < 10_000 { // the rest only slows the fuzzer down
			f.Add([]byte(text), never)
		}
	})
	f.Fuzz(func(t *testing.T, data []byte, maxPayload int) {
		checkAgainstReference(t, data, maxPayload)
	})
}

func checkAgainstReference(t *testing.T, data []byte, maxPayload int) {
	t.Helper()
	want := reference(data, maxPayload)
	got, err := Parse(bytes.Clone(data), maxPayload)
	var format *FormatError
	if err != nil && !errors.As(err, &format) && !errors.Is(err, ErrTooLarge) {
		t.Fatalf("%q\nerror %v", data, err)
	}
	if (want == nil) != (err != nil) {
		t.Fatalf("%q\naccepted by the reference: %v, but %v", data, want != nil, err)
	}
	if err != nil {
		return
	}
	if !equal(&got, want) {
		t.Fatalf("%q\n got %+v\nwant %+v", data, got, want)
	}
	again := Append(nil, &got)
	if len(again) != Size(&got) {
		t.Fatalf("%d bytes, but size %d", len(again), Size(&got))
	}
	if back, err := Parse(again, maxPayload); err != nil || !equal(&back, &got) {
		t.Fatalf("%q\nbecame %+v, %v", data, back, err)
	}
}

// Random envelopes survive, and Parse and the reference agree on random damage.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	const spice = "\"\\/+=-_{}[],: \n\r\t0Aez\x00\xff"
	for range 500 {
		e := Envelope{
			Sealed:         random(NonceSize + 1 + r.IntN(60) + TagSize),
			WrappedKey:     random(MinWrappedKey + r.IntN(MaxWrappedKey-MinWrappedKey+1)),
			TagForm:        TagForm(r.IntN(2)),
			HasProcessedAt: r.IntN(2) == 0,
		}
		if f := math.Float64frombits(r.Uint64()); e.HasProcessedAt && !math.IsNaN(f) &&
			!math.IsInf(f, 0) {
			e.ProcessedAt = f
		}
		text := Append(nil, &e)
		if got, err := Parse(bytes.Clone(text), never); err != nil || !equal(&got, &e) {
			t.Fatalf("%s\n got %+v, %v\nwant %+v", text, got, err, e)
		}
		for range 5 {
			damaged := bytes.Clone(text)
			for range 1 + r.IntN(2) {
				at := r.IntN(len(damaged))
				switch c := spice[r.IntN(len(spice))]; r.IntN(3) {
				case 0:
					damaged[at] = c
				case 1:
					damaged = append(damaged[:at], damaged[at+1:]...)
				case 2:
					damaged = append(damaged[:at], append([]byte{c}, damaged[at:]...)...)
				}
			}
			checkAgainstReference(t, damaged, never)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	e := Envelope{Sealed: make([]byte, 10<<20), WrappedKey: sampleKey}
	for i := range e.Sealed {
		e.Sealed[i] = byte(i * i >> 5)
	}
	text := Append(nil, &e)
	data := make([]byte, len(text))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		copy(data, text)
		if _, err := Parse(data, never); err != nil {
			b.Fatal(err)
		}
	}
}

// The measure for BenchmarkParse: the same copy, and base64 alone.
func BenchmarkBase64Decode(b *testing.B) {
	text := bytes.Repeat([]byte("QUJD+/JH"), 14<<20/8)
	data, dst := make([]byte, len(text)), make([]byte, len(text))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		copy(data, text)
		if _, err := base64.StdEncoding.Decode(dst, data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	e := Envelope{Sealed: make([]byte, 10<<20), WrappedKey: sampleKey}
	dst := make([]byte, 0, Size(&e))
	b.SetBytes(int64(len(e.Sealed)))
	b.ReportAllocs()
	for b.Loop() {
		Append(dst, &e)
	}
}
