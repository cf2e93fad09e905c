// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/kds"
	sevtest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify/trust"
	"github.com/seed-017344ad/sealedchat"
)

var (
	turinGood = TCB{FMC: 1, Bootloader: 2, TEE: 1, SNP: 4, Microcode: 77}
	turinChip = bytes.Repeat([]byte{0xc2}, 8)
)

// turinExtensions are those of a chip's certificate of structure version 1.
func turinExtensions(tb testing.TB, level TCB, chip []byte) (list []pkix.Extension) {
	tb.Helper()
	add := func(id asn1.ObjectIdentifier, value any, params string) {
		der, err := asn1.MarshalWithParams(value, params)
		if err != nil {
			tb.Fatal(err)
		}
		list = append(list, pkix.Extension{Id: id, Value: der})
	}
	add(kds.OidStructVersion, 1, "")
	add(kds.OidProductName1, "Turin-B1", "ia5")
	add(kds.OidBlSpl, int(level.Bootloader), "")
	add(kds.OidTeeSpl, int(level.TEE), "")
	add(kds.OidSnpSpl, int(level.SNP), "")
	add(kds.OidUcodeSpl, int(level.Microcode), "")
	add(oidFMC, int(level.FMC), "")
	return append(list, pkix.Extension{Id: kds.OidHwid, Value: chip})
}

func newTurin(tb testing.TB, change func(b *sevtest.AmdSignerBuilder)) *chain {
	tb.Helper()
	b := chainBuilder(made)
	b.ProductName = "Turin-B1"
	b.VcekCustom.Extensions = turinExtensions(tb, turinGood, turinChip)
	if change != nil {
		change(b)
	}
	signing.Lock()
	defer signing.Unlock()
	s, err := b.TestOnlyCertChain()
	if err != nil {
		tb.Fatal(err)
	}
	return &chain{s}
}

func (c *chain) turinVerifier(tb testing.TB, p Policy) *Verifier {
	tb.Helper()
	v := c.verifier(tb, p)
	root := trust.AMDRootCertsProduct(turin)
	root.ProductCerts = &trust.ProductCerts{Ark: c.Ark, Ask: c.Ask, Asvk: c.Asvk}
	v.roots = roots{turin: root}
	return v
}

// asTurin makes a report one of Turin.
func asTurin(r []byte) {
	r[0] = 5
	copy(r[0x188:], []byte{0x1a, 0x02, 1})
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} {
		binary.LittleEndian.PutUint64(r[at:], turinGood.turin())
	}
	clear(r[0x1a0:0x1e0])
	copy(r[0x1a0:], turinChip)
}

func TestTurin(t *testing.T) {
	c := newTurin(t, nil)
	data := [64]byte{7}
	provisional := func(r []byte) { r[0x1e3] = 3 } // committed to an older SNP
	chip64 := slices.Concat(turinChip, make([]byte, 56))
	for name, test := range map[string]struct {
		change func(r []byte)
		policy func(p *Policy)
		want   string // of the error; "" = none
	}{
		"as it is":    {},
		"the minimum": {policy: func(p *Policy) { p.MinimumTCB = turinGood }},
		"the chip":    {policy: func(p *Policy) { p.Chips = [][]byte{chip64} }},
		"provisional and allowed": {
			change: provisional, policy: func(p *Policy) { p.AllowProvisionalFirmware = true },
		},
		"provisional": {change: provisional, want: "provisional"},
		"another build": {
			change: func(r []byte) { r[0x1e8] = 1 }, want: "provisional",
		},
		"an older build than it keeps": {
			change: func(r []byte) { r[0x1ec] = 1 },
			policy: func(p *Policy) { p.AllowProvisionalFirmware = true }, want: "contradict",
		},
		"older than it keeps": {
			change: func(r []byte) { r[0x1e3] = 5 },
			policy: func(p *Policy) { p.AllowProvisionalFirmware = true }, want: "contradict",
		},
		"older than the certificate": {
			change: func(r []byte) { r[0x3b], r[0x1e3] = 3, 3 }, want: "contradict",
		},
		"old FMC": {
			policy: func(p *Policy) { p.MinimumTCB.FMC = 2 }, want: "older",
		},
		"old SNP": {
			policy: func(p *Policy) { p.MinimumTCB.SNP = 5 }, want: "older",
		},
		"old SNP after a launch on new": {
			change: func(r []byte) { r[0x1f3] = 5 },
			policy: func(p *Policy) { p.MinimumTCB.SNP = 5 }, want: "older",
		},
		"launched on old SNP": {
			change: func(r []byte) { r[0x1f3] = 3 },
			policy: func(p *Policy) { p.MinimumTCB.SNP = 4 }, want: "older",
		},
		"another level than certified": {
			change: func(r []byte) { r[0x183] = 5 }, want: "the certificate's",
		},
		"a level in a reserved place": {
			change: func(r []byte) { r[0x184] = 1 }, want: "the certificate's",
		},
		"another chip": {
			change: func(r []byte) { r[0x1a7] ^= 1 }, want: "another chip",
		},
		"a longer chip": {
			change: func(r []byte) { r[0x1a8] = 1 }, want: "another chip",
		},
		"a hidden chip": {
			change: func(r []byte) { r[0x48] = 2; clear(r[0x1a0:0x1a8]) }, want: "another chip",
		},
		"a revoked chip": {
			policy: func(p *Policy) { p.RevokedChips = [][]byte{chip64} }, want: "revokes",
		},
		"another measurement": {
			change: func(r []byte) { r[0x90] ^= 1 }, want: "measurement",
		},
		"a guest to debug": {
			change: func(r []byte) { r[10] |= 1 << 3 }, want: "debugged",
		},
		"another VMPL": {change: func(r []byte) { r[0x30] = 1 }, want: "VMPL"},
		"a cloud's key": {
			change: func(r []byte) { r[0x48] = 4 }, policy: func(p *Policy) { p.AllowVLEK = true },
			want: "for Turin",
		},
		"another product with Turin's key": {
			change: func(r []byte) { copy(r[0x188:], []byte{0x19, 1, 1}) }, want: "no root",
		},
	} {
		p := Policy{Measurements: [][]byte{good}}
		if test.policy != nil {
			test.policy(&p)
		}
		doc := sealedchat.AttestationDocument{Format: Format, Endorsements: c.endorsements(),
			Evidence: c.report(t, data, func(r []byte) {
				asTurin(r)
				if test.change != nil {
					test.change(r)
				}
			})}
		result, err := c.turinVerifier(t, p).Verify(t.Context(), doc, data, today)
		switch {
		case test.want == "" && (err != nil || result.TCB != turinGood.String()):
			t.Errorf("%s: Verify() = %+v, %v", name, result, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: Verify() = %v, want an error with %q", name, err, test.want)
		}
	}
}

func TestTurinCertificates(t *testing.T) {
	data := [64]byte{7}
	without := func(id asn1.ObjectIdentifier) func(b *sevtest.AmdSignerBuilder) {
		return func(b *sevtest.AmdSignerBuilder) {
			b.VcekCustom.Extensions = slices.DeleteFunc(b.VcekCustom.Extensions,
				func(e pkix.Extension) bool { return e.Id.Equal(id) })
		}
	}
	instead := func(id asn1.ObjectIdentifier, value []byte) func(b *sevtest.AmdSignerBuilder) {
		return func(b *sevtest.AmdSignerBuilder) {
			without(id)(b)
			b.VcekCustom.Extensions = append(b.VcekCustom.Extensions,
				pkix.Extension{Id: id, Value: value})
		}
	}
	for name, test := range map[string]struct {
		change func(b *sevtest.AmdSignerBuilder)
		want   string
	}{
		"no FMC":             {without(oidFMC), "as AMD makes them"},
		"no chip":            {without(kds.OidHwid), "as AMD makes them"},
		"a chip of 64 bytes": {instead(kds.OidHwid, chip), "as AMD makes them"},
		"no SNP":             {without(kds.OidSnpSpl), "as AMD makes them"},
		"SNP of 256":         {instead(kds.OidSnpSpl, []byte{2, 2, 1, 0}), "as AMD makes them"},
		"SNP of -1":          {instead(kds.OidSnpSpl, []byte{2, 1, 0xff}), "as AMD makes them"},
		"SNP and more":       {instead(kds.OidSnpSpl, []byte{2, 1, 4, 0}), "as AMD makes them"},
		"no number":          {instead(kds.OidSnpSpl, []byte{4, 1, 4}), "as AMD makes them"},
		"structure 0":        {instead(kds.OidStructVersion, []byte{2, 1, 0}), "as AMD makes them"},
		"another name": {func(b *sevtest.AmdSignerBuilder) {
			b.VcekCustom.Subject = &pkix.Name{CommonName: "SEV-VLEK"}
		}, "as AMD makes them"},
		"another root": {func(b *sevtest.AmdSignerBuilder) {
			b.Keys.Ark, b.Keys.Ask = b.Keys.Ask, b.Keys.Asvk
		}, "not AMD's"},
	} {
		c := newTurin(t, test.change)
		doc := sealedchat.AttestationDocument{Format: Format, Endorsements: c.endorsements(),
			Evidence: c.report(t, data, asTurin)}
		v := newTurin(t, nil).turinVerifier(t, Policy{Measurements: [][]byte{good}})
		if _, err := v.Verify(t.Context(), doc, data, today); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Verify() = %v, want an error with %q", name, err, test.want)
		}
		doc.Endorsements = doc.Endorsements[:1] // without the chain, which another root changes
		if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
			t.Errorf("%s, alone: was accepted", name)
		}
	}
	// The report's signature counts.
	c := newTurin(t, nil)
	v := c.turinVerifier(t, Policy{Measurements: [][]byte{good}})
	doc := sealedchat.AttestationDocument{Format: Format, Endorsements: c.endorsements(),
		Evidence: c.report(t, data, asTurin)}
	for at := range doc.Evidence {
		doc.Evidence[at] ^= 1 << (at % 8)
		if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
			t.Errorf("byte %#x was changed and accepted", at)
		}
		doc.Evidence[at] ^= 1 << (at % 8)
	}
	if _, err := v.Verify(t.Context(), doc, data, today); err != nil {
		t.Error(err)
	}
}
