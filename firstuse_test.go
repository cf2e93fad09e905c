// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// firstUser is a client of server that trusts on first use.
func firstUser(t testing.TB, server *fakes.Server, s *KeyStore,
	change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return sealedClient(t, server, func(c *Config) {
		c.Trust, c.Keys = FirstUse(s), s
		if change != nil {
			change(c)
		}
	})
}

func wantRefusedKey(t testing.TB, what string, err error, want, got string) {
	t.Helper()
	e, ok := errors.AsType[*ServerKeyError](err)
	if !ok || !slices.Equal(e.Want, []string{want}) || e.Got != got {
		t.Errorf("%s: got %v, want a refusal of %s for %s", what, err, got, want)
		return
	}
	if text := err.Error(); !strings.Contains(text, want) || !strings.Contains(text, got) {
		t.Errorf("%s: not both keys are in: %s", what, text)
	}
}

func TestFirstUseIsRemembered(t *testing.T) {
	first, second := publicOf(t, "rsa-2048").Fingerprint(), publicOf(t, "other-4096").Fingerprint()
	dir := storeDir(t)
	created, _ := createWeak(t, dir, nil)
	ephemeral, _ := weakStore(t, nil)
	for what, s := range map[string]*KeyStore{"file": created, "ephemeral": ephemeral} {
		server := fakes.NewServer(t)
		again := func() *SecureCompletionClient { // a new process, where there is a file
			if s.store.Dir() != nil {
				return firstUser(t, server, openWeak(t, dir, passphrase, nil), nil)
			}
			return firstUser(t, server, s, nil)
		}
		c := firstUser(t, server, s, nil)
		for range 2 {
			if _, err := c.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(what, err)
			}
		}
		if _, err := again().Chat(t.Context(), ask("x")); err != nil {
			t.Error(what, "the same key:", err)
		}
		server.Present("other-4096")
		_, posts := server.Counts()
		other := again()
		for range 2 {
			_, err := other.Chat(t.Context(), ask("x"))
			wantRefusedKey(t, what, err, first, second)
		}
		if _, now := server.Counts(); now != posts {
			t.Error(what, "something was sent to a key that is not trusted")
		}
		if err := other.AcceptServerKey(strings.ToUpper(second)); err != nil {
			t.Fatal(what, err)
		}
		if _, err := other.Chat(t.Context(), ask("x")); err != nil {
			t.Error(what, "accepted:", err)
		}
		if _, err := again().Chat(t.Context(), ask("x")); err != nil {
			t.Error(what, "accepted elsewhere:", err)
		}
		server.Present("rsa-2048")
		_, err := again().Chat(t.Context(), ask("x"))
		wantRefusedKey(t, what+": the old key again", err, second, first)
	}
	body, _ := bodyOnDisk(t, dir, passphrase)
	if len(body.Pins) != 1 || body.Pins[0].Origin != "https://server.test" ||
		body.Pins[0].FirstSeen.IsZero() || body.Pins[0].Accepted.IsZero() {
		t.Errorf("%+v", body.Pins)
	}
}

func TestFirstUseOriginsAreSeparate(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	keys := map[string]string{
		"https://a.test": "rsa-2048", "https://b.test": "rsa-3072",
		"https://a.test:8443": "other-4096", "https://a.test/base": "server-4096",
	}
	for origin, key := range keys {
		server := fakes.NewServer(t)
		server.Present(key)
		c := firstUser(t, server, s, func(c *Config) { c.BaseURL = origin })
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Error(origin, err)
		}
	}
	body, _ := bodyOnDisk(t, dir, passphrase)
	if len(body.Pins) != len(keys) {
		t.Errorf("%d pins", len(body.Pins))
	}
	for origin, key := range keys {
		server := fakes.NewServer(t)
		server.Present("client-4096")
		_, err := firstUser(t, server, s, func(c *Config) {
			c.BaseURL = origin
		}).Chat(t.Context(), ask("x"))
		wantRefusedKey(t, origin, err, publicOf(t, key).Fingerprint(),
			publicOf(t, "client-4096").Fingerprint())
	}
}

// A key that the user refused is not remembered.
func TestFirstUseRefusedByUser(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	server := fakes.NewServer(t)
	refusal := errors.New("not this one")
	asked := 0
	c := firstUser(t, server, s, func(c *Config) {
		c.OnServerKey = func(_, _ *PublicKey) error { asked++; return refusal }
	})
	testkit.Unchanged(t, "refused", dir, func() {
		_, err := c.Chat(t.Context(), ask("x"))
		if e, ok := errors.AsType[*ServerKeyError](err); !ok || e.Err != refusal {
			t.Error(err)
		}
	})
	server.Present("other-4096")
	if _, err := firstUser(t, server, openWeak(t, dir, passphrase, nil), nil).Chat(t.Context(),
		ask("x")); err != nil {
		t.Errorf("the refused key was remembered: %v", err)
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// What cannot be remembered is not used.
func TestFirstUseThatCannotBeSaved(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	there := openWeak(t, dir, passphrase, nil)
	if err := there.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)); err != nil {
		t.Fatal(err)
	}
	server := fakes.NewServer(t)
	_, err := firstUser(t, server, s, nil).Chat(t.Context(), ask("x"))
	wantError(t, "cannot save", err, ErrPassphrase)
	if _, posts := server.Counts(); posts != 0 {
		t.Error("a request went to a key that was not remembered")
	}
	closed, _ := weakStore(t, nil)
	closed.Close()
	_, err = sealedClient(t, server, func(c *Config) {
		c.Trust = FirstUse(closed)
	}).Chat(t.Context(), ask("x"))
	wantError(t, "closed", err, ErrClosed)
}

// Of two first uses at the same time one wins, and the other refuses if it saw another key.
func TestFirstUseRace(t *testing.T) {
	prints := []string{publicOf(t, "rsa-2048").Fingerprint(), publicOf(t, "rsa-3072").Fingerprint()}
	for round := range 8 {
		dir := storeDir(t)
		s, _ := createWeak(t, dir, nil)
		stores := []*KeyStore{s, openWeak(t, dir, passphrase, nil),
			openWeak(t, dir, passphrase, nil), s}
		errs := make([]error, len(stores))
		var wg sync.WaitGroup
		for i, s := range stores {
			server := fakes.NewServer(t)
			server.Present([]string{"rsa-2048", "rsa-3072"}[i%2])
			c := firstUser(t, server, s, nil)
			wg.Go(func() { _, errs[i] = c.Chat(t.Context(), ask("x")) })
		}
		wg.Wait()
		body, _ := bodyOnDisk(t, dir, passphrase)
		if len(body.Pins) != 1 {
			t.Fatalf("round %d: %d pins", round, len(body.Pins))
		}
		winner := slices.Index(prints, fmt.Sprintf("%x", body.Pins[0].Fingerprint))
		for i, err := range errs {
			if i%2 == winner {
				if err != nil {
					t.Errorf("round %d: the remembered key was refused: %v", round, err)
				}
				continue
			}
			wantRefusedKey(t, "the other key", err, prints[winner], prints[1-winner])
		}
	}
}

func TestPanicInOnServerKey(t *testing.T) {
	s := fakes.NewServer(t)
	broken := true
	c := sealedClient(t, s, func(c *Config) {
		c.OnServerKey = func(_, _ *PublicKey) error {
			if broken {
				panic("from OnServerKey")
			}
			return nil
		}
	})
	for name, call := range map[string]func(){
		"Chat":      func() { _, _ = c.Chat(t.Context(), ask("x")) },
		"ServerKey": func() { _, _ = c.ServerKey(t.Context()) },
		"Warm":      func() { _ = c.Warm(t.Context()) },
	} {
		func() {
			defer func() {
				if p := recover(); p != "from OnServerKey" {
					t.Errorf("%s: the caller recovers %v", name, p)
				}
			}()
			call()
		}()
	}
	broken = false
	if _, err := c.Chat(t.Context(), ask("x")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	closed := make(chan struct{})
	go func() { _ = c.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close hangs")
	}
}

// lookRecorder notes the requests for keys of the other protocol, and lets nothing answer them.
type lookRecorder struct {
	http.RoundTripper
	path   string // of the other protocol's keys
	agents []string
}

func (r *lookRecorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path != r.path || req.Method != http.MethodGet {
		return r.RoundTripper.RoundTrip(req)
	}
	r.agents = append(r.agents, req.Header.Get("User-Agent"))
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// Only after a wrong pin the client looks for a key of the other protocol: once, without a name of
// its own over Oblivious HTTP, and not for long when there is no answer.
func TestLookForOtherProtocol(t *testing.T) {
	wrong := strings.Repeat("ab", 32)
	refuse := func(_, _ *PublicKey) error { return errors.New("not this one") }
	for name, c := range map[string]struct {
		change func(c *Config, right string)
		looks  int
	}{
		"a wrong pin": {func(c *Config, _ string) { c.Trust = Pin(wrong) }, 1},
		"refused by the user": {func(c *Config, right string) {
			c.Trust, c.OnServerKey = Pin(right), refuse
		}, 0},
		"no pin, refused by the user": {func(c *Config, _ string) { c.OnServerKey = refuse }, 0},
	} {
		for _, protocol := range []Protocol{ProtocolEnvelope, ProtocolOHTTP} {
			synctest.Test(t, func(t *testing.T) {
				rt := &lookRecorder{}
				var client *SecureCompletionClient
				if protocol == ProtocolOHTTP {
					g := fakes.NewGateway(t, answerText("x"))
					rt.RoundTripper, rt.path = fakes.Direct(g), hybrid.PathPublicKey
					client = ohttpClient(t, "https://gateway.test", func(config *Config) {
						config.Transport = rt
						c.change(config, g.Key().Fingerprint())
					})
				} else {
					rt.RoundTripper, rt.path = fakes.NewServer(t), ohttp.Path
					client = sealedClient(t, fakes.NewServer(t), func(config *Config) {
						config.Transport = rt
						c.change(config, publicOf(t, "rsa-2048").Fingerprint())
					})
				}
				start := time.Now()
				_, err := client.Chat(t.Context(), ask("x"))
				if _, ok := errors.AsType[*ServerKeyError](err); !ok {
					t.Errorf("%s, %s: %v", name, protocol, err)
				}
				if took := time.Since(start); took > otherKeyWait {
					t.Errorf("%s, %s: it took %v", name, protocol, took)
				}
				if len(rt.agents) != c.looks {
					t.Errorf("%s, %s: looked %d times", name, protocol, len(rt.agents))
				}
				if protocol == ProtocolOHTTP && strings.Join(rt.agents, "") != "" {
					t.Errorf("%s: it says who it is: %q", name, rt.agents)
				}
			})
		}
	}
}
