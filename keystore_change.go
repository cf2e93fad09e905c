// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// This file has the one way in which a key store changes: lock, read the file as it is now, change its body, replace
// the file, take over what it says. An ephemeral store does the same with a body made from memory.

// errNoChange ends a change that turned out to be none.
var errNoChange = errors.New("nothing to change")

var errChangedElsewhere = fmt.Errorf("%w: the passphrase was changed elsewhere, open the key store again", ErrPassphrase)

// change applies f to the store's body. When it fails nothing changes, neither on disk nor in memory, unless the error is
// ErrUnconfirmed, or ErrAudit alone: then the Auditor could not be told of what is done.
func (s *KeyStore) change(ctx context.Context, f func(*keyfile.Body) error) error {
	defer s.sweeper.Soon() // what is made of keys to tell their fingerprints
	var changes keyChanges
	err := s.changeBody(ctx, changes.watch(f))
	return s.tellChanges(ctx, &changes, err)
}

func (s *KeyStore) changeBody(ctx context.Context, f func(*keyfile.Body) error) error {
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
func (s *KeyStore) edit(ctx context.Context, f func(*fsafe.Lock, *keyfile.Body) error) error {
	lock, err := s.lock(ctx) // before enter: nobody in this process waits while another process writes
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
func (s *KeyStore) lock(ctx context.Context) (*fsafe.Lock, error) {
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
func (s *KeyStore) enter(ctx context.Context) (leave func(), err error) {
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.Ended(ctx)
	case <-s.life.Done():
		return nil, s.errClosed()
	}
	if s.life.Err() != nil {
		<-s.writing
		return nil, s.errClosed()
	}
	return func() { <-s.writing }, nil
}

// save replaces the file and takes over the body.
func (s *KeyStore) save(lock *fsafe.Lock, body *keyfile.Body) error {
	body.Generation++
	text, err := keyfile.Seal(body, s.master)
	if err != nil {
		return keyStoreError(err)
	}
	if _, err := lock.RemoveStaleTemps(keyStoreFile); err != nil {
		return fileError(err)
	}
	if err := lock.Check(); err != nil {
		return fileError(err)
	}
	if s.life.Err() != nil {
		return s.errClosed()
	}
	// What cannot be used must not be written either.
	defer s.dropPrepared()
	if err := s.prepare(body); err != nil {
		return err
	}
	saved := s.write(text)
	if saved != nil && !unconfirmed(saved) {
		return saved
	}
	// From here on the file is another one, and whatever goes wrong does not undo that.
	if err := s.load(); err != nil {
		return &unconfirmedError{fmt.Errorf("reading it back: %w", err)}
	}
	return saved
}

// unconfirmedError is an ErrUnconfirmed of the store's own: what is decided on. Others may be its Auditor's.
type unconfirmedError struct{ err error }

func (e *unconfirmedError) Error() string   { return ErrUnconfirmed.Error() + ": " + e.err.Error() }
func (e *unconfirmedError) Unwrap() []error { return []error{ErrUnconfirmed, e.err} }

// unconfirmed reports whether the file was replaced although there is an error.
func unconfirmed(err error) bool {
	_, ok := errors.AsType[*unconfirmedError](err)
	return ok
}

// write replaces the file. An unconfirmedError means that it was replaced all the same.
func (s *KeyStore) write(text []byte) error {
	err := s.dir.WriteFile(keyStoreFile, text)
	if errors.Is(err, fsafe.ErrNotDurable) {
		if s.dir.WriteFile(keyStoreFile, text) == nil {
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
func (s *KeyStore) changeMemory(f func(*keyfile.Body) error) error {
	body := &keyfile.Body{}
	defer body.Wipe()
	s.mu.Lock()
	for _, k := range s.keys {
		if k.Purged() {
			continue
		}
		key, err := keyfile.NewRSAKey(k.RSA(), s.options()...)
		if err != nil {
			s.mu.Unlock()
			return keyStoreError(err)
		}
		body.Keys = append(body.Keys, keyfile.Entry{
			State: k.state, Created: k.created, Activated: k.activated, Retired: k.retired, Key: key,
		})
	}
	for _, p := range s.pins {
		body.Pins = append(body.Pins, p)
	}
	err := s.appendConfigs(body)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f(body); err != nil {
		return skipNoChange(err)
	}
	return s.takeOver(body)
}

func (s *KeyStore) readFile() (*keyfile.File, fsafe.Version, error) {
	text, version, err := s.dir.ReadVersion(keyStoreFile, keyfile.MaxStoreSize)
	if err != nil {
		return nil, version, err
	}
	file, err := keyfile.ParseHeader(text)
	if err != nil {
		return nil, version, keyStoreError(err)
	}
	return file, version, nil
}

// openBody opens a file with the master key at hand.
func (s *KeyStore) openBody(file *keyfile.File) (*keyfile.Body, error) {
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
		return nil, keyStoreError(err)
	}
	if body.Generation < generation { // somebody put an old file in its place
		body.Wipe()
		return nil, fmt.Errorf("%w: older than what is in use", ErrKeyStoreDamaged)
	}
	return body, nil
}

// load takes over what the file says now. The caller is the only one who changes the store, or opens it.
func (s *KeyStore) load() error {
	file, version, err := s.readFile()
	if err != nil {
		return fileError(err)
	}
	return s.adoptFile(file, version)
}

// adoptFile takes over what a file says that was read just now.
func (s *KeyStore) adoptFile(file *keyfile.File, version fsafe.Version) error {
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
func (s *KeyStore) refresh(ctx context.Context) error {
	loaded, err := s.reload(ctx)
	if loaded {
		return s.tellLoaded(ctx)
	}
	return err
}

// reload is refresh without a word to the Auditor.
func (s *KeyStore) reload(ctx context.Context) (loaded bool, err error) {
	if s.dir == nil {
		return false, nil
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	now, err := s.dir.Stat(keyStoreFile)
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

// takeOver makes the store's memory say what body says. Keys that are known already stay as they are; those that are
// gone are wiped when the last request that uses them ends.
func (s *KeyStore) takeOver(body *keyfile.Body) error {
	defer s.dropPrepared()
	if err := s.prepare(body); err != nil {
		return err
	}
	replacedBy := ""
	defer func() {
		if replacedBy != "" { // after unlocking: a log's handler may ask the store
			s.log.Info("another key is in use", "fingerprint", replacedBy)
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock() // also when the store is closing: Close wipes what is here when it has its turn
	s.takeOverConfigs()
	dataKeysAt := s.prepared.dataKeysAt
	s.prepared.dataKeysAt = nil
	known := make(map[string]*heldKey)
	for _, k := range s.keys {
		known[k.Public().Fingerprint()] = k.heldKey
	}
	var keys []*storedKeyEntry
	for _, e := range body.Keys {
		if !inUse(e.State) {
			continue
		}
		fingerprint := hexFingerprint(e.Key)
		held := known[fingerprint]
		if held == nil {
			held = &heldKey{PrivateKey: s.prepared.keys[fingerprint], users: 1}
			delete(s.prepared.keys, fingerprint)
		}
		keys = append(keys, &storedKeyEntry{heldKey: held, state: e.State, created: e.Created, activated: e.Activated, retired: e.Retired})
	}
	old, before := s.keys, s.primary()
	s.keys = keys
	if now := s.primary(); before == nil || now == nil || before.heldKey != now.heldKey {
		s.rotator.uses.Store(0)
		if before != nil && now != nil {
			replacedBy = now.Public().Fingerprint()
		}
	}
	for _, k := range old {
		if !slices.ContainsFunc(keys, func(e *storedKeyEntry) bool { return e.heldKey == k.heldKey }) {
			k.release()
		}
	}
	s.pins = make(map[string]keyfile.Pin, len(body.Pins))
	for _, p := range body.Pins {
		s.pins[p.Origin] = p
	}
	s.takeOverDataKeys(body.DataKeys, dataKeysAt)
	return nil
}

// addDataKey starts a new generation of data keys.
func addDataKey(body *keyfile.Body, now time.Time) error {
	var last uint32
	if n := len(body.DataKeys); n > 0 {
		last = body.DataKeys[n-1].Generation
	}
	if len(body.DataKeys) >= keyfile.MaxDataKeys {
		return fmt.Errorf("%w: %d generations of data keys", ErrTooLarge, len(body.DataKeys))
	}
	key := make([]byte, hybrid.DataKeySize)
	_, _ = rand.Read(key)
	body.DataKeys = append(body.DataKeys, keyfile.DataKey{Generation: last + 1, Key: key, Created: now})
	return nil
}

// rewrite saves the store under a new master key, derived from passphrase, after f has changed the body.
func (s *KeyStore) rewrite(ctx context.Context, passphrase *Secret, f func(*keyfile.Body) error) error {
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
		if err != nil && !unconfirmed(err) {
			s.dropMaster()
			s.master, s.masterAt = old, oldAt
			return err
		}
		wipeMaster(old, oldAt)
		return err
	})
}

// fileError gives errors of files this package's sentinels, and keyStoreError those of their contents.
func fileError(err error) error {
	if errors.Is(err, fsafe.ErrTooLarge) || errors.Is(err, fsafe.ErrChanged) {
		return fsafe.FaultAs(ErrKeyStoreDamaged, err)
	}
	return fsafe.Fault(err)
}

func keyStoreError(err error) error {
	if errors.Is(err, ErrMemoryLimit) {
		return err
	}
	switch err { // whose words are the sentinels' own
	case keyfile.ErrPassphrase:
		return ErrPassphrase
	case keyfile.ErrDecryption:
		return ErrDecryption
	}
	for _, m := range []struct{ from, to error }{
		{keyfile.ErrPassphrase, ErrPassphrase}, {keyfile.ErrDamaged, ErrKeyStoreDamaged}, {keyfile.ErrVersion, ErrKeyStoreDamaged},
		{keyfile.ErrKDFCost, ErrKeyStoreDamaged}, {keyfile.ErrTooLarge, ErrTooLarge}, {keyfile.ErrDecryption, ErrDecryption},
		{keyfile.ErrPassphraseNeeded, ErrPassphrase}, {keyfile.ErrPassphraseSuperfluous, ErrPassphrase},
	} {
		if errors.Is(err, m.from) {
			return fmt.Errorf("%w: %w", m.to, err)
		}
	}
	return fmt.Errorf("sealedchat: key store: %w", err)
}

// importError is keyStoreError for a key file: what is not the passphrase's fault is ErrPrivateKey.
func importError(err error) error {
	for _, passphrase := range []error{keyfile.ErrPassphrase, keyfile.ErrPassphraseNeeded, keyfile.ErrPassphraseSuperfluous} {
		if errors.Is(err, passphrase) {
			return fmt.Errorf("%w: %w", ErrPassphrase, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrPrivateKey, err)
}

func privateKeys(held []*heldKey) (keys []*hybrid.PrivateKey) {
	for _, k := range held {
		keys = append(keys, k.PrivateKey)
	}
	return keys
}

func hasPrimary(b *keyfile.Body, fingerprint string) bool {
	return slices.ContainsFunc(b.Keys, func(e keyfile.Entry) bool {
		return e.State == keyfile.Primary && hexFingerprint(e.Key) == fingerprint
	})
}
