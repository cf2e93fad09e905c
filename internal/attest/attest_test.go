// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// vectors reads a file of test vectors.
func vectors(t testing.TB, name string, to any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "testdata", "attestation", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, to); err != nil {
		t.Fatal(err)
	}
}

func keyOf(t testing.TB, k keyJSON) Key {
	t.Helper()
	key := Key{Type: k.Type}
	if !parseHex(&key.Fingerprint, k.Fingerprint) {
		t.Fatalf("%q is no fingerprint", k.Fingerprint)
	}
	return key
}

type vectorDocument struct {
	Name, Document, Verdict string
	Key                     keyJSON
}

type vectorDocuments struct {
	Nonce     string
	Documents []vectorDocument
}

// TestAttestationVectors checks the vectors of SPEC.md, section 14. Another implementation, in
// another language, made them. The evidence in them is report data, and nothing else.
func TestAttestationVectors(t *testing.T) {
	var data []struct {
		Name, Nonce string
		Keys        []keyJSON
		ReportData  string `json:"report_data"`
	}
	vectors(t, "reportdata.json", &data)
	if len(data) < 7 {
		t.Fatalf("%d vectors", len(data))
	}
	for _, v := range data {
		nonce, ok := ParseQuery("nonce=" + v.Nonce)
		var keys []Key
		for _, k := range v.Keys {
			keys = append(keys, keyOf(t, k))
		}
		if got := ReportData(nonce, keys); !ok || hex.EncodeToString(got[:]) != v.ReportData {
			t.Errorf("%s: %x", v.Name, got)
		}
	}

	var docs vectorDocuments
	vectors(t, "documents.json", &docs)
	nonce, _ := ParseQuery("nonce=" + docs.Nonce)
	verdicts := make(map[string]int)
	for _, v := range docs.Documents {
		got := "accepted"
		doc, err := Decode([]byte(v.Document))
		switch {
		case err != nil:
			if got = "malformed"; !errors.Is(err, ErrDocument) {
				t.Errorf("%s: %v", v.Name, err)
			}
		case !doc.Has(keyOf(t, v.Key)):
			got = "other keys"
		default:
			want := ReportData(nonce, doc.Keys)
			if !bytes.Equal(doc.Evidence, want[:]) {
				got = "other report data"
			}
		}
		if got != v.Verdict {
			t.Errorf("%s: %s, want %s (%v)", v.Name, got, v.Verdict, err)
		}
		verdicts[got]++
	}
	if len(verdicts) != 4 || verdicts["accepted"] < 7 || verdicts["malformed"] < 50 {
		t.Errorf("verdicts: %v", verdicts)
	}
}

func sample() *Document {
	return &Document{Format: "sev-snp", Evidence: []byte{1}, Endorsements: [][]byte{{2}},
		Keys: []Key{{Type: TypeSigner}, {Type: TypeRSA, Fingerprint: [32]byte{31: 1}}}}
}

func TestDocumentLimits(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Document){
		"evidence":  func(d *Document) { d.Evidence = make([]byte, MaxEvidence) },
		"all":       func(d *Document) { d.Endorsements = [][]byte{make([]byte, 700<<10)} },
		"many":      func(d *Document) { d.Endorsements = manyOf(maxEndorsements) },
		"none":      func(d *Document) { d.Endorsements = nil },
		"format":    func(d *Document) { d.Format = strings.Repeat("a", maxFormat) },
		"RSA alone": func(d *Document) { d.Keys = d.Keys[1:] },
	} {
		d := sample()
		change(d)
		text, err := Encode(d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := Decode(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Document){
		"evidence":  func(d *Document) { d.Evidence = make([]byte, MaxEvidence+1) },
		"nothing":   func(d *Document) { d.Evidence = nil },
		"all":       func(d *Document) { d.Endorsements = [][]byte{make([]byte, MaxDocument*3/4)} },
		"far more":  func(d *Document) { d.Endorsements = [][]byte{make([]byte, 8*MaxDocument)} },
		"many":      func(d *Document) { d.Endorsements = manyOf(maxEndorsements + 1) },
		"empty":     func(d *Document) { d.Endorsements = [][]byte{{}} },
		"no format": func(d *Document) { d.Format = "" },
		"format":    func(d *Document) { d.Format = strings.Repeat("a", maxFormat+1) },
		"quotes":    func(d *Document) { d.Format = `"` },
		"no keys":   func(d *Document) { d.Keys = nil },
		"twice":     func(d *Document) { d.Keys[1].Type = TypeSigner },
		"order":     func(d *Document) { d.Keys[0], d.Keys[1] = d.Keys[1], d.Keys[0] },
		"unknown":   func(d *Document) { d.Keys[1].Type = 3 },
	} {
		d := sample()
		change(d)
		if text, err := Encode(d); !errors.Is(err, ErrDocument) {
			t.Errorf("%s: %d bytes, %v", name, len(text), err)
		}
	}
	// what Encode does not write
	text, _ := Encode(sample())
	long := strings.Replace(string(text), `"AQ=="`, `"`+strings.Repeat("AAAA", MaxEvidence/3+1)+`"`, 1)
	padded := string(text) + strings.Repeat(" ", MaxDocument)
	for _, text := range []string{long, padded} {
		if _, err := Decode([]byte(text)); !errors.Is(err, ErrDocument) {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
}

func manyOf(n int) (list [][]byte) {
	for range n {
		list = append(list, []byte{1})
	}
	return list
}

func TestQuery(t *testing.T) {
	t.Parallel()
	nonce := NewNonce()
	if nonce == NewNonce() {
		t.Error("the same nonce twice")
	}
	if got, ok := ParseQuery(Query(nonce)); !ok || got != nonce {
		t.Errorf("%q is not read", Query(nonce))
	}
	digits := strings.Repeat("0a", 32)
	for _, query := range []string{
		"", "nonce", "nonce=", digits, "nonce=" + digits[2:], "nonce=" + digits + "00",
		"nonce=" + strings.ToUpper(digits), "Nonce=" + digits, "nonce=" + digits + "&",
		"&nonce=" + digits, "nonce=" + digits + "&nonce=" + digits, "a=b&nonce=" + digits,
		"nonce=" + digits[:62] + "g0", "nonce=%30" + digits[1:], "nonce= " + digits[1:],
		"?nonce=" + digits, "nonce=" + digits[:62] + "é",
	} {
		if _, ok := ParseQuery(query); ok {
			t.Errorf("%q is read", query)
		}
	}
}

// FuzzDocument decodes anything. What is accepted has only the spellings that the specification
// has, and comes back the same.
func FuzzDocument(f *testing.F) {
	var docs vectorDocuments
	vectors(f, "documents.json", &docs)
	for _, v := range docs.Documents {
		f.Add([]byte(v.Document))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		d, err := Decode(text)
		if !bytes.Equal(before, text) {
			t.Fatal("the text was changed")
		}
		if err != nil {
			if !errors.Is(err, ErrDocument) {
				t.Fatal(err)
			}
			return
		}
		var plain documentJSON // encoding/json agrees on what is accepted
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&plain); err != nil {
			t.Fatal(err)
		}
		again, err := Encode(d)
		if err != nil {
			t.Fatal(err)
		}
		same, err := json.Marshal(plain)
		if err != nil || !bytes.Equal(same, again) {
			t.Fatalf("%s\n%s", again, same)
		}
		if d2, err := Decode(again); err != nil || d2.Format != d.Format {
			t.Fatal(err)
		}
	})
}
