// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"crypto/x509"
	"testing"
)

// AMD's roots are the library's, and each signs itself and its signing keys.
func TestRoots(t *testing.T) {
	r, err := amdRoots()
	if err != nil || len(r) != 3 {
		t.Fatalf("amdRoots() = %v, %v", r, err)
	}
	for line, root := range r {
		p := root.ProductCerts
		for _, cert := range []*x509.Certificate{p.Ark, p.Ask, p.Asvk} {
			if err := cert.CheckSignatureFrom(p.Ark); err != nil {
				t.Errorf("%s: %s: %v", line, cert.Subject.CommonName, err)
			}
		}
	}
}
