// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/seed-017344ad/sealedchat"
)

func TestPolicy(t *testing.T) {
	short, other := make([]byte, 47), bytes.Repeat([]byte{1}, 48)
	for name, p := range map[string]Policy{
		"nothing":              {},
		"an empty list":        {Measurements: [][]byte{}},
		"an empty measurement": {Measurements: [][]byte{nil}},
		"a short measurement":  {Measurements: [][]byte{other, short}},
		"only zeros":           {Measurements: [][]byte{make([]byte, 48)}},
		"a level below 0":      {Measurements: [][]byte{other}, VMPL: -1},
		"a level above 3":      {Measurements: [][]byte{other}, VMPL: 4},
		"a short chip":         {Measurements: [][]byte{other}, Chips: [][]byte{short}},
		"a short revoked chip": {Measurements: [][]byte{other}, RevokedChips: [][]byte{short}},
		"a cloud's key and a chip": {Measurements: [][]byte{other}, AllowVLEK: true,
			Chips: [][]byte{chip}},
		"an unknown kind of chip": {Measurements: [][]byte{other}, Products: []string{"milan"}},
		"a part that is too high": {Measurements: [][]byte{other}, MinimumTCB: TCB{SNP: 128}},
	} {
		if v, err := New(p); err == nil || v != nil || !strings.HasPrefix(err.Error(), "sevsnp: ") {
			t.Errorf("%s: New() = %v, %v, want an error", name, v, err)
		}
	}
	m := bytes.Clone(good)
	p := Policy{Measurements: [][]byte{m}}
	c := newChain(t, made)
	v := c.verifier(t, p)
	clear(m) // the caller's
	p.Measurements[0] = other
	if _, err := v.Verify(t.Context(), c.document(t, [64]byte{}), [64]byte{}, today); err != nil {
		t.Errorf("after the caller changed the policy: %v", err)
	}
}

func TestAccepts(t *testing.T) {
	c := newChain(t, made)
	data := [64]byte{7}
	other := bytes.Repeat([]byte{1}, 48)
	crl := c.crl(t, made, made.AddDate(1, 0, 0))
	for name, test := range map[string]struct {
		policy Policy
		change func(r []byte)
		came   [][]byte
	}{
		"a measurement":    {Policy{Measurements: [][]byte{other, good}}, nil, nil},
		"only a VCEK came": {Policy{}, nil, [][]byte{c.Vcek.Raw}},
		"a revocation list": {
			Policy{RequireRevocationList: true}, nil, append(c.endorsements(), crl),
		},
		"the kind of chip":     {Policy{Products: []string{"Genoa", "Milan"}}, nil, nil},
		"the chip":             {Policy{Chips: [][]byte{other2(64), chip}}, nil, nil},
		"another revoked chip": {Policy{RevokedChips: [][]byte{other2(64)}}, nil, nil},
		"the minimum":          {Policy{MinimumTCB: TCB{3, 1, 20, 200, 9}}, nil, nil},
		"VMPL 1":               {Policy{VMPL: 1}, func(r []byte) { r[0x30] = 1 }, nil},
		"a migration agent": {
			Policy{AllowMigrationAgent: true}, func(r []byte) { r[10] |= 1 << 2 }, nil,
		},
		"provisional firmware": {
			Policy{AllowProvisionalFirmware: true}, func(r []byte) { r[0x1e6] = 19 }, nil,
		},
		"a cloud's key": {
			Policy{AllowVLEK: true}, vlekReport, [][]byte{c.Vlek.Raw, c.Asvk.Raw, c.Ark.Raw},
		},
		"a chip's, VLEK or not": {Policy{AllowVLEK: true}, nil, nil},
		"version 3": {
			Policy{}, func(r []byte) { r[0] = 3; copy(r[0x188:], []byte{0x19, 1, 1}) }, nil,
		},
		"version 5": {
			Policy{}, func(r []byte) { r[0] = 5; copy(r[0x188:], []byte{0x19, 1, 1}) }, nil,
		},
	} {
		if test.policy.Measurements == nil {
			test.policy.Measurements = [][]byte{good}
		}
		doc := sealedchat.AttestationDocument{Format: Format, Endorsements: test.came,
			Evidence: c.report(t, data, test.change)}
		if test.came == nil {
			doc.Endorsements = c.endorsements()
		}
		result, err := c.verifier(t, test.policy).Verify(t.Context(), doc, data, today)
		if err != nil {
			t.Errorf("%s: %v (%v)", name, err, errors.Unwrap(errors.Unwrap(err)))
			continue
		}
		if result.Measurement != strings.Repeat("42", 48) ||
			result.TCB != "bootloader=3 tee=1 snp=20 microcode=200 fmc=0" {
			t.Errorf("%s: Verify() = %+v", name, result)
		}
	}
}

func other2(n int) []byte { return bytes.Repeat([]byte{0xee}, n) }

// vlekReport makes a report one that a cloud's key signs: bit 2 of the signer, and no chip.
func vlekReport(r []byte) {
	r[0x48] = 1 << 2
	clear(r[0x1a0:0x1e0])
}

func TestRefuses(t *testing.T) {
	c, foreign := newChain(t, made), newForeignChain(t, made)
	data := [64]byte{7}
	year := made.AddDate(1, 0, 0)
	with := func(more ...[]byte) [][]byte { return append(c.endorsements(), more...) }
	for name, test := range map[string]struct {
		change func(r []byte)
		policy func(p *Policy)
		came   [][]byte
		now    time.Time
		want   string
	}{
		"one byte of the measurement": {
			change: func(r []byte) { r[0x90+17] ^= 1 }, want: "measurement",
		},
		"other data": {
			change: func(r []byte) { r[0x50+63] ^= 1 }, want: "other data",
		},
		"a guest to debug": {
			change: func(r []byte) { r[10] |= 1 << 3 }, want: "debugged",
		},
		"a migration agent": {
			change: func(r []byte) { r[10] |= 1 << 2 }, want: "migration agent",
		},
		"another VMPL": {change: func(r []byte) { r[0x30] = 2 }, want: "VMPL 2"},
		"no VMPL":      {change: func(r []byte) { r[0x33] = 1 }, want: "VMPL"},
		"another kind of chip": {policy: func(p *Policy) { p.Products = []string{"Genoa"} },
			want: "Policy.Products"},
		"old microcode": {
			policy: func(p *Policy) { p.MinimumTCB.Microcode = 201 }, want: "older",
		},
		"old firmware":   {policy: func(p *Policy) { p.MinimumTCB.SNP = 21 }, want: "older"},
		"old bootloader": {policy: func(p *Policy) { p.MinimumTCB.Bootloader = 4 }, want: "older"},
		"old microcode after a launch on new": {
			change: func(r []byte) { r[0x1f7] = 201 },
			policy: func(p *Policy) { p.MinimumTCB.Microcode = 201 }, want: "older",
		},
		"launched on old": {
			change: func(r []byte) { r[0x1f6] = 19 },
			policy: func(p *Policy) { p.MinimumTCB.SNP = 20 }, want: "older",
		},
		"another level than the certificate's": {change: func(r []byte) { r[0x187] = 201 },
			want: "the certificate's"},
		"a level out of range": {
			change: func(r []byte) { r[0x186] = 0x94 }, want: "the certificate's",
		},
		"provisional firmware": {change: func(r []byte) { r[0x1e6] = 19 }, want: "provisional"},
		"another build":        {change: func(r []byte) { r[0x1e8] = 1 }, want: "contradict"},
		"another chip":         {change: func(r []byte) { r[0x1a0] ^= 1 }, want: "another chip"},
		"a hidden chip": {
			change: func(r []byte) { r[0x48] = 2; clear(r[0x1a0:0x1e0]) }, want: "another chip",
		},
		"a revoked chip": {
			policy: func(p *Policy) { p.RevokedChips = [][]byte{chip} }, want: "revokes",
		},
		"a chip not listed": {
			policy: func(p *Policy) { p.Chips = [][]byte{other2(64)} },
			want:   "none of Policy.Chips",
		},
		"a cloud's key": {change: vlekReport, came: [][]byte{c.Vlek.Raw}, want: "AllowVLEK"},
		"a cloud's key with a chip's certificate": {
			change: vlekReport, policy: func(p *Policy) { p.AllowVLEK = true },
			want: "as AMD makes them",
		},
		"nobody's key": {change: func(r []byte) { r[0x48] = 7 << 2 }, want: "signer"},
		"version 1":    {change: func(r []byte) { r[0] = 1 }, want: "version 1"},
		"version 6":    {change: func(r []byte) { r[0] = 6 }, want: "version 6"},
		"version 3 of no chip": {
			change: func(r []byte) { r[0] = 3; copy(r[0x188:], []byte{0x19, 0x77, 1}) },
			want:   "no root",
		},
		"version 3 of Genoa": {
			change: func(r []byte) { r[0] = 3; copy(r[0x188:], []byte{0x19, 0x11, 1}) },
			want:   "no root",
		},
		"an unknown algorithm": {change: func(r []byte) { r[0x34] = 2 }, want: "signature"},

		"another root's chip":  {came: [][]byte{foreign.Vcek.Raw}, want: "signature"},
		"another root's chain": {came: foreign.endorsements(), want: "not AMD's"},
		"another root's ASK": {
			came: [][]byte{c.Vcek.Raw, foreign.Ask.Raw, c.Ark.Raw}, want: "not AMD's",
		},
		"another root's ARK": {
			came: [][]byte{c.Vcek.Raw, c.Ask.Raw, foreign.Ark.Raw}, want: "not AMD's",
		},
		"ASK and ARK swapped": {
			came: [][]byte{c.Vcek.Raw, c.Ark.Raw, c.Ask.Raw}, want: "not AMD's",
		},
		"ASK in the place of VCEK": {came: [][]byte{c.Ask.Raw}, want: "as AMD makes them"},
		"no endorsements":          {came: [][]byte{}, want: "0 endorsements"},
		"two":                      {came: [][]byte{c.Vcek.Raw, c.Ask.Raw}, want: "2 endorsements"},
		"five":                     {came: with(c.crl(t, made, year), nil), want: "5 endorsements"},
		"no certificate":           {came: [][]byte{[]byte("x")}, want: "no certificate in DER"},
		"a certificate in PEM": {came: [][]byte{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: c.Vcek.Raw})}, want: "no certificate in DER"},
		"a byte behind the certificate": {
			came: [][]byte{append(bytes.Clone(c.Vcek.Raw), 0)}, want: "no certificate in DER",
		},

		"no revocation list": {policy: func(p *Policy) { p.RequireRevocationList = true },
			want: "no revocation list"},
		"no list at all": {came: with([]byte("x")), want: "no revocation list in DER"},
		"an expired list": {
			came: with(c.crl(t, made, today.Add(-time.Second))), want: "expired",
		},
		"a list of tomorrow": {
			came: with(c.crl(t, today.Add(time.Second), year)), want: "not valid yet",
		},
		"another root's list": {
			came: with(foreign.crl(t, made, year)), want: "not signed by AMD's root",
		},
		"ASK revoked": {
			came: with(c.crl(t, made, year, c.Ask)), want: `AMD revoked the certificate`,
		},
		"certificates expired": {now: made.AddDate(30, 0, 0), want: "has expired"},
		"the VCEK expired":     {now: made.AddDate(8, 0, 0), want: "has expired"},
		"not valid yet":        {now: made.Add(-time.Second), want: "not valid yet"},
	} {
		p := Policy{Measurements: [][]byte{good}}
		if test.policy != nil {
			test.policy(&p)
		}
		doc := sealedchat.AttestationDocument{Format: Format, Endorsements: test.came,
			Evidence: c.report(t, data, test.change)}
		if test.came == nil {
			doc.Endorsements = c.endorsements()
		}
		if test.now.IsZero() {
			test.now = today
		}
		result, err := c.verifier(t, p).Verify(t.Context(), doc, data, test.now)
		if err == nil || !strings.Contains(err.Error(), test.want) ||
			!strings.HasPrefix(err.Error(), "sevsnp: ") ||
			result != (sealedchat.AttestationResult{}) {
			t.Errorf("%s: Verify() = %+v, %v, want an error with %q", name, result, err, test.want)
		}
	}
}

// newForeignChain is of other keys with the same names.
func newForeignChain(t *testing.T, at time.Time) *chain {
	t.Helper()
	c := newChain(t, at)
	keys := *c.Keys
	keys.Ark, keys.Ask = keys.Ask, keys.Asvk
	b := chainBuilder(at)
	b.Keys = &keys
	signing.Lock()
	defer signing.Unlock()
	s, err := b.TestOnlyCertChain()
	if err != nil {
		t.Fatal(err)
	}
	return &chain{s}
}

func TestRefusesOtherDocuments(t *testing.T) {
	c := newChain(t, made)
	v := c.verifier(t, Policy{Measurements: [][]byte{good}})
	ended, end := context.WithCancel(t.Context())
	end()
	for name, test := range map[string]struct {
		ctx    context.Context
		change func(d *sealedchat.AttestationDocument)
		now    time.Time
	}{
		"another format": {
			t.Context(), func(d *sealedchat.AttestationDocument) { d.Format = "tdx" }, today,
		},
		"no format": {
			t.Context(), func(d *sealedchat.AttestationDocument) { d.Format = "" }, today,
		},
		"no evidence": {
			t.Context(), func(d *sealedchat.AttestationDocument) { d.Evidence = nil }, today,
		},
		"a byte less": {t.Context(), func(d *sealedchat.AttestationDocument) {
			d.Evidence = d.Evidence[:len(d.Evidence)-1]
		}, today},
		"a byte more": {t.Context(), func(d *sealedchat.AttestationDocument) {
			d.Evidence = append(d.Evidence, 0)
		}, today},
		"no time":      {t.Context(), func(*sealedchat.AttestationDocument) {}, time.Time{}},
		"an ended ctx": {ended, func(*sealedchat.AttestationDocument) {}, today},
	} {
		doc := c.document(t, [64]byte{})
		test.change(&doc)
		_, err := v.Verify(test.ctx, doc, [64]byte{}, test.now)
		if err == nil || test.now.IsZero() && !strings.Contains(err.Error(), "no time") {
			t.Errorf("%s: Verify() = %v", name, err)
		}
	}
}

// The real report's signature holds, below AMD's own roots. Its guest may be debugged.
func TestRealReport(t *testing.T) {
	doc := realReport(t)
	data := [64]byte(doc.Evidence[0x50:0x90])
	v, err := New(Policy{Measurements: [][]byte{doc.Evidence[0x90:0xc0]}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(t.Context(), doc, data, today)
	if err == nil || !strings.Contains(err.Error(), "debugged") {
		t.Errorf("Verify() = %v, want a refusal of a guest that may be debugged", err)
	}
	v.allowDebug = true
	result, err := v.Verify(t.Context(), doc, data, today)
	if err != nil || result.Measurement == "" {
		t.Errorf("Verify() = %+v, %v, of a report that AMD signed", result, err)
	}
	v.policy.RequireRevocationList = true
	if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
		t.Error("a report without a revocation list was accepted")
	}
	v.policy.RequireRevocationList = false
	v.roots = newChain(t, made).roots()
	if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
		t.Error("AMD's report was accepted below the roots of tests")
	}
}

// TestEveryBit flips each bit of a report that passes: each of them makes it another report, or
// leaves a signature that does not hold, or stands where there has to be nothing.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	doc := realReport(t)
	data := [64]byte(doc.Evidence[0x50:0x90])
	v, err := New(Policy{Measurements: [][]byte{doc.Evidence[0x90:0xc0]}})
	if err != nil {
		t.Fatal(err)
	}
	v.allowDebug = true
	if _, err := v.Verify(t.Context(), doc, data, today); err != nil {
		t.Fatal(err)
	}
	doc.Evidence = bytes.Clone(doc.Evidence)
	refused := 0
	for i := range len(doc.Evidence) * 8 {
		doc.Evidence[i/8] ^= 1 << (i % 8)
		if _, err := v.Verify(t.Context(), doc, data, today); err != nil {
			refused++
		} else {
			t.Errorf("bit %d of byte %#x was flipped and accepted", i%8, i/8)
		}
		doc.Evidence[i/8] ^= 1 << (i % 8)
	}
	t.Logf("%d flips, %d refused", len(doc.Evidence)*8, refused)
}

// TestEveryBitOfCertificate does the same to the certificate of the chip's key.
func TestEveryBitOfCertificate(t *testing.T) {
	t.Parallel()
	doc := realReport(t)
	data := [64]byte(doc.Evidence[0x50:0x90])
	v, err := New(Policy{Measurements: [][]byte{doc.Evidence[0x90:0xc0]}})
	if err != nil {
		t.Fatal(err)
	}
	v.allowDebug = true
	der := bytes.Clone(doc.Endorsements[0])
	doc.Endorsements = [][]byte{der}
	for i := range len(der) * 8 {
		der[i/8] ^= 1 << (i % 8)
		if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
			t.Errorf("bit %d of byte %#x was flipped and accepted", i%8, i/8)
		}
		der[i/8] ^= 1 << (i % 8)
	}
}

// A verifier that asked AMD's server would let whoever answers for it decide, and tell it who asks.
func TestNoNetwork(t *testing.T) {
	asked := 0
	old := http.DefaultTransport
	defer func() { http.DefaultTransport = old }()
	http.DefaultTransport = roundTripper(func(r *http.Request) (*http.Response, error) {
		asked++
		return nil, errors.New("no network")
	})
	doc := realReport(t)
	data := [64]byte(doc.Evidence[0x50:0x90])
	v, err := New(Policy{Measurements: [][]byte{doc.Evidence[0x90:0xc0]}})
	if err != nil {
		t.Fatal(err)
	}
	v.allowDebug = true
	if _, err := v.Verify(t.Context(), doc, data, today); err != nil {
		t.Errorf("with its certificate: %v", err)
	}
	v.policy.RequireRevocationList = true
	for _, came := range [][][]byte{nil, {}, {nil}, doc.Endorsements} {
		doc.Endorsements = came
		if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
			t.Error("incomplete endorsements were accepted")
		}
	}
	if asked != 0 {
		t.Errorf("the verifier asked the network %d times", asked)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The library logs on its own account.
func TestWritesNothing(t *testing.T) {
	if os.Getenv("SEVSNP_CHILD") != "" {
		doc := realReport(t)
		data := [64]byte(doc.Evidence[0x50:0x90])
		v, err := New(Policy{Measurements: [][]byte{doc.Evidence[0x90:0xc0]}})
		if err != nil {
			os.Exit(3)
		}
		v.allowDebug = true
		if _, err := v.Verify(t.Context(), doc, data, today); err != nil {
			os.Exit(4)
		}
		doc.Endorsements = nil
		if _, err := v.Verify(t.Context(), doc, data, today); err == nil {
			os.Exit(5)
		}
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestWritesNothing$")
	cmd.Env = append(os.Environ(), "SEVSNP_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("the verifier wrote %q (%v)", out, err)
	}
}

// Errors hold nothing of what the server sent, except values that its operator has to know.
func TestErrorsHoldNothingForeign(t *testing.T) {
	c := newChain(t, made)
	b := chainBuilder(made)
	b.Keys = c.Keys
	name := c.Vcek.Subject
	name.CommonName = "SEV-\n<script>"
	b.VcekCustom.Subject = &name
	signing.Lock()
	s, err := b.TestOnlyCertChain()
	signing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	doc := c.document(t, [64]byte{})
	doc.Endorsements = [][]byte{s.Vcek.Raw}
	v := c.verifier(t, Policy{Measurements: [][]byte{good}})
	_, err = v.Verify(t.Context(), doc, [64]byte{}, today)
	if err == nil || strings.Contains(err.Error(), "script") {
		t.Errorf("Verify() = %v", err)
	}
	doc.Format = "<script>"
	_, err = v.Verify(t.Context(), doc, [64]byte{}, today)
	if err == nil || strings.Contains(err.Error(), "script") {
		t.Errorf("Verify() = %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	c := newChain(f, made)
	doc := c.document(f, [64]byte{})
	f.Add(doc.Evidence, doc.Endorsements[0], doc.Endorsements[1], doc.Endorsements[2],
		c.crl(f, made, made.AddDate(1, 0, 0)), uint8(4))
	real := realReport(f)
	f.Add(real.Evidence, real.Endorsements[0], []byte{}, []byte{}, []byte{}, uint8(1))
	v := c.verifier(f, Policy{Measurements: [][]byte{good}, AllowVLEK: true})
	f.Fuzz(func(t *testing.T, evidence, key, ask, ark, crl []byte, n uint8) {
		d := sealedchat.AttestationDocument{Format: Format, Evidence: evidence,
			Endorsements: [][]byte{key, ask, ark, crl}[:min(int(n), 4)]}
		_, err := v.Verify(t.Context(), d, [64]byte{}, today)
		if err != nil && strings.Contains(err.Error(), "library failed") {
			t.Errorf("a panic of the library: %v", err)
		}
		signed := abi.SignedComponent(doc.Evidence)
		if err == nil && !bytes.Equal(abi.SignedComponent(evidence), signed) {
			t.Errorf("a report that nobody signed was accepted: %x", evidence)
		}
	})
}
