// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"crypto/x509"
	"sync"
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

// One verifier serves many callers.
func TestConcurrently(t *testing.T) {
	c := newChain(t, made)
	v := c.verifier(t, Policy{Measurements: [][]byte{good}})
	crl := c.crl(t, made, made.AddDate(1, 0, 0))
	var wg sync.WaitGroup
	for i := range 8 {
		data := [64]byte{byte(i)}
		doc := c.document(t, data)
		doc.Endorsements = append(doc.Endorsements, crl)
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), doc, data, today); err != nil {
				t.Error(err)
			}
			if _, err := v.Verify(t.Context(), doc, [64]byte{99}, today); err == nil {
				t.Error("other data were accepted")
			}
		})
	}
	wg.Wait()
}

// What nobody signed is no ASK, ARK or revocation list, although the built-in ones count.
func TestBytesOfEndorsements(t *testing.T) {
	t.Parallel()
	c := newChain(t, made)
	v, doc := c.verifier(t, Policy{Measurements: [][]byte{good}}), c.document(t, [64]byte{})
	doc.Endorsements = append(doc.Endorsements, c.crl(t, made, made.AddDate(1, 0, 0)))
	for n, der := range doc.Endorsements {
		for i := 0; i <= len(der); i += 11 {
			at := min(i, len(der)-1)
			changed := bytes.Clone(der)
			changed[at] ^= 1 << (i % 8)
			doc.Endorsements[n] = changed
			if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err == nil {
				t.Errorf("endorsement %d: byte %#x was changed and accepted", n, at)
			}
		}
		doc.Endorsements[n] = der
	}
	if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err != nil {
		t.Error(err)
	}
}
