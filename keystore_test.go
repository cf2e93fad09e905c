// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/awnumar/memguard"

	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestKeyStoreOptionErrors(t *testing.T) {
	for _, c := range []struct {
		o     KeyStoreOptions
		field string
	}{
		{KeyStoreOptions{Bits: 1024}, "Bits"}, {KeyStoreOptions{Bits: 2049}, "Bits"},
		{KeyStoreOptions{Bits: 8192}, "Bits"},
		{KeyStoreOptions{Bits: -1}, "Bits"}, {KeyStoreOptions{Iterations: 1}, "Iterations"},
		{KeyStoreOptions{Iterations: 599_999}, "Iterations"},
		{KeyStoreOptions{Iterations: 10_000_001}, "Iterations"},
		{KeyStoreOptions{Iterations: -1}, "Iterations"},
	} {
		dir := storeDir(t)
		_, e1 := NewEphemeralKeyStore(&c.o)
		_, e2 := CreateKeyStore(t.Context(), dir, secret(t, passphrase), &c.o)
		_, e3 := OpenKeyStore(t.Context(), dir, secret(t, passphrase), &c.o)
		for _, err := range []error{e1, e2, e3} {
			if e, ok := errors.AsType[*ConfigError](err); !ok ||
				e.Field != "KeyStoreOptions."+c.field {
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
			return respond(200, fakes.FineCompletion("fine"), "Content-Type", "application/json"),
				nil
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

// A client that knows the old key is served by the gateway while the grace lasts, and afterwards
// after a look at the new one.
func TestGraceThroughTheGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1,
			Grace: 30 * time.Minute}})
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
		c := startClient(t, "https://gateway.test", func(c *Config) {
			c.Transport, c.Keys = l, clientKeys
		})
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
			t.Fatalf("%d and %d keys made: both rotations are to be under way", m1.Made.Load(),
				m2.Made.Load())
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
		if now := []string{primaryOf(t, gatewayKeys), primaryOf(t, clientKeys)}; !slices.Equal(now,
			old) {
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

// A request that is under way keeps its key through Close and through a rotation; then the key is
// wiped.
func TestRunningRequestKeepsItsKey(t *testing.T) {
	for what, end := range map[string]func(*KeyStore) error{
		"Close":  func(s *KeyStore) error { s.Close(); return nil },
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

// A gateway whose key is replaced while clients have the old one: both open, until the grace is
// over.
func TestObliviousRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := weakStore(t, nil)
		r := newRig(t, func(c *GatewayConfig) { c.Keys = keys })
		old := r.KeyConfig()
		use := func(c *ohttp.Config) int {
			s := fakes.SealFor(t, c, fakes.Inner{}.Encode(t))
			w := r.Send(s)
			if w.Code != 200 {
				return w.Code
			}
			return s.Open(w).Status
		}
		settle(time.Hour + time.Second)
		now := r.KeyConfig()
		if now.Equal(old) || use(old) != 200 || use(now) != 200 {
			t.Error("not both keys open after a rotation")
		}
		settle(65*time.Minute - 2*time.Second) // longer than a client keeps a list
		if use(old) != 200 {
			t.Error("the old key does not open for all of its grace")
		}
		settle(3 * time.Second)
		if status := use(old); status != 422 {
			t.Errorf("after its grace: %d", status)
		}
		if use(now) != 200 {
			t.Error("the new key does not open")
		}
		_ = r.g.Close()
		keys.Close()
	})
}

// The auditor learns of the first configurations, and of each rotation once.
func TestConfigEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, nil)
		var events []string
		if err := s.SetAuditor(t.Context(), Auditor(func(_ context.Context, e Event) error {
			if e.Severity != slog.LevelInfo {
				t.Errorf("%+v", e)
			}
			events = append(events, string(e.Type)+" "+e.Fingerprint+" "+e.OldFingerprint)
			return nil
		})); err != nil {
			t.Fatal(err)
		}
		_ = listedIDs(t, s)
		configs := func() []KeyInfo {
			return slices.DeleteFunc(s.Keys(), func(k KeyInfo) bool {
				return k.Kind == "RSA" || k.Kind == "Ed25519"
			})
		}
		first := configs()
		settle(time.Hour + 2*time.Minute)
		second := configs()
		settle(time.Hour + 4*time.Minute) // by now the first ones are wiped
		third := configs()
		if len(first) != 2 || len(second) != 4 || len(third) != 4 {
			t.Fatal(first, second, third)
		}
		want := []string{
			string(EventKeyGenerated) + " " + first[0].Fingerprint + " ",
			string(EventKeyGenerated) + " " + first[1].Fingerprint + " ",
			string(EventKeyRotated) + " " + second[0].Fingerprint + " " + first[0].Fingerprint,
			string(EventKeyRotated) + " " + third[0].Fingerprint + " " + second[0].Fingerprint,
		}
		if !slices.Equal(events, want) {
			t.Errorf("got %v\nwant %v", events, want)
		}
	})
}

// A program that has memguard destroy its buffers gets errors from a gateway's key store, in a
// process of its own, which a fault would end.
func TestPurgedKeyStore(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	if out, err := child(t, "purged", storeDir(t), "").Output(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func childPurged(t *testing.T, dir, _ string) {
	ephemeral, _ := weakStore(t, nil)
	file, _ := createWeak(t, dir, nil)
	untouched, _ := weakStore(t, nil) // only to be closed
	_ = listedIDs(t, untouched)
	type user struct {
		store  *KeyStore
		rig    *rig
		sealed *fakes.Sealed
	}
	var users []user
	for _, s := range []*KeyStore{ephemeral, file} {
		r := newRig(t, func(c *GatewayConfig) { c.Keys = s })
		if w := r.Do(httptest.NewRequest(http.MethodGet, ohttp.Path,
			nil)); w.Code != http.StatusOK {
			t.Fatal(w.Code)
		}
		users = append(users, user{s, r, fakes.SealFor(t, r.KeyConfig(), fakes.Inner{}.Encode(t))})
	}
	memguard.Purge()
	untouched.Close()
	for _, u := range users {
		if w := u.rig.Send(u.sealed); w.Code != http.StatusServiceUnavailable {
			t.Errorf("a request: %d", w.Code)
		}
		if w := u.rig.Do(httptest.NewRequest(http.MethodGet, ohttp.Path,
			nil)); w.Code != http.StatusServiceUnavailable {
			t.Errorf("the list: %d", w.Code)
		}
		for id := range uint8(2) {
			if u.store.store.ConfigKey(t.Context(), id, keystore.KEMs[id]) != nil {
				t.Errorf("key %d is there", id)
			}
		}
		_, list := u.store.store.Configs(t.Context())
		_, signer := u.store.store.Signer()
		_, signature := u.store.store.SignList([]byte("list"), time.Now())
		_, private := u.store.store.SignList([]byte("another"), time.Now())
		_, keys := u.rig.g.Keys(t.Context())
		for what, err := range map[string]error{
			"Configs": list, "Signer": signer, "SignList": signature,
			"SignList of another": private, "Gateway.Keys": keys,
			"Rotate": u.store.Rotate(t.Context()),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		u.store.Close()
	}
}

// A forgotten passphrase is a nil secret, and every method that takes one says how to make it.
func TestNilPassphraseSaysWhatToDo(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	some := secret(t, "a long passphrase")
	for name, call := range map[string]func() error{
		"create": func() error {
			_, err := CreateKeyStore(t.Context(), storeDir(t), nil, nil)
			return err
		},
		"open":   func() error { _, err := OpenKeyStore(t.Context(), dir, nil, nil); return err },
		"export": func() error { _, err := s.ExportPEM(t.Context(), "", nil); return err },
		"old":    func() error { return s.ChangePassphrase(t.Context(), nil, some) },
		"new":    func() error { return s.ChangePassphrase(t.Context(), some, nil) },
		"use":    func() error { return (*Secret)(nil).Use(func([]byte) error { return nil }) },
	} {
		err := call()
		if err == nil || !strings.Contains(err.Error(), "is nil; make it with NewSecret") {
			t.Errorf("%s: %v", name, err)
		}
		if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%s: %v is neither", name, err)
		}
	}
}

// A key prints as its fingerprint, in every form for people.
func TestPublicKeyPrints(t *testing.T) {
	config := &PublicKey{der: []byte("c"), fingerprint: strings.Repeat("ab", 32), signer: "s"}
	for _, k := range []*PublicKey{publicOf(t, "rsa-2048"), config} {
		for _, verb := range []string{"%v", "%+v", "%s"} {
			if got := fmt.Sprintf(verb, k); got != k.Fingerprint() {
				t.Errorf("%s is %q, want %q", verb, got, k.Fingerprint())
			}
		}
	}
	if got := fmt.Sprint((*PublicKey)(nil)); got != "<nil>" {
		t.Errorf("nil prints %q", got)
	}
}
