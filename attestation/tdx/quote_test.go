// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

func TestRefusesDocuments(t *testing.T) {
	tests := map[string]refusalTest{
		"another format": {
			doc: func(d *sealedchat.AttestationDocument) { d.Format = "sev-snp" }, want: "format",
		},
		"no evidence": {
			doc: func(d *sealedchat.AttestationDocument) { d.Evidence = nil }, want: "short",
		},
		"a byte less": {
			doc: func(d *sealedchat.AttestationDocument) {
				d.Evidence = d.Evidence[:len(d.Evidence)-1]
			},
			want: "short",
		},
		"half": {
			doc:  func(d *sealedchat.AttestationDocument) { d.Evidence = d.Evidence[:700] },
			want: "short",
		},
		"a byte behind": {
			doc:  func(d *sealedchat.AttestationDocument) { d.Evidence = append(d.Evidence, 1) },
			want: "behind",
		},
		"version 3": {
			doc: func(d *sealedchat.AttestationDocument) { d.Evidence[0] = 3 }, want: "version 3",
		},
		"an SGX quote": {doc: func(d *sealedchat.AttestationDocument) { d.Evidence[4] = 0 }},
	}
	for name, test := range tests {
		test.run(t, name)
	}
	c := newChain(t)
	ended, end := context.WithCancel(t.Context())
	end()
	v := c.verifier(t, trusting())
	doc := c.document(t, [64]byte{})
	if _, err := v.Verify(ended, doc, [64]byte{}, today); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: Verify() = %v", err)
	}
	_, err := v.Verify(t.Context(), doc, [64]byte{}, time.Time{})
	if err == nil || !strings.Contains(err.Error(), "no time") {
		t.Error("without a time a document was accepted")
	}
}

// The library's reader of version 5 takes lengths for what they say, negative ones too.
func TestLengthsOfQuotes(t *testing.T) {
	c := newChain(t)
	v := c.verifier(t, trusting())
	for _, version := range []uint16{4, 5} {
		doc := c.document(t, [64]byte{})
		good := c.quote(t, version, [64]byte{}, nil)
		at := headerSize + bodySize10
		if version == 5 {
			at = headerSize + descriptorSize + bodySize15
		}
		for _, size := range []uint32{0, 1, 128, 1<<31 - 1, 1 << 31, 1<<32 - 1, uint32(len(good))} {
			doc.Evidence = bytes.Clone(good)
			binary.LittleEndian.PutUint32(doc.Evidence[at:], size)
			if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err == nil {
				t.Errorf("version %d: a length of %d was accepted", version, size)
			}
		}
		// the enclave's report and what stands behind it, the enclave's own data, the certificates
		for place, width := range map[int]int{at + 134: 4, at + 586: 2, at + 594: 4} {
			for _, size := range []uint32{0, 1, 5, 1<<16 - 1, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
				doc.Evidence = bytes.Clone(good)
				copy(doc.Evidence[place:], binary.LittleEndian.AppendUint32(nil, size)[:width])
				_, err := v.Verify(t.Context(), doc, [64]byte{}, today)
				if err == nil || !strings.Contains(err.Error(), "contradict each other") {
					t.Errorf("version %d: a length of %d at %d: %v", version, size, place-at, err)
				}
			}
		}
		for i := range good {
			doc.Evidence = good[:i]
			if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err == nil {
				t.Errorf("version %d: the first %d bytes were accepted", version, i)
			}
		}
	}
}

// One verifier serves many callers.
func TestConcurrently(t *testing.T) {
	c := newChain(t)
	v := c.verifier(t, trusting())
	var wg sync.WaitGroup
	for i := range 8 {
		data := [64]byte{byte(i)}
		doc := c.document(t, data)
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

// TestEveryByte flips a bit of each byte of a quote, up to the certificates: those are text, which
// may be written in several ways.
func TestEveryByte(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	v := c.verifier(t, trusting())
	for _, version := range []uint16{4, 5} {
		doc := c.document(t, [64]byte{})
		doc.Evidence = c.quote(t, version, [64]byte{}, nil)
		if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err != nil {
			t.Fatal(err)
		}
		for i := range bytes.Index(doc.Evidence, []byte("-----BEGIN")) {
			doc.Evidence[i] ^= 1 << (i % 8)
			if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err == nil {
				t.Errorf("version %d: byte %#x was changed and accepted", version, i)
			}
			doc.Evidence[i] ^= 1 << (i % 8)
		}
	}
}

// TestEveryByteAllowed flips a bit of each byte of a quote and of its endorsements, under a policy
// that allows every status, and statuses at which the library gives up early.
func TestEveryByteAllowed(t *testing.T) {
	t.Parallel()
	c, p := newChain(t), trusting()
	c.statuses = []string{"OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded"}
	allowing(c.statuses...)(&p)
	v, doc := c.verifier(t, p), c.document(t, [64]byte{})
	accepted := func() bool {
		_, err := v.Verify(t.Context(), doc, [64]byte{}, today)
		return err == nil
	}
	if !accepted() {
		t.Fatal("as it is: refused")
	}
	// of text only what it says counts: of the hex of a signature, and of PEM
	says := func(part []byte) string {
		if chain, err := parseChain(part); err == nil {
			return string(chain[0].Raw) + string(chain[1].Raw)
		}
		if part[0] == '{' {
			return strings.ToLower(string(part))
		}
		return string(part)
	}
	text := doc.Evidence[:bytes.Index(doc.Evidence, []byte("-----BEGIN"))]
	for n, part := range append([][]byte{text}, doc.Endorsements...) {
		said := says(part)
		for i := range part {
			part[i] ^= 1 << (i % 8)
			if accepted() && says(part) != said {
				t.Errorf("part %d: byte %#x was changed and accepted", n, i)
			}
			part[i] ^= 1 << (i % 8)
		}
	}
}

func FuzzVerify(f *testing.F) {
	c := newChain(f)
	doc := c.document(f, [64]byte{})
	e := doc.Endorsements
	f.Add(doc.Evidence, e[0], e[1], e[2], e[3], e[4], e[5], e[6])
	f.Add(c.quote(f, 5, [64]byte{}, nil), e[0], e[1], e[2], e[3], e[4], e[5], e[6])
	r := realDocument()
	real := r.Endorsements
	f.Add(r.Evidence, real[0], real[1], real[2], real[3], real[4], real[5], real[6])
	v := c.verifier(f, trusting())
	f.Fuzz(func(t *testing.T, quote, tcb, tcbChain, qe, qeChain, crl, crlChain, root []byte) {
		d := sealedchat.AttestationDocument{Format: Format, Evidence: quote,
			Endorsements: [][]byte{tcb, tcbChain, qe, qeChain, crl, crlChain, root}}
		result, err := v.Verify(t.Context(), d, [64]byte{}, today)
		if err != nil && strings.Contains(err.Error(), "library failed") {
			t.Errorf("a panic of the library: %v", err)
		}
		if err == nil && !strings.HasPrefix(result.Measurement, strings.Repeat("42", 48)) {
			t.Errorf("Verify() = %+v", result)
		}
	})
}
