// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"crypto/rsa"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// The whole life of a store through the public API, at full cost.
func TestKeyStoreLife(t *testing.T) {
	testkit.NoLeaks(t)
	dir, pass := storeDir(t), secret(t, passphrase)
	o := &Options{Bits: 2048}
	s, err := Create(t.Context(), dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fp := primaryOf(t, s)
	sealed, err := s.Seal("label", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := keyfile.ParseHeader(text); err != nil || f.Iterations != 600_000 {
		t.Errorf("%v, %v", f, err)
	}
	info := s.Keys()
	if len(info) != 1 || !info[0].Retired.IsZero() || info[0].Bits != 2048 ||
		info[0].Fingerprint != fp ||
		info[0].Created.IsZero() || info[0].Activated.IsZero() || !info[0].Retired.IsZero() {
		t.Errorf("%+v", info)
	}
	again, err := Open(t.Context(), dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := primaryOf(t, again); got != fp {
		t.Errorf("fingerprint %s, was %s", got, fp)
	}
	if plain, err := again.Open("label", sealed); err != nil || string(plain) != "data" {
		t.Errorf("%q, %v", plain, err)
	}
	again.Close()
	testkit.Unchanged(t, "a second creation", dir, func() {
		_, err := Create(t.Context(), dir, pass, o)
		wantError(t, "a second creation", err, fault.ErrKeyStoreExists)
	})
	testkit.Unchanged(t, "a wrong passphrase", dir, func() {
		_, err := Open(t.Context(), dir, secret(t, passphrase2), o)
		wantError(t, "a wrong passphrase", err, fault.ErrPassphrase)
	})
	if pass.Len() != len(passphrase) {
		t.Error("the passphrase was the caller's")
	}
}

func TestCreateKeyStoreRefusals(t *testing.T) {
	for what, p := range map[string]*testSecret{
		"short": secret(t, "1234567"), "empty": secret(t, ""), "nil": nil, "zero": {},
	} {
		dir := storeDir(t)
		_, err := Create(t.Context(), dir, p, nil)
		wantError(t, what, err, fault.ErrInvalidRequest)
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a folder was made", what)
		}
	}
	dir := storeDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func(path string) error{
		"anything": func(path string) error {
			return os.WriteFile(path, []byte("something else"), 0o644)
		},
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"link": func(path string) error {
			return os.Symlink(filepath.Join(dir, "nowhere"), path)
		},
	} {
		path := filepath.Join(dir, fileName)
		if err := make(path); err != nil {
			t.Skip(err)
		}
		testkit.Unchanged(t, what, dir, func() {
			s, _ := weakStore(t, nil)
			wantError(t, what, s.create(t.Context(), dir, secret(t, passphrase)),
				fault.ErrKeyStoreExists)
		})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, _ := weakStore(t, nil)
	wantError(t, "ended context", s.create(ctx, dir, secret(t, passphrase)), context.Canceled)
	s, _ = weakStore(t, nil)
	s.newKey = func(int) (*rsa.PrivateKey, error) { return nil, errors.New("no entropy") }
	if err := s.create(t.Context(), dir, secret(t, passphrase)); err == nil {
		t.Error("no key, but a store")
	}
	if _, err := os.Lstat(filepath.Join(dir, fileName)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a failed creation left a file")
	}
}

// Of several that create a store at the same time, one does.
func TestCreateKeyStoreRace(t *testing.T) {
	dir := storeDir(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winner *Store
	for range 8 {
		s, _ := weakStore(t, nil)
		wg.Go(func() {
			err := s.create(t.Context(), dir, secret(t, passphrase))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && winner == nil:
				winner = s
			case err == nil:
				t.Error("two winners")
			default:
				wantError(t, "loser", err, fault.ErrKeyStoreExists)
			}
		})
	}
	wg.Wait()
	if winner == nil {
		t.Fatal("no winner")
	}
	if got := fingerprints(openWeak(t, dir, passphrase, nil)); !slices.Equal(got,
		fingerprints(winner)) {
		t.Errorf("%v is on the disk, the winner has %v", got, fingerprints(winner))
	}
}

func TestOpenKeyStoreRefusals(t *testing.T) {
	missing := storeDir(t)
	empty := t.TempDir()
	_ = os.Chmod(empty, 0o700)
	for what, dir := range map[string]string{"no folder": missing, "no file": empty} {
		_, err := Open(t.Context(), dir, secret(t, passphrase), nil)
		wantError(t, what, err, fs.ErrNotExist)
		if err == nil || !strings.Contains(err.Error(), "create") ||
			!strings.Contains(err.Error(), dir) {
			t.Errorf("%s: the error does not say how to make one: %v", what, err)
		}
		entries, _ := os.ReadDir(dir)
		if len(entries) != 0 {
			t.Errorf("%s: opening made %v", what, entries)
		}
	}
	if _, err := os.Lstat(missing); err == nil {
		t.Error("opening made a folder")
	}

	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	s.Close()
	for what, p := range map[string]*testSecret{"nil": nil, "zero": {}} {
		_, err := Open(t.Context(), dir, p, nil)
		wantError(t, what, err, fault.ErrClosed)
	}
	for _, p := range []string{passphrase2, "", passphrase + " ", strings.ToUpper(passphrase),
		passphrase[:8]} {
		testkit.Unchanged(t, p, dir, func() {
			_, err := tryWeak(t, dir, p, nil)
			wantError(t, "wrong passphrase", err, fault.ErrPassphrase)
		})
	}
}

// Whatever is wrong with the file, it stays as it is.
func TestDamagedKeyStore(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	s.Close()
	path := filepath.Join(dir, fileName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		text []byte
		want error
	}{
		"empty":         {nil, fault.ErrKeyStoreDamaged},
		"text":          {[]byte("hello"), fault.ErrKeyStoreDamaged},
		"JSON":          {[]byte("{}"), fault.ErrKeyStoreDamaged},
		"half":          {good[:len(good)/2], fault.ErrKeyStoreDamaged},
		"one byte less": {good[:len(good)-1], fault.ErrKeyStoreDamaged},
		"more":          {append(slices.Clone(good), 'x'), fault.ErrKeyStoreDamaged},
		"twice":         {append(slices.Clone(good), good...), fault.ErrKeyStoreDamaged},
		"zeros":         {make([]byte, len(good)), fault.ErrKeyStoreDamaged},
		"too large":     {make([]byte, keyfile.MaxStoreSize+1), fault.ErrKeyStoreDamaged},
		"costly": {[]byte(strings.Replace(string(good), `1,`, `10000001,`, 1)),
			fault.ErrKeyStoreDamaged},
	} {
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		testkit.Unchanged(t, what, dir, func() {
			_, err := tryWeak(t, dir, passphrase, nil)
			wantError(t, what, err, c.want)
		})
		s, _ := weakStore(t, nil)
		wantError(t, what+": creation", s.create(t.Context(), dir, secret(t, passphrase)),
			fault.ErrKeyStoreExists)
	}
}

// TestKeyStoreBitFlips changes single bits anywhere in the file.
func TestKeyStoreBitFlips(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	path := filepath.Join(dir, fileName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := testkit.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		bad := slices.Clone(good)
		at, bit := r.IntN(len(bad)), r.IntN(8)
		bad[at] ^= 1 << bit
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		testkit.Unchanged(t, "flip", dir, func() {
			s, err := tryWeak(t, dir, passphrase, nil)
			if err == nil {
				t.Errorf("seed %d: bit %d of byte %d: opened", seed, bit, at)
				s.Close()
				return
			}
			if !errors.Is(err, fault.ErrPassphrase) && !errors.Is(err, fault.ErrKeyStoreDamaged) {
				t.Errorf("seed %d: bit %d of byte %d: %v", seed, bit, at, err)
			}
		})
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	openWeak(t, dir, passphrase, nil)
}

func TestKeyStorePermissions(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are for Unix systems; internal/fsafe tests the access lists")
	}
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	s.Close()
	path := filepath.Join(dir, fileName)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", info.Mode(), err)
	}
	refused := func(what, dir string, names ...string) {
		t.Helper()
		s, _ := weakStore(t, nil)
		errs := map[string]error{"create": s.create(t.Context(), dir, secret(t, passphrase))}
		_, errs["open"] = tryWeak(t, dir, passphrase, nil)
		for op, err := range errs {
			if op == "create" && errors.Is(err, fault.ErrKeyStoreExists) {
				continue // it did not look any further
			}
			wantError(t, what+", "+op, err, fault.ErrInsecurePermissions)
			for _, name := range names {
				if err != nil && !strings.Contains(err.Error(), name) {
					t.Errorf("%s, %s: %q is not in: %v", what, op, name, err)
				}
			}
		}
	}
	for _, mode := range []os.FileMode{0o644, 0o660, 0o602, 0o604, 0o610} {
		_ = os.Chmod(path, mode)
		refused(mode.String(), dir, path, "chmod 600")
	}
	_ = os.Chmod(path, 0o600)
	for _, mode := range []os.FileMode{0o755, 0o770, 0o701, 0o710} {
		_ = os.Chmod(dir, mode)
		refused(mode.String(), dir, dir, "chmod 700")
	}
	_ = os.Chmod(dir, 0o700)
	openWeak(t, dir, passphrase, nil).Close()

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	refused("link to the folder", link, link)
	elsewhere := filepath.Join(dir, "moved.json")
	if err := errors.Join(os.Rename(path, elsewhere), os.Symlink(elsewhere, path)); err != nil {
		t.Fatal(err)
	}
	refused("link to the file", dir, path)
	if err := os.Rename(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	_ = os.Chown(path, 12345, -1)
	refused("another's file", dir, path, "chown")
	_ = errors.Join(os.Chown(path, 0, -1), os.Chown(dir, 12345, -1))
	refused("another's folder", dir, dir, "chown")
}

// A file with fewer iterations than it should have is rewritten, with another salt; one with more
// stays as it is.
func TestIterationsAreRaised(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	keys := fingerprints(s)
	sealed, _ := s.Seal("l", []byte("data"))
	s.Close()
	_, before := bodyOnDisk(t, dir, passphrase)
	reopen := func(iterations int) {
		t.Helper()
		s, _ := weakStore(t, nil)
		s.iterations = iterations
		if err := s.open(t.Context(), dir, secret(t, passphrase)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(fingerprints(s), keys) {
			t.Error("other keys")
		}
		if plain, err := s.Open("l", sealed); err != nil || string(plain) != "data" {
			t.Errorf("%q, %v", plain, err)
		}
		s.Close()
	}
	reopen(3)
	_, raised := bodyOnDisk(t, dir, passphrase)
	if raised.Iterations != 3 || raised.KDFSalt == before.KDFSalt {
		t.Errorf("%d iterations, the salt is the same: %v", raised.Iterations,
			raised.KDFSalt == before.KDFSalt)
	}
	for _, n := range []int{1, 2, 3} {
		testkit.Unchanged(t, "enough iterations", dir, func() { reopen(n) })
	}
	testkit.Unchanged(t, "a wrong passphrase", dir, func() {
		s, _ := weakStore(t, nil)
		s.iterations = 9
		wantError(t, "open", s.open(t.Context(), dir, secret(t, passphrase2)), fault.ErrPassphrase)
	})
}

// Processes that open such a file at the same time all succeed.
func TestIterationsAreRaisedByOne(t *testing.T) {
	for range 3 {
		dir := storeDir(t)
		s, _ := createWeak(t, dir, nil)
		s.Close()
		var wg sync.WaitGroup
		for range 6 {
			s, _ := weakStore(t, nil)
			s.iterations = 10_000 // some milliseconds, so that they meet
			wg.Go(func() {
				if err := s.open(t.Context(), dir, secret(t, passphrase)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// Unlocking costs one PBKDF2, however many keys there are.
func TestUnlockingCostsOneKDF(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, &Options{Rotation: Rotation{Grace: time.Hour}})
	const keys = 50
	first := s.firstKey(t)
	err := s.change(t.Context(), func(b *keyfile.Body) error {
		for n := range keys - 1 {
			private, err := testkit.PairedKey(first + n + 1)
			if err != nil {
				return err
			}
			key, err := keyfile.NewRSAKey(private)
			if err != nil {
				return err
			}
			now := time.Now()
			b.Keys = append(b.Keys, keyfile.Entry{State: keyfile.Retired, Created: now,
				Activated: now, Retired: now, Key: key})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const iterations = 100_000
	s.iterations = iterations
	if err := s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	// Of the process's own time, which other programs take nothing of. The least of some tries has
	// the least of the garbage collector in it.
	one, took := time.Hour, time.Hour
	for range 3 {
		start := testkit.CPUTime()
		if _, err := keyfile.NewMasterKey([]byte(passphrase), iterations,
			keyfile.AllowWeak); err != nil {
			t.Fatal(err)
		}
		one = min(one, testkit.CPUTime()-start)
		again, _ := weakStore(t, &Options{Rotation: Rotation{Grace: time.Hour}})
		start = testkit.CPUTime()
		err = again.open(t.Context(), dir, secret(t, passphrase))
		took = min(took, testkit.CPUTime()-start)
		if err != nil || len(again.Keys()) != keys {
			t.Fatalf("%d keys, %v", len(again.Keys()), err)
		}
		again.Close()
	}
	t.Logf("one PBKDF2 %v, opening %d keys %v", one, keys, took)
	if took < one/2 || took > one*keys/3 {
		t.Errorf("opening %d keys took %v, one PBKDF2 %v", keys, took, one)
	}
}

// firstKey is where the store's maker began.
func (s *Store) firstKey(t testing.TB) int {
	t.Helper()
	fp := primaryOf(t, s)
	for n := range testkit.PairedKeys {
		k, err := testkit.PairedKey(n)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := hybrid.NewPublicKey(&k.PublicKey); err != nil || p.Fingerprint() == fp {
			return n
		}
	}
	t.Fatal("no key from the pool")
	return 0
}

func TestKeysOrderAndDelete(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	var made []string
	for range 3 {
		made = append(made, primaryOf(t, s))
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	made = append(made, primaryOf(t, s))
	slices.Reverse(made) // the newest first
	for _, s := range []*Store{s, openWeak(t, dir, passphrase, nil)} {
		keys := s.Keys()
		if got := fingerprints(s); !slices.Equal(got, made) {
			t.Fatalf("keys %v, want %v", got, made)
		}
		for i, k := range keys {
			if want := i == 0; k.Kind != "RSA" || k.Retired.IsZero() != want {
				t.Errorf("key %d: %+v", i, k)
			}
			if i > 1 && k.Retired.After(keys[i-1].Retired) {
				t.Errorf("key %d is out of order", i)
			}
		}
	}
	testkit.Unchanged(t, "refused deletions", dir, func() {
		wantError(t, "primary", s.Delete(t.Context(), made[0]), fault.ErrInvalidRequest)
		wantError(t, "unknown", s.Delete(t.Context(), strings.Repeat("0", 64)),
			fault.ErrInvalidRequest)
		for _, bad := range []string{"", "x", made[1][:63], made[1] + "0", " " + made[1]} {
			wantError(t, bad, s.Delete(t.Context(), bad), fault.ErrInvalidRequest)
		}
	})
	held := s.entries[slices.IndexFunc(s.entries, func(k *entry) bool {
		return k.fingerprint == made[2]
	})].Key
	if err := s.Delete(t.Context(), made[2]); err != nil {
		t.Fatal(err)
	}
	if !wiped(held) {
		t.Error("the deleted key was not wiped")
	}
	left := []string{made[0], made[1], made[3]}
	for _, s := range []*Store{s, openWeak(t, dir, passphrase, nil)} {
		if got := fingerprints(s); !slices.Equal(got, left) {
			t.Errorf("keys %v, want %v", got, left)
		}
	}
	wantError(t, "again", s.Delete(t.Context(), made[2]), fault.ErrInvalidRequest)
	if err := s.Delete(t.Context(), strings.ToUpper(made[1])); err != nil {
		t.Errorf("upper case: %v", err)
	}
}

// wiped reports whether a key is gone, and its numbers with it.
func wiped(k *Key) bool { return k.IsWiped() }
