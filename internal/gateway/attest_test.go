// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// plainEvidence is the report data itself.
func plainEvidence(_ context.Context, data [64]byte) (attest.Document, error) {
	return attest.Document{Format: "plain", Evidence: data[:]}, nil
}

// askEvidence asks from an address.
func (r *rig) askEvidence(ctx context.Context, nonce [32]byte,
	from string) *httptest.ResponseRecorder {
	req := httptest.NewRequestWithContext(ctx, http.MethodGet,
		attest.Path+"?"+attest.Query(nonce), nil)
	req.RemoteAddr = from
	return r.Do(req)
}

func TestGatewayAttests(t *testing.T) {
	rsa := publicOf(t, "rsa-2048").Fingerprint()
	for name, test := range map[string]struct {
		v1, ohttp bool
		types     []uint8
	}{
		"both":           {true, true, []uint8{attest.TypeSigner, attest.TypeRSA}},
		"version 1":      {true, false, []uint8{attest.TypeRSA}},
		"Oblivious HTTP": {false, true, []uint8{attest.TypeSigner}},
	} {
		r := newRig(t, func(c *Config) {
			c.ServeV1, c.ServeOHTTP, c.Attester = test.v1, test.ohttp, plainEvidence
		})
		seen := make(map[string]bool)
		for range 3 {
			nonce := attest.NewNonce()
			w := r.askEvidence(t.Context(), nonce, "192.0.2.1:1")
			doc, err := attest.Decode(w.Body.Bytes())
			if err != nil || w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" ||
				w.Header().Get("Content-Type") != "application/json" {
				t.Fatalf("%s: %d, %v, %v", name, w.Code, w.Header(), err)
			}
			data := attest.ReportData(nonce, doc.Keys)
			if string(doc.Evidence) != string(data[:]) || seen[string(doc.Evidence)] {
				t.Errorf("%s: not a report of its own", name)
			}
			seen[string(doc.Evidence)] = true
			if len(doc.Keys) != len(test.types) {
				t.Fatalf("%s: %d keys", name, len(doc.Keys))
			}
			for i, k := range doc.Keys {
				want := rsa
				if k.Type == attest.TypeSigner {
					if want, err = r.s.cfg.Keys.Signer(); err != nil {
						t.Fatal(err)
					}
				}
				if got := hybrid.HexFingerprint(k.Fingerprint); k.Type != test.types[i] ||
					got != want {
					t.Errorf("%s: type %d, %s, want %s", name, k.Type, got, want)
				}
			}
		}
	}
}

func TestGatewayAttestationRefusals(t *testing.T) {
	called := false
	r := newRig(t, func(c *Config) {
		c.Attester = func(ctx context.Context, data [64]byte) (attest.Document, error) {
			called = true
			return plainEvidence(ctx, data)
		}
	})
	good := attest.Query([32]byte{1})
	for _, c := range []struct {
		method, query string
		status        int
	}{
		{"GET", "", 400}, {"GET", "nonce=", 400}, {"GET", good[:69], 400},
		{"GET", good + "0", 400}, {"GET", good + "&a=b", 400}, {"GET", good + "&" + good, 400},
		{"GET", strings.ToUpper(good), 400}, {"GET", "x" + good, 400},
		{"POST", good, 405}, {"PUT", good, 405},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, attest.Path, nil)
		req.Method, req.URL.RawQuery = c.method, c.query
		fakes.Refused(t, c.method+" "+c.query, r.Do(req), c.status)
	}
	for _, path := range []string{attest.Path + "/", strings.ToUpper(attest.Path)} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path+"?"+good, nil)
		fakes.Refused(t, path, r.Do(req), 404)
	}
	if called {
		t.Error("the Attester was asked")
	}
	fakes.Refused(t, "no Attester", newRig(t, nil).askEvidence(t.Context(), [32]byte{}, ""), 404)
}

// What an Attester does wrong is the gateway's failure, and nothing of it gets out.
func TestGatewayAttesterFails(t *testing.T) {
	for name, test := range map[string]struct {
		document attest.Document
		err      error
	}{
		"an error":         {attest.Document{}, errors.New(testkit.Leak)},
		"nothing":          {attest.Document{}, nil},
		"much evidence":    {attest.Document{Evidence: make([]byte, attest.MaxEvidence+1)}, nil},
		"no format":        {attest.Document{Format: "", Evidence: []byte{1}}, nil},
		"much besides":     {attest.Document{Endorsements: [][]byte{make([]byte, 1<<20)}}, nil},
		"an empty addend":  {attest.Document{Endorsements: [][]byte{{}}}, nil},
		"many endorsments": {attest.Document{Endorsements: make([][]byte, 33)}, nil},
	} {
		r := newRig(t, func(c *Config) {
			c.Attester = func(context.Context, [64]byte) (attest.Document, error) {
				d := test.document
				if d.Format == "" && name != "no format" {
					d.Format = "plain"
				}
				if d.Evidence == nil && name != "nothing" {
					d.Evidence = []byte{1}
				}
				return d, test.err
			}
		})
		w := r.askEvidence(t.Context(), [32]byte{}, "")
		if fakes.Refused(t, name, w, 500); strings.Contains(w.Body.String(), testkit.Leak) {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
	boom := true
	r := newRig(t, func(c *Config) {
		c.Attester = func(ctx context.Context, data [64]byte) (attest.Document, error) {
			if boom {
				panic(testkit.Leak)
			}
			return plainEvidence(ctx, data)
		}
	})
	fakes.Refused(t, "a panic", r.askEvidence(t.Context(), [32]byte{}, "192.0.2.1:1"), 500)
	if !strings.Contains(r.Logged(), "panic survived") || strings.Contains(r.Logged(),
		testkit.Leak) {
		t.Errorf("log: %s", r.Logged())
	}
	boom = false // it holds nothing any more
	if w := r.askEvidence(t.Context(), [32]byte{}, "192.0.2.1:1"); w.Code != 200 {
		t.Errorf("after a panic: %d", w.Code)
	}
}

// One address has one request, all together have 16, and an Attester is asked one thing at a time.
func TestGatewayAttestsOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		inside, most := 0, 0
		r := newRig(t, func(c *Config) {
			c.Attester = func(ctx context.Context, data [64]byte) (attest.Document, error) {
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(100 * time.Millisecond)
				mu.Lock()
				inside--
				mu.Unlock()
				return plainEvidence(ctx, data)
			}
		})
		if w := r.askEvidence(t.Context(), [32]byte{}, ""); w.Code != 200 { // keys are made
			t.Fatal(w.Code)
		}
		counts := make(map[string]int)
		var wg sync.WaitGroup
		ask := func(from string) {
			wg.Go(func() {
				w := r.askEvidence(t.Context(), [32]byte{}, from)
				mu.Lock()
				defer mu.Unlock()
				counts[fmt.Sprint(w.Code, w.Header().Get("Retry-After"))]++
			})
			synctest.Wait()
		}
		for range 3 {
			ask("192.0.2.1:1")
		}
		for i := range 20 {
			ask(fmt.Sprintf("198.51.100.%d:1", i))
		}
		wg.Wait()
		if most != 1 || counts["200"] != 16 || counts["5031"] != 7 || len(counts) != 2 {
			t.Errorf("%d at a time, %v", most, counts)
		}
		for i := range 9 {
			ask(fmt.Sprintf("[2001:db8:1:%d::1]:1", i))
		}
		wg.Wait()
		if counts["200"] != 20 || counts["5031"] != 12 || r.s.limits.attesting.Taken() != 0 {
			t.Errorf("a /48: %v", counts)
		}
	})
}

// hangingRig has an Attester that ends with its context, or when release is closed.
func hangingRig(t *testing.T, obeys *atomic.Bool, release chan struct{}) *rig {
	return newRig(t, func(c *Config) {
		c.Attester = func(ctx context.Context, data [64]byte) (attest.Document, error) {
			if obeys.Load() {
				<-ctx.Done()
				return attest.Document{}, ctx.Err()
			}
			<-release
			return plainEvidence(ctx, data)
		}
	})
}

// An Attester that hangs costs each request ten seconds at most, whether or not it obeys.
func TestGatewayAttesterHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var obeys atomic.Bool
		obeys.Store(true)
		r := hangingRig(t, &obeys, release)
		took := func(ctx context.Context) time.Duration {
			start := time.Now()
			w := r.askEvidence(ctx, [32]byte{}, "192.0.2.1:1")
			if w.Code != 503 || w.Header().Get("Retry-After") != "1" {
				t.Errorf("%d, %v", w.Code, w.Header())
			}
			return time.Since(start)
		}
		if d := took(t.Context()); d != attestTime {
			t.Errorf("obeys: %v", d)
		}
		synctest.Wait()
		obeys.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if d := took(ctx); d != time.Second {
			t.Errorf("the client left: %v", d)
		}
		if d := took(t.Context()); d != attestTime {
			t.Errorf("another is inside: %v", d)
		}
		close(release)
		synctest.Wait()
		if w := r.askEvidence(t.Context(), [32]byte{}, "192.0.2.1:1"); w.Code != 200 {
			t.Errorf("when it is back: %d", w.Code)
		}
	})
}

// slowReader is a connection whose client reads nothing: it takes an answer when its time is over.
type slowReader struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (w *slowReader) SetWriteDeadline(at time.Time) error {
	w.until = at
	return nil
}

func (w *slowReader) Write([]byte) (int, error) {
	time.Sleep(time.Until(w.until))
	return 0, os.ErrDeadlineExceeded
}

// A client that does not read its answer keeps nobody else from evidence, not even at its own
// address, where the next client may ask before the server knows that the last one has its answer.
// It is waited for as long as for an Attester, and some answers of an address wait at a time.
func TestGatewayEvidenceUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Attester = plainEvidence })
		r.askEvidence(t.Context(), [32]byte{}, "") // keys are made
		var wg sync.WaitGroup
		for i := range maxUnread {
			if w := r.askEvidence(t.Context(), [32]byte{}, "192.0.2.1:1"); w.Code != 200 {
				t.Errorf("beside %d: %d", i, w.Code)
			}
			wg.Go(func() {
				req := httptest.NewRequestWithContext(t.Context(), http.MethodGet,
					attest.Path+"?"+attest.Query([32]byte{}), nil)
				req.RemoteAddr = "192.0.2.1:1"
				start := time.Now()
				r.s.ServeHTTP(&slowReader{ResponseRecorder: httptest.NewRecorder()}, req)
				if took := time.Since(start); took != attestTime {
					t.Errorf("waited %v for a client that does not read", took)
				}
			})
			synctest.Wait()
		}
		fakes.Refused(t, "one more", r.askEvidence(t.Context(), [32]byte{}, "192.0.2.1:1"), 503)
		if w := r.askEvidence(t.Context(), [32]byte{}, "198.51.100.1:1"); w.Code != 200 {
			t.Errorf("another address: %d", w.Code)
		}
		wg.Wait()
		if r.s.limits.attesting.Taken()+r.s.limits.unread.Taken() != 0 {
			t.Error("a place was not returned")
		}
	})
}

// Close ends a call of an Attester that obeys, and waits for one that does not.
func TestGatewayCloseDuringAttester(t *testing.T) {
	for _, obedient := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			var obeys atomic.Bool
			obeys.Store(obedient)
			r := hangingRig(t, &obeys, release)
			var wg sync.WaitGroup
			wg.Go(func() {
				w := r.askEvidence(t.Context(), [32]byte{}, "")
				if obedient {
					fakes.Refused(t, "closing", w, 503)
				}
			})
			synctest.Wait()
			time.AfterFunc(time.Minute, func() { close(release) })
			start := time.Now()
			if err := r.s.Close(); err != nil || obedient != (time.Since(start) == 0) {
				t.Errorf("%v: Close took %v, %v", obedient, time.Since(start), err)
			}
			wg.Wait()
			time.Sleep(time.Minute)
		})
	}
}

// Evidence says nothing about keys that somebody outside has.
func TestGatewayKeysStayInside(t *testing.T) {
	store := folderStore(t)
	c := Config{Upstream: "https://upstream.test/v1", AllowUnauthenticated: true, ServeV1: true,
		Keys: store}
	for name, test := range map[string]struct {
		attester Attester
		inside   bool
		ok       bool
	}{
		"neither": {nil, false, true}, "said": {plainEvidence, true, true},
		"not said": {plainEvidence, false, false}, "nothing to attest": {nil, true, true},
	} {
		c.Attester, c.KeysStayInside = test.attester, test.inside
		s, err := New(c)
		if wrong, ok := errors.AsType[*OptionError](err); ok == test.ok ||
			ok && (wrong.Field != "Keys" || !strings.Contains(err.Error(), "KeysStayInside")) {
			t.Errorf("%s: %v", name, err)
		}
		if s != nil {
			_ = s.Close()
		}
	}
}

func folderStore(t *testing.T) *keystore.Store {
	t.Helper()
	store, err := keystore.Create(t.Context(), filepath.Join(t.TempDir(), "keys"),
		secret(t, "correct horse battery staple"),
		&keystore.Options{WeakKDF: true, NewKey: testkit.NewMaker().NewKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}
