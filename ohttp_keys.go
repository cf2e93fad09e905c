// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file reads a gateway's list of key configurations (SPEC.md, 11.7), and who vouches for it.

const (
	maxKeyList      = 64 << 10        // bytes of a list; one configuration with X-Wing has 1,229
	maxKeySignature = 1 << 10         // bytes of the header
	keyClockSkew    = time.Hour       // how far a signature may be ahead of this clock
	maxKeyListAge   = 2 * time.Hour   // and behind it, whatever it says of its expiry: gateways sign each answer anew
	keyListStep     = 5 * time.Minute // how far replicas' clocks may be apart

	headerKeySignature = "Ohttp-Keys-Signature"
	keyListContext     = "sealedchat ohttp keys v1\x00"
)

// fetchConfigs asks the gateway for its key configurations and returns those that can be used, best first.
func fetchConfigs(ctx context.Context, rt http.RoundTripper, url string, now func() time.Time) ([]*PublicKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: %w", err)
	}
	req.Header = http.Header{"Accept": {ohttp.TypeKeys}, "Cache-Control": {"no-store"}, "User-Agent": {""}}
	a, err := httpx.Exchange(rt, req, maxKeyList)
	if err != nil {
		return nil, httpx.NeverSent(err)
	}
	switch {
	case a.Status != http.StatusOK:
		return nil, outerError(a.Status, a.Body)
	case !httpx.HasType(a.Header, ohttp.TypeKeys):
		return nil, &OuterError{StatusCode: a.Status, Detail: "not a list of keys"}
	}
	keys, err := parseConfigs(a.Body)
	if err != nil {
		return nil, err
	}
	if by, at := listSigner(a.Header, a.Body, now()); by != "" {
		sum := sha256.Sum256(a.Body)
		for _, k := range keys {
			k.signer, k.signed, k.list = by, at, sum
		}
	}
	return keys, nil
}

// parseConfigs reads application/ohttp-keys, refused whole when malformed anywhere: those with X-Wing come first.
func parseConfigs(list []byte) ([]*PublicKey, error) {
	configs, err := ohttp.ParseConfigs(list)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed list of key configurations", ErrPublicKey)
	}
	if len(configs) == 0 {
		return nil, fmt.Errorf("%w: no key configuration for X-Wing or X25519 with HKDF-SHA256 and AES-256-GCM", ErrPublicKey)
	}
	var keys []*PublicKey
	for _, c := range configs {
		keys = append(keys, newConfigKey(c))
	}
	slices.SortStableFunc(keys, func(a, b *PublicKey) int { return preference(a.config) - preference(b.config) })
	return keys, nil
}

// onlyXWing refuses a list that somebody may have cut down to what is easier to break.
func onlyXWing(keys []*PublicKey) ([]*PublicKey, error) {
	keys = slices.DeleteFunc(keys, func(k *PublicKey) bool { return k.config.KEM() != ohttp.XWing })
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: the list has no key configuration for X-Wing, and Config.AllowX25519 is not set", ErrPublicKey)
	}
	return keys, nil
}

func preference(c *ohttp.Config) int {
	if c.KEM() == ohttp.XWing {
		return 0
	}
	return 1
}

func newConfigKey(c *ohttp.Config) *PublicKey {
	fp := c.Fingerprint()
	return &PublicKey{config: c, der: c.Encoded(), fingerprint: hex.EncodeToString(fp[:])}
}

// Signer is the fingerprint of the Ed25519 key that vouches for a key configuration: SHA-256 of its 32 bytes, 64
// hex digits. "" when nobody does, and for an RSA key. [Pin] and [SecureCompletionClient.AcceptServerKey] take it, and
// then trust every configuration that it signs; [FirstUse] remembers it in place of the configuration. It says nothing
// about where the configuration comes from, since anybody can sign any list: compare it with [Gateway.KeySigner].
func (k *PublicKey) Signer() string { return k.signer }

// goesBy tells whether to trust what has this fingerprint is to trust k.
func (k *PublicKey) goesBy(fingerprint string) bool {
	return fingerprint == k.fingerprint || (k.signer != "" && fingerprint == k.signer)
}

// lasting is the fingerprint to remember: of who signs, if somebody does, since configurations come and go.
func (k *PublicKey) lasting() string {
	if k.signer != "" {
		return k.signer
	}
	return k.fingerprint
}

// unsigned is k without anybody to vouch for it.
func (k *PublicKey) unsigned() *PublicKey {
	plain := *k
	plain.signer, plain.signed, plain.list = "", 0, [32]byte{}
	return &plain
}

// refusal is the error of a key that is not trusted.
func (k *PublicKey) refusal(want []string, err error) *ServerKeyError {
	return &ServerKeyError{Want: want, Got: k.fingerprint, Signer: k.signer, Err: err}
}

// listSigner returns the fingerprint of the key that signed a list, and when. A header that is missing, malformed, too old
// or false is none: the list then stands for itself.
func listSigner(h http.Header, list []byte, now time.Time) (fingerprint string, created int64) {
	lines := h.Values(headerKeySignature)
	if len(lines) != 1 || len(lines[0]) > maxKeySignature {
		return "", 0
	}
	s, ok := parseListSignature(lines[0])
	if !ok || s.created > now.Add(keyClockSkew).Unix() || s.created < now.Add(-maxKeyListAge).Unix() || s.expires <= now.Unix() {
		return "", 0
	}
	if !ed25519.Verify(s.key, listMessage(s.created, s.expires, list), s.sig) {
		return "", 0
	}
	sum := sha256.Sum256(s.key)
	return hex.EncodeToString(sum[:]), s.created
}

// listMessage is what the signature is over.
func listMessage(created, expires int64, list []byte) []byte {
	m := binary.BigEndian.AppendUint64([]byte(keyListContext), uint64(created))
	return append(binary.BigEndian.AppendUint64(m, uint64(expires)), list...)
}

type listSignature struct {
	key              ed25519.PublicKey
	created, expires int64
	sig              []byte
}

// parseListSignature reads the header, a dictionary (RFC 9651) with four members of known types; others are skipped.
// The values that are known hold no comma, and one that is skipped may hold none either.
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
