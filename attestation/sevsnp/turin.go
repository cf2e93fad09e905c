// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

// This file judges reports of Turin. Its chips' certificates have another structure (AMD
// publication 57230, structure version 1), which the library's reader refuses: the chip has 8
// bytes, and there is a level FMC. The library checks the report's signature and crypto/x509 the
// chain.

const turin = "Turin"

// oidFMC is the extension with the level of FMC.
var oidFMC = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 9}

// turinTCB takes a report's level apart: FMC, boot loader, TEE, SNP, three bytes of zero, and
// microcode.
func turinTCB(v uint64) TCB {
	return TCB{FMC: uint8(v), Bootloader: uint8(v >> 8), TEE: uint8(v >> 16), SNP: uint8(v >> 24),
		Microcode: uint8(v >> 56)}
}

func (t TCB) turin() uint64 {
	return uint64(t.FMC) | uint64(t.Bootloader)<<8 | uint64(t.TEE)<<16 | uint64(t.SNP)<<24 |
		uint64(t.Microcode)<<56
}

// checkTurinSignature checks a report's signature, and the chain from its key to AMD's root.
func checkTurinSignature(evidence []byte, key *x509.Certificate, root *trust.AMDRootCerts,
	now time.Time) error {
	public, ok := key.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P384() || key.Subject.CommonName != "SEV-VCEK" ||
		key.SignatureAlgorithm != x509.SHA384WithRSAPSS {
		return errors.New(notAKeyOfAMDs)
	}
	options := root.X509Options(now, abi.VcekReportSigner)
	if options == nil {
		return errors.New("no root of AMD's is known for Turin")
	}
	_, err := key.Verify(*options)
	if err == nil {
		err = verify.SnpReportSignature(evidence, key)
	}
	if err != nil {
		return &refusal{doesNotHold, err}
	}
	return nil
}

// turinKey reads what a chip's certificate says: the chip, and the level of its firmware.
func turinKey(key *x509.Certificate) (chip []byte, level TCB, err error) {
	var version uint8
	numbers := []struct {
		id   asn1.ObjectIdentifier
		into *uint8
	}{
		{kds.OidStructVersion, &version},
		{kds.OidBlSpl, &level.Bootloader},
		{kds.OidTeeSpl, &level.TEE},
		{kds.OidSnpSpl, &level.SNP},
		{kds.OidUcodeSpl, &level.Microcode},
		{oidFMC, &level.FMC},
	}
	seen := 0
	for _, e := range key.Extensions {
		for _, n := range numbers {
			if !e.Id.Equal(n.id) {
				continue
			}
			var value int
			rest, err := asn1.Unmarshal(e.Value, &value)
			if err != nil || len(rest) > 0 || value < 0 || value > 255 {
				return nil, TCB{}, errors.New(notAKeyOfAMDs)
			}
			*n.into = uint8(value)
			seen++
		}
		if e.Id.Equal(kds.OidHwid) {
			chip = bytes.Clone(e.Value) // as it is: AMD leaves out the tag
		}
	}
	// crypto/x509 has refused a certificate in which an extension comes twice.
	if seen != len(numbers) || version != 1 || len(chip) != 8 {
		return nil, TCB{}, errors.New(notAKeyOfAMDs)
	}
	return chip, level, nil
}

// checkTurin compares a report of Turin with its certificate, and its levels with the policy.
func (v *Verifier) checkTurin(report *spb.Report, key *x509.Certificate) error {
	chip, level, err := turinKey(key)
	if err != nil {
		return err
	}
	if err := v.checkChip(report, slices.Concat(chip, make([]byte, abi.ChipIDSize-8))); err != nil {
		return err
	}
	if report.GetReportedTcb() != level.turin() {
		return fmt.Errorf("the firmware's level is %#x and the certificate's %#x",
			report.GetReportedTcb(), level.turin())
	}
	current, committed := turinTCB(report.GetCurrentTcb()), turinTCB(report.GetCommittedTcb())
	built := [3]uint32{report.GetCurrentMajor(), report.GetCurrentMinor(), report.GetCurrentBuild()}
	kept := [3]uint32{report.GetCommittedMajor(), report.GetCommittedMinor(),
		report.GetCommittedBuild()}
	low := v.policy.MinimumTCB
	switch {
	case !v.policy.AllowProvisionalFirmware && (current != committed || built != kept):
		return errors.New(provisional)
	case !current.atLeast(committed) || !current.atLeast(level) ||
		slices.Compare(built[:], kept[:]) < 0:
		return errors.New(contradict)
	case !level.atLeast(low) || !turinTCB(report.GetLaunchTcb()).atLeast(low):
		return errors.New(contradict)
	}
	return nil
}
