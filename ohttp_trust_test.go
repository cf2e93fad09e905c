// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

func TestOHTTPPins(t *testing.T) {
	other := strings.Repeat("ab", 32)
	for name, test := range map[string]struct {
		pins func(g *tinyGateway) []string
		ok   bool
	}{
		"the key":              {func(g *tinyGateway) []string { return []string{g.key().Fingerprint()} }, true},
		"in upper case":        {func(g *tinyGateway) []string { return []string{strings.ToUpper(g.key().Fingerprint())} }, true},
		"one of several":       {func(g *tinyGateway) []string { return []string{other, g.key().Fingerprint()} }, true},
		"who signs":            {func(g *tinyGateway) []string { return []string{g.sign()} }, true},
		"another key":          {func(g *tinyGateway) []string { g.sign(); return []string{other} }, false},
		"who signed elsewhere": {func(g *tinyGateway) []string { fp := g.sign(); g.sign(); return []string{fp} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := newTiny(t, answerText("x"))
			pins := test.pins(g)
			client := directClient(t, g, func(c *Config) { c.Trust = Pin(pins...) })
			_, err := client.Chat(t.Context(), ask("x"))
			if test.ok {
				if err != nil {
					t.Fatal(err)
				}
				key, err := client.ServerKey(t.Context())
				if err != nil || !key.Equal(g.key()) || key.PEM() != nil || key.Bits() != 0 || key.Fingerprint() != g.key().Fingerprint() {
					t.Errorf("%v, %v", key, err)
				}
				return
			}
			refused, ok := errors.AsType[*ServerKeyError](err)
			if !ok || refused.Got != g.key().Fingerprint() || !slices.Equal(refused.Want, pins) || refused.Signer == "" {
				t.Errorf("got %+v", err)
			}
			if _, posts := g.counts(); posts != 0 {
				t.Error("something was sent")
			}
		})
	}
}

// During a rotation both configurations are listed: who pinned the old one goes on with it.
func TestOHTTPPinnedKeyIsChosenFromTheList(t *testing.T) {
	g := newTiny(t, answerText("x"))
	old := g.key()
	g.addKey(ohttp.XWing)
	classic := g.addKey(ohttp.X25519)
	for _, pinned := range []*PublicKey{old, classic} {
		client := directClient(t, g, func(c *Config) { c.Trust, c.OHTTP.AllowX25519 = Pin(pinned.Fingerprint()), true })
		if _, err := client.Chat(t.Context(), ask("x")); err != nil {
			t.Fatal(err)
		}
		if key, _ := client.ServerKey(t.Context()); !key.Equal(pinned) {
			t.Errorf("uses %v", key)
		}
	}
	// Left to itself a client takes X-Wing, the newest.
	for _, allow := range []bool{false, true} {
		client := directClient(t, g, func(c *Config) { c.OHTTP.AllowX25519 = allow })
		if key, err := client.ServerKey(t.Context()); err != nil || !key.Equal(g.key()) || key.config.KEM() != ohttp.XWing {
			t.Errorf("X25519 allowed %v: uses %v, %v", allow, key, err)
		}
	}
}

// A list can be cut down to what is easier to break, where that is trusted as well.
func TestOHTTPTakesXWingOnly(t *testing.T) {
	g := newTiny(t, answerText("x"))
	strong, classic := g.key(), g.addKey(ohttp.X25519)
	signer := g.sign()
	if _, err := directClient(t, g, func(c *Config) { c.Trust = Pin(classic.Fingerprint()) }).Chat(t.Context(), ask("x")); err == nil {
		t.Error("X25519 was taken from the whole list")
	}
	used := directClient(t, g, func(c *Config) { c.Trust = Pin(signer) })
	if _, err := used.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	_, posts := g.counts()
	g.set(func() {
		g.outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			cut := ohttp.AppendConfigs(nil, classic.config)
			w.Header().Set("Content-Type", ohttp.TypeKeys)
			w.Header().Set(ohttp.HeaderSignature, ohttp.SignList(g.signer, cut, time.Now(), time.Now().Add(time.Hour)))
			_, _ = w.Write(cut)
			return true
		}
	})
	again(used)
	if _, err := used.Chat(t.Context(), ask("x")); !errors.Is(err, ErrPublicKey) {
		t.Errorf("after X-Wing: %v", err)
	}
	for name, trust := range map[string]Trust{"HTTPS": TrustHTTPS(), "both pinned": Pin(strong.Fingerprint(), classic.Fingerprint()),
		"signed": Pin(signer), "first use": FirstUse(memoryStore(t))} {
		for _, allow := range []bool{false, true} {
			client := directClient(t, g, func(c *Config) { c.Trust, c.OHTTP.AllowX25519 = trust, allow })
			_, err := client.Chat(t.Context(), ask("x"))
			if allow != (err == nil) || (err != nil && (!errors.Is(err, ErrPublicKey) || !strings.Contains(err.Error(), "AllowX25519"))) {
				t.Errorf("%s, allowed %v: %v", name, allow, err)
			}
			if _, now := g.counts(); !allow && now != posts {
				t.Errorf("%s: something was sent", name)
			}
			_, posts = g.counts()
		}
	}
	if _, err := NewSecureCompletionClient(Config{BaseURL: "https://gateway.test", Trust: TrustHTTPS(), OHTTP: OHTTPOptions{AllowX25519: true}}); err == nil {
		t.Error("allowed without ProtocolOHTTP")
	}
}

func memoryStore(t testing.TB) *KeyStore {
	t.Helper()
	store, err := NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func TestOHTTPFirstUse(t *testing.T) {
	store := memoryStore(t)
	g := newTiny(t, answerText("x"))
	first := func(c *Config) { c.Trust = FirstUse(store) }
	if _, err := directClient(t, g, first).Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	if _, known := store.store.Pin("https://gateway.test"); known {
		t.Error("remembered for version 1")
	}
	if _, known := store.store.Pin("ohttp+https://gateway.test"); !known {
		t.Error("not remembered")
	}
	fresh := g.rotate()
	client := directClient(t, g, first)
	_, err := client.Chat(t.Context(), ask("x"))
	if refused, ok := errors.AsType[*ServerKeyError](err); !ok || refused.Got != fresh.Fingerprint() || len(refused.Want) != 1 || refused.Signer != "" {
		t.Fatalf("nobody vouches for the new key: %v", err)
	}
	if _, posts := g.counts(); posts != 1 {
		t.Error("something was sent")
	}
	if err := client.AcceptServerKey(fresh.Fingerprint()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*SecureCompletionClient{client, directClient(t, g, first)} {
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Error(err)
		}
	}
}

func TestOHTTPSignedRotation(t *testing.T) {
	store := memoryStore(t)
	g := newTiny(t, answerText("x"))
	signer := g.sign()
	var asked [][2]*PublicKey
	client := directClient(t, g, func(c *Config) {
		c.Trust = FirstUse(store)
		c.OnServerKey = func(old, new *PublicKey) error {
			asked = append(asked, [2]*PublicKey{old, new})
			return nil
		}
	})
	for range 3 {
		if _, err := chatAgain(client); err != nil {
			t.Fatal(err)
		}
		g.rotate()
	}
	if len(asked) != 3 || asked[0][0] != nil || !asked[1][0].Equal(asked[0][1]) || asked[2][1].Signer() != signer {
		t.Errorf("asked %v", asked)
	}
	_, posts := g.counts()

	// Another signer, no signature, and one that does not fit.
	mine := g.signer
	for name, change := range map[string]func(){
		"another signer":     func() { g.sign() },
		"no signature":       func() { g.set(func() { g.signer = nil }) },
		"another list":       func() { g.set(func() { g.list = func(b []byte) []byte { return otherList(t) } }) },
		"of the future":      func() { g.set(func() { g.now = func() time.Time { return time.Now().Add(2 * time.Hour) } }) },
		"over":               func() { g.set(func() { g.now = func() time.Time { return time.Now().Add(-25 * time.Hour) } }) },
		"older than the one": func() { g.set(func() { g.now = func() time.Time { return time.Now().Add(-6 * time.Minute) } }) },
	} {
		g.set(func() { g.signer, g.list, g.now = mine, nil, time.Now })
		change()
		g.rotate()
		_, err := client.Chat(t.Context(), ask("x"))
		if refused, ok := errors.AsType[*ServerKeyError](err); !ok || !slices.Equal(refused.Want, []string{signer}) {
			t.Errorf("%s: %v", name, err)
		}
		client.server.mu.Lock() // as if a minute had passed
		client.server.quietUntil = time.Time{}
		client.server.mu.Unlock()
	}
	if len(asked) != 3 {
		t.Errorf("asked about keys that are not trusted: %v", asked[3:])
	}
	g.set(func() { g.signer, g.list, g.now = mine, nil, time.Now })
	if _, err := chatAgain(client); err != nil {
		t.Fatal(err)
	}
	if _, now := g.counts(); now < posts+1 {
		t.Error("nothing was sent")
	}

	// The user may trust another signer, too.
	other := g.sign()
	g.rotate()
	second := directClient(t, g, func(c *Config) { c.Trust = FirstUse(store) })
	_, err := second.Chat(t.Context(), ask("x"))
	if refused, ok := errors.AsType[*ServerKeyError](err); !ok || refused.Signer != other {
		t.Fatalf("got %v", err)
	}
	if err := second.AcceptServerKey(other); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := chatAgain(second); err != nil {
			t.Fatal(err)
		}
		g.rotate()
	}
}

// otherList is a list of a key that the gateway has not.
func otherList(t testing.TB) []byte {
	k, err := ohttp.GenerateKey(9, ohttp.XWing)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	return ohttp.AppendConfigs(nil, k.Config())
}

func TestOHTTPOnServerKeyRefuses(t *testing.T) {
	g := newTiny(t, answerText("x"))
	no := errors.New("not this one")
	client := directClient(t, g, func(c *Config) { c.OnServerKey = func(_, _ *PublicKey) error { return no } })
	_, err := client.Chat(t.Context(), ask("x"))
	if refused, ok := errors.AsType[*ServerKeyError](err); !ok || !errors.Is(err, no) || refused.Got != g.key().Fingerprint() {
		t.Errorf("got %v", err)
	}
	if _, posts := g.counts(); posts != 0 {
		t.Error("something was sent")
	}
}

// A list is refused whole.
func TestOHTTPListsThatAreNone(t *testing.T) {
	for name, test := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":           {func([]byte) []byte { return nil }, ErrPublicKey},
		"cut":             {func(b []byte) []byte { return b[:len(b)-1] }, ErrPublicKey},
		"more behind":     {func(b []byte) []byte { return append(b, 0) }, ErrPublicKey},
		"a bad second":    {func(b []byte) []byte { return append(b, 0, 3, 1, 2, 3) }, ErrPublicKey},
		"other suites":    {func([]byte) []byte { return []byte{0, 12, 1, 0x77, 0x77, 1, 2, 3, 0, 4, 0, 1, 0, 2} }, ErrPublicKey},
		"no key":          {func(b []byte) []byte { return append(b[:5:5], make([]byte, len(b)-5)...) }, ErrPublicKey},
		"too large":       {func(b []byte) []byte { return bytes.Repeat(b, 100) }, ErrTooLarge},
		"an HTML page":    {func([]byte) []byte { return []byte("<html>") }, ErrPublicKey},
		"version 1's key": {func([]byte) []byte { return []byte("-----BEGIN PUBLIC KEY-----\n") }, ErrPublicKey},
	} {
		g := newTiny(t, answerText("x"))
		g.list = test.change
		client := directClient(t, g, nil)
		if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, posts := g.counts(); posts != 0 {
			t.Errorf("%s: something was sent", name)
		}
	}
	for name, serve := range map[string]http.HandlerFunc{
		"no such page": http.NotFound,
		"another type": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write(nil)
		},
		"without type": func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "x")
		},
		"a redirection": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
	} {
		g := newTiny(t, answerText("x"))
		g.outer = func(w http.ResponseWriter, r *http.Request) bool { serve(w, r); return true }
		if _, err := directClient(t, g, nil).ServerKey(t.Context()); err == nil {
			t.Errorf("%s: taken", name)
		} else if _, ok := errors.AsType[*OuterError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := newTiny(t, answerText("x"))
	g.outer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", ohttp.TypeKeys)
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write(ohttp.AppendConfigs(nil, g.ring.Configs()...))
		return true
	}
	if e, ok := errors.AsType[*OuterError](directClient(t, g, nil).Warm(t.Context())); !ok || e.StatusCode != 404 {
		t.Errorf("a list with status 404: %v", e)
	}
}
