// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package place is a gateway that makes evidence, in front of an upstream, and the wire to it, for
// the tests of the module: they put a chip's test chain behind the gateway, and a verifier before a
// client.
package place

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Attester makes evidence, as GatewayConfig.Attester does.
type Attester = func(ctx context.Context, reportData [64]byte) (sealedchat.AttestationDocument,
	error)

// secret is a prompt that nobody on the wire may see.
const secret = "prompt-7c1e-nobody-sees-this"

// Place is a gateway and the wire to it. It is an http.RoundTripper: the client's transport.
type Place struct {
	t     testing.TB
	proto sealedchat.Protocol
	keys  *sealedchat.KeyStore

	mu       sync.Mutex
	server   http.RoundTripper
	sent     []string // a letter for each request: k for keys, e for evidence, P for a prompt
	wire     []byte   // all that was sent
	prompts  int      // that reached the upstream
	evidence []byte   // the last document that the gateway answered with
	replace  func(document []byte) []byte
}

// New starts a gateway with evidence from attester.
func New(t testing.TB, proto sealedchat.Protocol, attester Attester) *Place {
	t.Helper()
	p := &Place{t: t, proto: proto}
	p.Restart(attester)
	return p
}

// Restart takes another gateway in the old one's place: another replica, or the same one after a
// restart, with other keys.
func (p *Place) Restart(attester Attester) {
	p.t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		p.mu.Lock()
		if bytes.Contains(body, []byte(secret)) {
			p.prompts++
		}
		p.mu.Unlock()
		testkit.AnswerText("Paris.")(w, r)
	}))
	p.t.Cleanup(upstream.Close)
	keys, err := sealedchat.NewEphemeralKeyStore(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { keys.Close() })
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: upstream.URL + "/v1", AllowUnauthenticated: true, Attester: attester, Keys: keys,
		Protocols: []sealedchat.Protocol{p.proto},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = gateway.Close() })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server, p.keys = fakes.Direct(gateway), keys
}

// RoundTrip carries a request to the gateway, and notes what it was.
func (p *Place) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	kind := "P"
	switch {
	case strings.HasSuffix(r.URL.Path, "/sealedchat-attestation"):
		kind = "e"
	case r.Method == http.MethodGet:
		kind = "k"
	}
	p.mu.Lock()
	p.sent = append(p.sent, kind)
	p.wire = append(append(p.wire, r.URL.String()...), body...)
	server, replace := p.server, p.replace
	p.mu.Unlock()
	answer, err := server.RoundTrip(r)
	if err != nil || kind != "e" || answer.StatusCode != http.StatusOK {
		return answer, err
	}
	document, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.evidence = document
	p.mu.Unlock()
	if replace != nil {
		document = replace(document)
	}
	answer.Body = io.NopCloser(bytes.NewReader(document))
	answer.ContentLength = int64(len(document))
	answer.Header.Del("Content-Length")
	return answer, nil
}

// Replace has somebody on the wire change the documents; nil ends that.
func (p *Place) Replace(f func(document []byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace = f
}

// Evidence is the last document that the gateway answered with.
func (p *Place) Evidence() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.evidence)
}

// Rotate replaces the gateway's keys, under the same signer.
func (p *Place) Rotate() {
	p.t.Helper()
	p.mu.Lock()
	keys := p.keys
	p.mu.Unlock()
	if err := keys.Rotate(context.Background()); err != nil {
		p.t.Fatal(err)
	}
}

// Client is a client that has no pin, and trusts what v accepts.
func (p *Place) Client(v sealedchat.Verifier) *sealedchat.SecureCompletionClient {
	p.t.Helper()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "https://gateway.test", Transport: p, Protocol: p.proto,
		Trust: sealedchat.Attested(sealedchat.Attestation{Verifiers: []sealedchat.Verifier{v}}),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = client.Close() })
	return client
}

// Ask sends the secret prompt.
func Ask(ctx context.Context, c *sealedchat.SecureCompletionClient) error {
	answer, err := c.Chat(ctx, &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{sealedchat.UserMessage(secret)},
	})
	if err == nil && answer.Text() != "Paris." {
		err = errors.New("another answer: " + answer.Text())
	}
	return err
}

// Accepts wants a client's prompt to reach the upstream, after requests of the kinds in sent.
func (p *Place) Accepts(what string, c *sealedchat.SecureCompletionClient, sent string) {
	p.t.Helper()
	p.take()
	if err := Ask(p.t.Context(), c); err != nil {
		p.t.Errorf("%s: %v", what, err)
	}
	if kinds, prompts := p.take(); kinds != sent || prompts != 1 {
		p.t.Errorf("%s: asked %q, and the upstream got %d prompts, want %q and 1", what, kinds,
			prompts, sent)
	}
}

// Refuses wants a client to refuse the gateway with a *ServerKeyError whose text has reason, and
// nothing to have been sent except the requests for keys and evidence.
func (p *Place) Refuses(what string, c *sealedchat.SecureCompletionClient, reason string) {
	p.t.Helper()
	p.take()
	err := Ask(p.t.Context(), c)
	refused, ok := errors.AsType[*sealedchat.ServerKeyError](err)
	if !ok || !strings.Contains(refused.Error(), reason) {
		p.t.Errorf("%s: %v, want a *ServerKeyError with %q", what, err, reason)
	}
	if kinds, prompts := p.take(); kinds != "ke" || prompts != 0 {
		p.t.Errorf("%s: asked %q, and the upstream got %d prompts, want the two fetches", what,
			kinds, prompts)
	}
}

// Moved wants a client that used another gateway before to lose one call to this one, since nothing
// proves that the call did not run, and to be accepted afterwards. With a reason it wants both
// calls to end with an error, the second with the reason, and no prompt to arrive.
func (p *Place) Moved(what string, c *sealedchat.SecureCompletionClient, reason string) {
	p.t.Helper()
	p.take()
	if err := Ask(p.t.Context(), c); err == nil {
		p.t.Errorf("%s: a call sealed to another gateway's key was answered", what)
	}
	err := Ask(p.t.Context(), c)
	if reason == "" {
		if kinds, prompts := p.take(); err != nil || kinds != "PkeP" || prompts != 1 {
			p.t.Errorf("%s: %v, asked %q, and the upstream got %d prompts", what, err, kinds,
				prompts)
		}
		return
	}
	if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok ||
		!strings.Contains(err.Error(), reason) {
		p.t.Errorf("%s: %v, want a *ServerKeyError with %q", what, err, reason)
	}
	// Both prompts were sealed to the key that evidence was there for: it stays the client's.
	if kinds, prompts := p.take(); kinds != "PkePke" || prompts != 0 {
		p.t.Errorf("%s: asked %q, and the upstream got %d prompts", what, kinds, prompts)
	}
}

// take returns what was asked since the last time, and how many prompts arrived. Nobody on the wire
// has seen any.
func (p *Place) take() (kinds string, prompts int) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes.Contains(p.wire, []byte(secret)) {
		p.t.Error("the prompt was on the wire in the clear")
	}
	kinds, prompts = strings.Join(p.sent, ""), p.prompts
	p.sent, p.wire, p.prompts = nil, nil, 0
	return kinds, prompts
}

// Edit changes one member of a document.
func Edit(t testing.TB, member string, f func(value any) any) func(document []byte) []byte {
	return func(document []byte) []byte {
		var m map[string]any
		if err := json.Unmarshal(document, &m); err != nil {
			t.Error(err)
		}
		m[member] = f(m[member])
		out, err := json.Marshal(m)
		if err != nil {
			t.Error(err)
		}
		return out
	}
}
