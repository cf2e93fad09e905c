// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"flag"
	"fmt"
	"strings"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/attestation/sevsnp"
	"github.com/seed-017344ad/sealedchat/attestation/tdx"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// attestation has the flags that name the software which may hold the server's key.
type attestation struct {
	sev     program.List // measurements
	sevTCB  string
	sevVMPL int
	sevVLEK bool
	tdx     repeated // measurements, each a list
}

func (a *attestation) flags(f *flag.FlagSet) {
	f.Var(&a.sev, "attest-sev", "take only a server in an AMD SEV-SNP guest with this "+
		"`measurement` (96 hex digits); may be repeated, or a list with commas")
	f.StringVar(&a.sevTCB, "attest-sev-tcb", "", "with -attest-sev: the oldest firmware to take, "+
		"as `chip:bootloader.tee.snp.microcode`, Milan:3.0.23.213 for example, and of other chips "+
		"none; without a chip of any, though each chip counts in its own way")
	f.IntVar(&a.sevVMPL, "attest-sev-vmpl", 0, "with -attest-sev: the privilege `level` that has to "+
		"have asked for the evidence, 0 to 3: what -attest-vmpl of the gateway says")
	f.BoolVar(&a.sevVLEK, "attest-sev-vlek", false, "with -attest-sev: take evidence signed by a "+
		"key that AMD gave to a cloud (VLEK) as well")
	f.Var(&a.tdx, "attest-tdx", "take only a server in an Intel TDX guest with this "+
		"`measurement`: MRTD and RTMR 0 to 3 (96 hex digits each), with commas; \"any\" may stand "+
		"for RTMR 0 and 3; may be repeated")
}

func (a *attestation) given() bool { return len(a.sev)+len(a.tdx) > 0 }

// verifiers makes the verifiers of the flags: nil if there are none.
func (a *attestation) verifiers() ([]sealedchat.Verifier, error) {
	var list []sealedchat.Verifier
	if len(a.sev) > 0 {
		v, err := a.sevVerifier()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	} else if a.sevTCB != "" || a.sevVMPL != 0 || a.sevVLEK {
		return nil, program.WrongInput("-attest-sev-tcb, -attest-sev-vmpl and -attest-sev-vlek " +
			"need -attest-sev")
	}
	if len(a.tdx) > 0 {
		v, err := a.tdxVerifier()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (a *attestation) sevVerifier() (sealedchat.Verifier, error) {
	policy := sevsnp.Policy{VMPL: a.sevVMPL, AllowVLEK: a.sevVLEK}
	for _, text := range a.sev {
		m, err := register(text)
		if err != nil {
			return nil, program.WrongInput("-attest-sev: %w", err)
		}
		policy.Measurements = append(policy.Measurements, m)
	}
	if a.sevTCB != "" {
		chip, level, ok := strings.Cut(a.sevTCB, ":")
		if ok {
			policy.Products = []string{chip}
		} else {
			level = a.sevTCB
		}
		t := &policy.MinimumTCB
		n, err := fmt.Sscanf(level, "%d.%d.%d.%d", &t.Bootloader, &t.TEE, &t.SNP, &t.Microcode)
		text := fmt.Sprintf("%d.%d.%d.%d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
		if n != 4 || err != nil || text != level {
			return nil, program.WrongInput("-attest-sev-tcb: want four numbers below 256 with dots")
		}
	}
	v, err := sevsnp.New(policy)
	if err != nil {
		return nil, program.WrongInput("-attest-sev: %w", err)
	}
	return v, nil
}

func (a *attestation) tdxVerifier() (sealedchat.Verifier, error) {
	var policy tdx.Policy
	any0, any3 := 0, 0
	for _, text := range a.tdx {
		parts := strings.Split(text, ",")
		if len(parts) != 5 {
			return nil, program.WrongInput("-attest-tdx: want MRTD and four RTMRs with commas, "+
				"got %d values", len(parts))
		}
		var m tdx.Measurement
		for i, part := range parts {
			part = strings.TrimSpace(part)
			switch {
			case i == 1 && part == "any":
				any0++
				continue
			case i == 4 && part == "any":
				any3++
				continue
			}
			r, err := register(part)
			if err != nil {
				return nil, program.WrongInput("-attest-tdx: %w", err)
			}
			if i == 0 {
				m.MRTD = r
			} else {
				m.RTMRs[i-1] = r
			}
		}
		policy.Measurements = append(policy.Measurements, m)
	}
	policy.IgnoreRTMR0, policy.IgnoreRTMR3 = any0 > 0, any3 > 0
	if any0 > 0 && any0 < len(a.tdx) || any3 > 0 && any3 < len(a.tdx) {
		return nil, program.WrongInput("-attest-tdx: \"any\" has to stand in all measurements, " +
			"or in none")
	}
	v, err := tdx.New(policy)
	if err != nil {
		return nil, program.WrongInput("-attest-tdx: %w", err)
	}
	return v, nil
}

// register reads a measurement of 48 bytes.
func register(text string) ([]byte, error) {
	b, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(b) != 48 {
		return nil, fmt.Errorf("a measurement of %d characters, want 96 hex digits", len(text))
	}
	return b, nil
}

// repeated is a flag that may stand several times, with commas inside.
type repeated []string

func (r *repeated) String() string { return strings.Join(*r, " ") }

func (r *repeated) Set(value string) error {
	*r = append(*r, value)
	return nil
}
