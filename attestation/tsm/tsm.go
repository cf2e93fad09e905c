// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package tsm makes attestation documents inside a confidential VM, for
// sealedchat.GatewayConfig.Attester. It asks Linux (6.7 or newer) for reports, through
// configfs-tsm, which is below /sys/kernel/config/tsm and serves AMD SEV-SNP and Intel TDX.
//
// What verifiers need besides the report comes from the host where it offers it (SEV-SNP's table of
// certificates), or from files in a folder:
//
//	vcek.der, ask.der, ark.der   SEV-SNP, where the host has no table
//	crl.der                      SEV-SNP, optional: AMD's revocation list; needs ASK and ARK
//	tcb-info.json, tcb-info-chain.pem, qe-identity.json, qe-identity-chain.pem,
//	pck-crl.der, pck-crl-chain.pem, root-crl.der    TDX, all of them
//
// docs/attestation.md says where the files come from. They are read for each report, so that
// another program may replace them while the gateway runs; it should do so with rename.
package tsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"
	"github.com/seed-017344ad/sealedchat"
)

// Options are the options of [Attester]. Zero values are defaults.
type Options struct {
	// Endorsements is the folder with the files that the host does not offer. "" = none. A TDX
	// guest needs one.
	Endorsements string
	// VMPL is the privilege level of SEV-SNP to ask at, 0 to 3, not more privileged than the
	// guest's kernel is. 0 = the kernel's default.
	VMPL int
}

// ErrUnavailable is what errors wrap where the machine cannot make reports: it is no confidential
// VM, its kernel is too old, or configfs is not mounted.
var ErrUnavailable = errors.New("this machine makes no attestation reports")

// maxFile bounds files of the folder. A document has 1 MiB at most.
const maxFile = 1 << 20

// Attester returns a function for sealedchat.GatewayConfig.Attester, or an error that wraps
// [ErrUnavailable] on a machine that makes no reports. The function may be called concurrently. It
// does not end early with its context: the kernel answers within a second or so.
func Attester(o Options) (
	func(ctx context.Context, reportData [64]byte) (sealedchat.AttestationDocument, error), error,
) {
	if o.VMPL < 0 || o.VMPL > 3 {
		return nil, fmt.Errorf("tsm: Options.VMPL is %d, want 0 to 3", o.VMPL)
	}
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, fmt.Errorf(
			"tsm: %w: it has to be a confidential VM (AMD SEV-SNP, Intel TDX) with"+
				" Linux 6.7 or newer and configfs mounted: %w",
			ErrUnavailable,
			err,
		)
	}
	return (&attester{o, client}).attest, nil
}

type attester struct {
	Options
	client configfsi.Client
}

func (a *attester) attest(ctx context.Context,
	reportData [64]byte) (sealedchat.AttestationDocument, error) {
	doc, err := a.document(ctx, reportData)
	if err != nil {
		return sealedchat.AttestationDocument{}, fmt.Errorf("tsm: %w", err)
	}
	return doc, nil
}

func (a *attester) document(ctx context.Context,
	reportData [64]byte) (sealedchat.AttestationDocument, error) {
	none := sealedchat.AttestationDocument{}
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	provider, evidence, table, err := a.report(reportData)
	if err != nil {
		return none, err
	}
	doc := sealedchat.AttestationDocument{Evidence: evidence}
	switch provider {
	case "sev_guest":
		doc.Format = "sev-snp"
		doc.Endorsements, err = a.sev(evidence, table)
	case "tdx_guest":
		doc.Format = "tdx"
		doc.Endorsements, err = a.files(tdxFiles...)
	default:
		err = fmt.Errorf("%w of a kind that is known: the kernel's provider is %q", ErrUnavailable,
			provider)
	}
	if err != nil {
		return none, err
	}
	return doc, nil
}

// report asks the kernel for a report over data. The library's own one-shot call asks every
// provider for a table of certificates, which only SEV-SNP's has.
func (a *attester) report(data [64]byte) (provider string, evidence, table []byte, err error) {
	r, err := report.Create(a.client, &report.Request{InBlob: data[:]})
	if err != nil {
		return "", nil, nil, err
	}
	defer func() { err = errors.Join(err, r.Destroy()) }()
	if err := r.WriteOption("inblob", data[:]); err != nil {
		return "", nil, nil, err
	}
	name, err := r.ReadOption("provider")
	if err != nil {
		return "", nil, nil, err
	}
	provider = strings.TrimSpace(string(name))
	if a.VMPL > 0 {
		if err := r.WriteOption("privlevel", fmt.Append(nil, a.VMPL)); err != nil {
			return "", nil, nil, err
		}
	}
	if evidence, err = r.ReadOption("outblob"); err != nil {
		return "", nil, nil, err
	}
	if provider == "sev_guest" {
		// A host without a table has the kernel say so with an error, or with nothing.
		if table, err = r.ReadOption("auxblob"); report.GetGenerationErr(err) != nil {
			return "", nil, nil, err
		}
	}
	return provider, evidence, table, nil
}

var tdxFiles = []string{
	"tcb-info.json", "tcb-info-chain.pem", "qe-identity.json", "qe-identity-chain.pem",
	"pck-crl.der", "pck-crl-chain.pem", "root-crl.der",
}

// sev returns the endorsements of an SEV-SNP report: the table's, or the folder's, and the folder's
// revocation list.
func (a *attester) sev(evidence, table []byte) ([][]byte, error) {
	list, err := fromTable(evidence, table)
	if err != nil {
		return nil, err
	}
	if list == nil {
		if list, err = a.files("vcek.der"); err != nil {
			return nil, fmt.Errorf("the host has no certificate of the chip's key, and %w", err)
		}
		chain, err := a.files("ask.der", "ark.der")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		list = append(list, chain...)
	}
	if a.Endorsements == "" || len(list) < 3 {
		return list, nil
	}
	crl, err := a.files("crl.der")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return append(list, crl...), nil
}

// fromTable takes the certificates out of the host's table: nil if it has none for the report's
// key.
func fromTable(evidence, table []byte) ([][]byte, error) {
	if allZero(table) {
		return nil, nil
	}
	info, err := abi.ReportSignerInfo(evidence)
	if err != nil {
		return nil, err
	}
	signer, err := abi.ParseSignerInfo(info)
	if err != nil {
		return nil, err
	}
	entries, err := abi.ParseSnpCertTableHeader(table)
	if err != nil {
		return nil, fmt.Errorf("the host's table of certificates is malformed: %w", err)
	}
	key := abi.VcekGUID
	if signer.SigningKey == abi.VlekReportSigner {
		key = abi.VlekGUID
	}
	found := map[uuid.UUID][]byte{}
	for _, e := range entries {
		end := uint64(e.Offset) + uint64(e.Length)
		if end > uint64(len(table)) {
			return nil, errors.New("the host's table of certificates names bytes outside of it")
		}
		found[e.GUID] = table[e.Offset:end:end]
	}
	list := [][]byte{found[uuid.MustParse(key)]}
	if len(list[0]) == 0 {
		return nil, nil
	}
	ask, ark := found[uuid.MustParse(abi.AskGUID)], found[uuid.MustParse(abi.ArkGUID)]
	if len(ask) > 0 && len(ark) > 0 {
		list = append(list, ask, ark)
	}
	return list, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// files reads files of the folder.
func (a *attester) files(names ...string) ([][]byte, error) {
	if a.Endorsements == "" {
		return nil, fmt.Errorf("Options.Endorsements names no folder with %s: %w", names[0],
			fs.ErrNotExist)
	}
	var list [][]byte
	for _, name := range names {
		content, err := readFile(filepath.Join(a.Endorsements, name))
		if err != nil {
			return nil, err
		}
		list = append(list, content)
	}
	return list, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(content) == 0:
		return nil, fmt.Errorf("%s is empty", name)
	case len(content) > maxFile:
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	return content, nil
}
