// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package sevsnp judges attestation reports of AMD SEV-SNP guests (Milan, Genoa and Turin) for
// sealedchat.Attested. It asks nobody: AMD's roots are built in, and everything else comes with the
// report.
//
// Evidence is the report: 1,184 bytes, version 2 to 5, as the guest's firmware made it. The
// endorsements, each in DER, stand in this order:
//
//	0  the certificate of the key that signed the report: VCEK, or VLEK if the policy allows it
//	1  ASK (for a VLEK: ASVK), and
//	2  ARK: both or neither. They are compared with the built-in ones and not used
//	3  AMD's revocation list for the product, after 1 and 2
package sevsnp

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/seed-017344ad/sealedchat"
)

// Format is the format of the documents that a [Verifier] judges.
const Format = "sev-snp"

// The versions of reports that the library knows the layout of.
const (
	minVersion = abi.MinSupportedReportVersion
	maxVersion = abi.MaxSupportedReportVersion
)

// Verifier judges SEV-SNP reports by one policy. It may be used concurrently.
type Verifier struct {
	policy Policy
	roots  roots
	// allowDebug is for tests: the only real report that they have is of a guest that may be
	// debugged.
	allowDebug bool
}

var _ sealedchat.Verifier = (*Verifier)(nil)

// New makes a verifier. It refuses a policy that names no measurement, or a value of the wrong
// size. The policy is copied.
func New(p Policy) (*Verifier, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	r, err := amdRoots()
	if err != nil {
		return nil, err
	}
	return &Verifier{policy: p.clone(), roots: r}, nil
}

// Verify judges doc as sealedchat.Verifier says: that a chip of AMD's signed the report over
// reportData, for a guest that the policy trusts, and that everything was valid at now. The error
// says what was wrong, without text of doc's; errors that it wraps may hold some. It makes no
// network access.
func (v *Verifier) Verify(ctx context.Context, doc sealedchat.AttestationDocument,
	reportData [64]byte, now time.Time) (result sealedchat.AttestationResult, err error) {
	// What the server sent must not end the program, whatever the library makes of it.
	defer func() {
		if p := recover(); p != nil {
			result = sealedchat.AttestationResult{}
			err = errors.New("sevsnp: the library failed to read the report")
		}
	}()
	report, err := v.verify(ctx, doc, reportData, now)
	if err != nil {
		return sealedchat.AttestationResult{}, fmt.Errorf("sevsnp: %w", err)
	}
	tcb := tcbOf(report.GetReportedTcb())
	if isTurin(report) {
		tcb = turinTCB(report.GetReportedTcb())
	}
	return sealedchat.AttestationResult{
		Measurement: hex.EncodeToString(report.GetMeasurement()), TCB: tcb.String(),
	}, nil
}

func (v *Verifier) verify(ctx context.Context, doc sealedchat.AttestationDocument,
	reportData [64]byte, now time.Time) (*spb.Report, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case doc.Format != Format:
		return nil, fmt.Errorf("the document's format is not %q", Format)
	case now.IsZero():
		return nil, errors.New("no time to judge dates by") // x509 would take the machine's
	}
	report, err := parseReport(doc.Evidence)
	if err != nil {
		return nil, err
	}
	came, err := parseEndorsements(doc.Endorsements)
	if err != nil {
		return nil, err
	}
	if err := v.checkSignature(ctx, doc.Evidence, report, came, now); err != nil {
		return nil, err
	}
	return report, v.checkPolicy(report, came.key, reportData)
}

// tcbOf takes a report's level apart, of Milan and Genoa.
func tcbOf(v uint64) TCB {
	t := kds.DecomposeTCBVersion(kds.TCBVersion(v))
	return TCB{Bootloader: t.BlSpl, TEE: t.TeeSpl, SNP: t.SnpSpl, Microcode: t.UcodeSpl}
}

func isTurin(report *spb.Report) bool {
	fms := report.GetCpuid1EaxFms()
	return fms != 0 && kds.ProductLineFromFms(fms) == turin
}

// parseReport reads a report, and refuses one with a byte that the signature does not cover and
// that is not zero: what the library makes of it has to be the same bytes again.
func parseReport(evidence []byte) (*spb.Report, error) {
	if len(evidence) != abi.ReportSize {
		return nil, fmt.Errorf("the report has %d bytes, want %d", len(evidence), abi.ReportSize)
	}
	if v := binary.LittleEndian.Uint32(evidence); v < minVersion || v > maxVersion {
		return nil, fmt.Errorf("the report has version %d, want %d to %d", v, minVersion,
			maxVersion)
	}
	report, err := abi.ReportToProto(evidence)
	if err != nil {
		return nil, &refusal{malformed, err}
	}
	again, err := abi.ReportToAbiBytes(report)
	if err != nil {
		return nil, &refusal{malformed, err}
	}
	if !bytes.Equal(again, evidence) {
		return nil, errors.New("the report has bytes in places that are reserved")
	}
	return report, nil
}

// checkSignature checks the report's signature, and the chain from its key to AMD's roots.
func (v *Verifier) checkSignature(ctx context.Context, evidence []byte, report *spb.Report,
	came *endorsements, now time.Time) error {
	signer, err := abi.ParseSignerInfo(report.GetSignerInfo())
	if err != nil {
		return &refusal{malformed, err}
	}
	vlek := signer.SigningKey == abi.VlekReportSigner
	switch {
	case signer.SigningKey != abi.VcekReportSigner && !vlek:
		return fmt.Errorf("the report's signer is %v, want a chip's key", signer.SigningKey)
	case vlek && !v.policy.AllowVLEK:
		return errors.New("a cloud's key (VLEK) signed the report: Policy.AllowVLEK is not set")
	case vlek && isTurin(report):
		return errors.New("a cloud's key (VLEK) for Turin signed the report: it cannot be judged")
	}
	line, err := productLine(report, came.key, signer.SigningKey)
	if err != nil {
		return err
	}
	root, ok := v.roots[line]
	if !ok {
		return fmt.Errorf("no root of AMD's is known for the product %q", line)
	}
	if only := v.policy.Products; len(only) > 0 && !slices.Contains(only, line) {
		return fmt.Errorf("the chip is a %s, which Policy.Products does not name", line)
	}
	ask, ark := root.ProductCerts.Ask, root.ProductCerts.Ark
	if vlek {
		ask = root.ProductCerts.Asvk
	}
	if err := came.checkChain(ask, ark, now); err != nil {
		return err
	}
	if line == turin {
		if err := checkTurinSignature(evidence, came.key, root, now); err != nil {
			return err
		}
		return came.checkRevocations(ask, ark, v.policy.RequireRevocationList, now)
	}
	attestation := &spb.Attestation{Report: report, CertificateChain: came.chain(root, vlek)}
	err = verify.SnpAttestationContext(ctx, attestation, &verify.Options{
		DisableCertFetching: true,
		Getter:              noNetwork{},
		Now:                 now,
		TrustedRoots:        v.roots.library(),
	})
	if err != nil {
		return &refusal{doesNotHold, err}
	}
	return came.checkRevocations(ask, ark, v.policy.RequireRevocationList, now)
}

// productLine is the chip's product. Reports of version 2 do not say it, and their certificate
// does.
func productLine(report *spb.Report, key *x509.Certificate,
	signer abi.ReportSigner) (string, error) {
	if fms := report.GetCpuid1EaxFms(); fms != 0 {
		return kds.ProductLineFromFms(fms), nil
	}
	exts, err := kds.CertificateExtensions(key, signer)
	if err != nil {
		return "", &refusal{notAKeyOfAMDs, err}
	}
	product, err := kds.ParseProductName(exts.ProductName, signer)
	if err != nil {
		return "", &refusal{notAKeyOfAMDs, err}
	}
	return kds.ProductLine(product), nil
}

// checkPolicy compares a report whose signature holds with the policy, and with its certificate.
func (v *Verifier) checkPolicy(report *spb.Report, key *x509.Certificate,
	reportData [64]byte) error {
	if !bytes.Equal(report.GetReportData(), reportData[:]) {
		return errors.New("the report is over other data: another nonce, other keys, or another" +
			" gateway's")
	}
	if !contains(v.policy.Measurements, report.GetMeasurement()) {
		return fmt.Errorf("the measurement %x is none that the policy trusts",
			report.GetMeasurement())
	}
	if err := v.checkGuest(report); err != nil {
		return err
	}
	if isTurin(report) {
		return v.checkTurin(report, key)
	}
	return v.checkFirmware(report, key, reportData)
}

// checkFirmware compares a report of Milan or Genoa with its certificate, and its levels with the
// policy.
func (v *Verifier) checkFirmware(report *spb.Report, key *x509.Certificate,
	reportData [64]byte) error {
	signer, err := abi.ParseSignerInfo(report.GetSignerInfo())
	if err != nil {
		return &refusal{malformed, err}
	}
	exts, err := kds.CertificateExtensions(key, signer.SigningKey)
	if err != nil {
		return &refusal{notAKeyOfAMDs, err}
	}
	chain := &spb.CertificateChain{VcekCert: key.Raw}
	if signer.SigningKey == abi.VlekReportSigner {
		chain = &spb.CertificateChain{VlekCert: key.Raw}
	} else if err := v.checkChip(report, exts.HWID); err != nil {
		return err
	}
	// The library compares levels as parts, and takes a part that is out of range for zero.
	if report.GetReportedTcb() != uint64(exts.TCBVersion) {
		return fmt.Errorf("the firmware's level is %#x and the certificate's %#x",
			report.GetReportedTcb(), uint64(exts.TCBVersion))
	}
	if !v.policy.AllowProvisionalFirmware && report.GetCommittedTcb() != report.GetCurrentTcb() {
		return errors.New(provisional)
	}
	err = validate.SnpAttestation(&spb.Attestation{Report: report, CertificateChain: chain},
		v.options(reportData))
	if err != nil {
		return &refusal{contradict, err}
	}
	return nil
}

// checkGuest compares what the guest was started with with the policy. The library does so too, in
// words that hold the report's values. The guest's security version is not compared: it comes from
// an ID block, which whoever starts the guest may sign with any key.
func (v *Verifier) checkGuest(report *spb.Report) error {
	guest, err := abi.ParseSnpPolicy(report.GetPolicy())
	switch {
	case err != nil:
		return &refusal{malformed, err}
	case guest.Debug && !v.allowDebug:
		return errors.New("the guest may be debugged: its operator can read its memory")
	case guest.MigrateMA && !v.policy.AllowMigrationAgent:
		return errors.New("a migration agent may move the guest, and Policy.AllowMigrationAgent" +
			" is not set")
	case report.GetVmpl() != uint32(v.policy.VMPL):
		return fmt.Errorf("the report was asked for at VMPL %d, want %d", report.GetVmpl(),
			v.policy.VMPL)
	}
	return nil
}

func (v *Verifier) options(reportData [64]byte) *validate.Options {
	vmpl := v.policy.VMPL
	return &validate.Options{
		GuestPolicy: abi.SnpPolicy{
			Debug: v.allowDebug, MigrateMA: v.policy.AllowMigrationAgent,
			SMT: true, CXLAllowed: true,
		},
		ReportData:                reportData[:],
		VMPL:                      &vmpl,
		MinimumTCB:                v.policy.MinimumTCB.parts(),
		MinimumLaunchTCB:          v.policy.MinimumTCB.parts(),
		PermitProvisionalFirmware: v.policy.AllowProvisionalFirmware,
	}
}

// checkChip compares the chip with the certificate's, which the library leaves out where the report
// masks it, and with the policy's lists.
func (v *Verifier) checkChip(report *spb.Report, certified []byte) error {
	chip := report.GetChipId()
	switch {
	case !bytes.Equal(chip, certified):
		return errors.New("the report names another chip than its certificate, or hides it")
	case contains(v.policy.RevokedChips, chip):
		return errors.New("the policy revokes the chip that signed the report")
	case len(v.policy.Chips) > 0 && !contains(v.policy.Chips, chip):
		return errors.New("the chip that signed the report is none of Policy.Chips")
	}
	return nil
}

// Refusals that several checks share.
const (
	malformed     = "the report is malformed"
	notAKeyOfAMDs = "the first endorsement is no certificate of a chip's key as AMD makes them"
	doesNotHold   = "the report's signature, or the chain to AMD's root, does not hold"
	provisional   = "the machine's firmware is provisional: it can go back to an older one"
	contradict    = "the firmware is older than the policy trusts, or its levels contradict" +
		" each other"
)

// refusal is an error of the library, whose text may hold the server's, behind a text of our own.
type refusal struct {
	text string
	err  error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.err }

// noNetwork is what the library is given to fetch with: it never is to.
type noNetwork struct{}

func (noNetwork) Get(string) ([]byte, error) {
	return nil, errors.New("a verifier makes no network access")
}
