// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"errors"
	"strconv"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// Indexes of topNames. Parse matches members by their exact names: `Version` is an unknown member.
const (
	version = iota
	algorithm
	payload
	wrappedKey
	keyAlgorithm
	payloadAlgorithm
	processedAt
)

var topNames = [...]string{"version", "algorithm", "encrypted_payload", "encrypted_aes_key",
	"key_algorithm", "payload_algorithm", "processed_at"}

// Indexes of payloadNames.
const (
	ciphertext = iota
	nonce
	tag
)

var payloadNames = [...]string{"ciphertext", "nonce", "tag"}

// textLead is the least distance between the beginning of the base64 text of the ciphertext and the
// place where its decoded bytes will begin.
const textLead = len(`{"encrypted_payload":{"ciphertext":"`) - NonceSize

// maxNumber is the longest processed_at that Parse reads, in bytes. It is enough to write every
// float64 exactly. Parse ignores a longer one.
const maxNumber = 1100

// Parse decodes an envelope in place. It takes ownership of data and overwrites it, also when it
// fails. Sealed lies at the beginning of data, and its capacity ends where that of data ends: so
// the payload can be opened in place, and the owner of data wipes all of it. WrappedKey has memory
// of its own.
//
// The error is ErrTooLarge if the plaintext would be longer than maxPayload bytes. Every other
// error is a *FormatError.
func Parse(data []byte, maxPayload int) (Envelope, error) {
	if err := jsonspan.Valid(data, MaxDepth); err != nil {
		return Envelope{}, textError(err)
	}
	if jsonspan.KindOf(data) != jsonspan.Object {
		return Envelope{}, &FormatError{"", "not an object"}
	}
	var top [len(topNames)][]byte
	for m := range jsonspan.MembersOf(data) {
		if err := keep(m, top[:], topNames[:], ""); err != nil {
			return Envelope{}, err
		}
	}
	if err := checkLabels(&top); err != nil {
		return Envelope{}, err
	}

	const prefix = "encrypted_payload."
	if top[payload] == nil {
		return Envelope{}, &FormatError{topNames[payload], missing}
	}
	if jsonspan.KindOf(top[payload]) != jsonspan.Object {
		return Envelope{}, &FormatError{topNames[payload], "not an object"}
	}
	var inner [len(payloadNames)][]byte
	for m := range jsonspan.MembersOf(top[payload]) {
		if err := keep(m, inner[:], payloadNames[:], prefix); err != nil {
			return Envelope{}, err
		}
	}

	// The small members come first, into memory of their own: decoding the payload overwrites their
	// text.
	var e Envelope
	e.ProcessedAt, e.HasProcessedAt = number(top[processedAt])
	var nonceBytes [NonceSize]byte
	var tagBytes [TagSize]byte
	if err := decodeExactly(nonceBytes[:], inner[nonce], prefix+"nonce"); err != nil {
		return Envelope{}, err
	}
	minimum := 1 // an empty plaintext is no chat
	if inner[tag] == nil {
		e.TagForm = Appended
		minimum += TagSize
	} else if err := decodeExactly(tagBytes[:], inner[tag], prefix+"tag"); err != nil {
		return Envelope{}, err
	}
	text, n, err := encoded(inner[ciphertext], prefix+"ciphertext")
	if err != nil {
		return Envelope{}, err
	}
	if n < minimum {
		return Envelope{}, &FormatError{prefix + "ciphertext", "too short"}
	}
	if n-(minimum-1) > maxPayload {
		return Envelope{}, ErrTooLarge
	}
	if e.WrappedKey, err = decodeKey(top[wrappedKey]); err != nil {
		return Envelope{}, err
	}

	// nonce ‖ ciphertext ‖ tag fits, because the text of the wrapped key alone is longer than nonce
	// and tag together.
	if err := decode(data[NonceSize:][:n], text, textLead, prefix+"ciphertext"); err != nil {
		return Envelope{}, err
	}
	copy(data, nonceBytes[:])
	end := NonceSize + n
	if e.TagForm == Separate {
		end += copy(data[end:], tagBytes[:])
	}
	e.Sealed = data[:end]
	return e, nil
}

const missing = "missing"

// textError translates jsonspan's errors.
func textError(err error) error {
	if errors.Is(err, jsonspan.ErrDepth) {
		return &FormatError{"", "nested too deep"}
	}
	return &FormatError{"", "not valid JSON"}
}

// keep puts the value of the member into its slot, if its name is one of names. It refuses a name
// that comes twice, because readers differ on which of the two counts.
func keep(m jsonspan.Member, slots [][]byte, names []string, prefix string) error {
	for i, name := range names {
		if !m.Is(name) {
			continue
		}
		if slots[i] != nil {
			return &FormatError{prefix + name, "repeated"}
		}
		slots[i] = m.Value
	}
	return nil
}

// checkLabels refuses other versions and algorithms than those of this package.
func checkLabels(top *[len(topNames)][]byte) error {
	for _, label := range [...]struct {
		member   int
		want     string
		required bool
	}{
		{version, Version, true},
		{algorithm, Algorithm, true},
		{keyAlgorithm, KeyAlgorithm, false},
		{payloadAlgorithm, PayloadAlgorithm, false},
	} {
		value := top[label.member]
		if value == nil {
			if label.required {
				return &FormatError{topNames[label.member], missing}
			}
			continue
		}
		if jsonspan.KindOf(value) != jsonspan.String ||
			!jsonspan.Equal(value[1:len(value)-1], label.want) {
			return &FormatError{topNames[label.member], "not " + strconv.Quote(label.want)}
		}
	}
	return nil
}

// number decodes a number that a float64 can hold. It ignores every other value, because
// processed_at only informs.
func number(value []byte) (float64, bool) {
	if value == nil || len(value) > maxNumber || jsonspan.KindOf(value) != jsonspan.Number {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(value), 64)
	if err != nil { // out of range: f is infinite
		return 0, false
	}
	return f, true
}

// encoded undoes the JSON escapes of a string value in place. It returns the base64 text in the
// string, and the number of bytes that the text stands for. The text holds no line breaks, and may
// still hold characters outside the alphabet of base64.
func encoded(value []byte, field string) (text []byte, n int, err error) {
	if value == nil {
		return nil, 0, &FormatError{field, missing}
	}
	if jsonspan.KindOf(value) != jsonspan.String {
		return nil, 0, &FormatError{field, "not a string"}
	}
	text = value[1 : len(value)-1]
	if bytes.IndexByte(text, '\\') >= 0 {
		text = jsonspan.Unescape(text[:0], text)
		// the decoder would skip these
		if bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0 {
			return nil, 0, &FormatError{field, notBase64}
		}
	}
	if len(text)%4 != 0 {
		return nil, 0, &FormatError{field, notBase64}
	}
	n = len(text) / 4 * 3
	switch {
	case bytes.HasSuffix(text, []byte("==")):
		n -= 2
	case bytes.HasSuffix(text, []byte("=")):
		n--
	}
	return text, n, nil
}

// decodeExactly decodes a member of exactly len(dst) bytes.
func decodeExactly(dst, value []byte, field string) error {
	text, n, err := encoded(value, field)
	if err != nil {
		return err
	}
	if n != len(dst) {
		return &FormatError{field, "not " + strconv.Itoa(len(dst)) + " bytes"}
	}
	return decode(dst, text, apart, field)
}

// decodeKey decodes the wrapped key into memory of its own.
func decodeKey(value []byte) ([]byte, error) {
	field := topNames[wrappedKey]
	text, n, err := encoded(value, field)
	if err != nil {
		return nil, err
	}
	if n < MinWrappedKey || n > MaxWrappedKey {
		return nil, &FormatError{field, "not as long as an RSA ciphertext"}
	}
	key := make([]byte, n)
	return key, decode(key, text, apart, field)
}
