// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// silicon stands for hardware: it signs a measurement of 2 bytes, a byte that says debug, and the
// data.
type silicon struct{ key ed25519.PrivateKey }

func newSilicon(t testing.TB) *silicon {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &silicon{key}
}

func (s *silicon) report(measurement string, data [64]byte) []byte {
	report := append([]byte(measurement), data[:]...)
	return append(report, ed25519.Sign(s.key, report)...)
}

// Verify accepts the software "m1" that is not being debugged.
func (s *silicon) Verify(_ context.Context, doc AttestationDocument, data [64]byte,
	_ time.Time) (found AttestationResult, err error) {
	signed := len(doc.Evidence) - ed25519.SignatureSize
	switch {
	case doc.Format != "silicon":
		return found, errors.New("want format silicon")
	case signed != 3+64:
		return found, errors.New("a report of another size")
	case !ed25519.Verify(s.key.Public().(ed25519.PublicKey), doc.Evidence[:signed],
		doc.Evidence[signed:]):
		return found, errors.New("the hardware did not sign it")
	case !bytes.Equal(doc.Evidence[3:signed], data[:]):
		return found, errors.New("a report over other data")
	case doc.Evidence[2] == 'd':
		return found, errors.New("a debug guest")
	case string(doc.Evidence[:2]) != "m1":
		return found, fmt.Errorf("measurement %x is not accepted", doc.Evidence[:2])
	}
	return AttestationResult{Measurement: hex.EncodeToString(doc.Evidence[:2]), TCB: "level 7",
		Format: "claimed", Verified: time.Unix(1, 0)}, nil
}

// place is a server with evidence, in front of one without, and sees all that clients send.
type place struct {
	t      testing.TB
	server http.RoundTripper
	chip   *silicon
	keys   func() []attest.Key
	// change may change a good document, before it is encoded
	change func(d *attest.Document)
	// answer, if set, answers instead of the document
	answer func(*http.Request, *http.Response) (*http.Response, error)

	mu    sync.Mutex
	seen  []string // "GET path" without the query
	texts []string // that were sent, with the header
}

func (p *place) RoundTrip(req *http.Request) (*http.Response, error) {
	text := fmt.Sprintf("%s %s %v", req.Method, req.URL, req.Header)
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		text += string(body)
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	p.mu.Lock()
	p.seen = append(p.seen, req.Method+" "+req.URL.Path)
	p.texts = append(p.texts, text)
	p.mu.Unlock()
	if req.URL.Path != attest.Path {
		return p.server.RoundTrip(req)
	}
	nonce, ok := attest.ParseQuery(req.URL.RawQuery)
	if !ok {
		p.t.Errorf("asked for evidence with %q", req.URL.RawQuery)
	}
	d := p.document(nonce)
	if p.change != nil {
		p.change(d)
	}
	text2, err := attest.Encode(d)
	if err != nil {
		p.t.Error(err)
	}
	resp := respond(http.StatusOK, string(text2), "Content-Type", "application/json")
	if p.answer != nil {
		return p.answer(req, resp)
	}
	return resp, nil
}

func (p *place) document(nonce [32]byte) *attest.Document {
	keys := p.keys()
	return &attest.Document{Format: "silicon", Keys: keys, Endorsements: [][]byte{{1}},
		Evidence: p.chip.report("m1-", attest.ReportData(nonce, keys))}
}

// take returns what was asked since the last time: k for keys, e for evidence, P for a request.
func (p *place) take() (got string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		switch {
		case strings.HasSuffix(s, attest.Path):
			got += "e"
		case strings.HasPrefix(s, http.MethodGet):
			got += "k"
		default:
			got += "P"
		}
	}
	p.seen = nil
	return got
}

// obliviousPlace speaks Oblivious HTTP.
func obliviousPlace(t testing.TB) (*place, *fakes.Gateway) {
	t.Helper()
	g := fakes.NewGateway(t, answerText("x"))
	p := &place{t: t, server: fakes.Direct(g), chip: newSilicon(t)}
	signer := g.Sign()
	p.keys = func() []attest.Key { return []attest.Key{keyNamed(t, attest.TypeSigner, signer)} }
	return p, g
}

func keyNamed(t testing.TB, kind uint8, fingerprint string) attest.Key {
	t.Helper()
	fp, err := hybrid.ParseFingerprint(fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Key{Type: kind, Fingerprint: fp}
}

// client makes a client that trusts the place's hardware.
func (p *place) client(change func(*Config, *Attestation)) *SecureCompletionClient {
	return ohttpClient(p.t, "https://gateway.test", func(c *Config) {
		a := Attestation{Verifiers: []Verifier{p.chip}}
		c.Transport = p
		if change != nil {
			change(c, &a)
		}
		c.Trust = Attested(a)
	})
}

// places are servers of either protocol, and how to make their clients.
func places(t testing.TB) map[Protocol]*place {
	t.Helper()
	second, _ := obliviousPlace(t)
	s := fakes.NewServer(t)
	first := &place{t: t, server: s, chip: newSilicon(t)}
	first.keys = func() []attest.Key {
		return []attest.Key{keyNamed(t, attest.TypeRSA, publicOf(t, "rsa-2048").Fingerprint())}
	}
	return map[Protocol]*place{ProtocolOHTTP: second, ProtocolEnvelope: first}
}

func (p *place) speaking(protocol Protocol,
	change func(*Config, *Attestation)) *SecureCompletionClient {
	return p.client(func(c *Config, a *Attestation) {
		if c.Protocol = protocol; protocol == ProtocolEnvelope {
			c.Keys = storedKeys(p.t, "rsa-3072")
		}
		if change != nil {
			change(c, a)
		}
	})
}
