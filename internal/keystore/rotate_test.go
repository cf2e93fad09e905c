// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// settle lets time pass, and everything happen that is due by then.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// bothStores runs f with an ephemeral store and with one that has a file ("" and its folder), each
// in a bubble.
func bothStores(t *testing.T, o Options, f func(t *testing.T, s *Store, m *testkit.Maker,
	dir string)) {
	t.Helper()
	t.Run("ephemeral", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, m := weakStore(t, &o)
			_ = primaryOf(t, s)
			f(t, s, m, "")
		})
	})
	t.Run("file", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := storeDir(t)
			s, m := createWeak(t, dir, &o)
			f(t, s, m, dir)
		})
	})
}

func TestRotationByAge(t *testing.T) {
	for _, c := range []struct{ every, want time.Duration }{
		{0, 24 * time.Hour}, {time.Hour, time.Hour}, {90 * time.Second, 90 * time.Second},
		{100 * time.Hour, 100 * time.Hour},
	} {
		bothStores(t, Options{Rotation: Rotation{Every: c.every}},
			func(t *testing.T, s *Store, m *testkit.Maker, _ string) {
				synctest.Wait()
				for i := range int64(3) {
					before := primaryOf(t, s)
					settle(c.want - time.Second)
					if m.Made.Load() != i+1 || primaryOf(t, s) != before {
						t.Fatalf("rotated too early, %d keys made", m.Made.Load())
					}
					settle(time.Second)
					if m.Made.Load() != i+2 || primaryOf(t, s) == before {
						t.Fatalf("not rotated, %d keys made", m.Made.Load())
					}
					if k := s.Keys()[0]; !k.Activated.Equal(time.Now()) ||
						!k.Created.Equal(k.Activated) {
						t.Errorf("%+v at %v", k, time.Now())
					}
				}
			})
	}
	bothStores(t, Options{Rotation: Rotation{Every: -1}},
		func(t *testing.T, s *Store, m *testkit.Maker, _ string) {
			settle(100 * time.Hour)
			if m.Made.Load() != 1 {
				t.Errorf("%d keys made, without rotation", m.Made.Load())
			}
		})
}

func TestRotationByRequests(t *testing.T) {
	bothStores(t, Options{Rotation: Rotation{Every: -1, AfterRequests: 5}},
		func(t *testing.T, s *Store, m *testkit.Maker, dir string) {
			use := func() string {
				k, err := s.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer k.Release()
				synctest.Wait()
				return k.fingerprint
			}
			s.rotator.uses.Store(0) // the helper has used it
			var last string
			for i := range 15 {
				fp := use()
				if (fp == last) != (i%5 != 0) {
					t.Errorf("request %d has key %s, the one before %s", i, fp, last)
				}
				last = fp
			}
			if m.Made.Load() != 4 {
				t.Errorf("%d keys made, want 4", m.Made.Load())
			}
		})
}

// Two processes that count to the same number at the same time make one key.
func TestRotationByRequestsInTwoStores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, o := storeDir(t), &Options{Rotation: Rotation{Every: -1, AfterRequests: 3}}
		a, made := createWeak(t, dir, o)
		b, its := weakStore(t, o)
		its.Use(made.NewKey)
		if err := b.open(t.Context(), dir, secret(t, passphrase)); err != nil {
			t.Fatal(err)
		}
		b.startWorker()
		settle(time.Minute)
		for round := range int64(3) {
			for range 3 {
				for _, s := range []*Store{a, b} {
					k, err := s.Acquire(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					k.Release()
				}
			}
			settle(time.Minute)
			if got := made.Made.Load(); got != round+2 {
				t.Fatalf("round %d: %d keys made, want %d", round, got, round+2)
			}
		}
	})
}

func TestGrace(t *testing.T) {
	for _, grace := range []time.Duration{30 * time.Minute, time.Second, 0} {
		bothStores(t, Options{Rotation: Rotation{Every: -1, Grace: grace}},
			func(t *testing.T, s *Store, _ *testkit.Maker, dir string) {
				lasts := grace
				if grace == 0 {
					lasts = 2 * time.Hour
				}
				stale := sealTo(t, s, "stale")
				old := s.entries[0].Key
				if err := s.Rotate(t.Context()); err != nil {
					t.Fatal(err)
				}
				settle(lasts - time.Millisecond)
				body := slices.Clone(stale.Sealed)
				if plain, err := s.OpenEnvelope(t.Context(), stale); err != nil ||
					string(plain) != "stale" {
					t.Errorf("within the grace: %q, %v", plain, err)
				}
				stale.Sealed = body
				if dir != "" {
					if b, _ := bodyOnDisk(t, dir, passphrase); len(b.Keys) != 2 {
						t.Errorf("%d keys on the disk", len(b.Keys))
					}
				}
				time.Sleep(time.Millisecond)
				// whether or not the background has been there
				_, err := s.OpenEnvelope(t.Context(), stale)
				wantError(t, "after the grace", err, fault.ErrDecryption)
				synctest.Wait()
				if keys := s.Keys(); len(keys) != 1 || !wiped(old) {
					t.Errorf("%d keys, wiped: %v", len(keys), wiped(old))
				}
				if dir != "" {
					if b, _ := bodyOnDisk(t, dir, passphrase); len(b.Keys) != 1 {
						t.Errorf("%d keys on the disk", len(b.Keys))
					}
				}
			})
	}
	bothStores(t, Options{Rotation: Rotation{Every: -1, Grace: -1}},
		func(t *testing.T, s *Store, _ *testkit.Maker, dir string) {
			stale := sealTo(t, s, "stale")
			if err := s.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := s.OpenEnvelope(t.Context(), stale)
			wantError(t, "no grace", err, fault.ErrDecryption)
			if len(s.Keys()) != 1 {
				t.Errorf("%d keys", len(s.Keys()))
			}
		})
}

// However many ask, one key is made.
func TestOneGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := weakStore(t, &Options{Rotation: Rotation{Every: time.Hour, AfterRequests: 1000}})
		m.Use(func(int) (*rsa.PrivateKey, error) {
			time.Sleep(time.Minute)
			return m.Make()
		})
		var wg sync.WaitGroup
		all := func(f func() error) {
			for range 20 {
				wg.Go(func() {
					if err := f(); err != nil {
						t.Error(err)
					}
				})
			}
		}
		all(func() error { _, err := s.Public(t.Context()); return err })
		wg.Wait()
		if m.Made.Load() != 1 {
			t.Fatalf("%d keys made at first", m.Made.Load())
		}
		settle(time.Hour - time.Nanosecond)
		s.rotator.uses.Store(999)
		wg.Go(func() { time.Sleep(time.Nanosecond) })
		all(func() error { time.Sleep(time.Second); return s.Rotate(t.Context()) })
		all(func() error { _, err := s.Public(t.Context()); return err })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		wantError(t, "one who leaves", s.Rotate(ctx), context.DeadlineExceeded)
		wg.Wait()
		synctest.Wait()
		if m.Made.Load() != 2 || len(s.Keys()) != 2 {
			t.Errorf("%d keys made, %d there", m.Made.Load(), len(s.Keys()))
		}
	})
}

// A rotation that nobody waits for any more goes on.
func TestRotationOutlivesItsCaller(t *testing.T) {
	bothStores(t, Options{}, func(t *testing.T, s *Store, m *testkit.Maker, _ string) {
		m.Use(func(int) (*rsa.PrivateKey, error) {
			time.Sleep(time.Minute)
			return m.Make()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantError(t, "Rotate", s.Rotate(ctx), context.DeadlineExceeded)
		settle(time.Hour)
		if len(s.Keys()) != 2 {
			t.Errorf("%d keys", len(s.Keys()))
		}
		wantError(t, "ended before", s.Rotate(ctx), context.DeadlineExceeded)
		if m.Made.Load() != 2 {
			t.Errorf("%d keys made", m.Made.Load())
		}
	})
}

// A rotation that fails is tried again after one minute, two, four, and so on up to an hour.
func TestFailedGeneration(t *testing.T) {
	bothStores(t, Options{Rotation: Rotation{Every: 24 * time.Hour}},
		func(t *testing.T, s *Store, m *testkit.Maker, dir string) {
			old := primaryOf(t, s)
			noLuck := errors.New("no luck")
			start := time.Now().Add(24 * time.Hour)
			var at []time.Duration
			m.Use(func(int) (*rsa.PrivateKey, error) {
				at = append(at, time.Since(start))
				return nil, noLuck
			})
			settle(24*time.Hour + 5*time.Hour)
			var want []time.Duration
			for n, wait := time.Duration(
				0), time.Minute; n <= 5*time.Hour; n, wait = n+wait, min(2*wait, time.Hour) {
				want = append(want, n)
			}
			if !slices.Equal(at, want) {
				t.Errorf("tried at %v, want %v", at, want)
			}
			wantError(t, "RotationError", s.RotationError(), noLuck)
			wantError(t, "Rotate", s.Rotate(t.Context()), noLuck)
			if primaryOf(t, s) != old || len(s.Keys()) != 1 {
				t.Error("the old key is not in use any more")
			}
			m.Use(func(int) (*rsa.PrivateKey, error) { return m.Make() })
			settle(time.Hour)
			if err := s.RotationError(); err != nil || primaryOf(t, s) == old {
				t.Errorf("it did not recover: %v", err)
			}
		})
}

func TestFailedFirstGeneration(t *testing.T) {
	s, m := weakStore(t, nil)
	noLuck := errors.New("no luck")
	s.newKey = func(int) (*rsa.PrivateKey, error) { return nil, noLuck }
	_, err := s.Public(t.Context())
	wantError(t, "Public", err, noLuck)
	s.newKey = m.NewKey
	if _, err = s.Public(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFailedSave(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are for Unix systems")
	}
	synctest.Test(t, func(t *testing.T) {
		dir := storeDir(t)
		s, m := createWeak(t, dir, &Options{Rotation: Rotation{Every: time.Hour}})
		if err := s.Rotate(t.Context()); err != nil { // so that all the files are there
			t.Fatal(err)
		}
		old := primaryOf(t, s)
		lock := filepath.Join(dir, writeLock)
		if err := os.Chmod(lock, 0o644); err != nil {
			t.Fatal(err)
		}
		testkit.Unchanged(t, "failed", dir, func() {
			settle(time.Hour)
			wantError(t, "RotationError", s.RotationError(), fault.ErrInsecurePermissions)
			wantError(t, "Rotate", s.Rotate(t.Context()), fault.ErrInsecurePermissions)
			wantError(t, "acceptPin", s.AcceptPin(t.Context(), "https://a.test", [32]byte{1}),
				fault.ErrInsecurePermissions)
			wantError(t, "ChangePassphrase", s.ChangePassphrase(t.Context(), secret(t, passphrase),
				secret(t, passphrase2)), fault.ErrInsecurePermissions)
			if _, ok := s.Pin("https://a.test"); ok || primaryOf(t, s) != old ||
				len(s.Keys()) != 2 {
				t.Error("it changed in memory")
			}
		})
		made := m.Made.Load()
		if err := os.Chmod(lock, 0o600); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute - time.Second)
		if m.Made.Load() != made || s.RotationError() == nil {
			t.Error("tried again too early")
		}
		settle(time.Second)
		if err := s.RotationError(); err != nil || primaryOf(t, s) == old ||
			m.Made.Load() != made+1 {
			t.Errorf("not tried again: %v", err)
		}
		if b, _ := bodyOnDisk(t, dir, passphrase); len(b.Keys) != 3 {
			t.Errorf("%d keys on the disk", len(b.Keys))
		}
	})
}

// A store notices what another process did: an idle one within 30 seconds, one with requests within
// a second.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := storeDir(t)
		here, _ := createWeak(t, dir, nil)
		there := openWeak(t, dir, passphrase, nil)
		settle(time.Minute)
		same := func() bool { return slices.Equal(fingerprints(here), fingerprints(there)) }
		if err := here.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if same() {
			t.Error("how did it know?")
		}
		settle(30 * time.Second)
		if !same() {
			t.Error("the idle store did not notice")
		}
		for range 5 {
			if err := here.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			k, err := there.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			k.Release()
			synctest.Wait()
			if !same() {
				t.Error("the busy store did not notice")
			}
		}
	})
}

// Of processes that find the key too old at the same time, one makes the next.
func TestOneStoreRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, o := storeDir(t), &Options{Rotation: Rotation{Every: time.Hour, Grace: 24 * time.Hour}}
		s, m := createWeak(t, dir, o)
		stores := []*Store{s}
		for range 5 {
			other, its := weakStore(t, o)
			its.Use(func(int) (*rsa.PrivateKey, error) {
				time.Sleep(3 * time.Second)
				return m.Make()
			})
			if err := other.open(t.Context(), dir, secret(t, passphrase)); err != nil {
				t.Fatal(err)
			}
			other.startWorker()
			stores = append(stores, other)
		}
		settle(5*time.Hour + time.Minute)
		if m.Made.Load() != 6 {
			t.Errorf("%d keys made, want 6", m.Made.Load())
		}
		for i, other := range stores {
			if !slices.Equal(fingerprints(s), fingerprints(other)) || other.RotationError() != nil {
				t.Errorf("store %d has %d keys, %v", i, len(other.Keys()), other.RotationError())
			}
		}
	})
}

// A store that was closed for long catches up when it is opened.
func TestOverdueAtOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := storeDir(t)
		s, _ := createWeak(t, dir, nil)
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := fingerprints(s)
		s.Close()
		time.Sleep(25 * time.Hour)
		s = openWeak(t, dir, passphrase, nil)
		if got := primaryOf(t, s); got != old[0] {
			t.Error("opening waited for a rotation")
		}
		synctest.Wait()
		if got := fingerprints(s); len(got) != 2 || slices.Contains(got, old[1]) ||
			got[1] != old[0] {
			t.Errorf("keys %v, were %v", got, old)
		}
	})
}
