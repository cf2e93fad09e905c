// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
	"github.com/seed-017344ad/sealedchat/internal/testkit/profile"
)

// profileKeys is a key store with the keys of the vectors.
func profileKeys(t testing.TB, v profile.Requests) *keystore.Store {
	t.Helper()
	at := time.Unix(v.Now, 0)
	rsa, err := keyfile.NewRSAKey(testkit.Key(t, "rsa-2048"), keyfile.AllowWeak) // or one is made
	if err != nil {
		t.Fatal(err)
	}
	defer rsa.Wipe()
	body := &keyfile.Body{Generation: 1, Signer: make([]byte, 32), Keys: []keyfile.Entry{{
		State: keyfile.Primary, Created: at, Activated: at, Key: rsa,
	}}}
	for _, k := range v.Keys {
		body.ConfigKeys = append(body.ConfigKeys, keyfile.ConfigKey{ID: k.ID, KEM: k.KEM,
			Seed: k.Seed, Created: at, AES128: len(k.AEADs) > 1})
	}
	passphrase := secret(t, "a passphrase of the vectors")
	master, err := keyfile.NewMasterKey([]byte(passphrase), 1, keyfile.AllowWeak)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keyfile.Seal(body, master)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keystore.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := keystore.Open(t.Context(), dir, passphrase, &keystore.Options{WeakKDF: true,
		Rotation: keystore.Rotation{Every: -1}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sealedAnswer is the client's half of a delivery, from the seed of its key.
func sealedAnswer(t testing.TB, v profile.Requests, body, answer []byte) (*bhttp.Response, []byte) {
	t.Helper()
	for _, k := range v.Keys {
		if k.ID != body[0] {
			continue
		}
		message, err := profile.OpenAnswer(k.Seed, body, answer)
		if err != nil {
			t.Fatal(err)
		}
		head, content, err := bhttp.ReadResponse(bytes.NewReader(message), bhttp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		text, err := content.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		return head, text
	}
	t.Fatalf("no key has the id %d", body[0])
	return nil, nil
}

// TestProfileRequests posts every body of the vectors, at its time, to a gateway with the vectors'
// keys and clock, which has seen nothing before.
func TestProfileRequests(t *testing.T) {
	var v profile.Requests
	if err := profile.Read("../..", "requests.json", &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Cases) < 60 {
		t.Fatalf("%d cases", len(v.Cases))
	}
	var atOnce, later []profile.RequestCase
	for _, c := range v.Cases {
		if c.Deliveries[len(c.Deliveries)-1].After == 0 {
			atOnce = append(atOnce, c)
		} else {
			later = append(later, c)
		}
	}
	inBubble(t, v, atOnce...) // whose clock stands still
	for _, c := range later {
		inBubble(t, v, c)
	}
}

func inBubble(t *testing.T, v profile.Requests, cases ...profile.RequestCase) {
	synctest.Test(t, func(t *testing.T) {
		if now := time.Now().Unix(); now != v.Now {
			t.Fatalf("the clock of the bubble is at %d", now)
		}
		keys := profileKeys(t, v)
		defer keys.Close()
		for _, c := range cases {
			r := &rig{Rig: &fakes.Rig{T: t}}
			r.s = newServer(t, Config{
				Upstream: "https://upstream.test/v1", UpstreamTransport: r.Rig, Keys: keys,
				Replay: replay.NewMemory(0),
				OHTTP:  OHTTPConfig{DateWindow: time.Duration(v.Window) * time.Second},
			}, nil)
			r.Handler = r.s
			tryCase(t, r, v, c)
			_ = r.s.Close()
		}
	})
}

func tryCase(t *testing.T, r *rig, v profile.Requests, c profile.RequestCase) {
	t.Helper()
	began, upstream := time.Now(), 0
	for i, want := range c.Deliveries {
		time.Sleep(time.Until(began.Add(time.Duration(want.After) * time.Second)))
		got := deliver(t, r, v, want.Body)
		if got.Outer != want.Outer || got.Inner != want.Inner || got.Problem != want.Problem ||
			got.Unprocessed != want.Unprocessed {
			want.Body = nil
			t.Errorf("%s, delivery %d:\n got %+v\nwant %+v", c.Name, i+1, got, want)
		}
		if want.Inner == 200 {
			upstream++
		}
	}
	if n := len(r.Forwarded()); n != upstream {
		t.Errorf("%s: %d requests went upstream, want %d", c.Name, n, upstream)
	}
}

// deliver posts a body, and says what became of it.
func deliver(t testing.TB, r *rig, v profile.Requests, body []byte) (d profile.Delivery) {
	t.Helper()
	w := r.Do(fakes.OHTTPPost(t, bytes.NewReader(body)))
	d.Outer = w.Code
	if w.Code != 200 {
		d.Problem = problemOf(t, w.Body.Bytes())
		return d
	}
	if w.Header().Get("Content-Type") != ohttp.TypeResponse {
		t.Fatalf("%v", w.Header())
	}
	head, content := sealedAnswer(t, v, body, w.Body.Bytes())
	d.Inner = head.Status
	for _, f := range head.Header {
		d.Unprocessed = d.Unprocessed || f.Name == ohttp.HeaderProcessed && f.Value == "no"
	}
	if d.Inner != 200 {
		d.Problem = problemOf(t, content)
	}
	return d
}

// problemOf is the type of a problem document, without what all have before #.
func problemOf(t testing.TB, document []byte) string {
	t.Helper()
	var p struct{ Type string }
	if err := json.Unmarshal(document, &p); err != nil {
		t.Fatalf("%s: %v", document, err)
	}
	if p.Type == "about:blank" {
		return ""
	}
	problem, ok := strings.CutPrefix(p.Type, "https://iana.org/assignments/http-problem-types")
	if !ok && p.Type != "" {
		t.Errorf("a problem of type %q", p.Type)
	}
	return problem
}

// The list of the vectors is what a gateway with these keys would show.
func TestProfileKeysAreListed(t *testing.T) {
	var v profile.Requests
	if err := profile.Read("../..", "requests.json", &v); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		keys := profileKeys(t, v)
		defer keys.Close()
		r := newRig(t, func(c *Config) { c.Keys = keys })
		defer func() { _ = r.s.Close() }()
		list := r.Do(httptest.NewRequest("GET", ohttp.Path, nil)).Body.Bytes()
		for _, k := range v.Keys {
			if !bytes.Contains(list, k.Config) {
				t.Errorf("key %d is not listed", k.ID)
			}
		}
	})
}
