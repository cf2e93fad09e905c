// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// nextOf is the fingerprint of the next key.
func nextOf(t testing.TB, s *Store) string {
	t.Helper()
	k, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return k.Fingerprint()
}

// The next key opens nothing until a rotation, by call or by age, makes it the primary one. Then
// the key before it has its grace.
func TestNextKey(t *testing.T) {
	rotation := Rotation{Every: time.Hour, Grace: 30 * time.Minute}
	bothStores(t, Options{Rotation: rotation},
		func(t *testing.T, s *Store, m *testkit.Maker, dir string) {
			for round := range int64(4) {
				primary := primaryOf(t, s)
				next := nextOf(t, s)
				if again := nextOf(t, s); again != next || next == primary {
					t.Fatalf("next %s, then %s; primary %s", next, again, primary)
				}
				if m.Made.Load() != round+2 {
					t.Fatalf("%d keys made", m.Made.Load())
				}
				keys := s.Keys()
				if keys[0].Fingerprint != primary || keys[0].IsNext() || !keys[1].IsNext() ||
					keys[1].Fingerprint != next || !keys[1].Retired.IsZero() ||
					!keys[1].Created.Equal(time.Now()) {
					t.Fatalf("%+v", keys)
				}
				early, err := sealEnvelope(s.next(), []byte("early"))
				if err != nil {
					t.Fatal(err)
				}
				body := slices.Clone(early.Sealed)
				_, err = s.OpenEnvelope(t.Context(), early)
				wantError(t, "before it is in use", err, fault.ErrDecryption)
				early.Sealed = body
				stale := sealTo(t, s, "stale")
				created := keys[1].Created
				err = nil
				if round%2 == 0 {
					err = s.Rotate(t.Context())
				} else {
					settle(30 * time.Minute) // so long it has been the primary key already
				}
				if err != nil || primaryOf(t, s) != next || m.Made.Load() != round+2 {
					t.Fatalf("%v; primary %s, want %s; %d keys made", err, primaryOf(t, s), next,
						m.Made.Load())
				}
				if k := s.Keys()[0]; !k.Created.Equal(created) || !k.Activated.Equal(time.Now()) {
					t.Errorf("%+v", k)
				}
				if plain, err := s.OpenEnvelope(t.Context(), early); err != nil ||
					string(plain) != "early" {
					t.Errorf("%q, %v", plain, err)
				}
				if plain, err := s.OpenEnvelope(t.Context(), stale); err != nil ||
					string(plain) != "stale" {
					t.Errorf("%q, %v", plain, err)
				}
				settle(30 * time.Minute)
				if len(s.Keys()) != 1 {
					t.Errorf("%d keys after the grace", len(s.Keys()))
				}
				if dir == "" {
					continue
				}
				if b, _ := bodyOnDisk(t, dir, passphrase); len(b.Keys) != 1 ||
					b.Rotations != uint64(round+1) {
					t.Errorf("%d keys on the disk, %d rotations", len(b.Keys), b.Rotations)
				}
			}
		})
}

// The next key of a store without any key is not its first one.
func TestNextKeyOfNewStore(t *testing.T) {
	s, m := weakStore(t, nil)
	next := nextOf(t, s)
	if primaryOf(t, s) == next || m.Made.Load() != 2 {
		t.Errorf("%d keys made", m.Made.Load())
	}
}

// The next key survives in the file, and is the same in every process.
func TestNextKeyBetweenProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, o := storeDir(t), &Options{Rotation: Rotation{Every: time.Hour}}
		a, made := createWeak(t, dir, o)
		b := openWeak(t, dir, passphrase, o)
		primary, next := primaryOf(t, a), nextOf(t, a)
		if got := nextOf(t, b); got != next {
			t.Errorf("here %s, there %s", next, got)
		}
		a.Close()
		a = openWeak(t, dir, passphrase, o)
		if got := nextOf(t, a); got != next || primaryOf(t, a) != primary {
			t.Errorf("%s when opened again", got)
		}
		settle(time.Hour + time.Minute)
		if primaryOf(t, a) != next || primaryOf(t, b) != next || made.Made.Load() != 2 ||
			len(a.Keys()) != 2 {
			t.Errorf("%d keys, %d made", len(a.Keys()), made.Made.Load())
		}
		// One that was deleted elsewhere a moment ago is not rotated to.
		gone := nextOf(t, b)
		if err := a.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		if err := a.Rotate(t.Context()); err != nil || primaryOf(t, a) == gone ||
			primaryOf(t, a) == next {
			t.Error(err)
		}
	})
}

// A store whose next key was deleted behind its back makes another one in its place, although it
// learns of that in the midst of a rotation only.
func TestNextKeyDeletedMeanwhile(t *testing.T) {
	dir := storeDir(t)
	a, _ := createWeak(t, dir, nil)
	b := openWeak(t, dir, passphrase, nil)
	primary, gone := primaryOf(t, a), nextOf(t, a)
	if err := b.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	made, err := a.replacePrimary(t.Context(), true)
	if made || err != nil || primaryOf(t, a) != primary {
		t.Fatal(made, err)
	}
	if err := a.Rotate(t.Context()); err != nil || primaryOf(t, a) == gone ||
		primaryOf(t, a) == primary {
		t.Error(err)
	}
}

func TestDeleteNextKey(t *testing.T) {
	bothStores(t, Options{}, func(t *testing.T, s *Store, m *testkit.Maker, dir string) {
		next := nextOf(t, s)
		key := s.entries[1].Key
		if err := s.Delete(t.Context(), next); err != nil || !wiped(key) || len(s.Keys()) != 1 {
			t.Fatalf("%v, %d keys", err, len(s.Keys()))
		}
		if dir != "" {
			if b, _ := bodyOnDisk(t, dir, passphrase); len(b.Keys) != 1 {
				t.Errorf("%d keys on the disk", len(b.Keys))
			}
		}
		wantError(t, "twice", s.Delete(t.Context(), next), fault.ErrInvalidRequest)
		if nextOf(t, s) == next {
			t.Error("it came back")
		}
	})
}

// The next key travels as a file, to a store that has it as its primary key at once.
func TestNextKeyAsPEM(t *testing.T) {
	s, _ := weakStore(t, nil)
	next := nextOf(t, s)
	text, err := s.ExportPEM(t.Context(), next, secret(t, passphrase))
	if err != nil {
		t.Fatal(err)
	}
	other, _ := weakStore(t, nil)
	if _, err := other.ImportPEM(t.Context(), text, secret(t, passphrase)); err != nil ||
		primaryOf(t, other) != next {
		t.Fatal(err)
	}
	// To import a store's own next key is to rotate to it.
	primary := primaryOf(t, s)
	info, err := s.ImportPEM(t.Context(), text, secret(t, passphrase))
	if err != nil || info.Fingerprint != next || primaryOf(t, s) != next {
		t.Fatal(info, err)
	}
	if keys := s.Keys(); len(keys) != 2 || keys[1].Fingerprint != primary ||
		keys[1].Retired.IsZero() {
		t.Errorf("%+v", keys)
	}
	// Another import leaves the next key what it is.
	next = nextOf(t, s)
	if text, err = other.ExportPEM(t.Context(), nextOf(t, other),
		secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ImportPEM(t.Context(), text, secret(t, passphrase)); err != nil ||
		nextOf(t, s) != next {
		t.Fatal(err)
	}
	if keys := s.Keys(); len(keys) != 4 || !keys[1].IsNext() || keys[1].Fingerprint != next {
		t.Errorf("%+v", keys)
	}
	if err := s.Rotate(t.Context()); err != nil || primaryOf(t, s) != next {
		t.Error(err)
	}
}

// However many ask for the next key while others rotate, each asks for a key that comes in use, or
// still is to.
func TestNextKeyConcurrency(t *testing.T) {
	bothStores(t, Options{Rotation: Rotation{Every: -1, Grace: 24 * time.Hour}},
		func(t *testing.T, s *Store, m *testkit.Maker, _ string) {
			m.Use(func(int) (*rsa.PrivateKey, error) {
				time.Sleep(time.Second)
				return m.Make()
			})
			var mu sync.Mutex
			announced := make(map[string]bool)
			var wg sync.WaitGroup
			for i := range 12 {
				wg.Go(func() {
					for j := range 3 {
						time.Sleep(time.Duration(i*j) * 300 * time.Millisecond)
						if i%3 == 0 {
							if err := s.Rotate(t.Context()); err != nil {
								t.Error(err)
							}
							continue
						}
						k, err := s.Next(t.Context())
						if err != nil {
							t.Error(err)
							continue
						}
						mu.Lock()
						announced[k.Fingerprint()] = true
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			have := fingerprints(s)
			for fp := range announced {
				if !slices.Contains(have, fp) {
					t.Errorf("%s was announced, and is not there", fp)
				}
			}
			if int64(len(have)) != m.Made.Load() {
				t.Errorf("%d keys made, %d there", m.Made.Load(), len(have))
			}
		})
}

func TestNextKeyRefusals(t *testing.T) {
	bothStores(t, Options{Rotation: Rotation{Every: -1, Grace: 24 * time.Hour}},
		func(t *testing.T, s *Store, m *testkit.Maker, dir string) {
			noLuck := errors.New("no luck")
			m.Use(func(int) (*rsa.PrivateKey, error) { return nil, noLuck })
			_, err := s.Next(t.Context())
			wantError(t, "no key", err, noLuck)
			m.Use(func(int) (*rsa.PrivateKey, error) { return m.Make() })
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			_, err = s.Next(ended)
			wantError(t, "ended", err, context.Canceled)
			if dir != "" && runtime.GOOS != "windows" && os.Getuid() != 0 {
				next := nextOf(t, s)
				if err := os.Chmod(dir, 0o500); err != nil {
					t.Fatal(err)
				}
				if got := nextOf(t, s); got != next { // it is there, and nothing is written
					t.Error("another key")
				}
				os.Chmod(dir, 0o700)
			}
			if dir == "" {
				err = s.change(t.Context(), func(b *keyfile.Body) error {
					b.Keys = slices.DeleteFunc(b.Keys, isNext)
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
				_, err = s.Next(t.Context())
				wantError(t, "full", err, fault.ErrTooLarge)
				if s.next() != nil {
					t.Error("it is there")
				}
			}
			s.Close()
			_, err = s.Next(t.Context())
			wantError(t, "closed", err, fault.ErrClosed)
		})
}

// Where the store cannot be written, there is no next key, and what is there stays.
func TestNextKeyUnsaved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are for Unix systems")
	}
	dir := storeDir(t)
	s, m := createWeak(t, dir, nil)
	next := nextOf(t, s)
	if err := s.Delete(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	lock := dir + "/" + writeLock
	if err := os.Chmod(lock, 0o644); err != nil { // refused before anything is written
		t.Fatal(err)
	}
	testkit.Unchanged(t, "failed", dir, func() {
		_, err := s.Next(t.Context())
		wantError(t, "Next", err, fault.ErrInsecurePermissions)
		if len(s.Keys()) != 1 {
			t.Errorf("%d keys", len(s.Keys()))
		}
	})
	if err := os.Chmod(lock, 0o600); err != nil {
		t.Fatal(err)
	}
	if nextOf(t, s) == next || m.Made.Load() != 4 {
		t.Errorf("%d keys made", m.Made.Load())
	}
}

// What an Auditor is told: a key was generated, and later that it replaced another.
func TestNextKeyEvents(t *testing.T) {
	var told []Event
	refuse := errors.New("full")
	failing := false
	s, _ := weakStore(t, &Options{Tell: func(_ context.Context, e Event) error {
		told = append(told, e)
		if failing {
			return refuse
		}
		return nil
	}})
	primary := primaryOf(t, s)
	told, failing = nil, true
	_, err := s.Next(t.Context())
	wantError(t, "Next", err, refuse)
	if len(s.Keys()) != 1 {
		t.Errorf("%d keys: one was saved that the Auditor did not hear of", len(s.Keys()))
	}
	told, failing = nil, false
	next := nextOf(t, s)
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range told {
		got = append(got, fmt.Sprint(e.Type, " ", e.Fingerprint == next, " ",
			e.Fingerprint == primary, " ", strings.Contains(e.Reason, "ahead of time")))
	}
	want := []string{KeyGenerated + " true false true", KeyRotated + " true false false",
		KeyRetired + " false true false"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// A file with a next key opens, whoever wrote it, and the key keeps its dates.
func TestNextKeyInFile(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	next := nextOf(t, s)
	s.Close()
	b, _ := bodyOnDisk(t, dir, passphrase)
	i := slices.IndexFunc(b.Keys, isNext)
	if i < 0 || fingerprintOf(b.Keys[i].Key) != next || b.Keys[i].Created.IsZero() ||
		!b.Keys[i].Activated.IsZero() || !b.Keys[i].Retired.IsZero() {
		t.Errorf("%+v", b.Keys)
	}
}
