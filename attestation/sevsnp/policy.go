// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
)

// Policy says which guests are trusted. Its zero value trusts none, and [New] refuses it. What no
// policy can turn off: the chain to AMD's roots, dates, debugging off, unsigned bytes zero, and the
// chip and the firmware that the certificate names.
type Policy struct {
	// Measurements are the launch measurements that are trusted, 48 bytes each: the digest of the
	// guest's firmware and of what the firmware was started with. At least one is needed.
	Measurements [][]byte
	// MinimumTCB is the oldest firmware that is trusted, part by part. The zero value trusts all.
	// Each kind of chip counts its firmware in its own way: name the kind in Products as well, and
	// give the client a verifier for each.
	MinimumTCB TCB
	// Products, if there are any, are the only kinds of chips that are trusted: "Milan", "Genoa",
	// "Turin".
	Products []string
	// VMPL is the privilege level that has to have asked for the report, 0 to 3: 0 is the guest's
	// most privileged software. A guest with a paravisor or an SVSM runs its kernel at another.
	VMPL int
	// Chips, if there are any, are the only chips that are trusted: CHIP_ID, 64 bytes each.
	Chips [][]byte
	// RevokedChips are chips that are never trusted. AMD revokes signing keys and not chips, and
	// every VCEK has the serial number 0: a list of the chips themselves is the only one there is.
	RevokedChips [][]byte
	// AllowMigrationAgent trusts guests that a migration agent may move. It then reads their
	// memory.
	AllowMigrationAgent bool
	// AllowVLEK trusts reports signed by a key that AMD gave to a cloud (VLEK), besides those by a
	// chip's own (VCEK). A VLEK names no chip: Chips has to be empty.
	AllowVLEK bool
	// AllowProvisionalFirmware trusts machines whose firmware is newer than what it committed to,
	// so that their operator can go back to the older one.
	AllowProvisionalFirmware bool
	// RequireRevocationList refuses evidence that comes without AMD's current list. If false, a
	// list is obeyed if there is one. The gateway supplies it, so that only true protects against a
	// gateway that leaves it out.
	RequireRevocationList bool
}

// TCB are security patch levels of a machine's firmware, as AMD's key server names them.
type TCB struct {
	// Bootloader, TEE, SNP and Microcode are blSPL, teeSPL, snpSPL and ucodeSPL.
	Bootloader, TEE, SNP, Microcode uint8
	// FMC is fmcSPL, which Turin has. For other chips it is not compared.
	FMC uint8
}

func (t TCB) parts() kds.TCBParts {
	return kds.TCBParts{BlSpl: t.Bootloader, TeeSpl: t.TEE, SnpSpl: t.SNP, UcodeSpl: t.Microcode}
}

// atLeast tells whether no part of t is below that of low.
func (t TCB) atLeast(low TCB) bool {
	return t.Bootloader >= low.Bootloader && t.TEE >= low.TEE && t.SNP >= low.SNP &&
		t.Microcode >= low.Microcode && t.FMC >= low.FMC
}

// String is the form of AttestationResult.TCB.
func (t TCB) String() string {
	return fmt.Sprintf("bootloader=%d tee=%d snp=%d microcode=%d fmc=%d", t.Bootloader, t.TEE,
		t.SNP, t.Microcode, t.FMC)
}

// check says what is wrong with a policy.
func (p Policy) check() error {
	if len(p.Measurements) == 0 {
		return errors.New("sevsnp: Policy.Measurements is empty, so that any guest would be" +
			" trusted")
	}
	for i, m := range p.Measurements {
		if len(m) != abi.MeasurementSize {
			return fmt.Errorf("sevsnp: Policy.Measurements[%d] has %d bytes, want %d", i, len(m),
				abi.MeasurementSize)
		}
		if allZero(m) {
			return fmt.Errorf(
				"sevsnp: Policy.Measurements[%d] is all zeros, which measures nothing",
				i,
			)
		}
	}
	for name, chips := range map[string][][]byte{"Chips": p.Chips, "RevokedChips": p.RevokedChips} {
		for i, c := range chips {
			if len(c) != abi.ChipIDSize {
				return fmt.Errorf("sevsnp: Policy.%s[%d] has %d bytes, want %d", name, i, len(c),
					abi.ChipIDSize)
			}
		}
	}
	for _, line := range p.Products {
		if !slices.Contains([]string{"Milan", "Genoa", turin}, line) {
			return fmt.Errorf("sevsnp: Policy.Products names %q, want Milan, Genoa or Turin", line)
		}
	}
	switch {
	case p.VMPL < 0 || p.VMPL > 3:
		return fmt.Errorf("sevsnp: Policy.VMPL is %d, want 0 to 3", p.VMPL)
	case p.AllowVLEK && len(p.Chips)+len(p.RevokedChips) > 0:
		return errors.New("sevsnp: Policy.AllowVLEK does not go with Chips or RevokedChips:" +
			" no certificate vouches for the chip of such a report")
	}
	// Of no firmware they are more: a mistake, which would refuse every machine.
	t := p.MinimumTCB
	for _, part := range []uint8{t.FMC, t.Bootloader, t.TEE, t.SNP} {
		if part > 127 {
			return fmt.Errorf("sevsnp: a part of Policy.MinimumTCB is %d, want at most 127", part)
		}
	}
	return nil
}

// clone is a copy that nobody else can change.
func (p Policy) clone() Policy {
	p.Measurements = cloneAll(p.Measurements)
	p.Products = slices.Clone(p.Products)
	p.Chips = cloneAll(p.Chips)
	p.RevokedChips = cloneAll(p.RevokedChips)
	return p
}

func cloneAll(list [][]byte) [][]byte {
	list = slices.Clone(list)
	for i := range list {
		list[i] = bytes.Clone(list[i])
	}
	return list
}

func contains(list [][]byte, value []byte) bool {
	return slices.ContainsFunc(list, func(b []byte) bool { return bytes.Equal(b, value) })
}

func allZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}
