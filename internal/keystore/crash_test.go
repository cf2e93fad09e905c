// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bufio"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// childSaver rotates, changes the passphrase, and makes the next key until it is killed, and says
// what it has saved.
func childSaver(t *testing.T, dir, arg string) {
	now, next := passphrase, passphrase2
	if arg == passphrase2 {
		now, next = next, now
	}
	s, m := weakStore(t, &Options{Rotation: Rotation{Every: -1, Grace: 24 * time.Hour}})
	if err := s.open(t.Context(), dir, secret(t, now)); err != nil {
		t.Fatal(err)
	}
	m.Use(func(int) (*rsa.PrivateKey, error) { return testkit.PairedKey(len(s.Keys())) })
	fmt.Println("ready")
	for i := 0; ; i++ {
		if i%3 == 1 {
			if err := s.ChangePassphrase(t.Context(), secret(t, now), secret(t, next)); err != nil {
				t.Fatal(err)
			}
			now, next = next, now
			fmt.Println("passphrase changed")
			continue
		}
		if i%6 == 2 {
			key, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println("key", key.Fingerprint())
			continue
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		fmt.Println("key", s.Keys()[0].Fingerprint)
	}
}

// TestKilledKeyStore kills a process that saves all the time, at random moments: the store opens
// with the old passphrase or the new one, and every key that was reported is there. The moments are
// counted in saves, and only their fractions in time: a slow machine has as many saves before each.
func TestKilledKeyStore(t *testing.T) {
	seed := testkit.Seed(t)
	kills, lanes := 40, 4
	if os.Getenv(longVar) == "1" {
		kills = 200
	}
	var wg sync.WaitGroup
	for lane := range lanes {
		r := rand.New(rand.NewPCG(seed, uint64(lane)))
		wg.Go(func() {
			saves, left := 0, kills/lanes
			for left > 0 && !t.Failed() {
				rounds := min(left, 10) // then a new store: keys add up
				left -= rounds
				n, err := killedStore(t, r, rounds)
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				saves += n
			}
			t.Logf("%d kills, %d saves", kills/lanes, saves)
		})
	}
	wg.Wait()
}

func killedStore(t *testing.T, r *rand.Rand, rounds int) (saves int, err error) {
	dir := storeDir(t)
	s, m := weakStore(t, nil)
	m.Use(func(int) (*rsa.PrivateKey, error) { return testkit.PairedKey(0) })
	if err := s.create(t.Context(), dir, secret(t, passphrase)); err != nil {
		return 0, err
	}
	reported := fingerprints(s)
	s.Close()
	now := passphrase
	for range rounds {
		lines, err := runAndKill(t, r, dir, now, r.IntN(5))
		if err != nil {
			return saves, err
		}
		for _, line := range lines {
			if fp, ok := strings.CutPrefix(line, "key "); ok {
				if !slices.Contains(reported, fp) { // a next key is reported again in use
					reported = append(reported, fp)
				}
			} else if line != "passphrase changed" {
				return saves, fmt.Errorf("the child says %q", line)
			}
			saves++
		}
		if s, err = openEither(t, dir, &now); err != nil {
			return saves, err
		}
		have := fingerprints(s)
		s.Close()
		for _, fp := range reported {
			if !slices.Contains(have, fp) {
				return saves, fmt.Errorf("key %s was reported and is lost", fp)
			}
		}
		if len(have) > len(reported)+1 {
			return saves, fmt.Errorf("%d keys, reported were %d", len(have), len(reported))
		}
		reported = have // the last one may have been saved and not reported
	}
	if s, err = openEither(t, dir, &now); err != nil {
		return saves, err
	}
	defer s.Close()
	if err := s.AcceptPin(t.Context(), "https://a.test", [32]byte{1}); err != nil {
		return saves, err
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 3 {
		err = fmt.Errorf("%v are left after the next save", entries)
	}
	return saves, err
}

// runAndKill runs a saver, and kills it some time after so many saves. It returns all that it
// reported.
func runAndKill(t *testing.T, r *rand.Rand, dir, pass string, saves int) ([]string, error) {
	cmd := child(t, "saver", dir, pass)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		rest, _ := io.ReadAll(lines)
		return nil, fmt.Errorf("the child says %q, %w: %s", line, err, rest)
	}
	var said strings.Builder
	for range saves {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			return nil, fmt.Errorf("the child says %q, %w", said.String(), err)
		}
	}
	// Real time, of a save or two: this is about processes, and nothing depends on where in a save
	// the child is.
	time.Sleep(time.Duration(r.IntN(5_000*testkit.RaceSlowdown)) * time.Microsecond)
	if err := cmd.Process.Kill(); err != nil {
		return nil, err
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		return nil, err
	}
	said.Write(rest)
	if err := cmd.Wait(); err == nil {
		return nil, errors.New("the child ended by itself")
	}
	if said.Len() == 0 {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(said.String(), "\n"), "\n"), nil
}

// openEither opens a store with one of the two passphrases, and says with which.
func openEither(t *testing.T, dir string, pass *string) (s *Store, err error) {
	for _, p := range []string{passphrase, passphrase2} {
		*pass = p
		if s, err = tryWeak(t, dir, p, &Options{Rotation: Rotation{Every: -1,
			Grace: 24 * time.Hour}}); !errors.Is(err, fault.ErrPassphrase) {
			return s, err
		}
	}
	return nil, err
}
