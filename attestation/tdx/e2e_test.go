// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/attestation/internal/place"
)

// attester makes quotes of a version as a platform does, changed by change.
func (c *chain) attester(t testing.TB, version uint16, change func(body []byte)) place.Attester {
	return func(_ context.Context, data [64]byte) (sealedchat.AttestationDocument, error) {
		return sealedchat.AttestationDocument{
			Format: Format, Evidence: c.quote(t, version, data, change),
			Endorsements: c.endorsements(t),
		}, nil
	}
}

func chainOfToday(t testing.TB) *chain {
	t.Helper()
	return chainOf(t, time.Now().Add(-time.Hour))
}

// A client with a measurement and without a pin sends its first prompt to a gateway in a guest that
// was measured so, and refuses the same gateway when one byte of a register differs.
func TestFirstPrompt(t *testing.T) {
	for _, protocol := range []sealedchat.Protocol{
		sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP,
	} {
		for _, version := range []uint16{4, 5} {
			c := chainOfToday(t)
			p := place.New(t, protocol, c.attester(t, version, nil))
			client := p.Client(c.verifier(t, trusting()))
			p.Accepts("the first prompt", client, "keP")
			p.Accepts("the second", client, "P")
			key, err := client.ServerKey(t.Context())
			if err != nil || key.Attestation() == nil || key.Attestation().Format != Format ||
				strings.Count(key.Attestation().Measurement, ",") != 4 {
				t.Errorf("ServerKey() = %+v, %v", key, err)
			}
			for _, at := range []int{
				atMRTD, atRTMRs, atRTMRs + 48, atRTMRs + 2*48, atRTMRs + 3*48,
			} {
				p.Restart(c.attester(t, version, func(b []byte) { b[at] ^= 1 }))
				p.Refuses("another measurement", p.Client(c.verifier(t, trusting())),
					"the measurement")
			}
		}
	}
}

func TestRotationAndReplicas(t *testing.T) {
	c := chainOfToday(t)
	p := place.New(t, sealedchat.ProtocolOHTTP, c.attester(t, 4, nil))
	client := p.Client(c.verifier(t, trusting()))
	p.Accepts("the first prompt", client, "keP")
	p.Rotate()
	if err := place.Ask(t.Context(), client); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	p.Restart(c.attester(t, 5, nil))
	p.Moved("a replica", client, "")
	p.Restart(chainOfToday(t).attester(t, 5, nil))
	p.Moved("a replica on a platform below another root", client, notNow)
}

func TestWireRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		chain  func(c *chain)
		body   func(b []byte)
		reason string
	}{
		"a guest to debug": {
			body: func(b []byte) { b[atAttributes] |= 1 }, reason: "debugged",
		},
		"a revoked platform": {
			chain:  func(c *chain) { c.revokedByCA = []*x509.Certificate{c.pck.cert} },
			reason: notNow,
		},
		"expired collateral": {
			chain: func(c *chain) { c.until = time.Now().Add(-time.Second) }, reason: notNow,
		},
		"collateral of tomorrow": {
			chain: func(c *chain) { c.issued = time.Now().Add(time.Hour) }, reason: "not valid yet",
		},
		"an old platform": {
			chain: func(c *chain) { c.statuses[0] = "OutOfDate" }, reason: "OutOfDate",
		},
	} {
		c := chainOfToday(t)
		if test.chain != nil {
			test.chain(c)
		}
		p := place.New(t, sealedchat.ProtocolOHTTP, c.attester(t, 4, test.body))
		p.Refuses(name, p.Client(c.verifier(t, trusting())), test.reason)
	}
	c := chainOfToday(t)
	p := place.New(t, sealedchat.ProtocolOHTTP, c.attester(t, 4, nil))
	p.Accepts("as it is", p.Client(c.verifier(t, trusting())), "keP")
	replayed := p.Evidence()
	p.Replace(func([]byte) []byte { return replayed })
	p.Refuses("a replayed document", p.Client(c.verifier(t, trusting())), "other data")
	p.Replace(place.Edit(t, "format", func(any) any { return "sev-snp" }))
	p.Refuses("another format", p.Client(c.verifier(t, trusting())), "format")
}
