// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	sevtest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"
	"github.com/seed-017344ad/sealedchat"
)

// made is when the certificates of test chains are made, and today when tests judge them.
var (
	made  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	today = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	chip  = bytes.Repeat([]byte{0xc1}, abi.ChipIDSize)
	good  = bytes.Repeat([]byte{0x42}, abi.MeasurementSize)
	// tcbGood is the level of test chips: bootloader 3, TEE 1, SNP 20, microcode 200.
	tcbGood = kds.TCBParts{BlSpl: 3, TeeSpl: 1, SnpSpl: 20, UcodeSpl: 200}
)

// chain signs reports as a chip of AMD's does, below roots that only tests trust.
type chain struct {
	*sevtest.AmdSigner
}

// signing guards the source of randomness that the library's signers share.
var signing sync.Mutex

func newChain(tb testing.TB, at time.Time) *chain {
	tb.Helper()
	signing.Lock()
	defer signing.Unlock()
	s, err := chainBuilder(at).TestOnlyCertChain()
	if err != nil {
		tb.Fatal(err)
	}
	return &chain{s}
}

func chainBuilder(at time.Time) *sevtest.AmdSignerBuilder {
	return &sevtest.AmdSignerBuilder{
		Keys: sevtest.DefaultAmdKeys(), ProductName: "Milan-B1", CSPID: "cloud",
		ArkCreationTime: at, AskCreationTime: at, AsvkCreationTime: at, VcekCreationTime: at,
		VlekCreationTime: at,
		VcekCustom: sevtest.CertOverride{
			Extensions: sevtest.CustomExtensions(tcbGood, chip, "", "Milan-B1"),
		},
		VlekCustom: sevtest.CertOverride{
			Extensions: sevtest.CustomExtensions(tcbGood, nil, "cloud", "Milan-B1"),
		},
	}
}

func (c *chain) roots() roots {
	root := trust.AMDRootCertsProduct("Milan")
	root.ProductCerts = &trust.ProductCerts{Ark: c.Ark, Ask: c.Ask, Asvk: c.Asvk}
	return roots{"Milan": root}
}

func (c *chain) verifier(tb testing.TB, p Policy) *Verifier {
	tb.Helper()
	v, err := New(p)
	if err != nil {
		tb.Fatal(err)
	}
	v.roots = c.roots()
	return v
}

// report is a report over data that passes the policy of the measurement good, changed by change.
func (c *chain) report(tb testing.TB, data [64]byte, change func(r []byte)) []byte {
	tb.Helper()
	r := make([]byte, abi.ReportSize)
	tcb, err := kds.ComposeTCBParts(tcbGood)
	if err != nil {
		tb.Fatal(err)
	}
	binary.LittleEndian.PutUint32(r, 2)
	binary.LittleEndian.PutUint64(r[8:], 1<<17|1<<16) // reserved, SMT
	binary.LittleEndian.PutUint32(r[0x34:], abi.SignEcdsaP384Sha384)
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} { // current, reported, committed, launch
		binary.LittleEndian.PutUint64(r[at:], uint64(tcb))
	}
	copy(r[0x50:], data[:])
	copy(r[0x90:], good)
	copy(r[0x1a0:], chip)
	if change != nil {
		change(r)
	}
	key := c.Keys.Vcek
	if r[0x48]>>2 == byte(abi.VlekReportSigner) {
		key = c.Keys.Vlek
	}
	digest := sha512.Sum384(abi.SignedComponent(r))
	x, y, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err == nil {
		err = abi.SetSignature(x, y, r)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// document is one that the policy of the measurement good trusts.
func (c *chain) document(tb testing.TB, data [64]byte) sealedchat.AttestationDocument {
	tb.Helper()
	return sealedchat.AttestationDocument{
		Format: Format, Evidence: c.report(tb, data, nil), Endorsements: c.endorsements(),
	}
}

func (c *chain) endorsements() [][]byte { return [][]byte{c.Vcek.Raw, c.Ask.Raw, c.Ark.Raw} }

// crl is a revocation list of this chain's root.
func (c *chain) crl(tb testing.TB, from, until time.Time, revoked ...*x509.Certificate) []byte {
	tb.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: until}
	for _, cert := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: from})
	}
	issuer := *c.Ark
	issuer.SubjectKeyId = []byte{1}
	der, err := x509.CreateRevocationList(rand.Reader, l, &issuer, c.Keys.Ark)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// realReport is a report that an AMD chip signed, of a guest that may be debugged, with the
// certificate of the chip's key.
func realReport(tb testing.TB) sealedchat.AttestationDocument {
	tb.Helper()
	vcek := testdata.VcekBytes
	if block, _ := pem.Decode(vcek); block != nil {
		vcek = block.Bytes
	}
	return sealedchat.AttestationDocument{
		Format: Format, Evidence: testdata.AttestationBytes, Endorsements: [][]byte{vcek},
	}
}
