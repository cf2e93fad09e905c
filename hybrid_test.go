// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"strings"
	"testing"
)

// A key prints as its fingerprint, in every form for people.
func TestPublicKeyPrints(t *testing.T) {
	config := &PublicKey{der: []byte("c"), fingerprint: strings.Repeat("ab", 32), signer: "s"}
	for _, k := range []*PublicKey{publicOf(t, "rsa-2048"), config} {
		for _, verb := range []string{"%v", "%+v", "%s"} {
			if got := fmt.Sprintf(verb, k); got != k.Fingerprint() {
				t.Errorf("%s is %q, want %q", verb, got, k.Fingerprint())
			}
		}
	}
	if got := fmt.Sprint((*PublicKey)(nil)); got != "<nil>" {
		t.Errorf("nil prints %q", got)
	}
}
