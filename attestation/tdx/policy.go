// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tdx-guest/pcs"
)

// Measurement is what was measured of one guest: its firmware, and what the firmware and the kernel
// measured after it. Every register has 48 bytes.
type Measurement struct {
	// MRTD measures the guest's first memory: its virtual firmware.
	MRTD []byte
	// RTMRs are extended while the guest runs, by convention: 0 by the firmware with its
	// configuration, 1 with the boot loader and the kernel, 2 with the kernel's command line and
	// initrd, 3 by programs.
	RTMRs [4][]byte
}

// Policy says which guests are trusted. Its zero value trusts none, and [New] refuses it. What no
// policy can turn off: the chain to Intel's root, revocation lists, dates, debugging off, no
// migration, the identity of the quoting enclave.
type Policy struct {
	// Measurements are the guests that are trusted. At least one is needed, with MRTD and all
	// RTMRs, except those that the next two fields leave out.
	Measurements []Measurement
	// IgnoreRTMR0 and IgnoreRTMR3 do not compare these registers: 0 differs with the machine's size
	// and devices, 3 with what programs do with it. 1 and 2 are always compared, since any kernel
	// would be trusted otherwise.
	IgnoreRTMR0, IgnoreRTMR3 bool
	// TCBStatuses are statuses of Intel's, besides "UpToDate", that the platform, the TDX module
	// and the quoting enclave may have: "SWHardeningNeeded", "ConfigurationNeeded",
	// "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded". Revoked
	// ones are never trusted. nil = none.
	TCBStatuses []string
}

const registerSize = 48

// check says what is wrong with a policy.
func (p Policy) check() error {
	if len(p.Measurements) == 0 {
		return errors.New("tdx: Policy.Measurements is empty, so that any guest would be trusted")
	}
	for i, m := range p.Measurements {
		if len(m.MRTD) != registerSize {
			return fmt.Errorf("tdx: Policy.Measurements[%d].MRTD has %d bytes, want %d", i,
				len(m.MRTD), registerSize)
		}
		if allZero(m.MRTD) {
			return fmt.Errorf(
				"tdx: Policy.Measurements[%d].MRTD is all zeros, which measures nothing",
				i,
			)
		}
		for n, r := range m.RTMRs {
			if !(p.ignores(n) && len(r) == 0) && len(r) != registerSize {
				return fmt.Errorf("tdx: Policy.Measurements[%d].RTMRs[%d] has %d bytes, want %d", i,
					n, len(r), registerSize)
			}
		}
	}
	for _, s := range p.TCBStatuses {
		if !slices.Contains(lesserStatuses, pcs.TcbComponentStatus(s)) {
			return fmt.Errorf(
				"tdx: Policy.TCBStatuses names %q, which is no status that can be trusted",
				s,
			)
		}
	}
	return nil
}

var lesserStatuses = []pcs.TcbComponentStatus{
	pcs.TcbComponentStatusUpToDate,
	pcs.TcbComponentStatusSwHardeningNeeded,
	pcs.TcbComponentStatusConfigurationNeeded,
	pcs.TcbComponentStatusConfigurationAndSWHardeningNeeded,
	pcs.TcbComponentStatusOutOfDate,
	pcs.TcbComponentStatusOutOfDateConfigurationNeeded,
}

// allows tells whether a part of the platform may have a status.
func (p Policy) allows(s pcs.TcbComponentStatus) bool {
	return s == pcs.TcbComponentStatusUpToDate || slices.Contains(p.TCBStatuses, string(s))
}

func (p Policy) ignores(rtmr int) bool {
	return rtmr == 0 && p.IgnoreRTMR0 || rtmr == 3 && p.IgnoreRTMR3
}

// checkGuest refuses g unless it is one of the policy's guests. The error names one register that
// differs, of the measurement that is closest: an error's text is cut when it is long.
func (p Policy) checkGuest(g *guest) error {
	closest := -1 // the first register that differs, with MRTD as 0
	for _, m := range p.Measurements {
		n := p.differs(m, g)
		if n == len(g.registers()) {
			return nil
		}
		closest = max(closest, n)
	}
	name := "MRTD"
	if closest > 0 {
		name = fmt.Sprintf("RTMR %d", closest-1)
	}
	return fmt.Errorf("the measurement is none that the policy trusts: %s is %x", name,
		g.registers()[closest])
}

// differs returns the first register of g, with MRTD as 0, that is not m's, or their number.
func (p Policy) differs(m Measurement, g *guest) int {
	if !bytes.Equal(m.MRTD, g.mrtd) {
		return 0
	}
	for n := range m.RTMRs {
		if !p.ignores(n) && !bytes.Equal(m.RTMRs[n], g.rtmrs[n]) {
			return n + 1
		}
	}
	return len(g.registers())
}

// clone is a copy that nobody else can change.
func (p Policy) clone() Policy {
	p.TCBStatuses = slices.Clone(p.TCBStatuses)
	p.Measurements = slices.Clone(p.Measurements)
	for i := range p.Measurements {
		m := &p.Measurements[i]
		m.MRTD = bytes.Clone(m.MRTD)
		for n := range m.RTMRs {
			m.RTMRs[n] = bytes.Clone(m.RTMRs[n])
		}
	}
	return p
}

func allZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}
