// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestKeyStoreOptionErrors(t *testing.T) {
	for _, c := range []struct {
		o     KeyStoreOptions
		field string
	}{
		{KeyStoreOptions{Bits: 1024}, "Bits"}, {KeyStoreOptions{Bits: 2049}, "Bits"}, {KeyStoreOptions{Bits: 8192}, "Bits"},
		{KeyStoreOptions{Bits: -1}, "Bits"}, {KeyStoreOptions{Iterations: 1}, "Iterations"},
		{KeyStoreOptions{Iterations: 599_999}, "Iterations"}, {KeyStoreOptions{Iterations: 10_000_001}, "Iterations"},
		{KeyStoreOptions{Iterations: -1}, "Iterations"},
	} {
		dir := storeDir(t)
		_, e1 := NewEphemeralKeyStore(&c.o)
		_, e2 := CreateKeyStore(t.Context(), dir, secret(t, passphrase), &c.o)
		_, e3 := OpenKeyStore(t.Context(), dir, secret(t, passphrase), &c.o)
		for _, err := range []error{e1, e2, e3} {
			if e, ok := errors.AsType[*ConfigError](err); !ok || e.Field != "KeyStoreOptions."+c.field {
				t.Errorf("%+v: %v", c.o, err)
			}
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: a folder was made", c.o)
		}
	}
	for _, bits := range []int{0, 2048, 3072, 4096} {
		if s, err := NewEphemeralKeyStore(&KeyStoreOptions{Bits: bits}); err != nil {
			t.Error(bits, err)
		} else if s.Close(); bits == 0 && s.store.Bits() != 4096 {
			t.Errorf("%d bits by default", s.store.Bits())
		}
	}
}

// loop is a gateway without a network, and what it answered.
type loop struct {
	g        *Gateway
	mu       sync.Mutex
	statuses []int
}

func newLoop(t testing.TB, keys *KeyStore) *loop {
	t.Helper()
	return &loop{g: newGateway(t, GatewayConfig{
		Upstream: "https://upstream.test/v1", AllowUnauthenticated: true, Keys: keys,
		UpstreamTransport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
			return respond(200, fakes.FineCompletion("fine"), "Content-Type", "application/json"), nil
		}),
	})}
}

func (l *loop) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	in.RequestURI, in.RemoteAddr = r.URL.RequestURI(), "127.0.0.1:1"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	l.g.ServeHTTP(w, in)
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Method == http.MethodPost {
		l.statuses = append(l.statuses, w.Code)
	}
	return w.Result(), nil
}

// took returns the statuses of the requests since the last call.
func (l *loop) took() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.statuses
	l.statuses = nil
	return s
}

// A client that knows the old key is served by the gateway while the grace lasts, and afterwards after a look at the new one.
func TestGraceThroughTheGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1, Grace: 30 * time.Minute}})
		l := newLoop(t, s)
		c := startClient(t, "https://gateway.test", func(c *Config) { c.Transport = l })
		chat := func(want ...int) {
			t.Helper()
			if _, err := c.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
			if got := l.took(); !slices.Equal(got, want) {
				t.Errorf("statuses %v, want %v", got, want)
			}
		}
		chat(200)
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		chat(200)
		settle(29 * time.Minute)
		chat(200)
		settle(time.Minute)
		chat(400, 200)
		chat(200)
	})
}

// No request waits for a rotation, neither in the gateway nor in the client.
func TestNoRequestWaitsForRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &KeyStoreOptions{Rotation: Rotation{Every: time.Hour}}
		gatewayKeys, m1 := weakStore(t, o)
		clientKeys, m2 := weakStore(t, o)
		l := newLoop(t, gatewayKeys)
		c := startClient(t, "https://gateway.test", func(c *Config) { c.Transport, c.Keys = l, clientKeys })
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Fatal(err)
		}
		old := []string{primaryOf(t, gatewayKeys), primaryOf(t, clientKeys)}
		held := make(chan struct{})
		for _, m := range []*testkit.Maker{m1, m2} {
			m.Use(func(int) (*rsa.PrivateKey, error) {
				key, err := m.Make()
				<-held
				return key, err
			})
		}
		settle(time.Hour)
		rotated := make(chan error, 1)
		go func() { rotated <- gatewayKeys.Rotate(t.Context()) }()
		settle(30 * time.Minute)
		if m1.Made.Load() != 2 || m2.Made.Load() != 2 {
			t.Fatalf("%d and %d keys made: both rotations are to be under way", m1.Made.Load(), m2.Made.Load())
		}
		start := time.Now()
		for range 5 {
			if _, err := c.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
		}
		if !time.Now().Equal(start) {
			t.Errorf("the requests took %v", time.Since(start))
		}
		if now := []string{primaryOf(t, gatewayKeys), primaryOf(t, clientKeys)}; !slices.Equal(now, old) {
			t.Error("the rotation was not held back")
		}
		select {
		case <-rotated:
			t.Error("Rotate returned before there was a key")
		default:
		}
		close(held)
		synctest.Wait()
		if err := <-rotated; err != nil {
			t.Error(err)
		}
		if primaryOf(t, gatewayKeys) == old[0] || primaryOf(t, clientKeys) == old[1] {
			t.Error("not rotated")
		}
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Error(err)
		}
		if m1.Made.Load() != 2 || m2.Made.Load() != 2 {
			t.Errorf("%d and %d keys made", m1.Made.Load(), m2.Made.Load())
		}
	})
}

// A request that is under way keeps its key through Close and through a rotation; then the key is wiped.
func TestRunningRequestKeepsItsKey(t *testing.T) {
	for what, end := range map[string]func(*KeyStore) error{
		"Close":  (*KeyStore).Close,
		"Rotate": func(s *KeyStore) error { return s.Rotate(context.Background()) },
	} {
		server := fakes.NewServer(t)
		arrived, release := make(chan struct{}), make(chan struct{})
		hold := roundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method == "POST" {
				close(arrived)
				<-release
			}
			return server.RoundTrip(r)
		})
		s, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Grace: -1}})
		_ = primaryOf(t, s)
		held := keyInUse(t, s)
		c := sealedClient(t, server, func(c *Config) { c.Keys, c.Transport = s, hold })
		answer := make(chan error)
		go func() {
			_, err := c.Chat(context.Background(), ask("x"))
			answer <- err
		}()
		<-arrived
		if err := end(s); err != nil {
			t.Error(what, err)
		}
		if wiped(held) {
			t.Errorf("%s wiped a key that is in use", what)
		}
		close(release)
		if err := <-answer; err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if !wiped(held) {
			t.Errorf("%s: the key was not wiped after the last request", what)
		}
	}
}

// The key files of the two other clients carry over: a chat goes on with their keys.
func TestImportFromOtherClients(t *testing.T) {
	for _, name := range []string{
		"py48-4096-pw-utf8", "py-2048-nopw", "js-4096-pw-utf8", "js-2048-nopw",
	} {
		c := testkit.Vector(t, testkit.PrivateKey, name)
		dir := storeDir(t)
		s, _ := createWeak(t, dir, &KeyStoreOptions{Rotation: Rotation{Every: -1}})
		if _, err := s.ImportPEM(t.Context(), c.File("private_key"), passwordOf(t, c)); err != nil {
			t.Fatal(name, err)
		}
		s.Close()
		s = openWeak(t, dir, passphrase, &KeyStoreOptions{Rotation: Rotation{Every: -1}})
		server := fakes.NewServer(t)
		client := sealedClient(t, server, func(c *Config) { c.Keys = s })
		if _, err := client.Chat(t.Context(), ask("hello")); err != nil {
			t.Error(name, err)
		}
		if got := server.Last().Client.Fingerprint(); got != c.Expected.SPKISHA256 {
			t.Errorf("%s: the request carried %s, want %s", name, got, c.Expected.SPKISHA256)
		}
	}
}

// firstUser is a client of server that trusts on first use.
func firstUser(t testing.TB, server *fakes.Server, s *KeyStore, change func(*Config)) *SecureCompletionClient {
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
	if len(body.Pins) != 1 || body.Pins[0].Origin != "https://server.test" || body.Pins[0].FirstSeen.IsZero() || body.Pins[0].Accepted.IsZero() {
		t.Errorf("%+v", body.Pins)
	}
}

func TestFirstUseOriginsAreSeparate(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	keys := map[string]string{
		"https://a.test": "rsa-2048", "https://b.test": "rsa-3072", "https://a.test:8443": "other-4096", "https://a.test/base": "server-4096",
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
		_, err := firstUser(t, server, s, func(c *Config) { c.BaseURL = origin }).Chat(t.Context(), ask("x"))
		wantRefusedKey(t, origin, err, publicOf(t, key).Fingerprint(), publicOf(t, "client-4096").Fingerprint())
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
	unchanged(t, "refused", dir, func() {
		_, err := c.Chat(t.Context(), ask("x"))
		if e, ok := errors.AsType[*ServerKeyError](err); !ok || e.Err != refusal {
			t.Error(err)
		}
	})
	server.Present("other-4096")
	if _, err := firstUser(t, server, openWeak(t, dir, passphrase, nil), nil).Chat(t.Context(), ask("x")); err != nil {
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
	if err := there.ChangePassphrase(t.Context(), secret(t, passphrase), secret(t, passphrase2)); err != nil {
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
	_, err = sealedClient(t, server, func(c *Config) { c.Trust = FirstUse(closed) }).Chat(t.Context(), ask("x"))
	wantError(t, "closed", err, ErrClosed)
}

// Of two first uses at the same time one wins, and the other refuses if it saw another key.
func TestFirstUseRace(t *testing.T) {
	prints := []string{publicOf(t, "rsa-2048").Fingerprint(), publicOf(t, "rsa-3072").Fingerprint()}
	for round := range 8 {
		dir := storeDir(t)
		s, _ := createWeak(t, dir, nil)
		stores := []*KeyStore{s, openWeak(t, dir, passphrase, nil), openWeak(t, dir, passphrase, nil), s}
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
