// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// virtualMachine stands for hardware, and the 48 bytes that it measured. Evidence is the
// measurement, the data, and a signature over both.
type virtualMachine struct {
	hardware    ed25519.PrivateKey
	measurement [48]byte
}

func newVirtualMachine() *virtualMachine {
	v := &virtualMachine{hardware: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	copy(v.measurement[:], "a gateway of version 1.0")
	return v
}

func (v *virtualMachine) Attest(_ context.Context,
	data [64]byte) (sealedchat.AttestationDocument, error) {
	report := append(v.measurement[:], data[:]...)
	return sealedchat.AttestationDocument{Format: "test",
		Evidence: append(report, ed25519.Sign(v.hardware, report)...)}, nil
}

// Verify accepts the measurement of v.
func (v *virtualMachine) Verify(_ context.Context, doc sealedchat.AttestationDocument,
	data [64]byte, _ time.Time) (found sealedchat.AttestationResult, err error) {
	signed := len(doc.Evidence) - ed25519.SignatureSize
	if doc.Format != "test" || signed != len(v.measurement)+len(data) ||
		!ed25519.Verify(v.hardware.Public().(ed25519.PublicKey), doc.Evidence[:signed],
			doc.Evidence[signed:]) ||
		!bytes.Equal(doc.Evidence[len(v.measurement):signed], data[:]) {
		return found, errors.New("not a report for this client")
	}
	found.Measurement = hex.EncodeToString(doc.Evidence[:len(v.measurement)])
	if !bytes.HasPrefix(doc.Evidence, v.measurement[:]) {
		err = fmt.Errorf("measurement %s", found.Measurement)
	}
	return found, err
}

// A client that trusts a measurement, and has no pin, sends its first prompt to a gateway of that
// measurement. When one byte of the measurement differs, the same gateway gets two requests, for
// its key and for evidence, and nothing else.
func TestAttestedFirstPrompt(t *testing.T) {
	const prompt = "Attested-prompt-5b2e"
	machine := newVirtualMachine()
	gateway := startGateway(t, testkit.AnswerText("Attested-answer-91c4"),
		func(c *sealedchat.GatewayConfig) { c.Attester = machine.Attest })
	srv := httptest.NewServer(gateway)
	t.Cleanup(srv.Close)
	wrong := *machine
	wrong.measurement[47] ^= 1
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope,
		sealedchat.ProtocolOHTTP} {
		for _, accepted := range []*virtualMachine{machine, &wrong} {
			witness := testkit.NewWitness(t, srv.Listener.Addr().String())
			client := startClient(t, "http://"+witness.Addr(), func(c *sealedchat.Config) {
				c.Protocol, c.MaxRetries = protocol, 2
				c.Trust = sealedchat.Attested(sealedchat.Attestation{
					Verifiers: []sealedchat.Verifier{accepted},
				})
			})
			answer, err := client.Chat(t.Context(), ask(prompt))
			witness.MustNotSee(prompt, "Attested-answer-91c4")
			wire := string(witness.Bytes())
			gets, posts := strings.Count(wire, "GET /"), strings.Count(wire, "POST /")
			if accepted == machine {
				if err != nil || answer.Text() != "Attested-answer-91c4" || gets != 2 ||
					posts != 1 {
					t.Errorf("%s: %v; %d GET, %d POST", protocol, err, gets, posts)
				}
				key, err := client.ServerKey(t.Context())
				if err != nil || key.Attestation().Measurement !=
					hex.EncodeToString(machine.measurement[:]) {
					t.Errorf("%s: %v, %v", protocol, key, err)
				}
				continue
			}
			if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok || gets != 2 ||
				posts != 0 || !strings.Contains(err.Error(), hex.EncodeToString(
				machine.measurement[:])) {
				t.Errorf("%s, another measurement: %v; %d GET, %d POST", protocol, err, gets,
					posts)
			}
		}
	}
}

// Two replicas with keys of their own are both taken. Evidence of one is of no use for the other's
// keys.
func TestAttestedReplicas(t *testing.T) {
	machine := newVirtualMachine()
	var replicas [2]*sealedchat.Gateway
	for i := range replicas {
		replicas[i] = startGateway(t, testkit.AnswerText("x"),
			func(c *sealedchat.GatewayConfig) {
				c.Attester, c.Protocols = machine.Attest, []sealedchat.Protocol{
					sealedchat.ProtocolOHTTP}
				c.Keys = memoryStore(t, nil)
			})
	}
	keys, evidence := 0, 0 // which replica answers
	front := fakes.Direct(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		which := keys
		if strings.HasSuffix(r.URL.Path, "-attestation") {
			which = evidence
		}
		replicas[which].ServeHTTP(w, r)
	}))
	trust := sealedchat.Attested(sealedchat.Attestation{
		Verifiers: []sealedchat.Verifier{machine},
	})
	try := func(client *sealedchat.SecureCompletionClient) error {
		_, err := client.Chat(t.Context(), ask("x"))
		if outer, ok := errors.AsType[*sealedchat.OuterError](err); ok && outer.KeyChanged {
			_, err = client.Chat(t.Context(), ask("x"))
		}
		return err
	}
	newClient := func() *sealedchat.SecureCompletionClient {
		return ohttpClient(t, "https://gateway.test", func(c *sealedchat.Config) {
			c.Trust, c.Transport = trust, front
		})
	}
	client := newClient()
	for _, keys = range []int{0, 1, 0} {
		evidence = keys
		if err := try(client); err != nil {
			t.Errorf("replica %d: %v", keys, err)
		}
	}
	keys, evidence = 0, 1
	if err := try(client); err != nil {
		t.Errorf("evidence that the client has counts: %v", err)
	}
	err := try(newClient())
	if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok ||
		!strings.Contains(err.Error(), "it vouches for other keys") {
		t.Errorf("another replica's evidence: %v", err)
	}
}
