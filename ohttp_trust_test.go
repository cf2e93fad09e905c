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

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestOHTTPPins(t *testing.T) {
	other := strings.Repeat("ab", 32)
	for name, test := range map[string]struct {
		pins func(g *fakes.Gateway) []string
		ok   bool
	}{
		"the key": {func(g *fakes.Gateway) []string {
			return []string{g.Key().Fingerprint()}
		}, true},
		"in upper case": {func(g *fakes.Gateway) []string {
			return []string{strings.ToUpper(g.Key().Fingerprint())}
		}, true},
		"one of several": {func(g *fakes.Gateway) []string {
			return []string{other, g.Key().Fingerprint()}
		}, true},
		"who signs": {func(g *fakes.Gateway) []string { return []string{g.Sign()} }, true},
		"another key": {func(g *fakes.Gateway) []string {
			g.Sign()
			return []string{other}
		}, false},
		"who signed elsewhere": {func(g *fakes.Gateway) []string {
			fp := g.Sign()
			g.Sign()
			return []string{fp}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := fakes.NewGateway(t, answerText("x"))
			pins := test.pins(g)
			client := directClient(t, g, func(c *Config) { c.Trust = Pin(pins...) })
			_, err := client.Chat(t.Context(), ask("x"))
			if test.ok {
				if err != nil {
					t.Fatal(err)
				}
				key, err := client.ServerKey(t.Context())
				if err != nil || !key.Equal(newConfigKey(g.Key().Config)) || key.PEM() != nil ||
					key.Bits() != 0 || key.Fingerprint() != g.Key().Fingerprint() {
					t.Errorf("%v, %v", key, err)
				}
				return
			}
			refused, ok := errors.AsType[*ServerKeyError](err)
			if !ok || refused.Got != g.Key().Fingerprint() || !slices.Equal(refused.Want, pins) ||
				refused.Signer == "" {
				t.Errorf("got %+v", err)
			}
			if _, posts := g.Counts(); posts != 0 {
				t.Error("something was sent")
			}
		})
	}
}

// During a rotation both configurations are listed: who pinned the old one goes on with it.
func TestOHTTPPinnedKeyIsChosenFromTheList(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	old := g.Key()
	g.AddKey(ohttp.XWing)
	classic := g.AddKey(ohttp.X25519)
	for _, pinned := range []fakes.Key{old, classic} {
		client := directClient(t, g, func(c *Config) {
			c.Trust, c.OHTTP.AllowX25519 = Pin(pinned.Fingerprint()), true
		})
		if _, err := client.Chat(t.Context(), ask("x")); err != nil {
			t.Fatal(err)
		}
		if key, _ := client.ServerKey(t.Context()); !key.Equal(newConfigKey(pinned.Config)) {
			t.Errorf("uses %v", key)
		}
	}
	// Left to itself a client takes X-Wing, the newest.
	for _, allow := range []bool{false, true} {
		client := directClient(t, g, func(c *Config) { c.OHTTP.AllowX25519 = allow })
		if key, err := client.ServerKey(t.Context()); err != nil ||
			!key.Equal(newConfigKey(g.Key().Config)) || key.config.KEM() != ohttp.XWing {
			t.Errorf("X25519 allowed %v: uses %v, %v", allow, key, err)
		}
	}
}

// A list can be cut down to what is easier to break, where that is trusted as well.
func TestOHTTPTakesXWingOnly(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	strong, classic := g.Key(), g.AddKey(ohttp.X25519)
	signer := g.Sign()
	if _, err := directClient(t, g, func(c *Config) {
		c.Trust = Pin(classic.Fingerprint())
	}).Chat(t.Context(), ask("x")); err == nil {
		t.Error("X25519 was taken from the whole list")
	}
	used := directClient(t, g, func(c *Config) { c.Trust = Pin(signer) })
	if _, err := used.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	_, posts := g.Counts()
	g.Set(func() {
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			cut := ohttp.AppendConfigs(nil, classic.Config)
			w.Header().Set("Content-Type", ohttp.TypeKeys)
			w.Header().Set(ohttp.HeaderSignature, ohttp.SignList(g.Signer, cut, time.Now(),
				time.Now().Add(time.Hour)))
			_, _ = w.Write(cut)
			return true
		}
	})
	again(used)
	if _, err := used.Chat(t.Context(), ask("x")); !errors.Is(err, ErrPublicKey) {
		t.Errorf("after X-Wing: %v", err)
	}
	for name, trust := range map[string]Trust{"HTTPS": TrustHTTPS(),
		"both pinned": Pin(strong.Fingerprint(), classic.Fingerprint()),
		"signed":      Pin(signer), "first use": FirstUse(memoryStore(t))} {
		for _, allow := range []bool{false, true} {
			client := directClient(t, g, func(c *Config) {
				c.Trust, c.OHTTP.AllowX25519 = trust, allow
			})
			_, err := client.Chat(t.Context(), ask("x"))
			if allow != (err == nil) || (err != nil &&
				(!errors.Is(err, ErrPublicKey) || !strings.Contains(err.Error(), "AllowX25519"))) {
				t.Errorf("%s, allowed %v: %v", name, allow, err)
			}
			if _, now := g.Counts(); !allow && now != posts {
				t.Errorf("%s: something was sent", name)
			}
			_, posts = g.Counts()
		}
	}
	if _, err := NewSecureCompletionClient(Config{BaseURL: "https://gateway.test",
		Trust: TrustHTTPS(), OHTTP: OHTTPOptions{AllowX25519: true}}); err == nil {
		t.Error("allowed without ProtocolOHTTP")
	}
}

func memoryStore(t testing.TB) *KeyStore {
	t.Helper()
	store, err := NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestOHTTPFirstUse(t *testing.T) {
	store := memoryStore(t)
	g := fakes.NewGateway(t, answerText("x"))
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
	fresh := g.Rotate()
	client := directClient(t, g, first)
	_, err := client.Chat(t.Context(), ask("x"))
	if refused, ok := errors.AsType[*ServerKeyError](err); !ok ||
		refused.Got != fresh.Fingerprint() || len(refused.Want) != 1 || refused.Signer != "" {
		t.Fatalf("nobody vouches for the new key: %v", err)
	}
	if _, posts := g.Counts(); posts != 1 {
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
	g := fakes.NewGateway(t, answerText("x"))
	signer := g.Sign()
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
		g.Rotate()
	}
	if len(asked) != 3 || asked[0][0] != nil || !asked[1][0].Equal(asked[0][1]) ||
		asked[2][1].Signer() != signer {
		t.Errorf("asked %v", asked)
	}
	_, posts := g.Counts()

	// Another signer, no signature, and one that does not fit.
	mine := g.Signer
	for name, change := range map[string]func(){
		"another signer": func() { g.Sign() },
		"no signature":   func() { g.Set(func() { g.Signer = nil }) },
		"another list": func() {
			g.Set(func() { g.List = func(b []byte) []byte { return otherList(t) } })
		},
		"of the future": func() {
			g.Set(func() { g.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } })
		},
		"over": func() {
			g.Set(func() { g.Now = func() time.Time { return time.Now().Add(-25 * time.Hour) } })
		},
		"older than the one": func() {
			g.Set(func() { g.Now = func() time.Time { return time.Now().Add(-6 * time.Minute) } })
		},
	} {
		g.Set(func() { g.Signer, g.List, g.Now = mine, nil, time.Now })
		change()
		g.Rotate()
		_, err := client.Chat(t.Context(), ask("x"))
		if refused, ok := errors.AsType[*ServerKeyError](err); !ok ||
			!slices.Equal(refused.Want, []string{signer}) {
			t.Errorf("%s: %v", name, err)
		}
		client.server.mu.Lock() // as if a minute had passed
		client.server.quietUntil = time.Time{}
		client.server.mu.Unlock()
	}
	if len(asked) != 3 {
		t.Errorf("asked about keys that are not trusted: %v", asked[3:])
	}
	g.Set(func() { g.Signer, g.List, g.Now = mine, nil, time.Now })
	if _, err := chatAgain(client); err != nil {
		t.Fatal(err)
	}
	if _, now := g.Counts(); now < posts+1 {
		t.Error("nothing was sent")
	}

	// The user may trust another signer, too.
	other := g.Sign()
	g.Rotate()
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
		g.Rotate()
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
	g := fakes.NewGateway(t, answerText("x"))
	no := errors.New("not this one")
	client := directClient(t, g, func(c *Config) {
		c.OnServerKey = func(_, _ *PublicKey) error { return no }
	})
	_, err := client.Chat(t.Context(), ask("x"))
	if refused, ok := errors.AsType[*ServerKeyError](err); !ok || !errors.Is(err, no) ||
		refused.Got != g.Key().Fingerprint() {
		t.Errorf("got %v", err)
	}
	if _, posts := g.Counts(); posts != 0 {
		t.Error("something was sent")
	}
}

// A list is refused whole.
func TestOHTTPListsThatAreNone(t *testing.T) {
	for name, test := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":        {func([]byte) []byte { return nil }, ErrPublicKey},
		"cut":          {func(b []byte) []byte { return b[:len(b)-1] }, ErrPublicKey},
		"more behind":  {func(b []byte) []byte { return append(b, 0) }, ErrPublicKey},
		"a bad second": {func(b []byte) []byte { return append(b, 0, 3, 1, 2, 3) }, ErrPublicKey},
		"other suites": {func([]byte) []byte {
			return []byte{0, 12, 1, 0x77, 0x77, 1, 2, 3, 0, 4, 0, 1, 0, 2}
		}, ErrPublicKey},
		"no key": {func(b []byte) []byte {
			return append(b[:5:5], make([]byte, len(b)-5)...)
		}, ErrPublicKey},
		"too large":    {func(b []byte) []byte { return bytes.Repeat(b, 100) }, ErrTooLarge},
		"an HTML page": {func([]byte) []byte { return []byte("<html>") }, ErrPublicKey},
		"version 1's key": {func([]byte) []byte {
			return []byte("-----BEGIN PUBLIC KEY-----\n")
		}, ErrPublicKey},
	} {
		g := fakes.NewGateway(t, answerText("x"))
		g.List = test.change
		client := directClient(t, g, nil)
		if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, posts := g.Counts(); posts != 0 {
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
		"a redirection": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		},
	} {
		g := fakes.NewGateway(t, answerText("x"))
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool { serve(w, r); return true }
		if _, err := directClient(t, g, nil).ServerKey(t.Context()); err == nil {
			t.Errorf("%s: taken", name)
		} else if _, ok := errors.AsType[*OuterError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := fakes.NewGateway(t, answerText("x"))
	g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", ohttp.TypeKeys)
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write(ohttp.AppendConfigs(nil, g.Ring.Configs()...))
		return true
	}
	if e, ok := errors.AsType[*OuterError](directClient(t, g, nil).Warm(t.Context())); !ok ||
		e.StatusCode != 404 {
		t.Errorf("a list with status 404: %v", e)
	}
}

// BenchmarkOHTTPClient is what a client does for a request and an answer of 1 KiB: sealing, and
// opening. x-v1 is the ratio of its CPU time to that of version 1, x-v1-protected the same into
// protected memory, as Complete does it.
func BenchmarkOHTTPClient(b *testing.B) {
	ctx := b.Context()
	plaintext, _ := ask(strings.Repeat("x", 1024-80)).encode()
	content := []byte(testkit.CompletionJSON(strings.Repeat("y", 750), ""))
	g := fakes.NewGateway(b, nil)
	oblivious := ohttpClient(b, "https://gateway.test", func(c *Config) {
		c.Transport = fakes.Direct(g)
	})
	v1 := startClient(b, "https://gateway.test", nil)
	v1.server.key, v1.server.fetched = publicOf(b, "server-4096"), time.Now()
	for _, c := range []*SecureCompletionClient{oblivious, v1} {
		if err := c.Warm(ctx); err != nil {
			b.Fatal(err)
		}
	}
	answers := map[*SecureCompletionClient]func(*sealedRequest) *http.Response{
		oblivious: func(r *sealedRequest) *http.Response { return answerOHTTP(b, g, r, content) },
		v1:        func(r *sealedRequest) *http.Response { return answerV1(b, r, content) },
	}
	round := func(c *SecureCompletionClient, into hybrid.Alloc) time.Duration {
		start := testkit.CPUTime()
		r, err := c.wire.seal(ctx, chatRequest(plaintext, true), &callOptions{})
		spent := testkit.CPUTime() - start
		if err != nil {
			b.Fatal(err)
		}
		a := answers[c](r)
		start = testkit.CPUTime()
		if _, err := c.wire.openAnswer(ctx, r, a, into); err != nil {
			b.Fatal(err)
		}
		r.release()
		return spent + testkit.CPUTime() - start
	}
	memory := locked.NewArena(locked.BestEffort)
	defer memory.Close()
	var secret *Secret
	into := func(n int) (room []byte, err error) {
		secret.Destroy()
		secret, room, err = newBuffer(memory, n)
		return room, err
	}
	defer func() { secret.Destroy() }()
	var base, own, baseProtected, ownProtected []time.Duration
	for b.Loop() {
		base, own = append(base, round(v1, nil)), append(own, round(oblivious, nil))
		baseProtected, ownProtected = append(baseProtected, round(v1, into)),
			append(ownProtected, round(oblivious, into))
	}
	b.ReportMetric(float64(testkit.Median(own))/float64(testkit.Median(base)), "x-v1")
	b.ReportMetric(float64(testkit.Median(ownProtected))/float64(testkit.Median(baseProtected)),
		"x-v1-protected")
	b.ReportMetric(float64(testkit.Median(own).Microseconds()), "µs-client")
	b.ReportMetric(float64(testkit.Median(base).Microseconds()), "µs-v1-client")
}

// answerOHTTP seals content as the gateway does.
func answerOHTTP(b *testing.B, g *fakes.Gateway, r *sealedRequest, content []byte) *http.Response {
	x, err := ohttp.Open(r.http.Body, g.Ring, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	_, _ = io.Copy(io.Discard, x.Request())
	message, err := bhttp.AppendResponse(nil, &bhttp.Response{Status: 200,
		Header: []bhttp.Field{{Name: "content-type", Value: "application/json"}}}, content, nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := x.Response(&sealed)
	if err != nil {
		b.Fatal(err)
	}
	_, _ = w.Write(message)
	_ = w.Finish()
	return goodAnswer(ohttp.TypeResponse, sealed.Bytes())
}

func answerV1(b *testing.B, r *sealedRequest, content []byte) *http.Response {
	e, err := fakes.Seal(r.key.RSA.Public(), content)
	if err != nil {
		b.Fatal(err)
	}
	return goodAnswer(hybrid.ContentType, envelope.Append(nil, e))
}

func goodAnswer(kind string, body []byte) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {kind}},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
}
