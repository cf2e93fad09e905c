// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/attestation/tsm"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// attester makes evidence of this machine's hardware.
type attester = func(context.Context, [64]byte) (sealedchat.AttestationDocument, error)

func (o *options) flagsOfAttestation(f *flag.FlagSet) {
	f.BoolVar(&o.attest, "attest", false,
		"serve evidence for the keys, of the confidential VM (AMD SEV-SNP or Intel TDX) that this is")
	f.StringVar(&o.attestFiles, "attest-files", "",
		"`folder` with certificates and revocation lists that clients need to judge the evidence "+
			"and that the host does not offer: all of them on TDX")
	f.IntVar(&o.attestVMPL, "attest-vmpl", 0,
		"privilege `level` of SEV-SNP to ask for evidence at; 0 = the kernel's default")
	f.BoolVar(&o.keysInside, "keys-inside", false,
		"with -attest and -keys: the folder is on a disk that only this VM can read, and no copy "+
			"gets out")
}

func (o *options) checkAttestation() error {
	switch {
	case !o.attest && (o.attestFiles != "" || o.attestVMPL != 0 || o.keysInside):
		return program.WrongInput("-attest-files, -attest-vmpl and -keys-inside are for -attest")
	case o.attestVMPL < 0 || o.attestVMPL > 3:
		return program.WrongInput("-attest-vmpl: want 0 to 3")
	case o.keysInside && o.keys == "":
		return program.WrongInput("-keys-inside is for -keys: keys in memory stay inside")
	case o.attest && o.keys != "" && !o.keysInside:
		return program.WrongInput("-attest with -keys: evidence is worth nothing once somebody " +
			"outside has the keys; leave -keys out, or say -keys-inside if no copy gets out")
	}
	return nil
}

// newAttester asks the kernel. A first report shows now what is missing, not with the first client.
func newAttester(o *options) (attester, error) {
	attest, err := tsm.Attester(tsm.Options{Endorsements: o.attestFiles, VMPL: o.attestVMPL})
	if errors.Is(err, tsm.ErrUnavailable) {
		return nil, fmt.Errorf("-attest: %w", err)
	}
	if err != nil {
		return nil, program.WrongInput("-attest: %w", err)
	}
	if _, err := attest(context.Background(), [64]byte{}); err != nil {
		return nil, fmt.Errorf("-attest: %w", err)
	}
	return attest, nil
}
