// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"fmt"

	"github.com/google/go-sev-guest/verify/trust"
)

// roots are the trusted ARK, ASK and ASVK of each product line.
type roots map[string]*trust.AMDRootCerts

// amdRoots are AMD's, which are built into the library.
func amdRoots() (roots, error) {
	r := roots{}
	for line, bundles := range map[string]struct{ vcek, vlek []byte }{
		"Milan": {trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		"Genoa": {trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		"Turin": {trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	} {
		root := trust.AMDRootCertsProduct(line)
		root.ProductCerts = &trust.ProductCerts{}
		for _, bundle := range [][]byte{bundles.vlek, bundles.vcek} {
			if err := root.ProductCerts.FromKDSCertBytes(bytes.TrimSpace(bundle)); err != nil {
				return nil, fmt.Errorf("sevsnp: AMD's built-in roots for %s: %w", line, err)
			}
		}
		r[line] = root
	}
	return r, nil
}

// library is the form that the library takes. It writes into what it is given only where it checks
// revocations, which it is never asked to.
func (r roots) library() map[string][]*trust.AMDRootCerts {
	m := map[string][]*trust.AMDRootCerts{}
	for line, root := range r {
		m[line] = []*trust.AMDRootCerts{root}
	}
	return m
}
