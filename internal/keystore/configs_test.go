// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// listedIDs are the ids and KEMs in the order of the list.
func listedIDs(t testing.TB, s *Store) (ids []string) {
	t.Helper()
	configs, err := s.Configs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs {
		ids = append(ids, fmt.Sprintf("%s %d", ohttp.Kind(c.KEM()), c.ID()))
	}
	return ids
}

// configsOf describes the configurations of a store.
func configsOf(s *Store) []Info {
	return slices.DeleteFunc(s.Keys(), func(i Info) bool {
		return i.Kind == "RSA" || i.Kind == "Ed25519"
	})
}

// Keys for Oblivious HTTP are replaced each hour, and when asked to, whatever becomes of RSA keys.
// Replaced ones leave the list at once, open requests for an hour and five minutes, and are wiped
// then.
func TestConfigRotation(t *testing.T) {
	bothStores(t, Options{Rotation: Rotation{Every: 10 * time.Hour, Grace: -1}},
		func(t *testing.T, s *Store, _ *testkit.Maker, dir string) {
			if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 0", "X25519 1"}) {
				t.Fatalf("%v", ids)
			}
			signer, err := s.Signer()
			if err != nil {
				t.Fatal(err)
			}
			first := s.configKey(0, ohttp.XWing)
			settle(time.Hour - time.Second)
			if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 0", "X25519 1"}) {
				t.Errorf("before an hour: %v", ids)
			}
			settle(2 * time.Second)
			if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 2", "X25519 3"}) {
				t.Errorf("after a rotation: %v", ids)
			}
			if s.configKey(0, ohttp.XWing) != first || s.configKey(0, ohttp.X25519) != nil ||
				s.configKey(4, ohttp.XWing) != nil {
				t.Error("the key that was replaced does not open, or another one does")
			}
			if list := configsOf(s); len(list) != 4 || !list[0].Retired.IsZero() ||
				list[2].Retired.IsZero() || list[0].Kind != "X-Wing" {
				t.Errorf("%+v", list)
			}
			settle(65*time.Minute - 3*time.Second) // the others are replaced meanwhile
			if s.configKey(0, ohttp.XWing) != first || len(configsOf(s)) != 6 {
				t.Error("wiped before its grace was over")
			}
			settle(3 * time.Second)
			if s.configKey(0, ohttp.XWing) != nil || first.Seed() != nil || len(configsOf(s)) != 4 {
				t.Error("not wiped when its grace was over")
			}
			if n := s.Rotations(); n != 0 {
				t.Errorf("%d RSA keys were replaced", n)
			}
			if err := s.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 6", "X25519 7"}) {
				t.Errorf("after Rotate: %v", ids)
			}
			if now, err := s.Signer(); err != nil || now != signer {
				t.Error("the signer changed")
			}
			last := s.configKey(6, ohttp.XWing)
			if dir != "" { // what the file says is the same
				again := openWeak(t, dir, passphrase, nil)
				if !slices.Equal(listedIDs(t, again), listedIDs(t, s)) ||
					again.configKey(4, ohttp.XWing) == nil {
					t.Error("another process has other keys")
				}
				if fp, err := again.Signer(); err != nil || fp != signer {
					t.Error("another process has another signer")
				}
				if !bytes.Equal(again.configKey(6, ohttp.XWing).Seed(), last.Seed()) {
					t.Error("another process has other private keys")
				}
				again.Close()
			}
			s.Close()
			if last.Seed() != nil {
				t.Error("Close wipes nothing")
			}
			if _, err := s.Configs(t.Context()); !errors.Is(err, fault.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
			if err := s.withSigner(func(ed25519.PrivateKey) {}); !errors.Is(err, fault.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
}

// A store of which nobody has wanted an RSA key makes none for the sake of the others, and replaces
// those all the same.
func TestConfigRotationAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := weakStore(t, nil)
		for i := range 4 {
			if ids := listedIDs(t, s); ids[0] != fmt.Sprintf("X-Wing %d", 2*i) {
				t.Errorf("after %d hours: %v", i, ids)
			}
			settle(time.Hour + time.Second)
		}
		if n := m.Made.Load(); n != 0 {
			t.Errorf("%d RSA keys were made", n)
		}
	})
}

// ConfigEvery says how often, and is never by default where RSA keys are never replaced.
func TestConfigEvery(t *testing.T) {
	for _, c := range []struct {
		rotation Rotation
		want     time.Duration // 0: never
	}{
		{Rotation{}, time.Hour},
		{Rotation{Every: time.Minute}, time.Hour},
		{Rotation{Every: -1}, 0},
		{Rotation{ConfigEvery: -1}, 0},
		{Rotation{Every: -1, ConfigEvery: 2 * time.Hour}, 2 * time.Hour},
		{Rotation{ConfigEvery: 24 * time.Hour}, 24 * time.Hour},
		{Rotation{ConfigEvery: 2 * time.Minute}, 2 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := weakStore(t, &Options{Rotation: c.rotation})
			before := listedIDs(t, s)
			if c.want == 0 {
				settle(1000 * time.Hour)
			} else {
				settle(c.want - time.Second)
			}
			if now := listedIDs(t, s); !slices.Equal(now, before) {
				t.Errorf("%+v: replaced early, or at all: %v", c.rotation, now)
			}
			settle(2 * time.Second)
			if now := listedIDs(t, s); (c.want > 0) == slices.Equal(now, before) {
				t.Errorf("%+v: %v", c.rotation, now)
			}
			if err := s.RotationError(); err != nil {
				t.Errorf("%+v: %v", c.rotation, err)
			}
		})
	}
	for _, often := range []time.Duration{1, time.Second, 2*time.Minute - 1} {
		_, err := New(&Options{Rotation: Rotation{ConfigEvery: often}})
		if wrong, ok := errors.AsType[*OptionError](err); !ok ||
			wrong.Field != "Rotation.ConfigEvery" {
			t.Errorf("%v: %v", often, err)
		}
	}
}

// As often as it may be, for longer than the grace: there is always room for the next one.
func TestConfigEveryTwoMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, &Options{Rotation: Rotation{Every: -1, ConfigEvery: 2 * time.Minute}})
		_ = listedIDs(t, s)
		settle(80 * time.Minute)
		if n := len(configsOf(s)); n < 2*32 || n > 2*35 {
			t.Errorf("%d configurations", n)
		}
		if err := s.RotationError(); err != nil {
			t.Error(err)
		}
	})
}

// An RSA key that is replaced by age, or imported, leaves the configurations alone.
func TestConfigsOutliveRSAKeys(t *testing.T) {
	bothStores(t, Options{Rotation: Rotation{Every: time.Hour, ConfigEvery: -1}},
		func(t *testing.T, s *Store, _ *testkit.Maker, _ string) {
			before := listedIDs(t, s)
			settle(time.Hour + time.Second)
			if s.Rotations() != 1 || !slices.Equal(listedIDs(t, s), before) {
				t.Errorf("%d rotations, %v", s.Rotations(), listedIDs(t, s))
			}
		})
}

// One event tells of a rotation, and of all that follows from it.
func TestConfigRotationIsOneEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []Event
		s, _ := weakStore(t, &Options{Tell: func(_ context.Context, e Event) error {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, e)
			return nil
		}})
		take := func() (events []Event) {
			mu.Lock()
			defer mu.Unlock()
			events, told = told, nil
			return events
		}
		_ = listedIDs(t, s)
		old := configsOf(s)[0].Fingerprint
		events := take()
		if len(events) != 2 || events[0].Type != KeyGenerated || events[1].Type != KeyGenerated ||
			events[0].Fingerprint != old || events[0].Reason != madeConfig {
			t.Errorf("%+v", events)
		}
		for range 3 {
			settle(time.Hour) // in which others are wiped
			now, events := configsOf(s)[0].Fingerprint, take()
			if len(events) != 1 || events[0].Type != KeyRotated || events[0].Fingerprint != now ||
				events[0].OldFingerprint != old || events[0].Reason != rotatedConfigs {
				t.Errorf("%+v", events)
			}
			old = now
		}
	})
}

// Many ask at once, from two processes, for keys that do not exist yet: they all get the same.
func TestConfigsAreMadeOnce(t *testing.T) {
	dir := storeDir(t)
	a, _ := createWeak(t, dir, nil)
	b := openWeak(t, dir, passphrase, nil)
	got := make(chan string, 16)
	for i := range cap(got) {
		s := []*Store{a, b}[i%2]
		go func() {
			configs, err := s.Configs(t.Context())
			if err != nil {
				got <- err.Error()
				return
			}
			got <- fmt.Sprintf("%x", ohttp.AppendConfigs(nil, configs...))
		}()
	}
	first := <-got
	for range cap(got) - 1 {
		if next := <-got; next != first {
			t.Error("different keys were made")
		}
	}
}

// Key ids go round, and skip those that live.
func TestFreeKeyID(t *testing.T) {
	b := &keyfile.Body{}
	for _, c := range []struct {
		ids  []uint8
		want uint8
	}{{nil, 0}, {[]uint8{0}, 1}, {[]uint8{254, 255}, 0}, {[]uint8{0, 1, 255}, 2},
		{[]uint8{7, 3}, 4}, {[]uint8{4, 3}, 5}} {
		b.ConfigKeys = nil
		for _, id := range c.ids {
			b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{ID: id})
		}
		if id, err := freeID(b); id != c.want || err != nil {
			t.Errorf("%v: %d, %v", c.ids, id, err)
		}
	}
	b.ConfigKeys = make([]keyfile.ConfigKey, mostKeys)
	if _, err := freeID(b); !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("%d keys: %v", mostKeys, err)
	}
}

// A store that cannot be written serves what it has; one without keys says why.
func TestConfigsCannotBeSaved(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	if err := os.Remove(dir + "/keystore.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Configs(t.Context()); err == nil {
		t.Error("keys that are nowhere saved are listed")
	}
}

// askingHandler is a log's handler that asks the store.
type askingHandler struct {
	slog.Handler
	store *Store
	said  []string
}

func (h *askingHandler) Handle(_ context.Context, r slog.Record) error {
	h.said = append(h.said, r.Message)
	_ = h.store.Keys()
	return nil
}

func (h *askingHandler) Enabled(context.Context, slog.Level) bool { return true }

// A key that cannot be moved is used where it is, and the log says so, whose handler may ask the
// store; or it is refused.
func TestConfigInOrdinaryMemory(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	for policy, want := range map[locked.Policy]error{locked.BestEffort: nil,
		locked.Required: fault.ErrMemoryLimit} {
		h := &askingHandler{}
		s, _ := weakStore(t, &Options{Memory: policy, Logger: slog.New(h)})
		h.store, s.moveConfig = s, func(*ohttp.PrivateKey, []byte) error { return ohttp.ErrShape }
		before := locked.Report().Unlocked
		configs, err := s.Configs(t.Context())
		if n := locked.Report().Unlocked - before; n < int64(len(configs))*ohttp.SecretSize ||
			len(configs) == 0 && n != 0 {
			t.Errorf("%v: the report has %d bytes more that are not locked", policy, n)
		}
		if !errors.Is(err, want) || (want == nil) != (len(configs) == 2) ||
			(want == nil) != (len(h.said) == 2) {
			t.Errorf("%v: %d configurations, %v, %q", policy, len(configs), err, h.said)
		}
		if s.Close(); locked.Report().Unlocked != before {
			t.Errorf("%v: %v", policy, locked.Report())
		}
	}
}

// Keys of a KEM that is not known here stay in the file.
func TestUnknownKEMStays(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	_ = listedIDs(t, s)
	err := s.change(t.Context(), func(b *keyfile.Body) error {
		b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{ID: 77, KEM: 0x9999,
			Seed: make([]byte, 32), Created: time.Now()})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(configsOf(s)) != 2 {
		t.Errorf("%+v", configsOf(s))
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = s.change(t.Context(), func(b *keyfile.Body) error {
		if !slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool {
			return c.ID == 77 && !c.Retired.IsZero()
		}) {
			t.Error("it is gone, or was not retired with the others")
		}
		return errNoChange
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A store whose keys are all of a KEM that is not known here gets some that are; where none can be
// made, that is an error.
func TestOnlyUnknownKEMs(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	_ = listedIDs(t, s)
	alone := func(b *keyfile.Body) error {
		b.ConfigKeys = []keyfile.ConfigKey{{ID: 77, KEM: 0x9999, Seed: make([]byte, 32),
			Created: time.Now()}}
		return nil
	}
	if err := s.change(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	listed := func() ([]*ohttp.Config, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // ends a loop
		defer cancel()
		return s.Configs(ctx)
	}
	if configs, err := listed(); err != nil || len(configs) != 2 {
		t.Errorf("%d configurations, %v", len(configs), err)
	}
	if err := s.change(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	known := KEMs
	defer func() { KEMs = known }()
	KEMs = nil
	if configs, err := listed(); !errors.Is(err, errNoConfigs) || len(configs) != 0 {
		t.Errorf("%d configurations, %v", len(configs), err)
	}
}

// A list is signed once a second, however many ask for it.
func TestListIsSignedOnceASecond(t *testing.T) {
	s, _ := weakStore(t, nil)
	_ = listedIDs(t, s)
	now := time.Unix(1_765_000_000, 0)
	sign := func(list string, now time.Time) string {
		t.Helper()
		header, err := s.SignList([]byte(list), now)
		if err != nil {
			t.Fatal(err)
		}
		return header
	}
	for _, c := range []struct {
		list string
		at   time.Time
	}{{"another list", now}, {"list", now.Add(time.Second)}, {"list", now.Add(-time.Second)}} {
		first := sign("list", now)
		s.signer.last.header = "kept"
		if got := sign("list", now.Add(time.Second-1)); got != "kept" {
			t.Errorf("signed again: %s", got)
		}
		if got := sign(c.list, c.at); got == "kept" || got == first {
			t.Errorf("%s at %v: the signature of another", c.list, c.at)
		}
	}
	s.signer.last.header = "kept"
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sign("list", now) == "kept" {
		t.Error("kept when the keys were replaced")
	}
	s.Close()
	if header, err := s.SignList([]byte("list"), now); !errors.Is(err, fault.ErrClosed) {
		t.Errorf("after Close: %q, %v", header, err)
	}
}

// OfferAES128 is about configurations that are made after it: those that a store has keep their
// bytes, also in another process, and through a restart.
func TestOfferAES128(t *testing.T) {
	bothStores(t, Options{}, func(t *testing.T, s *Store, _ *testkit.Maker, dir string) {
		list := func(s *Store) string {
			configs, err := s.Configs(t.Context())
			if err != nil || len(configs) != 2 {
				t.Fatal(configs, err)
			}
			return string(ohttp.AppendConfigs(nil, configs...))
		}
		const one, both = "\x00\x04\x00\x01\x00\x02", "\x00\x08\x00\x01\x00\x02\x00\x01\x00\x01"
		before := list(s)
		first := s.configKey(0, ohttp.XWing)
		s.OfferAES128(true)
		if list(s) != before || !strings.HasSuffix(before, one) || first.OffersAES128() {
			t.Error("a configuration that there was has changed")
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := list(s); strings.Count(after, both) != 2 ||
			!s.configKey(2, ohttp.XWing).OffersAES128() {
			t.Errorf("%x", after)
		}
		if s.configKey(0, ohttp.XWing) != first {
			t.Error("the one that was replaced is gone, or another one")
		}
		if dir == "" {
			return
		}
		again := openWeak(t, dir, passphrase, nil)
		defer again.Close()
		if list(again) != list(s) || again.configKey(0, ohttp.XWing).OffersAES128() ||
			!again.configKey(2, ohttp.XWing).OffersAES128() {
			t.Error("another process has other configurations")
		}
		// That process has no gateway: what it makes is as what there is.
		if err := again.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := list(again); strings.Count(after, both) != 2 {
			t.Errorf("no gateway: %x", after)
		}
		// A gateway that does not offer it ends it.
		again.OfferAES128(false)
		if err := again.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := list(again); strings.Contains(after, both) ||
			!again.configKey(2, ohttp.XWing).OffersAES128() {
			t.Errorf("a gateway without it: %x", after)
		}
	})
}
