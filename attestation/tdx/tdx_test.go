// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

func TestPolicy(t *testing.T) {
	m, short, zero := measured(), measured(), measured()
	short.RTMRs[2] = short.RTMRs[2][:47]
	zero.MRTD = make([]byte, 48)
	without := func(rtmr int) Measurement {
		m := measured()
		m.RTMRs[rtmr] = nil
		return m
	}
	for name, p := range map[string]Policy{
		"nothing":          {},
		"an empty list":    {Measurements: []Measurement{}},
		"a zero value":     {Measurements: []Measurement{m, {}}},
		"a short register": {Measurements: []Measurement{short}},
		"MRTD of zeros":    {Measurements: []Measurement{zero}},
		"no MRTD":          {Measurements: []Measurement{{RTMRs: m.RTMRs}}},
		"no RTMR 0":        {Measurements: []Measurement{without(0)}},
		"no RTMR 1": {
			Measurements: []Measurement{without(1)}, IgnoreRTMR0: true, IgnoreRTMR3: true,
		},
		"no RTMR 2": {
			Measurements: []Measurement{without(2)}, IgnoreRTMR0: true, IgnoreRTMR3: true,
		},
		"no RTMR 3":          {Measurements: []Measurement{without(3)}, IgnoreRTMR0: true},
		"a status Revoked":   {Measurements: []Measurement{m}, TCBStatuses: []string{"Revoked"}},
		"a status of none":   {Measurements: []Measurement{m}, TCBStatuses: []string{""}},
		"a status not known": {Measurements: []Measurement{m}, TCBStatuses: []string{"uptodate"}},
	} {
		if v, err := New(p); err == nil || v != nil || !strings.HasPrefix(err.Error(), "tdx: ") {
			t.Errorf("%s: New() = %v, %v, want an error", name, v, err)
		}
	}
	p := trusting()
	c := newChain(t)
	v := c.verifier(t, p)
	clear(p.Measurements[0].MRTD)
	clear(p.Measurements[0].RTMRs[1])
	if _, err := v.Verify(t.Context(), c.document(t, [64]byte{}), [64]byte{}, today); err != nil {
		t.Errorf("after the caller changed the policy: %v", err)
	}
}

// allowing changes a policy to allow statuses.
func allowing(statuses ...string) func(p *Policy) {
	return func(p *Policy) { p.TCBStatuses = statuses }
}

func TestAccepts(t *testing.T) {
	c := newChain(t)
	data := [64]byte{7}
	for name, test := range map[string]struct {
		policy   func(p *Policy)
		body     func(body []byte)
		statuses []string
		padding  int
	}{
		"as it is":          {},
		"padded with zeros": {padding: 100},
		"another RTMR 0": {
			policy: func(p *Policy) {
				p.IgnoreRTMR0 = true
				p.Measurements[0].RTMRs[0] = nil
			},
			body: func(b []byte) { b[atRTMRs] ^= 1 },
		},
		"another RTMR 3": {policy: func(p *Policy) { p.IgnoreRTMR3 = true },
			body: func(b []byte) { b[atRTMRs+3*48] ^= 1 }},
		"the second measurement": {policy: func(p *Policy) {
			other := measured()
			other.MRTD[0] ^= 1
			p.Measurements = []Measurement{other, p.Measurements[0]}
		}},
		"protection keys": {body: func(b []byte) { b[atAttributes+3] |= 0x40 }},
		"an allowed platform": {policy: allowing("SWHardeningNeeded"),
			statuses: []string{"SWHardeningNeeded", "UpToDate", "UpToDate"}},
		"an allowed module": {policy: allowing("OutOfDate"),
			statuses: []string{"UpToDate", "OutOfDate", "UpToDate"}},
		"an allowed module to configure": {policy: allowing("ConfigurationNeeded"),
			statuses: []string{"UpToDate", "ConfigurationNeeded", "UpToDate"}},
		"an allowed enclave": {policy: allowing("OutOfDate"),
			statuses: []string{"UpToDate", "UpToDate", "OutOfDate"}},
		"an allowed enclave to harden": {policy: allowing("SWHardeningNeeded"),
			statuses: []string{"UpToDate", "UpToDate", "SWHardeningNeeded"}},
		"all three": {policy: allowing("OutOfDate"),
			statuses: []string{"OutOfDate", "OutOfDate", "OutOfDate"}},
	} {
		for _, version := range []uint16{4, 5} {
			p := trusting()
			if test.policy != nil {
				test.policy(&p)
			}
			c.statuses = []string{"UpToDate", "UpToDate", "UpToDate"}
			if test.statuses != nil {
				c.statuses = test.statuses
			}
			doc := sealedchat.AttestationDocument{Format: Format, Endorsements: c.endorsements(t),
				Evidence: append(c.quote(t, version, data, test.body),
					make([]byte, test.padding)...)}
			result, err := c.verifier(t, p).Verify(t.Context(), doc, data, today)
			want := fmt.Sprintf("platform=%s qe=%s module=%s svn=060105%s", c.statuses[0],
				c.statuses[2], c.statuses[1], strings.Repeat("00", 13))
			if err != nil || result.TCB != want || strings.Count(result.Measurement, ",") != 4 {
				t.Errorf("%s, version %d: Verify() = %+v, %v", name, version, result, err)
			}
		}
	}
}

// The first TDX module has no list of its own: the platform's status covers it.
func TestFirstModule(t *testing.T) {
	c := newChain(t)
	c.statuses[0] = "OutOfDate"
	doc := c.document(t, [64]byte{})
	doc.Evidence = c.quote(t, 4, [64]byte{}, func(b []byte) { copy(b[atSVN:], []byte{5, 0, 5}) })
	if _, err := c.verifier(t, trusting()).Verify(t.Context(), doc, [64]byte{}, today); err == nil {
		t.Error("an old platform was accepted")
	}
	p := trusting()
	p.TCBStatuses = []string{"OutOfDate"}
	if _, err := c.verifier(t, p).Verify(t.Context(), doc, [64]byte{}, today); err != nil {
		t.Error(err)
	}
	c.statuses[0] = "UpToDate"
	doc.Endorsements = c.endorsements(t)
	result, err := c.verifier(t, trusting()).Verify(t.Context(), doc, [64]byte{}, today)
	if err != nil || strings.Contains(result.TCB, "module") {
		t.Errorf("Verify() = %+v, %v", result, err)
	}
	doc.Evidence = c.quote(t, 4, [64]byte{}, func(b []byte) { copy(b[atSVN:], []byte{4, 0, 5}) })
	if _, err := c.verifier(t, p).Verify(t.Context(), doc, [64]byte{}, today); err == nil {
		t.Error("a module below every level was accepted")
	}
}

type refusalTest struct {
	body   func(b []byte)                          // changes the quote's body before it is signed
	chain  func(c *chain)                          // changes what the collateral says
	policy func(p *Policy)                         //
	came   func(list [][]byte) [][]byte            // changes the endorsements
	doc    func(d *sealedchat.AttestationDocument) // changes the document
	now    time.Time
	want   string
}

func (r refusalTest) run(t *testing.T, name string) {
	t.Helper()
	for _, version := range []uint16{4, 5} {
		c, p, now, data := newChain(t), trusting(), today, [64]byte{7}
		if r.chain != nil {
			r.chain(c)
		}
		if r.policy != nil {
			r.policy(&p)
		}
		if !r.now.IsZero() {
			now = r.now
		}
		doc := sealedchat.AttestationDocument{Format: Format, Endorsements: c.endorsements(t),
			Evidence: c.quote(t, version, data, r.body)}
		if r.came != nil {
			doc.Endorsements = r.came(doc.Endorsements)
		}
		if r.doc != nil {
			r.doc(&doc)
		}
		result, err := c.verifier(t, p).Verify(t.Context(), doc, data, now)
		if err == nil || !strings.Contains(err.Error(), r.want) ||
			!strings.HasPrefix(err.Error(), "tdx: ") ||
			result != (sealedchat.AttestationResult{}) {
			t.Errorf("%s, version %d: Verify() = %+v, %v, want an error with %q", name, version,
				result, err, r.want)
		}
	}
}

const notNow = "does not hold at this time"

func TestRefusesGuests(t *testing.T) {
	flip := func(at int) func([]byte) { return func(b []byte) { b[at] ^= 1 } }
	for name, test := range map[string]refusalTest{
		"one byte of MRTD":   {body: flip(atMRTD + 17), want: "MRTD is 42"},
		"one byte of RTMR 0": {body: flip(atRTMRs), want: "RTMR 0 is 11"},
		"one byte of RTMR 1": {body: flip(atRTMRs + 48), want: "RTMR 1 is 10"},
		"one byte of RTMR 2": {body: flip(atRTMRs + 2*48 + 47), want: "RTMR 2 is 12"},
		"one byte of RTMR 3": {body: flip(atRTMRs + 3*48), want: "RTMR 3 is 12"},
		"RTMR 1 when 0 and 3 are ignored": {body: flip(atRTMRs + 48),
			policy: func(p *Policy) { p.IgnoreRTMR0, p.IgnoreRTMR3 = true, true },
			want:   "measurement"},
		"other data": {body: flip(atData + 63), want: "other data"},
		"a guest to debug": {
			body: func(b []byte) { b[atAttributes] |= 1 }, want: "debugged",
		},
		"a guest to migrate": {
			body: func(b []byte) { b[atAttributes+3] |= 0x20 }, want: "migrated",
		},
		"an unknown attribute": {
			body: func(b []byte) { b[atAttributes+1] |= 1 }, want: "not known",
		},
		"another module's signer": {body: flip(atSeamSigner), want: notNow},
		"a module not known":      {body: func(b []byte) { b[atSVN+1] = 9 }, want: notNow},
		"a module too old":        {body: func(b []byte) { b[atSVN] = 5 }, want: notNow},
		"microcode too old":       {body: func(b []byte) { b[atSVN+2] = 4 }, want: notNow},
	} {
		test.run(t, name)
	}
	c := newChain(t)
	doc := c.document(t, [64]byte{})
	doc.Evidence = c.quote(t, 5, [64]byte{}, func(b []byte) { b[atServiceTD] = 1 })
	_, err := c.verifier(t, trusting()).Verify(t.Context(), doc, [64]byte{}, today)
	if err == nil ||
		!strings.Contains(err.Error(), "migrated") {
		t.Errorf("a guest with a service TD: Verify() = %v", err)
	}
}

func TestRefusesPlatforms(t *testing.T) {
	status := func(at int, s string) func(c *chain) { return func(c *chain) { c.statuses[at] = s } }
	replace := func(old, with string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				panic(old)
			}
			return strings.Replace(s, old, with, 1)
		}
	}
	all := allowing("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
		"OutOfDate", "OutOfDateConfigurationNeeded")
	noLevels := func(s string) string {
		before, _, _ := strings.Cut(s, `"tcbLevels":[{"tcb":{"sgx`)
		return before + `"tcbLevels":[]}`
	}
	seam := replace(`"TDX_01","mrsigner":"00`, `"TDX_01","mrsigner":"01`)
	tests := map[string]refusalTest{
		// The library takes the module's status alone.
		"an old platform under a new module": {
			chain: status(0, "OutOfDate"), want: `platform has the status "OutOfDate"`,
		},
		"an old module": {
			chain: status(1, "OutOfDate"), want: `TDX module has the status "OutOfDate"`,
		},
		"an old enclave": {
			chain: status(2, "OutOfDate"), want: `quoting enclave has the status "OutOfDate"`,
		},
		"a platform to harden": {
			chain: status(0, "SWHardeningNeeded"), want: `"SWHardeningNeeded"`,
		},
		"a revoked platform": {
			chain: status(0, "Revoked"), policy: all, want: `"Revoked"`,
		},
		"a revoked module": {
			chain: status(1, "Revoked"), policy: all, want: `"Revoked"`,
		},
		"a revoked enclave": {
			chain: status(2, "Revoked"), policy: all, want: `"Revoked"`,
		},
		"a status of another kind": {
			chain:  status(0, "OutOfDate"),
			policy: allowing("SWHardeningNeeded"),
			want:   `"OutOfDate"`,
		},
		"a status not known": {chain: status(0, "Fine"), want: "Intel's JSON"},

		"another platform's TCB info": {
			chain: func(c *chain) { c.tcb = replace(testFMSPC, "50806f000001") }, want: notNow,
		},
		"another PCE's TCB info": {
			chain: func(c *chain) { c.tcb = replace(`"pceId":"0000"`, `"pceId":"0001"`) },
			want:  notNow,
		},
		"SGX's TCB info": {
			chain: func(c *chain) { c.tcb = replace(`"id":"TDX"`, `"id":"SGX"`) }, want: notNow,
		},
		"TCB info of version 2": {
			chain: func(c *chain) { c.tcb = replace(`"version":3`, `"version":2`) }, want: notNow,
		},
		"a PCE too old": {
			chain: func(c *chain) { c.tcb = replace(`"pcesvn":11`, `"pcesvn":12`) }, want: notNow,
		},
		"a CPU too old": {
			chain: func(c *chain) { c.tcb = replace(`[{"svn":5}`, `[{"svn":6}`) }, want: notNow,
		},
		"no levels": {chain: func(c *chain) {
			c.tcb = noLevels
		}, want: notNow},
		"another module's identity": {
			chain: func(c *chain) { c.tcb = seam },
			want:  "does not know TDX module",
		},
		"another enclave's signer": {
			chain: func(c *chain) { c.qe = replace(`"mrsigner":"DC`, `"mrsigner":"DD`) },
			want:  notNow,
		},
		"another enclave's product": {
			chain: func(c *chain) { c.qe = replace(`"isvprodid":2`, `"isvprodid":1`) },
			want:  notNow,
		},
		"another enclave's mode": {
			chain: func(c *chain) { c.qe = replace(`"attributes":"11`, `"attributes":"13`) },
			want:  notNow,
		},
		"an enclave too old": {
			chain: func(c *chain) { c.qe = replace(`"isvsvn":4`, `"isvsvn":5`) }, want: notNow,
		},
		"SGX's QE identity": {
			chain: func(c *chain) { c.qe = replace(`"id":"TD_QE"`, `"id":"QE"`) }, want: notNow,
		},

		"a revoked platform key": {
			chain: func(c *chain) { c.revokedByCA = []*x509.Certificate{c.pck.cert} }, want: notNow,
		},
		"a revoked CA": {
			chain: func(c *chain) { c.revokedByRoot = []*x509.Certificate{c.ca.cert} },
			want:  notNow,
		},
		"a revoked TCB signer": {
			chain: func(c *chain) { c.revokedByRoot = []*x509.Certificate{c.tcbSigner.cert} },
			want:  notNow,
		},

		"expired": {
			chain: func(c *chain) { c.until = today.Add(-time.Second) }, want: notNow,
		},
		"of tomorrow": {
			chain: func(c *chain) { c.issued = today.Add(time.Second) }, want: "not valid yet",
		},
		"a year later": {now: made.AddDate(1, 0, 0), want: notNow},
		"ten years later": {
			now: made.AddDate(10, 0, 0), chain: func(c *chain) { c.until = made.AddDate(20, 0, 0) },
			want: notNow,
		},
		"two years before": {
			now:   made.AddDate(-2, 0, 0),
			chain: func(c *chain) { c.issued = made.AddDate(-3, 0, 0) }, want: notNow,
		},
	}
	for name, test := range tests {
		if strings.Contains(name, "enclave") && test.want == notNow {
			// The library refuses it, and so does this package where the library would not look.
			checkAlone(t, name, test)
		}
		test.run(t, name)
	}
}

// checkAlone has this package's own comparison refuse what the library refuses first.
func checkAlone(t *testing.T, name string, test refusalTest) {
	t.Helper()
	c := newChain(t)
	test.chain(c)
	q, err := parseQuote(c.quote(t, 4, [64]byte{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	came, err := parseCollateral(c.endorsements(t))
	if err != nil {
		t.Fatal(err)
	}
	pck := platform(t, q)
	report := q.signed.GetCertificationData().GetQeReportCertificationData().GetQeReport()
	if s, err := came.evaluate(&q.guest, pck, report); err == nil {
		t.Errorf("%s: evaluate() = %v, want an error", name, s)
	}
}

func TestRefusesEndorsements(t *testing.T) {
	foreign := newChain(t)
	theirs := foreign.endorsements(t)
	set := func(place int, content []byte) func([][]byte) [][]byte {
		return func(list [][]byte) [][]byte { list[place] = content; return list }
	}
	edit := func(place int, f func(s string) string) func([][]byte) [][]byte {
		return func(list [][]byte) [][]byte {
			list[place] = []byte(f(string(list[place])))
			return list
		}
	}
	instead := func(place int, old, with string) func([][]byte) [][]byte {
		return edit(place, func(s string) string { return strings.Replace(s, old, with, 1) })
	}
	tests := map[string]refusalTest{
		"none": {came: func([][]byte) [][]byte { return nil }, want: "0 endorsements"},
		"one less": {
			came: func(l [][]byte) [][]byte { return l[:6] }, want: "6 endorsements",
		},
		"one more": {
			came: func(l [][]byte) [][]byte { return append(l, l[6]) }, want: "8 endorsements",
		},
		"no JSON":         {came: set(tcbInfo, []byte("x")), want: "Intel's JSON"},
		"an array":        {came: set(tcbInfo, []byte("[]")), want: "Intel's JSON"},
		"an empty object": {came: set(qeIdentity, []byte("{}")), want: "Intel's JSON"},
		"swapped JSON": {
			came: func(l [][]byte) [][]byte { l[0], l[2] = l[2], l[0]; return l },
			want: "Intel's JSON",
		},
		"swapped lists": {
			came: func(l [][]byte) [][]byte { l[4], l[6] = l[6], l[4]; return l }, want: notNow,
		},
		"no chain": {came: set(tcbInfoChain, []byte("x")), want: "two certificates"},
		"a short chain": {
			came: set(qeIdentityChain, toPEM(foreign.root)), want: "two certificates",
		},
		"a long chain": {came: edit(1, func(s string) string { return s + s }),
			want: "two certificates"},
		"text in a chain": {came: edit(1, func(s string) string { return s + "x" }),
			want: "two certificates"},
		"no list in DER": {came: set(pckCRL, []byte("x")), want: "revocation list"},
		"no root's list": {came: set(rootCRL, []byte("x")), want: "revocation list"},
		"a JSON value changed": {
			came: instead(tcbInfo, `"svn":5`, `"svn":4`),
			want: notNow,
		},
		"space in what is signed": {
			came: instead(qeIdentity, `"version":2`, `"version": 2`),
			want: notNow,
		},
		"a signature cut": {
			came: instead(tcbInfo, `"signature":"`, `"signature":"00`),
			want: notNow,
		},
		"a member more": {
			came: edit(tcbInfo, func(s string) string { return `{"a":1,` + s[1:] }),
			want: "Intel's JSON",
		},
		"something behind": {
			came: edit(tcbInfo, func(s string) string { return s + "{}" }), want: "Intel's JSON",
		},
	}
	for place := range theirs {
		name := fmt.Sprintf("another root's %d", place)
		tests[name] = refusalTest{came: set(place, theirs[place])}
	}
	for name, test := range tests {
		test.run(t, name)
	}
}

// The library checks Intel's signature over the member with the exact name, and reads values from
// members whose names differ in case, or that come again. The gateway supplies the JSON.
func TestShadowedMembers(t *testing.T) {
	c := newChain(t)
	c.statuses = []string{"UpToDate", "Revoked", "Revoked"}
	old := c.endorsements(t)
	inner := func(body []byte, member string) string {
		text := strings.TrimPrefix(string(body), `{"`+member+`":`)
		return strings.ReplaceAll(text[:strings.Index(text, `,"signature"`)], "Revoked", "UpToDate")
	}
	for _, test := range []struct {
		place  int
		member string
	}{{tcbInfo, "tcbInfo"}, {qeIdentity, "enclaveIdentity"}} {
		for _, name := range []string{
			strings.ToUpper(test.member), test.member, strings.ToLower(test.member),
			`\u00` + fmt.Sprintf("%x", test.member[0]) + test.member[1:],
		} {
			for _, front := range []bool{false, true} {
				doc := c.document(t, [64]byte{})
				doc.Endorsements = append([][]byte(nil), old...)
				value := fmt.Sprintf(`"%s":%s`, name, inner(old[test.place], test.member))
				body := string(old[test.place])
				if front {
					body = "{" + value + "," + body[1:]
				} else {
					body = body[:len(body)-1] + "," + value + "}"
				}
				doc.Endorsements[test.place] = []byte(body)
				_, err := c.verifier(t, trusting()).Verify(t.Context(), doc, [64]byte{}, today)
				if err == nil || !strings.Contains(err.Error(), "Intel's JSON") {
					t.Errorf("%s again as %s: Verify() = %v", test.member, name, err)
				}
			}
		}
	}
}
