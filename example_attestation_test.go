// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// simulated stands for hardware in this example. Its reports are a measurement, the data, and a
// signature over both.
type simulated struct {
	key      ed25519.PrivateKey
	software []byte // its measurement: of what runs, or of what is accepted
}

// attest is a GatewayConfig.Attester.
func (s simulated) attest(_ context.Context, data [64]byte) (sealedchat.AttestationDocument,
	error) {
	report := append(bytes.Clone(s.software), data[:]...)
	report = append(report, ed25519.Sign(s.key, report)...)
	return sealedchat.AttestationDocument{Format: "simulated", Evidence: report}, nil
}

// Verify makes it a Verifier.
func (s simulated) Verify(_ context.Context, doc sealedchat.AttestationDocument, data [64]byte,
	_ time.Time) (found sealedchat.AttestationResult, err error) {
	signed := len(doc.Evidence) - ed25519.SignatureSize
	switch {
	case doc.Format != "simulated" || signed != len(s.software)+len(data):
		return found, errors.New("not a simulated report")
	case !ed25519.Verify(s.key.Public().(ed25519.PublicKey), doc.Evidence[:signed],
		doc.Evidence[signed:]):
		return found, errors.New("not signed by the hardware")
	case !bytes.Equal(doc.Evidence[len(s.software):signed], data[:]):
		return found, errors.New("a report over other data")
	}
	found.Measurement = hex.EncodeToString(doc.Evidence[:len(s.software)])
	if found.Measurement != hex.EncodeToString(s.software) {
		return found, errors.New("the measurement is " + found.Measurement)
	}
	return found, nil
}

// Evidence takes the place of a pin. A real Verifier is for the reports of real hardware.
func ExampleAttested() {
	hardware := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	model := httptest.NewServer(http.HandlerFunc(paris))
	defer model.Close()
	attester := simulated{hardware, []byte("gateway 1.0")}.attest
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream:             model.URL + "/v1",
		AllowUnauthenticated: true,
		Attester:             attester,
		Protocols:            []sealedchat.Protocol{sealedchat.ProtocolOHTTP},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer gateway.Close()
	server := httptest.NewTLSServer(gateway)
	defer server.Close()

	for _, accepted := range []string{"gateway 1.0", "gateway 1.1"} {
		verifier := simulated{hardware, []byte(accepted)}
		client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
			BaseURL:  server.URL,
			Protocol: sealedchat.ProtocolOHTTP,
			Trust: sealedchat.Attested(sealedchat.Attestation{
				Verifiers: []sealedchat.Verifier{verifier},
			}),
			Transport: server.Client().Transport,
		})
		if err != nil {
			log.Fatal(err)
		}
		defer client.Close()
		answer, err := client.Chat(context.Background(), &sealedchat.ChatRequest{
			Model: "demo", Messages: []sealedchat.Message{sealedchat.UserMessage("France?")},
		})
		if refused, ok := errors.AsType[*sealedchat.ServerKeyError](err); ok {
			fmt.Println("nothing was sent:", refused.Err)
			continue
		} else if err != nil {
			log.Fatal(err)
		}
		key, err := client.ServerKey(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer.Text(), key.Attestation().Measurement)
	}
	// Output:
	// Paris. 6761746577617920312e30
	// nothing was sent: evidence refused: the measurement is 6761746577617920312e30
}
