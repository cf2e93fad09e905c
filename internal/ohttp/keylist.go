// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// This file has the signature of a list of key configurations, made and checked (SPEC.md, 11.7). It
// is a header beside the list: a dictionary of structured fields (RFC 9651) with the members key,
// created, expires and sig. An Ed25519 key (RFC 8032) signs a label, the two times and the list.

// HeaderSignature is the name of the header.
const HeaderSignature = "Ohttp-Keys-Signature"

const (
	listLabel        = "sealedchat ohttp keys v1\x00"
	maxListSignature = 1 << 10       // bytes of the header
	maxListLead      = time.Hour     // how far a signature may be ahead of the reader's clock
	maxListAge       = 2 * time.Hour // and behind it, whatever it says of its expiry
)

// SignList returns the value of HeaderSignature for a list, in whole seconds. crypto/ed25519 leaves
// on the heap values that it derives from the key: the caller has them erased.
func SignList(key ed25519.PrivateKey, list []byte, created, expires time.Time) string {
	from, to := created.Unix(), expires.Unix()
	sig := ed25519.Sign(key, listMessage(from, to, list))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("key=:%s:, created=%d, expires=%d, sig=:%s:",
		b64(key[ed25519.SeedSize:]), from, to, b64(sig))
}

// ListSigner reads the values of HeaderSignature. It returns the fingerprint of the key that signed
// the list, SHA-256 in hex, and when, in Unix seconds. A header that is missing, repeated,
// malformed, too old or false gives "": then nobody vouches for the list.
func ListSigner(header []string, list []byte, now time.Time) (fingerprint string, created int64) {
	if len(header) != 1 || len(header[0]) > maxListSignature {
		return "", 0
	}
	s, ok := parseListSignature(header[0])
	if !ok || s.created > now.Add(maxListLead).Unix() ||
		s.created < now.Add(-maxListAge).Unix() || s.expires <= now.Unix() {
		return "", 0
	}
	if !ed25519.Verify(s.key, listMessage(s.created, s.expires, list), s.sig) {
		return "", 0
	}
	sum := sha256.Sum256(s.key)
	return hex.EncodeToString(sum[:]), s.created
}

// listMessage is the text that is signed.
func listMessage(created, expires int64, list []byte) []byte {
	m := binary.BigEndian.AppendUint64([]byte(listLabel), uint64(created))
	return append(binary.BigEndian.AppendUint64(m, uint64(expires)), list...)
}

type listSignature struct {
	key              ed25519.PublicKey
	created, expires int64
	sig              []byte
}

// parseListSignature reads the header. Each of the four members stands in it once; others are
// skipped. The values of the four hold no comma, and one that is skipped may hold none either.
func parseListSignature(text string) (s listSignature, ok bool) {
	seen := make(map[string]bool)
	for member := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.Trim(member, " \t"), "=")
		known := true
		valid := false
		switch name {
		case "key":
			var b []byte
			b, valid = byteSequence(value, ed25519.PublicKeySize)
			s.key = b
		case "sig":
			s.sig, valid = byteSequence(value, ed25519.SignatureSize)
		case "created":
			s.created, valid = unixSeconds(value)
		case "expires":
			s.expires, valid = unixSeconds(value)
		default:
			known = false
		}
		if !known {
			continue
		}
		if !valid || seen[name] {
			return listSignature{}, false
		}
		seen[name] = true
	}
	if len(seen) != 4 {
		return listSignature{}, false
	}
	return s, true
}

// byteSequence reads :base64: of n bytes.
func byteSequence(v string, n int) ([]byte, bool) {
	if len(v) < 2 || v[0] != ':' || v[len(v)-1] != ':' || strings.ContainsAny(v, "\r\n") {
		return nil, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(v[1 : len(v)-1])
	return b, err == nil && len(b) == n
}

// unixSeconds reads an integer of RFC 9651 that is not negative: up to 15 digits.
func unixSeconds(v string) (int64, bool) {
	if len(v) == 0 || len(v) > 15 || strings.Trim(v, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil
}
