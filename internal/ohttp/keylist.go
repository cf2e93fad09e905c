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

// This file makes and checks the signature of a list of key configurations (SPEC.md, 11.7). The
// signature is a header beside the list: a dictionary of structured fields (RFC 9651) with the
// members key, created, expires and sig. An Ed25519 key (RFC 8032) signs a label, the two times and
// the list.

// HeaderSignature is the name of that header.
const HeaderSignature = "Ohttp-Keys-Signature"

const (
	listLabel        = "sealedchat ohttp keys v1\x00"
	maxListSignature = 1 << 10       // bytes of the header
	maxListLead      = time.Hour     // how far the clock of the signer may be ahead of the reader's
	maxListAge       = 2 * time.Hour // how old a signature may be, whatever expiry it states
)

// SignList returns the value of HeaderSignature for a list. It cuts the times to whole seconds.
// crypto/ed25519 leaves values that it derives from the key on the heap: the caller erases them.
func SignList(key ed25519.PrivateKey, list []byte, created, expires time.Time) string {
	from, to := created.Unix(), expires.Unix()
	sig := ed25519.Sign(key, listMessage(from, to, list))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("key=:%s:, created=%d, expires=%d, sig=:%s:",
		b64(key[ed25519.SeedSize:]), from, to, b64(sig))
}

// ListSigner checks the values of HeaderSignature for a list. It returns the fingerprint of the key
// that signed the list (SHA-256, in hex) and the time of the signature in Unix seconds. The
// fingerprint is "" if the header is missing, repeated, malformed, too old, or false.
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

// listMessage returns the bytes that the key signs.
func listMessage(created, expires int64, list []byte) []byte {
	m := binary.BigEndian.AppendUint64([]byte(listLabel), uint64(created))
	return append(binary.BigEndian.AppendUint64(m, uint64(expires)), list...)
}

// listSignature is a decoded header.
type listSignature struct {
	key              ed25519.PublicKey
	created, expires int64
	sig              []byte
}

// parseListSignature decodes the header. Each of the four members must stand in it once; other
// members are skipped. No value may hold a comma, not even one that is skipped.
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

// byteSequence decodes a byte sequence of RFC 9651, :base64:, of n bytes.
func byteSequence(v string, n int) ([]byte, bool) {
	if len(v) < 2 || v[0] != ':' || v[len(v)-1] != ':' || strings.ContainsAny(v, "\r\n") {
		return nil, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(v[1 : len(v)-1])
	return b, err == nil && len(b) == n
}

// unixSeconds decodes an integer of RFC 9651 that is not negative: up to 15 digits.
func unixSeconds(v string) (int64, bool) {
	if len(v) == 0 || len(v) > 15 || strings.Trim(v, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil
}
