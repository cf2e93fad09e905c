// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/rsa"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

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
