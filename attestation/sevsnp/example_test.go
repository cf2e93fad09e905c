// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp_test

import (
	"encoding/hex"
	"fmt"
	"log"
	"strings"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/attestation/sevsnp"
)

// A client that trusts one measurement, on firmware that is not too old.
func ExampleNew() {
	measurement, err := hex.DecodeString(strings.Repeat("7c", 48)) // of sev-snp-measure
	if err != nil {
		log.Fatal(err)
	}
	verifier, err := sevsnp.New(sevsnp.Policy{
		Measurements: [][]byte{measurement},
		Products:     []string{"Milan"},
		MinimumTCB:   sevsnp.TCB{Bootloader: 3, SNP: 23, Microcode: 213},
	})
	if err != nil {
		log.Fatal(err)
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL:  "https://gateway.example",
		Protocol: sealedchat.ProtocolOHTTP,
		Trust: sealedchat.Attested(sealedchat.Attestation{
			Verifiers: []sealedchat.Verifier{verifier},
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	_, err = sevsnp.New(sevsnp.Policy{})
	fmt.Println(err)
	// Output:
	// sevsnp: Policy.Measurements is empty, so that any guest would be trusted
}
