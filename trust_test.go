// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestPinValidation(t *testing.T) {
	good := publicOf(t, "rsa-2048").Fingerprint()
	for _, c := range []struct {
		pins []string
		ok   bool
	}{
		{nil, false}, {[]string{""}, false}, {[]string{good[:63]}, false}, {[]string{good + "0"}, false},
		{[]string{good[:63] + "g"}, false}, {[]string{good, "oops"}, false}, {[]string{"sha256:" + good}, true},
		{[]string{strings.Repeat("ab:", 31) + "ab"}, true}, {[]string{"SHA256:" + strings.Repeat("AB:", 31) + "AB"}, true},
		{[]string{good + "  -"}, true}, {[]string{good + " *key.der\n"}, true}, {[]string{"sha256: " + good}, true},
		{[]string{"sha1:" + good}, false}, {[]string{"sha256:" + good[:62]}, false}, {[]string{strings.Repeat("ab:", 32)}, false},
		{[]string{strings.Repeat("ab:", 30) + "ab"}, false}, {[]string{"key.der  " + good}, false}, {[]string{good[:62] + "  -"}, false}, {[]string{good[:32] + " " + good[32:]}, false},
		{[]string{good}, true}, {[]string{strings.ToUpper(good)}, true}, {[]string{" " + good + "\n"}, true}, {[]string{good, good}, true},
	} {
		_, err := NewSecureCompletionClient(Config{BaseURL: "https://server.test", Trust: Pin(c.pins...), Transport: neverUsed(t)})
		if e, ok := errors.AsType[*ConfigError](err); (err == nil) != c.ok || (!c.ok && (!ok || e.Field != "Config.Trust")) {
			t.Errorf("%q: %v", c.pins, err)
		}
	}
}

func TestPin(t *testing.T) {
	right, wrong, other := publicOf(t, "rsa-2048").Fingerprint(), publicOf(t, "server-4096").Fingerprint(), publicOf(t, "other-4096").Fingerprint()
	for _, pins := range [][]string{{right}, {strings.ToUpper(right)}, {wrong, right}, {" " + right + " "}} {
		s := fakes.NewServer(t)
		c := sealedClient(t, s, func(c *Config) { c.Trust = Pin(pins...) })
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Errorf("%q: %v", pins, err)
		}
	}
	for _, pins := range [][]string{{wrong}, {wrong, other}} {
		s := fakes.NewServer(t)
		asked := false
		c := sealedClient(t, s, func(c *Config) {
			c.Trust = Pin(pins...)
			c.OnServerKey = func(_, _ *PublicKey) error { asked = true; return nil }
		})
		_, chatErr := c.Chat(t.Context(), ask("x"))
		_, keyErr := c.ServerKey(t.Context())
		_, completeErr := c.Complete(t.Context(), secret(t, `{"model":"m","messages":[]}`))
		for _, err := range []error{chatErr, keyErr, completeErr, c.Warm(t.Context())} {
			e, ok := errors.AsType[*ServerKeyError](err)
			if !ok || e.Got != right || strings.Join(e.Want, " ") != strings.Join(pins, " ") || e.Err != nil {
				t.Errorf("%q: %v", pins, err)
			}
		}
		if gets, posts := s.Counts(); posts != 0 || gets != 4 {
			t.Errorf("%q: %d key fetches and %d requests", pins, gets, posts)
		}
		if asked {
			t.Error("OnServerKey cannot overrule a pin and is not asked")
		}
	}
}

// The error's list is the caller's: changing it must not change what is trusted.
func TestPinErrorIsACopy(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, func(c *Config) { c.Trust = Pin(publicOf(t, "other-4096").Fingerprint()) })
	_, err := c.ServerKey(t.Context())
	e, ok := errors.AsType[*ServerKeyError](err)
	if !ok {
		t.Fatal(err)
	}
	e.Want[0] = e.Got
	if _, err := c.ServerKey(t.Context()); err == nil {
		t.Error("trust was changed through an error")
	}
}

type keyChange struct{ old, new string }

func TestOnServerKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakes.NewServer(t)
		first, second := publicOf(t, "rsa-2048").Fingerprint(), publicOf(t, "other-4096").Fingerprint()
		refusal := errors.New("not this one")
		var calls []keyChange
		var answer error
		c := sealedClient(t, s, func(c *Config) {
			c.OnServerKey = func(old, new *PublicKey) error {
				k := keyChange{new: new.Fingerprint()}
				if old != nil {
					k.old = old.Fingerprint()
				}
				calls = append(calls, k)
				return answer
			}
		})
		expect := func(what string, want ...keyChange) {
			t.Helper()
			if len(calls) != len(want) {
				t.Fatalf("%s: calls %v, want %v", what, calls, want)
			}
			for i := range want {
				if calls[i] != want[i] {
					t.Fatalf("%s: calls %v, want %v", what, calls, want)
				}
			}
			calls = nil
		}

		answer = refusal
		_, err := c.Chat(t.Context(), ask("x"))
		if e, ok := errors.AsType[*ServerKeyError](err); !ok || e.Err != refusal || !errors.Is(err, refusal) || e.Got != first || len(e.Want) != 0 {
			t.Errorf("refused at first: %v", err)
		}
		expect("refused", keyChange{"", first})
		if _, posts := s.Counts(); posts != 0 {
			t.Error("something was sent to a refused key")
		}

		answer = nil
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Fatal(err)
		}
		expect("accepted: still the first key", keyChange{"", first})

		time.Sleep(serverKeyLife + time.Second)
		if _, err := c.ServerKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect("the same key again")

		s.Present("other-4096")
		time.Sleep(serverKeyLife + time.Second)
		answer = refusal
		_, err = c.Chat(t.Context(), ask("x"))
		if e, ok := errors.AsType[*ServerKeyError](err); !ok || e.Err != refusal || e.Got != second || len(e.Want) != 1 || e.Want[0] != first {
			t.Errorf("refused change: %v", err)
		}
		expect("refused change", keyChange{first, second})

		answer = nil
		if k, err := c.ServerKey(t.Context()); err != nil || k.Fingerprint() != second {
			t.Errorf("accepted change: %v, %v", k, err)
		}
		expect("accepted change", keyChange{first, second})
	})
}

func TestAcceptServerKey(t *testing.T) {
	got := publicOf(t, "rsa-2048").Fingerprint()
	refusal := errors.New("no")
	for name, change := range map[string]func(*Config){
		"pin":         func(c *Config) { c.Trust = Pin(publicOf(t, "other-4096").Fingerprint()) },
		"OnServerKey": func(c *Config) { c.OnServerKey = func(_, _ *PublicKey) error { return refusal } },
	} {
		t.Run(name, func(t *testing.T) {
			s := fakes.NewServer(t)
			c := sealedClient(t, s, change)
			_, err := c.Chat(t.Context(), ask("x"))
			e, ok := errors.AsType[*ServerKeyError](err)
			if !ok {
				t.Fatal(err)
			}
			if err := c.AcceptServerKey(publicOf(t, "client-4096").Fingerprint()); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Chat(t.Context(), ask("x")); err == nil {
				t.Error("accepting one key accepted another")
			}
			if err := c.AcceptServerKey(" " + strings.ToUpper(e.Got) + "\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Chat(t.Context(), ask("x")); err != nil {
				t.Errorf("after accepting: %v", err)
			}
			if k, err := c.ServerKey(t.Context()); err != nil || k.Fingerprint() != got {
				t.Errorf("ServerKey: %v, %v", k, err)
			}
			s.Present("server-4096") // a change to yet another key is still refused
			_ = c.AcceptServerKey(e.Got)
			if _, err := c.Chat(t.Context(), ask("x")); err == nil {
				t.Error("another key is trusted")
			}
		})
	}
}

func TestAcceptServerKeyMalformed(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	if _, err := c.ServerKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	good := publicOf(t, "rsa-2048").Fingerprint()
	for _, f := range []string{"", "x", good[1:], good + "00", strings.Repeat("z", 64)} {
		if err := c.AcceptServerKey(f); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%q: %v", f, err)
		}
	}
	_, _ = c.ServerKey(t.Context())
	if gets, _ := s.Counts(); gets != 1 {
		t.Error("a refused fingerprint made the client fetch again")
	}
	if err := c.AcceptServerKey(good); err != nil {
		t.Fatal(err)
	}
	_, _ = c.ServerKey(t.Context())
	if gets, _ := s.Counts(); gets != 2 {
		t.Errorf("%d fetches; accepting asks the server again", gets)
	}
}

// countingKey is a serverKey with a fetch that counts, takes a second and hands out what key points
// to.
func countingKey(t *testing.T, key **PublicKey) (*serverKey, *atomic.Int32) {
	var fetches atomic.Int32
	s := &serverKey{trust: TrustHTTPS(), log: slog.New(slog.DiscardHandler), life: t.Context()}
	s.fetch = func(ctx context.Context) ([]*PublicKey, error) {
		fetches.Add(1)
		select {
		case <-time.After(time.Second):
			return []*PublicKey{*key}, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return s, &fetches
}

func TestServerKeyLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if serverKeyLife != time.Hour || refreshCooldown != time.Minute {
			t.Error("the documented times have changed")
		}
		key := publicOf(t, "rsa-2048")
		s, fetches := countingKey(t, &key)
		get := func(want *PublicKey, count int32) {
			t.Helper()
			k, err := s.get(t.Context())
			if err != nil || !k.Equal(want) || fetches.Load() != count {
				t.Errorf("got %v, %v after %d fetches, want %d", k, err, fetches.Load(), count)
			}
		}
		get(key, 1)
		old := key
		key = publicOf(t, "rsa-3072")
		time.Sleep(serverKeyLife - time.Nanosecond)
		get(old, 1)
		time.Sleep(time.Nanosecond)
		get(key, 2)
		get(key, 2)
	})
}

// A key that cannot be renewed is not used on: the server may have lost it.
func TestServerKeyFetchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := publicOf(t, "rsa-2048")
		s, _ := countingKey(t, &key)
		if _, err := s.get(t.Context()); err != nil {
			t.Fatal(err)
		}
		good := s.fetch
		failure := errors.New("down")
		s.fetch = func(context.Context) ([]*PublicKey, error) { return nil, failure }
		if k, err := s.get(t.Context()); err != nil || k == nil {
			t.Errorf("within the hour: %v", err)
		}
		time.Sleep(serverKeyLife)
		if k, err := s.get(t.Context()); err != failure || k != nil {
			t.Errorf("after the hour: %v, %v", k, err)
		}
		s.fetch = good
		if _, err := s.get(t.Context()); err != nil {
			t.Errorf("a failure is remembered: %v", err)
		}
	})
}

func TestRefreshAfterRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := publicOf(t, "rsa-2048")
		s, fetches := countingKey(t, &key)
		used, err := s.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		refresh := func(want bool, count int32) {
			t.Helper()
			got, err := s.refresh(t.Context(), used)
			if err != nil || got != want || fetches.Load() != count {
				t.Errorf("refresh: %v, %v, %d fetches; want %v, %d", got, err, fetches.Load(), want, count)
			}
		}
		refresh(false, 2) // the same key
		refresh(false, 2) // quiet for a minute
		time.Sleep(refreshCooldown - time.Second)
		refresh(false, 2)
		time.Sleep(2 * time.Second)
		key = publicOf(t, "rsa-3072")
		refresh(true, 3)
		refresh(true, 3) // who still has the old key learns of the new one without a fetch
		if k, _ := s.get(t.Context()); !k.Equal(key) || fetches.Load() != 3 {
			t.Errorf("in use: %v after %d fetches", k, fetches.Load())
		}
	})
}

// The client renews the key once when the server refuses, and gives up when that does not help.
func TestRefusalRenewsTheKey(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, nil)
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Present("server-4096")
	resp, err := c.Chat(t.Context(), ask("x"))
	if err != nil || resp.Text() != "fine" {
		t.Fatalf("after a change: %v", err)
	}
	if gets, posts := s.Counts(); gets != 2 || posts != 2 {
		t.Errorf("%d key fetches, %d requests", gets, posts)
	}
	sent := s.Questions()
	a, b := sent[0].Request.Header.Get(hybrid.HeaderPayloadID), sent[1].Request.Header.Get(hybrid.HeaderPayloadID)
	if a == b {
		t.Error("the second attempt has the first one's payload id")
	}
	s.Answer = func(*fakes.Question) *http.Response { return respond(400, `{"detail":"no"}`) }
	for range 3 {
		if _, err := c.Chat(t.Context(), ask("x")); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("got %v", err)
		}
	}
	if gets, posts := s.Counts(); gets != 3 || posts != 5 {
		t.Errorf("%d key fetches, %d requests: refusals must not become a storm", gets, posts)
	}
	for status := range map[int]bool{401: true, 403: true, 429: true, 500: true, 503: true} {
		s.Answer = func(*fakes.Question) *http.Response { return respond(status, "") }
		_, _ = c.Chat(t.Context(), ask("x"))
	}
	if gets, _ := s.Counts(); gets != 3 {
		t.Errorf("%d key fetches: other refusals say nothing of the key", gets)
	}
}

func TestRefusalRenewsOnlyTrustedKeys(t *testing.T) {
	s := fakes.NewServer(t)
	c := sealedClient(t, s, func(c *Config) { c.Trust = Pin(publicOf(t, "rsa-2048").Fingerprint()) })
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Present("other-4096")
	_, err := c.Chat(t.Context(), ask("x"))
	if _, ok := errors.AsType[*ServerKeyError](err); !ok {
		t.Errorf("got %v", err)
	}
	if _, posts := s.Counts(); posts != 1 {
		t.Errorf("%d requests; nothing may be sealed to the new key", posts)
	}
}

func TestConcurrentGetsFetchOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := publicOf(t, "rsa-2048")
		s, fetches := countingKey(t, &key)
		var notified atomic.Int32
		s.notify = func(_, _ *PublicKey) error { notified.Add(1); return nil }
		gone, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				ctx := t.Context()
				if i%10 == 0 {
					ctx = gone
				}
				if k, err := s.get(ctx); (err != nil) != (i%10 == 0) || (err == nil && !k.Equal(key)) {
					t.Errorf("%d: %v, %v", i, k, err)
				}
			})
		}
		synctest.Wait()
		leave()
		wg.Wait()
		if fetches.Load() != 1 || notified.Load() != 1 {
			t.Errorf("%d fetches, %d calls of OnServerKey", fetches.Load(), notified.Load())
		}
	})
}

func TestFetchEndsWithItsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := publicOf(t, "rsa-2048")
		s, fetches := countingKey(t, &key)
		var ended atomic.Int32
		inner := s.fetch
		s.fetch = func(ctx context.Context) ([]*PublicKey, error) {
			k, err := inner(ctx)
			if err != nil {
				ended.Add(1)
			}
			return k, err
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := s.get(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if ended.Load() != 1 {
			t.Error("the fetch goes on although nobody waits")
		}
		if _, err := s.get(t.Context()); err != nil || fetches.Load() != 2 {
			t.Errorf("the next one: %v after %d fetches", err, fetches.Load())
		}
	})
}

// Config promises one call of OnServerKey at a time, whoever has given up waiting.
func TestOnServerKeyOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := publicOf(t, "rsa-2048")
		s, _ := countingKey(t, &key)
		var running, calls atomic.Int32
		s.notify = func(_, _ *PublicKey) error {
			calls.Add(1)
			if running.Add(1) > 1 {
				t.Error("OnServerKey runs twice at the same time")
			}
			time.Sleep(time.Minute)
			running.Add(-1)
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := s.get(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if k, err := s.get(t.Context()); err != nil || !k.Equal(key) {
			t.Errorf("got %v, %v", k, err)
		}
		s.fetching.Close()
	})
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
