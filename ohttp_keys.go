// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file reads a gateway's list of key configurations (SPEC.md, 11.7), and who signed it.

const (
	maxKeyList  = 64 << 10        // bytes of a list; one configuration with X-Wing has 1,229
	keyListStep = 5 * time.Minute // how far replicas' clocks may be apart
)

// fetchConfigs asks the gateway for its key configurations and returns those that can be used, best
// first.
func fetchConfigs(ctx context.Context, rt http.RoundTripper, url string,
	now func() time.Time) ([]*PublicKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: %w", err)
	}
	req.Header = http.Header{"Accept": {ohttp.TypeKeys}, "Cache-Control": {"no-store"},
		"User-Agent": {""}}
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
	if by, at := ohttp.ListSigner(a.Header.Values(ohttp.HeaderSignature), a.Body, now()); by != "" {
		sum := sha256.Sum256(a.Body)
		for _, k := range keys {
			k.signer, k.signed, k.list = by, at, sum
		}
	}
	return keys, nil
}

// parseConfigs reads application/ohttp-keys, and refuses it as a whole when it is malformed
// anywhere. The best come first: X-Wing, and of these AES-256-GCM.
func parseConfigs(list []byte) ([]*PublicKey, error) {
	configs, err := ohttp.ParseConfigs(list)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed list of key configurations", ErrPublicKey)
	}
	if len(configs) == 0 {
		return nil, fmt.Errorf("%w: no key configuration for X-Wing or X25519 with HKDF-SHA256 "+
			"and AES-256-GCM or AES-128-GCM; the list has %s", ErrPublicKey, ohttp.Suites(list))
	}
	var keys []*PublicKey
	for _, c := range configs {
		keys = append(keys, newConfigKey(c))
	}
	slices.SortStableFunc(keys, func(a, b *PublicKey) int {
		return ohttp.Compare(a.config, b.config)
	})
	return keys, nil
}

// onlyXWing refuses a list that an attacker may have cut down to keys that are easier to break.
func onlyXWing(keys []*PublicKey) ([]*PublicKey, error) {
	keys = slices.DeleteFunc(keys, func(k *PublicKey) bool { return k.config.KEM() != ohttp.XWing })
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: the list has no key configuration for X-Wing, and "+
			"Config.OHTTP.AllowX25519 is not set", ErrPublicKey)
	}
	return keys, nil
}
