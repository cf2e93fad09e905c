// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// Limits of a document. They hold before anything is decoded.
const (
	MaxDocument     = 1 << 20  // bytes of JSON
	MaxEvidence     = 64 << 10 // bytes of evidence
	maxEndorsements = 32
	maxFormat       = 32
	maxDepth        = 3
)

// ErrDocument says that a text is no document. Errors that wrap it hold nothing of the text.
var ErrDocument = errors.New("not an attestation document")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDocument, fmt.Sprintf(format, args...))
}

// Document is evidence, what a verifier needs besides, and the keys that the evidence is said to
// vouch for.
type Document struct {
	Format       string // 1 to 32 of a-z, 0-9 and "-", such as "sev-snp"
	Evidence     []byte // 1 byte to MaxEvidence
	Endorsements [][]byte
	Keys         []Key // one at least, ascending types, each once
}

// Has tells whether the document names key, under its own type.
func (d *Document) Has(key Key) bool { return slices.Contains(d.Keys, key) }

func (d *Document) check() error {
	if !validFormat(d.Format) {
		return malformed("the format is not 1 to %d of a-z, 0-9 and \"-\"", maxFormat)
	}
	if n := len(d.Evidence); n == 0 || n > MaxEvidence {
		return malformed("%d bytes of evidence, want 1 to %d", n, MaxEvidence)
	}
	if n := len(d.Endorsements); n > maxEndorsements {
		return malformed("%d endorsements, limit %d", n, maxEndorsements)
	}
	if len(d.Keys) == 0 {
		return malformed("no keys")
	}
	last := uint8(0)
	for _, k := range d.Keys {
		if k.Type <= last || k.Type > TypeRSA {
			return malformed("the types of keys are not %d and %d, ascending", TypeSigner, TypeRSA)
		}
		last = k.Type
	}
	return nil
}

func validFormat(s string) bool {
	if len(s) == 0 || len(s) > maxFormat {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

type documentJSON struct {
	Format       string    `json:"format"`
	Evidence     []byte    `json:"evidence"`
	Endorsements [][]byte  `json:"endorsements"`
	Keys         []keyJSON `json:"keys"`
}

type keyJSON struct {
	Type        uint8  `json:"type"`
	Fingerprint string `json:"fingerprint"`
}

// Encode writes a document, and refuses one that Decode would refuse.
func Encode(d *Document) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	size := base64.StdEncoding.EncodedLen(len(d.Evidence))
	for _, e := range d.Endorsements {
		if len(e) == 0 {
			return nil, malformed("an endorsement is empty")
		}
		size += base64.StdEncoding.EncodedLen(len(e))
	}
	if size > MaxDocument {
		return nil, malformed("%d bytes, limit %d", size, MaxDocument)
	}
	out := documentJSON{
		Format: d.Format, Evidence: d.Evidence,
		Endorsements: append([][]byte{}, d.Endorsements...), // none is [], not null
	}
	for _, k := range d.Keys {
		out.Keys = append(out.Keys, keyJSON{k.Type, hex.EncodeToString(k.Fingerprint[:])})
	}
	text, err := json.Marshal(out)
	if err == nil && len(text) > MaxDocument {
		err = malformed("%d bytes, limit %d", len(text), MaxDocument)
	}
	return text, err
}

// Decode reads a document: one JSON object (RFC 8259, in UTF-8) with the four members of a
// document, each once and no other, and nothing except white space around it. Errors are
// ErrDocument. The document shares no memory with text.
func Decode(text []byte) (*Document, error) {
	if len(text) > MaxDocument {
		return nil, malformed("more than %d bytes", MaxDocument)
	}
	if jsonspan.Valid(text, maxDepth) != nil {
		return nil, malformed("not JSON, or nested too deep")
	}
	d := &Document{}
	err := members(text, map[string]func([]byte) error{
		"format": func(v []byte) (err error) {
			d.Format, err = readText(v, maxFormat)
			return err
		},
		"evidence": func(v []byte) (err error) {
			d.Evidence, err = readBytes(v, MaxEvidence)
			return err
		},
		"endorsements": d.readEndorsements,
		"keys":         d.readKeys,
	})
	if err != nil {
		return nil, err
	}
	return d, d.check()
}

// members has each member of an object read, and wants each of them once, and no other.
func members(object []byte, read map[string]func([]byte) error) error {
	if jsonspan.KindOf(object) != jsonspan.Object {
		return malformed("not an object")
	}
	for m := range jsonspan.MembersOf(object) {
		name := string(jsonspan.Unescape(nil, m.Name))
		f := read[name]
		if f == nil {
			return malformed("a member that is unknown, or there twice")
		}
		if err := f(m.Value); err != nil {
			return err
		}
		delete(read, name)
	}
	for name := range read {
		return malformed("no member %q", name)
	}
	return nil
}

func (d *Document) readEndorsements(list []byte) error {
	if jsonspan.KindOf(list) != jsonspan.Array {
		return malformed("endorsements is not an array")
	}
	for value := range jsonspan.ElementsOf(list) {
		if len(d.Endorsements) == maxEndorsements {
			return malformed("more than %d endorsements", maxEndorsements)
		}
		e, err := readBytes(value, MaxDocument)
		if err != nil {
			return err
		}
		d.Endorsements = append(d.Endorsements, e)
	}
	return nil
}

func (d *Document) readKeys(list []byte) error {
	if jsonspan.KindOf(list) != jsonspan.Array {
		return malformed("keys is not an array")
	}
	for value := range jsonspan.ElementsOf(list) {
		if len(d.Keys) == TypeRSA {
			return malformed("more than %d keys", TypeRSA)
		}
		var k Key
		err := members(value, map[string]func([]byte) error{
			"type":        k.readType,
			"fingerprint": k.readFingerprint,
		})
		if err != nil {
			return err
		}
		d.Keys = append(d.Keys, k)
	}
	return nil
}

// readType reads a type, in the one spelling that it has.
func (k *Key) readType(value []byte) error {
	if len(value) != 1 || value[0] < '0' || value[0] > '9' {
		return malformed("a key's type is not a digit")
	}
	k.Type = value[0] - '0'
	return nil
}

func (k *Key) readFingerprint(value []byte) error {
	digits, err := readText(value, 2*len(k.Fingerprint))
	if err == nil && !parseHex(&k.Fingerprint, digits) {
		err = malformed("a fingerprint is not 64 lower-case hex digits")
	}
	return err
}

// readText reads a string of at most so many bytes, which is allocated only when it is that short.
func readText(value []byte, most int) (string, error) {
	inside, ok := bytes.CutPrefix(value, []byte{'"'})
	if !ok || len(inside)-1 > 6*most { // "\u0061" is the longest spelling of a byte
		return "", malformed("a member is not a string, or too long")
	}
	text := jsonspan.Unescape(nil, inside[:len(inside)-1])
	if len(text) > most {
		return "", malformed("a member is too long")
	}
	return string(text), nil
}

// readBytes reads base64 (RFC 4648, section 4) with its padding, without line breaks, of 1 to so
// many bytes.
func readBytes(value []byte, most int) ([]byte, error) {
	text, err := readText(value, base64.StdEncoding.EncodedLen(most))
	if err != nil {
		return nil, err
	}
	if bytes.ContainsAny([]byte(text), "\r\n") { // encoding/base64 skips them
		return nil, malformed("base64 with line breaks")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	switch {
	case err != nil:
		return nil, malformed("base64")
	case len(b) == 0 || len(b) > most:
		return nil, malformed("%d bytes, want 1 to %d", len(b), most)
	}
	return b, nil
}
