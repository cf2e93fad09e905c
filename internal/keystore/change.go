// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// This file has the one way in which a key store changes: lock, read the file as it is now, change
// its body, replace the file, take over what it says. An ephemeral store does the same with a body
// made from memory.

// change applies f to the store's body. When it fails nothing changes, neither on disk nor in
// memory, unless the error is fault.ErrUnconfirmed, or fault.ErrAudit alone: then the Auditor could
// not be told of what is done.
func (s *Store) change(ctx context.Context, f func(*keyfile.Body) error) error {
	defer s.sweeper.Soon() // of copies that fingerprints were made of
	var changes keyChanges
	err := s.changeBody(ctx, changes.watch(f))
	return s.tellChanges(ctx, &changes, err)
}

func (s *Store) changeBody(ctx context.Context, f func(*keyfile.Body) error) error {
	if s.dir == nil {
		leave, err := s.enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
		return s.changeMemory(f)
	}
	return s.edit(ctx, func(lock *fsafe.Lock, body *keyfile.Body) error {
		if err := f(body); err != nil {
			return skipNoChange(err)
		}
		return s.save(lock, body)
	})
}

// edit opens the file as it is now for f, which nobody else changes meanwhile.
func (s *Store) edit(ctx context.Context, f func(*fsafe.Lock, *keyfile.Body) error) error {
	// before enter: nobody in this process waits while another process writes
	lock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	file, _, err := s.readFile()
	if err != nil {
		return fileError(err)
	}
	body, err := s.openBody(file)
	if err != nil {
		return err
	}
	defer body.Wipe()
	return f(lock, body)
}

// lock takes the lock of the file. The wait for another process also ends with the store.
func (s *Store) lock(ctx context.Context) (*fsafe.Lock, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	lock, err := s.dir.Lock(ctx, writeLock)
	if err != nil && s.life.Err() != nil {
		return nil, s.errClosed()
	}
	if err != nil {
		return nil, fileError(err)
	}
	return lock, nil
}

func skipNoChange(err error) error {
	if errors.Is(err, errNoChange) {
		return nil
	}
	return err
}

// enter makes the caller the only one in this process who changes the store.
func (s *Store) enter(ctx context.Context) (leave func(), err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.Ended(ctx)
	case <-s.life.Done():
		return nil, s.errClosed()
	}
	if s.life.Err() != nil {
		<-s.turn
		return nil, s.errClosed()
	}
	return func() { <-s.turn }, nil
}

// save replaces the file and takes over the body.
func (s *Store) save(lock *fsafe.Lock, body *keyfile.Body) error {
	body.Generation++
	text, err := keyfile.Seal(body, s.master)
	if err != nil {
		return storeError(err)
	}
	if _, err := lock.RemoveStaleTemps(fileName); err != nil {
		return fileError(err)
	}
	if err := lock.Check(); err != nil {
		return fileError(err)
	}
	if s.life.Err() != nil {
		return s.errClosed()
	}
	// A key that cannot be used must not be written either.
	defer s.wipePrepared()
	if _, err := s.prepare(body); err != nil {
		return err
	}
	saved := s.write(text)
	if saved != nil && !isUnconfirmed(saved) {
		return saved
	}
	// From here on the file is another one, and whatever goes wrong does not undo that.
	if err := s.load(); err != nil {
		return &unconfirmedError{fmt.Errorf("reading it back: %w", err)}
	}
	return saved
}

// write replaces the file. An unconfirmedError means that it was replaced all the same.
func (s *Store) write(text []byte) error {
	err := s.dir.WriteFile(fileName, text)
	if errors.Is(err, fsafe.ErrNotDurable) {
		if s.dir.WriteFile(fileName, text) == nil {
			return nil
		}
		return &unconfirmedError{err} // the first verdict stands: the file is replaced
	}
	if err != nil {
		return fmt.Errorf("sealedchat: saving the key store: %w", fileError(err))
	}
	return nil
}

// changeMemory is change for an ephemeral store.
func (s *Store) changeMemory(f func(*keyfile.Body) error) error {
	body := &keyfile.Body{}
	defer body.Wipe()
	if err := s.copyTo(body); err != nil {
		return err
	}
	if err := f(body); err != nil {
		return skipNoChange(err)
	}
	return s.takeOver(body)
}

// copyTo copies what an ephemeral store holds into b, which owns the copy. RSA keys that are purged
// are left out, as if they were gone.
func (s *Store) copyTo(b *keyfile.Body) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pins {
		b.Pins = append(b.Pins, p)
	}
	for _, e := range s.entries {
		switch {
		case !e.isPurged():
			if err := e.appendTo(b, s.options()); err != nil {
				return err
			}
		case e.OHTTP != nil:
			return s.errClosed()
		}
	}
	if !s.signer.isThere() {
		return nil
	}
	if s.signer.isPurged() {
		return s.errClosed()
	}
	b.Signer = make([]byte, seedSize)
	erase.Do(func() { copy(b.Signer, s.signer.seed.Bytes()) })
	return nil
}

func (s *Store) readFile() (*keyfile.File, fsafe.Version, error) {
	text, version, err := s.dir.ReadVersion(fileName, keyfile.MaxStoreSize)
	if err != nil {
		return nil, version, err
	}
	file, err := keyfile.ParseHeader(text)
	if err != nil {
		return nil, version, storeError(err)
	}
	return file, version, nil
}

// openBody opens a file with the master key at hand.
func (s *Store) openBody(file *keyfile.File) (*keyfile.Body, error) {
	s.mu.Lock()
	master, generation := s.master, s.generation
	purged := s.masterAt == nil || s.masterAt.Bytes() == nil
	s.mu.Unlock()
	if master == nil || purged {
		return nil, s.errClosed()
	}
	if !master.Fits(file) {
		return nil, errChangedElsewhere
	}
	body, err := keyfile.Open(file, master)
	if err != nil {
		return nil, storeError(err)
	}
	if body.Generation < generation { // an old file was put in its place
		body.Wipe()
		return nil, fmt.Errorf("%w: older than what is in use", fault.ErrKeyStoreDamaged)
	}
	return body, nil
}

// load takes over what the file says now. The caller is the only one who changes the store, or
// opens it.
func (s *Store) load() error {
	file, version, err := s.readFile()
	if err != nil {
		return fileError(err)
	}
	return s.adoptFile(file, version)
}

// adoptFile takes over what a file says that was read just now.
func (s *Store) adoptFile(file *keyfile.File, version fsafe.Version) error {
	body, err := s.openBody(file)
	if err != nil {
		return err
	}
	defer body.Wipe()
	if err := s.takeOver(body); err != nil {
		return err
	}
	s.mu.Lock()
	s.version, s.generation = version, body.Generation
	s.mu.Unlock()
	return nil
}

// refresh loads the file if another process has replaced it.
func (s *Store) refresh(ctx context.Context) error {
	loaded, err := s.reload(ctx)
	if loaded {
		return s.tellLoaded(ctx)
	}
	return err
}

// reload is refresh without a word to the Auditor.
func (s *Store) reload(ctx context.Context) (loaded bool, err error) {
	if s.dir == nil {
		return false, nil
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	now, err := s.dir.Stat(fileName)
	if err != nil {
		return false, fileError(err)
	}
	s.mu.Lock()
	same := s.version.Same(now)
	s.mu.Unlock()
	if same {
		return false, nil
	}
	err = s.load()
	return err == nil, err
}

// takeOver makes the store's memory say what body says. Keys that are known already stay as they
// are; those that are gone are wiped when the last request that uses them ends.
func (s *Store) takeOver(body *keyfile.Body) error {
	defer s.wipePrepared()
	keys, err := s.prepare(body)
	if err != nil {
		return err
	}
	replacedBy := ""
	defer func() {
		if replacedBy != "" { // after unlocking: a log's handler may ask the store
			s.log.Info("another key is in use", "fingerprint", replacedBy)
		}
	}()
	s.mu.Lock()
	// also when the store is closing: Close has its turn after this, and wipes it
	defer s.mu.Unlock()
	p := &s.prepared
	old, before := s.entries, s.primary()
	entries := make([]*entry, 0, len(keys))
	for _, r := range keys {
		k := s.usable(r.fingerprint)
		if k == nil {
			k = p.keys[r.fingerprint]
			delete(p.keys, r.fingerprint)
		}
		entries = append(entries, &entry{k, r.life})
	}
	s.entries = entries
	if now := s.primary(); before == nil || now == nil || before.Key != now.Key {
		s.rotator.uses.Store(0)
		if before != nil && now != nil {
			replacedBy = now.fingerprint
		}
	}
	for _, e := range old {
		if !slices.ContainsFunc(entries, func(now *entry) bool { return now.Key == e.Key }) {
			e.Release()
		}
	}
	if body.Signer == nil || p.signer.isThere() {
		s.signer.wipe()
		s.signer, p.signer = p.signer, signer{}
	}
	s.pins = make(map[string]keyfile.Pin, len(body.Pins))
	for _, pin := range body.Pins {
		s.pins[pin.Origin] = pin
	}
	s.takeOverDataKeys(body.DataKeys, p.dataKeysAt)
	p.dataKeysAt = nil
	return nil
}

// addDataKey starts a new generation of data keys.
func addDataKey(body *keyfile.Body, now time.Time) error {
	var last uint32
	if n := len(body.DataKeys); n > 0 {
		last = body.DataKeys[n-1].Generation
	}
	if len(body.DataKeys) >= keyfile.MaxDataKeys {
		return fmt.Errorf("%w: %d generations of data keys", fault.ErrTooLarge, len(body.DataKeys))
	}
	key := make([]byte, hybrid.DataKeySize)
	_, _ = rand.Read(key)
	next := keyfile.DataKey{Generation: last + 1, Key: key, Created: now}
	body.DataKeys = append(body.DataKeys, next)
	return nil
}

// ChangePassphrase rewrites the file under a new passphrase with a new salt, and starts a new
// generation of data keys. old must open the file.
func (s *Store) ChangePassphrase(ctx context.Context, old, new Secret) error {
	if s.dir == nil {
		return fmt.Errorf("%w: an ephemeral key store has no passphrase", fault.ErrInvalidRequest)
	}
	if err := validPassphrase(new); err != nil {
		return err
	}
	if err := s.checkPassphrase(old); err != nil {
		return s.failed(ctx, err)
	}
	err := s.rewrite(ctx, new, func(b *keyfile.Body) error { return addDataKey(b, time.Now()) })
	if err != nil && !isUnconfirmed(err) {
		return s.failed(ctx, err)
	}
	e := Event{Type: PassphraseChanged, Path: s.path(), Generation: s.DataGeneration()}
	return fault.Join(err, s.tell(ctx, e))
}

func (s *Store) checkPassphrase(p Secret) error {
	if s.life.Err() != nil {
		return s.errClosed()
	}
	file, _, err := s.readFile()
	if err != nil {
		return fileError(err)
	}
	return p.Use(func(p []byte) error {
		master, err := file.Unlock(p, s.options()...)
		if err != nil {
			return storeError(err)
		}
		defer master.Wipe()
		body, err := keyfile.Open(file, master)
		if err != nil {
			return storeError(err)
		}
		body.Wipe()
		return nil
	})
}

// rewrite saves the store under a new master key, derived from passphrase, after f has changed the
// body.
func (s *Store) rewrite(ctx context.Context, passphrase Secret, f func(*keyfile.Body) error) error {
	return s.edit(ctx, func(lock *fsafe.Lock, body *keyfile.Body) error {
		s.iterations = max(s.iterations, s.master.Iterations()) // never fewer than the file had
		if f != nil {
			if err := f(body); err != nil {
				return err
			}
		}
		s.mu.Lock()
		old, oldAt := s.master, s.masterAt
		s.master, s.masterAt = nil, nil // derive must not wipe it: a failed save goes back to it
		s.mu.Unlock()
		err := s.derive(passphrase, s.newMaster)
		if err == nil {
			err = s.save(lock, body)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil && !isUnconfirmed(err) {
			s.wipeMaster()
			s.master, s.masterAt = old, oldAt
			return err
		}
		wipeMasterKey(old, oldAt)
		return err
	})
}

func hasPrimary(b *keyfile.Body, fingerprint string) bool {
	return slices.ContainsFunc(b.Keys, func(e keyfile.Entry) bool {
		return e.State == keyfile.Primary && fingerprintOf(e.Key) == fingerprint
	})
}
