// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestChangePassphrase(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	keys := fingerprints(s)
	old, _ := s.Seal("l", []byte("old"))
	_, before := bodyOnDisk(t, dir, passphrase)
	testkit.Unchanged(t, "refused", dir, func() {
		wantError(t, "wrong", s.ChangePassphrase(t.Context(), secret(t, "not this one"),
			secret(t, passphrase2)), fault.ErrPassphrase)
		wantError(t, "empty", s.ChangePassphrase(t.Context(), secret(t, ""),
			secret(t, passphrase2)), fault.ErrPassphrase)
		wantError(t, "nil old", s.ChangePassphrase(t.Context(), (*testSecret)(nil),
			secret(t, passphrase2)), fault.ErrClosed)
		wantError(t, "zero old", s.ChangePassphrase(t.Context(), &testSecret{},
			secret(t, passphrase2)), fault.ErrClosed)
		for _, p := range []*testSecret{nil, {}, secret(t, ""), secret(t, "1234567")} {
			wantError(t, "short new", s.ChangePassphrase(t.Context(), secret(t, passphrase), p),
				fault.ErrInvalidRequest)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wantError(t, "ended", s.ChangePassphrase(ctx, secret(t, passphrase),
			secret(t, passphrase2)), context.Canceled)
	})
	if err := s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)); err != nil {
		t.Fatal(err)
	}
	body, after := bodyOnDisk(t, dir, passphrase2)
	if after.KDFSalt == before.KDFSalt || after.BodySalt == before.BodySalt {
		t.Error("the salt stayed")
	}
	if len(body.DataKeys) != 2 || body.DataKeys[1].Generation != 2 ||
		string(body.DataKeys[0].Key) == string(body.DataKeys[1].Key) {
		t.Errorf("%d data keys", len(body.DataKeys))
	}
	_, err := tryWeak(t, dir, passphrase, nil)
	wantError(t, "the old passphrase", err, fault.ErrPassphrase)
	fresh, err := s.Seal("l", []byte("new"))
	if err != nil || slices.Equal(fresh[5:9], old[5:9]) {
		t.Errorf("sealed under generation %v as before, %v", fresh[5:9], err)
	}
	for _, s := range []*Store{s, openWeak(t, dir, passphrase2, nil)} {
		if !slices.Equal(fingerprints(s), keys) {
			t.Error("other keys")
		}
		for want, sealed := range map[string][]byte{"old": old, "new": fresh} {
			if plain, err := s.Open("l", sealed); err != nil || string(plain) != want {
				t.Errorf("%q, %v", plain, err)
			}
		}
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Errorf("the store that changed it goes on: %v", err)
	}
	ephemeral, _ := weakStore(t, nil)
	wantError(t, "ephemeral", ephemeral.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)), fault.ErrInvalidRequest)
}

// Another process goes on with the keys that it knows, and cannot save.
func TestChangePassphraseElsewhere(t *testing.T) {
	dir := storeDir(t)
	here, _ := createWeak(t, dir, nil)
	there := openWeak(t, dir, passphrase, nil)
	key := primaryOf(t, there)
	sealed, _ := there.Seal("l", []byte("data"))
	if err := here.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)); err != nil {
		t.Fatal(err)
	}
	if err := here.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Unchanged(t, "saving", dir, func() {
		for what, f := range map[string]func() error{
			"rotate": func() error { return there.Rotate(t.Context()) },
			"import": func() error {
				_, err := there.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-2048"), nil)
				return err
			},
			"pin": func() error {
				return there.AcceptPin(t.Context(), "https://a.test", [32]byte{1})
			},
			"delete": func() error { return there.Delete(t.Context(), key) },
			"passwd": func() error {
				return there.ChangePassphrase(t.Context(), secret(t, passphrase),
					secret(t, passphrase2))
			},
			"passwd with the new one": func() error {
				return there.ChangePassphrase(t.Context(), secret(t, passphrase2),
					secret(t, passphrase2))
			},
		} {
			wantError(t, what, f(), fault.ErrPassphrase)
		}
	})
	if primaryOf(t, there) != key {
		t.Error("it lost its key")
	}
	e := sealTo(t, there, "to the old key")
	if plain, err := there.OpenEnvelope(t.Context(), e); err != nil ||
		string(plain) != "to the old key" {
		t.Errorf("%q, %v", plain, err)
	}
	if plain, err := there.Open("l", sealed); err != nil || string(plain) != "data" {
		t.Errorf("%q, %v", plain, err)
	}
	there.Close()
	if again := openWeak(t, dir, passphrase2, nil); primaryOf(t, again) != primaryOf(t, here) {
		t.Error("opened anew, it has another key")
	}
}

// sealTo seals text to a store's key.
func sealTo(t testing.TB, s *Store, text string) *envelope.Envelope {
	t.Helper()
	k, err := s.Public(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	e, err := sealEnvelope(k, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What another process did is seen at once when a request comes that is sealed to its new key.
func TestOtherStoresRotationIsSeenAtOnce(t *testing.T) {
	dir := storeDir(t)
	here, _ := createWeak(t, dir, nil)
	there := openWeak(t, dir, passphrase, nil)
	for i := range 5 {
		if err := here.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint("message ", i)
		if plain, err := there.OpenEnvelope(t.Context(), sealTo(t, here, text)); err != nil ||
			string(plain) != text {
			t.Fatalf("%q, %v", plain, err)
		}
		if primaryOf(t, there) != primaryOf(t, here) {
			t.Error("it opened with the new key, and goes on with the old one")
		}
		here, there = there, here
	}
}

func TestOtherStoresKeyOfAnotherSize(t *testing.T) {
	dir := storeDir(t)
	here, _ := createWeak(t, dir, nil)
	there := openWeak(t, dir, passphrase, nil)
	if _, err := here.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-3072"), nil); err != nil {
		t.Fatal(err)
	}
	if plain, err := there.OpenEnvelope(t.Context(), sealTo(t, here, "x")); err != nil ||
		string(plain) != "x" {
		t.Errorf("%q, %v", plain, err)
	}
	if err := there.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := sealEnvelope(publicOf(t, "server-4096"), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = here.OpenEnvelope(t.Context(), e)
	wantError(t, "a size that nobody has", err, fault.ErrEnvelope)
}

// Two stores on one folder change different things; nothing gets lost.
func TestStoresChangeSideBySide(t *testing.T) {
	dir := storeDir(t)
	a, _ := createWeak(t, dir, nil)
	b := openWeak(t, dir, passphrase, nil)
	var wg sync.WaitGroup
	const each = 8
	for i, s := range []*Store{a, b} {
		for n := range each {
			wg.Go(func() {
				if err := s.AcceptPin(t.Context(), fmt.Sprintf("https://%d.test:%d", i, n),
					[32]byte{byte(i), byte(n)}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := s.Rotate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	body, _ := bodyOnDisk(t, dir, passphrase)
	if len(body.Pins) != 2*each || len(body.Keys) != 3 || body.Rotations != 2 ||
		body.Generation != 1+2*each+2 {
		t.Errorf("%d pins, %d keys, %d rotations, generation %d", len(body.Pins), len(body.Keys),
			body.Rotations, body.Generation)
	}
}

func TestKeyStoreClose(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	file, _ := createWeak(t, dir, nil)
	ephemeral, _ := weakStore(t, nil)
	unused, _ := weakStore(t, nil)
	_ = primaryOf(t, ephemeral)
	key := primaryOf(t, file)
	sealed, _ := file.Seal("l", nil)
	e := sealTo(t, file, "x")
	for what, s := range map[string]*Store{"file": file, "ephemeral": ephemeral, "unused": unused} {
		var held []*Key
		for _, k := range s.entries {
			held = append(held, k.Key)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				s.Close()
				for _, k := range held {
					if !wiped(k) {
						t.Errorf("%s: a Close returned, and a key is there", what)
					}
				}
			})
		}
		wg.Wait()
		for name, f := range map[string]func() error{
			"Public": func() error { _, err := s.Public(t.Context()); return err },
			"Rotate": func() error { return s.Rotate(t.Context()) },
			"ImportPEM": func() error {
				_, err := s.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-2048"), nil)
				return err
			},
			"ExportPEM": func() error {
				_, err := s.ExportPEM(t.Context(), "", secret(t, passphrase))
				return err
			},
			"ExportPEM of a key": func() error {
				_, err := s.ExportPEM(t.Context(), key, secret(t, passphrase))
				return err
			},
			"Delete":       func() error { return s.Delete(t.Context(), key) },
			"openEnvelope": func() error { _, err := s.OpenEnvelope(t.Context(), e); return err },
			"acceptPin": func() error {
				return s.AcceptPin(t.Context(), "https://a.test", [32]byte{})
			},
			"addPin": func() error {
				_, err := s.AddPin(t.Context(), "https://a.test", [32]byte{2})
				return err
			},
			"ChangePassphrase": func() error {
				err := s.ChangePassphrase(t.Context(), secret(t, passphrase),
					secret(t, passphrase2))
				if what != "file" && errors.Is(err, fault.ErrInvalidRequest) {
					return fault.ErrClosed // an ephemeral store says what it is
				}
				return err
			},
			"Seal": func() error {
				_, err := s.Seal("l", nil)
				if what != "file" && errors.Is(err, fault.ErrInvalidRequest) {
					return fault.ErrClosed
				}
				return err
			},
			"Open": func() error {
				_, err := s.Open("l", sealed)
				if what != "file" && errors.Is(err, fault.ErrInvalidRequest) {
					return fault.ErrClosed
				}
				return err
			},
		} {
			wantError(t, what+" "+name, f(), fault.ErrClosed)
		}
		if keys := s.Keys(); len(keys) != 0 {
			t.Errorf("%s: %d keys", what, len(keys))
		}
		if err := s.RotationError(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	openWeak(t, dir, passphrase, nil)
}

// The same, with the file: another process's rotation takes the key out.
func TestReloadKeepsKeysInUse(t *testing.T) {
	dir := storeDir(t)
	none := &Options{Rotation: Rotation{Grace: -1}}
	here, _ := createWeak(t, dir, none)
	there := openWeak(t, dir, passphrase, none)
	held, err := there.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := sealTo(t, there, "x")
	if err := here.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := there.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := fingerprints(there); len(got) != 1 || got[0] == held.RSA.Public().Fingerprint() {
		t.Errorf("keys %v", got)
	}
	if plain, err := held.RSA.Open(e, nil); err != nil || string(plain) != "x" {
		t.Errorf("%q, %v", plain, err)
	}
	held.Release()
	if !wiped(held) {
		t.Error("not wiped after its last use")
	}
}

// Every method at once, on stores that close in the middle of it.
func TestKeyStoreConcurrency(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	file, _ := createWeak(t, dir, &Options{Rotation: Rotation{AfterRequests: 3}})
	ephemeral, _ := weakStore(t, &Options{Rotation: Rotation{AfterRequests: 3}})
	var retired atomic.Value
	retired.Store("")
	// calls of each method, and calls in all that the file's changing methods go on with
	const first, more = 3, 40
	ctx := testkit.Within(t, 5*time.Minute) // or the lock would be waited for by the clock
	var wg, begun sync.WaitGroup
	var changes atomic.Int64
	together, middle := make(chan struct{}), make(chan struct{})
	changing := []string{"Rotate", "Delete", "ImportPEM", "pins", "ChangePassphrase"}
	for what, s := range map[string]*Store{"file": file, "ephemeral": ephemeral} {
		pass, text := secret(t, passphrase), testkit.KeyPEM(t, "rsa-2048")
		e := sealTo(t, s, "x")
		for name, f := range map[string]func() error{
			"Public": func() error { _, err := s.Public(ctx); return err },
			"Keys": func() error {
				if k := s.Keys(); len(k) > 1 {
					retired.Store(k[len(k)-1].Fingerprint)
				}
				return nil
			},
			"Rotate":        func() error { return s.Rotate(ctx) },
			"RotationError": s.RotationError,
			"Delete": func() error {
				if fp := retired.Load().(string); fp != "" {
					_ = s.Delete(ctx, fp) // it may be gone, or be the other store's
				}
				return nil
			},
			"ImportPEM": func() error {
				_, err := s.ImportPEM(ctx, text, nil)
				if errors.Is(err, fault.ErrInvalidRequest) {
					return nil // retired again by now
				}
				return err
			},
			"openEnvelope": func() error {
				e := &envelope.Envelope{Sealed: slices.Clone(e.Sealed), WrappedKey: e.WrappedKey}
				_, err := s.OpenEnvelope(ctx, e)
				if errors.Is(err, fault.ErrDecryption) {
					return nil // its key was deleted
				}
				return err
			},
			"pins": func() error {
				if err := s.AcceptPin(ctx, "https://a.test", [32]byte{1}); err != nil {
					return err
				}
				_, _ = s.Pin("https://a.test")
				_, err := s.AddPin(ctx, "https://b.test", [32]byte{2})
				return err
			},
			"data": func() error {
				if s == ephemeral {
					return nil
				}
				sealed, err := s.Seal("l", []byte("x"))
				if err == nil {
					_, err = s.Open("l", sealed)
				}
				return err
			},
			"ChangePassphrase": func() error {
				if s == ephemeral {
					return nil
				}
				return s.ChangePassphrase(ctx, pass, pass)
			},
		} {
			begun.Add(1)
			wg.Go(func() {
				for i := 0; s.life.Err() == nil && i < 100; i++ {
					if i == first { // nobody's first calls wait for the others' hundredth
						begun.Done()
						<-together
					}
					if err := f(); err != nil && !errors.Is(err, fault.ErrClosed) {
						t.Errorf("%s %s: %v", what, name, err)
					}
					if i >= first && s == file && slices.Contains(changing, name) &&
						changes.Add(1) == more {
						close(middle)
					}
				}
			})
		}
	}
	begun.Wait()
	close(together)
	<-middle
	var closing sync.WaitGroup
	for _, s := range []*Store{file, ephemeral, file, ephemeral} {
		closing.Go(func() { s.Close() })
	}
	closing.Wait()
	wg.Wait()
	if body, _ := bodyOnDisk(t, dir, passphrase); body.Rotations == 0 || len(body.DataKeys) < 2 {
		t.Errorf("little happened: %d rotations, %d data keys", body.Rotations, len(body.DataKeys))
	}
}

// Close waits for a generation that is under way, and nothing comes of it.
func TestCloseDuringGeneration(t *testing.T) {
	testkit.NoLeaks(t)
	s, m := weakStore(t, nil)
	begun, release := make(chan struct{}), make(chan struct{})
	s.newKey = func(bits int) (*rsa.PrivateKey, error) {
		close(begun)
		<-release
		return m.NewKey(bits)
	}
	waiting := make(chan error)
	go func() {
		_, err := s.Public(context.Background())
		waiting <- err
	}()
	<-begun
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	<-s.life.Done()
	select {
	case <-closed:
		t.Error("Close did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	<-closed
	wantError(t, "the waiting call", <-waiting, fault.ErrClosed)
}
