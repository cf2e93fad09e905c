// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"fmt"
	"log"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/attestation/tdx"
)

func ExampleNew() {
	register := func(b byte) []byte { return bytes.Repeat([]byte{b}, 48) }
	mrtd, rtmr0, rtmr1 := register(1), register(2), register(3)
	rtmr2, rtmr3 := register(4), register(0)
	verifier, err := tdx.New(tdx.Policy{
		Measurements: []tdx.Measurement{{
			MRTD:  mrtd,
			RTMRs: [4][]byte{rtmr0, rtmr1, rtmr2, rtmr3},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	trust := sealedchat.Attested(sealedchat.Attestation{
		Verifiers: []sealedchat.Verifier{verifier},
	})
	fmt.Println(trust != nil)
	// Output: true
}
