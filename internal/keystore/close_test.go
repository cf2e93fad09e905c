// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofrs/flock"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestCloseDuringChangePassphrase has Close begin when the new passphrase is about to be written:
// whatever the error says has to be true of the disk.
func TestCloseDuringChangePassphrase(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	var closing sync.WaitGroup
	err := s.rewrite(t.Context(), secret(t, "another passphrase"), func(*keyfile.Body) error {
		closing.Go(func() { s.Close() })
		<-s.life.Done()
		return nil
	})
	closing.Wait()
	opens := passphrase
	if err == nil || errors.Is(err, fault.ErrUnconfirmed) {
		opens = "another passphrase"
	} else {
		wantError(t, "closing", err, fault.ErrClosed)
	}
	again, err := tryWeak(t, dir, opens, nil)
	if err != nil {
		t.Fatalf("the passphrase that should hold: %v", err)
	}
	again.Close()
}

// TestCloseDuringRotations races Close with callers who want a rotation.
func TestCloseDuringRotations(t *testing.T) {
	testkit.NoLeaks(t)
	for range 200 {
		s, _ := weakStore(t, nil)
		if _, err := s.Public(t.Context()); err != nil {
			t.Fatal(err)
		}
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for {
					if err := s.Rotate(t.Context()); err != nil {
						if !errors.Is(err, fault.ErrClosed) {
							t.Errorf("Rotate: %v", err)
						}
						return
					}
				}
			})
		}
		s.Close()
		callers.Wait()
	}
}

// TestCloseWhileWaitingForTheLock has another process hold the lock for longer than anybody waits.
func TestCloseWhileWaitingForTheLock(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	other := flock.New(filepath.Join(dir, writeLock))
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	waiting := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	go func() { waiting <- s.Delete(ctx, primaryOf(t, s)) }()
	time.Sleep(20 * time.Millisecond) // probably it waits by now; if not, the test is easier
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("Close took %v", took)
	}
	wantError(t, "the one who waited", <-waiting, fault.ErrClosed)
}

// TestOlderFileIsRefused puts an earlier version of the file under a store that is open.
func TestOlderFileIsRefused(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, &Options{Rotation: Rotation{Every: -1}})
	file := filepath.Join(dir, fileName)
	older, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := fingerprints(s)
	if err := os.WriteFile(file, older, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, "looking", s.refresh(t.Context()), fault.ErrKeyStoreDamaged)
	wantError(t, "rotating", s.Rotate(t.Context()), fault.ErrKeyStoreDamaged)
	if now := fingerprints(s); !slices.Equal(now, before) {
		t.Errorf("the keys became %v, were %v", now, before)
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, older) {
		t.Errorf("the file was written: %v", err)
	}
}

// TestClockThatWasAhead opens stores whose keys were made under a clock that was years ahead.
func TestClockThatWasAhead(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		since time.Duration
		want  bool
	}{{-time.Hour - time.Second, false}, {-24 * time.Hour, true}, {-25 * time.Hour, true},
		{time.Minute, false}, {59 * time.Minute, false}, {2 * time.Hour, true},
		{5 * 8760 * time.Hour, true}} {
		if got := passed(now.Add(c.since), 24*time.Hour, now); got != c.want {
			t.Errorf("a day after %v from now: over is %v", c.since, got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, nil)
		first := primaryOf(t, s)
		s.mu.Lock()
		s.entries[0].activated = time.Now().Add(5 * 8760 * time.Hour)
		s.mu.Unlock()
		s.rotator.nudge()
		synctest.Wait()
		if primaryOf(t, s) == first {
			t.Error("the key is in use for five years")
		}
		s.Close()
	})
}

// TestRotationErrorEnds lets the background fail, and then rotates by hand.
func TestRotationErrorEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := weakStore(t, nil)
		if _, err := s.Public(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.Use(func(int) (*rsa.PrivateKey, error) { return nil, errors.New("broken") })
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if s.RotationError() == nil {
			t.Fatal("the background did not fail")
		}
		m.Use(func(int) (*rsa.PrivateKey, error) { return m.Make() })
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.RotationError(); err != nil {
			t.Errorf("all is well, and RotationError says %v", err)
		}
		s.Close()
	})
}

// TestTooManyKeys rotates more often than keys can be kept.
func TestTooManyKeys(t *testing.T) {
	s, _ := weakStore(t, nil)
	if _, err := s.Public(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := s.change(t.Context(), func(b *keyfile.Body) error {
		for len(b.Keys) < mostKeys {
			e := b.Keys[0]
			e.State, e.Retired = keyfile.Retired, time.Now()
			b.Keys = append(b.Keys, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := primaryOf(t, s)
	wantError(t, "one too many", s.Rotate(t.Context()), fault.ErrTooLarge)
	if primaryOf(t, s) != before {
		t.Error("the primary key is another one")
	}
}

// TestLostRotationLock has two stores make a key for the same rotation, as when the rotation lock
// does not hold.
func TestLostRotationLock(t *testing.T) {
	dir := storeDir(t)
	a, _ := createWeak(t, dir, &Options{Rotation: Rotation{Every: -1}})
	b := openWeak(t, dir, passphrase, &Options{Rotation: Rotation{Every: -1}})
	first := primaryOf(t, a)
	if made, err := a.replacePrimary(t.Context(), false); !made || err != nil {
		t.Fatalf("made %v, %v", made, err)
	}
	if primaryOf(t, b) != first {
		t.Fatal("b has seen it: this test shows nothing")
	}
	if made, err := b.replacePrimary(t.Context(), false); made || err != nil {
		t.Errorf("b made one, too: %v, %v", made, err)
	}
	if n := len(a.Keys()); n != 2 {
		t.Errorf("%d keys, want 2", n)
	}
}

// TestDataSealedUnderALaterPassphrase opens data in a process that does not know the newest data
// key.
func TestDataSealedUnderALaterPassphrase(t *testing.T) {
	dir := storeDir(t)
	a, _ := createWeak(t, dir, nil)
	b := openWeak(t, dir, passphrase, nil)
	if err := a.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, "another passphrase")); err != nil {
		t.Fatal(err)
	}
	sealed, err := a.Seal("note", []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Open("note", sealed)
	wantError(t, "a later data key", err, fault.ErrPassphrase)
}

// TestUnconfirmedChanges has the disk refuse to confirm that a replaced file lasts: the change is
// in force all the same, and the error says so.
func TestUnconfirmedChanges(t *testing.T) {
	dir := storeDir(t)
	s, m := createWeak(t, dir, &Options{Rotation: Rotation{Every: -1}})
	if err := s.Rotate(t.Context()); err != nil { // so that the lock files are there
		t.Fatal(err)
	}
	s.dir.FailSyncForTest(errors.New("input/output error"))

	first := primaryOf(t, s)
	wantError(t, "Rotate", s.Rotate(t.Context()), fault.ErrUnconfirmed)
	if primaryOf(t, s) == first {
		t.Error("the new key is not in use")
	}
	key, err := m.Make()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	report, err := s.ImportPEM(t.Context(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY",
		Bytes: der}), nil)
	wantError(t, "ImportPEM", err, fault.ErrUnconfirmed)
	if report == nil || report.Fingerprint != primaryOf(t, s) {
		t.Errorf("ImportPEM: %v", report)
	}
	wantError(t, "ChangePassphrase", s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, "another passphrase")), fault.ErrUnconfirmed)
	if _, err := tryWeak(t, dir, passphrase, nil); !errors.Is(err, fault.ErrPassphrase) {
		t.Errorf("the old passphrase: %v", err)
	}
	again := openWeak(t, dir, "another passphrase", &Options{Rotation: Rotation{Every: -1}})
	if now, want := fingerprints(again), fingerprints(s); !slices.Equal(now, want) {
		t.Errorf("on the disk %v, in memory %v", now, want)
	}

	s.dir.FailSyncForTest(nil)
	if err := s.Rotate(t.Context()); err != nil { // under the new passphrase
		t.Error(err)
	}
}
