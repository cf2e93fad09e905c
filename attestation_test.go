// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

func TestAttested(t *testing.T) {
	for protocol, p := range places(t) {
		client := p.speaking(protocol, nil)
		before := time.Now()
		for range 3 {
			if _, err := client.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(protocol, err)
			}
		}
		if got := p.take(); got != "kePPP" {
			t.Errorf("%s: asked %s", protocol, got)
		}
		key, err := client.ServerKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := key.Attestation()
		if found == nil || found.Format != "silicon" || found.Measurement != "6d31" ||
			found.TCB != "level 7" || found.Verified.Before(before) ||
			found.Verified.After(time.Now()) || found.Verified.Location() != time.UTC {
			t.Errorf("%s: %+v", protocol, found)
		}
		found.Measurement = "" // a copy
		if key.Attestation().Measurement != "6d31" {
			t.Errorf("%s: the key was changed", protocol)
		}
	}
	if publicOf(t, "rsa-2048").Attestation() != nil {
		t.Error("a key from a file is attested")
	}
}

// recorder keeps events.
type recorder struct {
	mu     sync.Mutex
	events []Event
	fail   EventType // that is refused
}

func (r *recorder) Record(_ context.Context, e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if e.Type == r.fail {
		return errors.New("the disk is full")
	}
	return nil
}

func (r *recorder) last() Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[len(r.events)-1]
}

func (r *recorder) types() (all []EventType) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		all = append(all, e.Type)
	}
	return all
}

// An answer that was good once is of no use for another nonce.
func TestAttestedReplayedDocument(t *testing.T) {
	p, _ := obliviousPlace(t)
	var captured string
	p.answer = func(_ *http.Request, resp *http.Response) (*http.Response, error) {
		if captured == "" {
			text, err := io.ReadAll(resp.Body)
			captured = string(text)
			if err != nil {
				return nil, err
			}
		}
		return respond(http.StatusOK, captured, "Content-Type", "application/json"), nil
	}
	if _, err := p.client(nil).Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client(nil).Chat(t.Context(), ask("x")); !isServerKeyError(err) {
		t.Errorf("a replay: %v", err)
	}
	if got := p.take(); got != "kePke" {
		t.Errorf("asked %s", got)
	}
}

// All callers share one request for evidence, an hour long. New configurations of the same signer
// need none, another signer does, and a replica that is known needs none again.
func TestAttestedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, g := obliviousPlace(t)
		release := make(chan struct{})
		p.answer = func(_ *http.Request, resp *http.Response) (*http.Response, error) {
			<-release
			return resp, nil
		}
		client := p.client(nil)
		want := func(what, want string) {
			t.Helper()
			if got := p.take(); got != want {
				t.Errorf("%s: asked %s, want %s", what, got, want)
			}
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := client.ServerKey(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		want("100 callers", "ke")
		close(release)
		wg.Wait()
		want("100 callers", "")
		use := func() {
			t.Helper()
			if _, err := chatAgain(client); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Hour - time.Second)
		use()
		want("within an hour", "P")
		g.Rotate()
		use() // refused, and sealed again
		want("another configuration", "PkP")
		time.Sleep(2 * time.Second)
		use()
		want("after an hour", "keP")

		first, firstKeys := g.Signer, p.keys
		second := g.Sign()
		secondSigner := g.Signer
		p.keys = func() []attest.Key {
			return []attest.Key{keyNamed(t, attest.TypeSigner, second)}
		}
		g.Rotate()
		use()
		want("another signer", "PkeP")
		secondKeys := p.keys
		for range 3 {
			g.Set(func() { g.Signer = first })
			p.keys = firstKeys
			g.Rotate()
			use()
			g.Set(func() { g.Signer = secondSigner })
			p.keys = secondKeys
			g.Rotate()
			use()
			time.Sleep(2 * time.Minute)
		}
		want("replicas that are known", strings.Repeat("PkP", 6))
	})
}

func TestAttestedHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := obliviousPlace(t)
		p.answer = func(r *http.Request, _ *http.Response) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		client := p.client(func(c *Config, _ *Attestation) { c.MaxRetries = 2 })
		start := time.Now()
		_, err := client.Chat(t.Context(), ask("x"))
		if took := time.Since(start); took != 10*time.Second || !isServerKeyError(err) ||
			!errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "none came within 10s") {
			t.Errorf("after %v: %v", took, err)
		}
		if got := p.take(); got != "ke" {
			t.Errorf("asked %s", got)
		}

		start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = client.Chat(ctx, ask("x"))
		if took := time.Since(start); took != time.Second || isServerKeyError(err) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller's own limit: after %v: %v", took, err)
		}
		short := p.client(func(_ *Config, a *Attestation) { a.Timeout = time.Minute })
		go func() {
			time.Sleep(time.Second)
			_ = short.Close()
		}()
		if _, err = short.Chat(t.Context(), ask("x")); !errors.Is(err, ErrClosed) ||
			isServerKeyError(err) {
			t.Errorf("closed: %v", err)
		}
		synctest.Wait()
	})
}

// A server that is busy is asked again when it said, within the time limit.
func TestAttestedBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := obliviousPlace(t)
		busy := 2
		p.answer = func(_ *http.Request, resp *http.Response) (*http.Response, error) {
			if busy--; busy >= 0 {
				return respond(http.StatusServiceUnavailable, "", "Retry-After", "1"), nil
			}
			return resp, nil
		}
		start := time.Now()
		_, err := p.client(nil).Chat(t.Context(), ask("x"))
		if took := time.Since(start); err != nil || took < 2*time.Second || took > 3*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		if got := p.take(); got != "keeeP" {
			t.Errorf("asked %s", got)
		}
		busy, start = 1000, time.Now()
		_, err = p.client(nil).Chat(t.Context(), ask("x"))
		if took := time.Since(start); !isServerKeyError(err) || took > 10*time.Second ||
			!strings.Contains(err.Error(), "answered 503") {
			t.Errorf("after %v: %v", took, err)
		}
		if got := p.take(); len(got) > 11 || strings.Contains(got, "P") {
			t.Errorf("asked %s", got)
		}
	})
}

// A list that the attested signer signed long ago is a replay, and one without a signature has
// nobody to vouch for.
func TestAttestedLists(t *testing.T) {
	p, g := obliviousPlace(t)
	client := p.client(nil)
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	signer := g.Signer
	for name, test := range map[string]struct {
		change       func()
		want, reason string
	}{
		"older": {func() {
			g.Now = func() time.Time { return time.Now().Add(-6 * time.Minute) }
		}, "k", "older than one that was seen before"},
		"unsigned": {func() { g.Signer = nil }, "k", "the list of keys is not signed"},
		"changed":  {func() { g.List = func([]byte) []byte { return otherList(t) } }, "k", "not signed"},
	} {
		p.take()
		g.Set(func() {
			g.Signer, g.Now, g.List = signer, time.Now, nil
			test.change()
		})
		g.AddKey(ohttp.XWing)
		again(client)
		_, err := client.Chat(t.Context(), ask("x"))
		if !isServerKeyError(err) || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s: %v", name, err)
		}
		if got := p.take(); got != test.want {
			t.Errorf("%s: asked %s", name, got)
		}
	}
}

func TestAttestedPins(t *testing.T) {
	p, g := obliviousPlace(t)
	signer := hex.EncodeToString(p.keys()[0].Fingerprint[:])
	for name, test := range map[string]struct{ pin, want string }{
		"the signer":        {signer, "keP"},
		"the configuration": {g.Key().Fingerprint(), "keP"},
		"another":           {strings.Repeat("ab", 32), "k"},
	} {
		client := p.client(func(_ *Config, a *Attestation) { a.Pins = []string{test.pin} })
		_, err := client.Chat(t.Context(), ask("x"))
		if refused, ok := errors.AsType[*ServerKeyError](err); ok != (test.want == "k") ||
			ok && !slices.Equal(refused.Want, []string{test.pin}) {
			t.Errorf("%s: %v", name, err)
		}
		if got := p.take(); got != test.want {
			t.Errorf("%s: asked %s", name, got)
		}
	}
	// a pin does not make up for evidence
	p.change = func(d *attest.Document) { d.Evidence[0] ^= 1 }
	client := p.client(func(_ *Config, a *Attestation) { a.Pins = []string{signer} })
	if _, err := client.Chat(t.Context(), ask("x")); !isServerKeyError(err) {
		t.Errorf("no evidence: %v", err)
	}
	if got := p.take(); got != "ke" {
		t.Errorf("asked %s", got)
	}
}

// What the user accepts is taken without evidence, and nothing else is.
func TestAttestedAccept(t *testing.T) {
	p, g := obliviousPlace(t)
	p.change = func(d *attest.Document) { d.Evidence[0] ^= 1 }
	client := p.client(nil)
	_, err := client.Chat(t.Context(), ask("x"))
	refused, ok := errors.AsType[*ServerKeyError](err)
	if !ok {
		t.Fatal(err)
	}
	if err := client.AcceptServerKey(refused.Signer); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	key, err := client.ServerKey(t.Context())
	if err != nil || key.Attestation() != nil {
		t.Errorf("%+v, %v", key.Attestation(), err)
	}
	if got := p.take(); got != "kekP" {
		t.Errorf("asked %s", got)
	}
	g.Sign()
	again(client)
	if _, err := client.Chat(t.Context(), ask("x")); !isServerKeyError(err) {
		t.Errorf("another signer: %v", err)
	}
}

// A configuration that the user accepted does not open the door to the others of its list, nor to
// whoever signed that.
func TestAttestedAcceptAlone(t *testing.T) {
	p, g := obliviousPlace(t)
	p.change = func(d *attest.Document) { d.Evidence[0] ^= 1 }
	client := p.client(nil)
	accepted := g.Key().Fingerprint()
	if err := client.AcceptServerKey(accepted); err != nil {
		t.Fatal(err)
	}
	g.AddKey(ohttp.XWing) // an attacker's
	g.Sign()
	for range 2 {
		key, err := client.ServerKey(t.Context())
		if err != nil || key.Fingerprint() != accepted || key.Attestation() != nil {
			t.Fatalf("took %v, %v", key, err)
		}
		again(client)
	}
	if got := p.take(); got != "kk" {
		t.Errorf("asked %s", got)
	}
	g.Rotate() // the same signer, without what was accepted
	again(client)
	if key, err := client.ServerKey(t.Context()); !isServerKeyError(err) {
		t.Errorf("took %v, %v", key, err)
	}
	if client.server.signed != nil {
		t.Error("the signer counts as one that is trusted")
	}
}

// The Auditor is told once of each evidence, before the key is used, and can refuse it.
func TestAttestedEvents(t *testing.T) {
	p, _ := obliviousPlace(t)
	told := &recorder{fail: EventServerKeyAttested}
	var asked *AttestationResult
	client := p.client(func(c *Config, _ *Attestation) {
		c.Audit = told.Record
		c.OnServerKey = func(_, key *PublicKey) error {
			asked = key.Attestation()
			return nil
		}
	})
	if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err, ErrAudit) {
		t.Errorf("got %v", err)
	}
	if got := p.take(); got != "ke" {
		t.Errorf("asked %s", got)
	}
	e := told.last()
	if asked == nil || *asked != *e.Attestation || e.Attestation.Measurement != "6d31" ||
		e.Fingerprint != hex.EncodeToString(p.keys()[0].Fingerprint[:]) ||
		e.Server != "ohttp+https://gateway.test" {
		t.Errorf("%+v", e)
	}
	told.fail, told.events = "", nil
	for range 2 {
		if _, err := client.Chat(t.Context(), ask("x")); err != nil {
			t.Fatal(err)
		}
		again(client)
	}
	want := []EventType{EventServerKeyFirstSeen, EventServerKeyAttested, EventRequestSealed,
		EventResponseOpened, EventRequestSealed, EventResponseOpened}
	if got := told.types(); !slices.Equal(got, want) {
		t.Errorf("told %v", got)
	}
	if got := p.take(); got != "kePkP" {
		t.Errorf("asked %s", got)
	}
}

// Evidence that the user did not take counts for nothing.
func TestAttestedOnServerKey(t *testing.T) {
	p, _ := obliviousPlace(t)
	no := errors.New("not this one")
	client := p.client(func(c *Config, _ *Attestation) {
		c.OnServerKey = func(_, _ *PublicKey) error { return no }
	})
	for range 2 {
		if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err, no) {
			t.Errorf("got %v", err)
		}
	}
	if got := p.take(); got != "keke" {
		t.Errorf("asked %s", got)
	}
}
