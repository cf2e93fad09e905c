// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// AuthenticateKeys makes a [GatewayConfig].Authenticate that lets in whoever sends one of keys as a bearer token, and
// returns [ErrAuthentication] otherwise. All of them are compared, in constant time. It keeps digests; keys stay the
// caller's and may be destroyed afterwards. Its own error is [*ConfigError]: there are no keys, or one is destroyed or not
// 1 to 4,096 bytes of visible ASCII.
func AuthenticateKeys(keys ...*Secret) (func(*http.Request) error, error) {
	if len(keys) == 0 {
		return nil, configError("AuthenticateKeys", "no keys")
	}
	salt := make([]byte, 32)
	_, _ = rand.Read(salt)
	digest := func(b []byte) []byte {
		m := hmac.New(sha256.New, salt)
		m.Write(b)
		return m.Sum(nil)
	}
	var known [][]byte
	for i, k := range keys {
		err := k.Use(func(b []byte) error {
			known = append(known, digest(b))
			return httpx.ValidAPIKey(b)
		})
		if err != nil {
			return nil, &ConfigError{Field: "AuthenticateKeys[" + strconv.Itoa(i) + "]", Err: err}
		}
	}
	return func(r *http.Request) error {
		scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
		d := digest([]byte(strings.TrimLeft(token, " "))) // RFC 9110, 11.4: one space or more
		found := 0
		for _, k := range known {
			found |= subtle.ConstantTimeCompare(k, d)
		}
		if !ok || !strings.EqualFold(scheme, "Bearer") || found == 0 {
			return ErrAuthentication
		}
		return nil
	}, nil
}
