// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// counted counts what goes to a gateway, and what it refuses.
type counted struct {
	to                     http.RoundTripper
	lists, posts, refusals atomic.Int64
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	n := &c.posts
	if r.Method == http.MethodGet {
		n = &c.lists
	}
	n.Add(1)
	resp, err := c.to.RoundTrip(r)
	if err == nil && resp.StatusCode != http.StatusOK {
		c.refusals.Add(1)
	}
	return resp, err
}

// A client that asks all day long, or once a day, meets no error when the gateway replaces its
// configurations each hour: it asks for the list before it seals to one that may be gone.
func TestOHTTPHourlyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1,
			ConfigEvery: time.Hour}})
		r := newRig(t, func(c *GatewayConfig) { c.Keys = keys })
		h := &heard{}
		way := &counted{to: fakes.Direct(r.g)}
		client := ohttpClient(t, "https://gateway.test", func(c *Config) {
			c.Trust, c.Transport, c.Audit = Pin(signerOf(t, r.g)), way, h.Record
		})
		chat := func(what string) {
			t.Helper()
			if _, err := client.Chat(t.Context(), ask("x")); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		began, calls := time.Now(), int64(0)
		for ; time.Since(began) < 6*time.Hour; calls++ {
			chat(time.Since(began).String())
			settle(7 * time.Minute)
		}
		if lists := way.lists.Load(); lists < 5 || lists > 6 {
			t.Errorf("%d lists in six hours", lists)
		}
		for _, pause := range []time.Duration{59*time.Minute + 59*time.Second, 24 * time.Hour} {
			settle(pause)
			before := way.lists.Load()
			chat("after " + pause.String())
			calls++
			if n := way.lists.Load() - before; n > 1 || pause > time.Hour && n != 1 {
				t.Errorf("after %v: %d lists", pause, n)
			}
		}
		if n := client.Stats(); n.Retries != 0 || n.Failures != 0 || way.posts.Load() != calls ||
			way.refusals.Load() != 0 {
			t.Errorf("%+v, %d posts, %d refusals", n, way.posts.Load(), way.refusals.Load())
		}
		changes := 0
		for _, e := range h.events {
			if e.Type == EventServerKeyChanged {
				changes++
				if severityText(e.Severity) != "INFO" { // under the same signer
					t.Errorf("%+v", e)
				}
			}
		}
		if changes < 6 {
			t.Errorf("%d changes of the key", changes)
		}
		_ = client.Close()
		_ = r.g.Close()
		keys.Close()
	})
}

// A gateway without a key store has one RSA key and one signer, and replaces its configurations.
func TestOHTTPRotationOfOwnKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *GatewayConfig) {
			c.Keys, c.Protocols = nil, []Protocol{ProtocolOHTTP}
		})
		old, signer := r.KeyConfig(), signerOf(t, r.g)
		settle(time.Hour + time.Second)
		if r.KeyConfig().Equal(old) || signerOf(t, r.g) != signer {
			t.Error("the same configuration, or another signer")
		}
		_ = r.g.Close()
	})
}

// A key is used for an hour by whichever clock says more: one of them stands still while the
// machine sleeps, the other one can be set back.
func TestServerKeyAge(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		age   time.Duration
		fresh bool
	}{{0, true}, {time.Hour - 1, true}, {time.Hour, false}, {24 * time.Hour, false},
		{-time.Second, false}} {
		if got := isFresh(now.Add(-c.age), now); got != c.fresh {
			t.Errorf("%v old: %v", c.age, got)
		}
		if got := isFresh(now.Add(-c.age).Round(0), now); got != c.fresh {
			t.Errorf("%v old by the wall's clock: %v", c.age, got)
		}
	}
	if isFresh(time.Time{}, now) {
		t.Error("one that was never fetched")
	}
}
