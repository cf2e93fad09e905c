// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/attestation/internal/place"
)

// attester makes reports as a guest's firmware does, changed by change.
func (c *chain) attester(t testing.TB, change func(r []byte)) place.Attester {
	return func(_ context.Context, data [64]byte) (sealedchat.AttestationDocument, error) {
		return sealedchat.AttestationDocument{
			Format: Format, Evidence: c.report(t, data, change), Endorsements: c.endorsements(),
		}, nil
	}
}

var protocols = []sealedchat.Protocol{sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP}

// A client with a measurement and without a pin sends its first prompt to a gateway in a guest that
// was measured so, and refuses the same gateway when one byte of the measurement differs.
func TestFirstPrompt(t *testing.T) {
	for _, protocol := range protocols {
		c := newChain(t, time.Now().Add(-time.Hour))
		p := place.New(t, protocol, c.attester(t, nil))
		client := p.Client(c.verifier(t, Policy{Measurements: [][]byte{good}}))
		p.Accepts("the first prompt", client, "keP")
		p.Accepts("the second", client, "P")
		key, err := client.ServerKey(t.Context())
		if err != nil || key.Attestation() == nil || key.Attestation().Format != Format ||
			key.Attestation().Measurement != strings.Repeat("42", 48) {
			t.Errorf("ServerKey() = %+v, %v", key, err)
		}
		near := bytes.Clone(good)
		near[47] ^= 1
		p.Refuses("a client with another measurement",
			p.Client(c.verifier(t, Policy{Measurements: [][]byte{near}})), "the measurement 4242")
		p.Restart(c.attester(t, func(r []byte) { r[0x90] ^= 1 }))
		p.Refuses("another measurement",
			p.Client(c.verifier(t, Policy{Measurements: [][]byte{good}})), "the measurement 4342")
	}
}

func TestRotationAndReplicas(t *testing.T) {
	c := newChain(t, time.Now().Add(-time.Hour))
	p := place.New(t, sealedchat.ProtocolOHTTP, c.attester(t, nil))
	client := p.Client(c.verifier(t, Policy{Measurements: [][]byte{good}}))
	p.Accepts("the first prompt", client, "keP")
	p.Rotate()
	if err := place.Ask(t.Context(), client); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	p.Restart(c.attester(t, nil))
	p.Moved("a replica", client, "")
	p.Restart(newForeignChain(t, time.Now().Add(-time.Hour)).attester(t, nil))
	p.Moved("a replica on a chip below another root", client, "not AMD's")
	p.Restart(c.attester(t, nil))
	client = p.Client(c.verifier(t, Policy{Measurements: [][]byte{good}}))
	p.Accepts("again", client, "keP")
	p.Restart(c.attester(t, func(r []byte) { r[10] |= 1 << 3 }))
	p.Moved("a replica that may be debugged", client, "debugged")
}

func TestWireRefusals(t *testing.T) {
	now := time.Now()
	c := newChain(t, now.Add(-time.Hour))
	p := place.New(t, sealedchat.ProtocolOHTTP, c.attester(t, nil))
	verifier := c.verifier(t, Policy{Measurements: [][]byte{good}})
	p.Accepts("as it is", p.Client(verifier), "keP")
	replayed := p.Evidence()
	withEndorsements := func(list ...[]byte) func([]byte) []byte {
		return place.Edit(t, "endorsements", func(any) any { return base64All(list) })
	}
	withList := func(crl []byte) func([]byte) []byte {
		return withEndorsements(append(c.endorsements(), crl)...)
	}
	crl := func(until time.Time) []byte { return c.crl(t, now.Add(-2*time.Hour), until) }
	for name, test := range map[string]struct {
		replace func([]byte) []byte
		reason  string
	}{
		"a replayed document": {func([]byte) []byte { return replayed }, "other data"},
		"another format":      {place.Edit(t, "format", func(any) any { return "tdx" }), "format"},
		"a swapped fingerprint": {place.Edit(t, "keys", func(v any) any {
			key := v.([]any)[0].(map[string]any)
			key["fingerprint"] = strings.Repeat("ab", 32)
			return v
		}), "other keys"},
		"a retyped fingerprint": {place.Edit(t, "keys", func(v any) any {
			v.([]any)[0].(map[string]any)["type"] = 2
			return v
		}), "other keys"},
		"a key more": {place.Edit(t, "keys", func(v any) any {
			more := map[string]any{"type": 2, "fingerprint": strings.Repeat("ab", 32)}
			return append(v.([]any), more)
		}), "other data"},
		"no endorsements": {withEndorsements(), "0 endorsements"},
		"an expired list": {
			withList(crl(now.Add(-time.Hour))),
			"expired",
		},
		"a revoked signing key": {
			withList(c.crl(t, now.Add(-time.Hour), now.Add(time.Hour), c.Ask)),
			"AMD revoked",
		},
		"33 endorsements": {
			withEndorsements(slices.Repeat([][]byte{{1}}, 33)...),
			"",
		},
		"evidence above 64 KiB": {
			place.Edit(t, "evidence", func(any) any { return strings.Repeat("AAAA", 65536/3+2) }),
			"",
		},
		"a document above 1 MiB": {func(d []byte) []byte {
			return append(d, bytes.Repeat([]byte(" "), 1<<20)...)
		}, ""},
		"no evidence": {place.Edit(t, "evidence", func(any) any { return "" }), ""},
		"half of it":  {func(d []byte) []byte { return d[:len(d)/2] }, ""},
		"another byte": {
			place.Edit(t, "evidence", func(v any) any { return "AwAA" + v.(string)[4:] }), "",
		},
	} {
		p.Replace(test.replace)
		p.Refuses(name, p.Client(verifier), test.reason)
	}
	p.Replace(nil)
	p.Accepts("as it is again", p.Client(verifier), "keP")
	for name, policy := range map[string]Policy{
		"a revoked chip": {Measurements: [][]byte{good}, RevokedChips: [][]byte{chip}},
		"no list":        {Measurements: [][]byte{good}, RequireRevocationList: true},
	} {
		p.Refuses(name, p.Client(c.verifier(t, policy)), "")
	}
	expired := newChain(t, now.AddDate(-8, 0, 0)) // a VCEK lasts 7 years
	p.Restart(expired.attester(t, nil))
	p.Refuses("expired certificates",
		p.Client(expired.verifier(t, Policy{Measurements: [][]byte{good}})), "has expired")
}

func base64All(list [][]byte) []string {
	texts := []string{}
	for _, b := range list {
		texts = append(texts, base64.StdEncoding.EncodeToString(b))
	}
	return texts
}
