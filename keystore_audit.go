// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// This file is how a key store tells its Auditor, and the key that an audit log gets from it.
// Events are told when neither the store's own lock nor the file's is held.

// SetAuditor tells a from now on, in place of KeyStoreOptions.Audit, and at once what
// CreateKeyStore or OpenKeyStore did, if nobody was told that yet. It is for an [AuditLog], which
// needs the open store for its key:
//
//	store, err := OpenKeyStore(ctx, dir, passphrase, nil)
//	log, err := OpenAuditLog(ctx, path, store, nil)
//	err = store.SetAuditor(ctx, log.Record)
//	…
//	store.Close() // after the clients and gateways; rotation in the background tells until here
//	log.Close()
//
// nil tells nobody. The error is [ErrAudit] with a's own for what is told at once; a is set all the
// same.
func (s *KeyStore) SetAuditor(ctx context.Context, a Auditor) (err error) {
	s.audit.set(a)
	if a == nil {
		return nil
	}
	s.mu.Lock()
	unheard := s.unheard
	s.unheard = nil
	s.mu.Unlock()
	for _, e := range unheard {
		err = fault.Join(err, s.audit.tell(ctx, e))
	}
	return err
}

// tell tells the Auditor. Without one, what happens until the store is open waits for SetAuditor: a
// handful of events.
func (s *KeyStore) tell(ctx context.Context, e Event) error {
	s.mu.Lock()
	if s.opening && s.audit.to.Load() == nil {
		e.complete()
		s.unheard = append(s.unheard, e)
	}
	s.mu.Unlock()
	return s.audit.tell(ctx, e)
}

// failed tells of err, the error of a call, if it is an event and was not told already: err comes
// back.
func (s *KeyStore) failed(ctx context.Context, err error) error {
	if _, told := errors.AsType[*toldError](err); told || err == nil {
		return err
	}
	e, ok := fileEvent(err)
	if errors.Is(err, ErrPassphrase) && !errors.Is(err, errChangedElsewhere) {
		e, ok = Event{Type: EventDecryptionRefused, Path: s.path(),
			Reason: "wrong passphrase or damaged key store"}, true
	}
	if !ok {
		return err
	}
	if e.Path == "" && s.dir != nil {
		e.Path = s.dir.Path()
	}
	return &toldError{fault.Join(err, s.tell(ctx, e))}
}

// toldError is an error that is an event, and was told.
type toldError struct{ error }

func (e *toldError) Unwrap() error { return e.error }

// untoldError is the Auditor's error about a change that stands.
type untoldError struct{ error }

func (e *untoldError) Unwrap() error { return e.error }

// stands reports whether a change was made although it returned err.
func stands(err error) bool {
	_, untold := errors.AsType[*untoldError](err)
	return untold || unconfirmed(err)
}

// opened ends a Create or an Open that failed with err, or did not.
func (s *KeyStore) opened(ctx context.Context, err error) error {
	switch {
	case err == nil, unconfirmed(err):
		err = fault.Join(err, s.tellLoaded(ctx))
	default:
		err = s.failed(ctx, err)
	}
	s.mu.Lock()
	s.opening = false
	s.mu.Unlock()
	return err
}

func (s *KeyStore) path() string {
	if s.dir == nil {
		return ""
	}
	return filepath.Join(s.dir.Path(), keyStoreFile)
}

func (s *KeyStore) tellLoaded(ctx context.Context) error {
	e := Event{Type: EventKeyLoaded, Path: s.path()}
	s.mu.Lock()
	e.Keys = len(s.keys)
	if k := s.primary(); k != nil {
		e.Fingerprint, e.Bits = k.Public().Fingerprint(), k.Public().Bits()
	}
	s.mu.Unlock()
	return s.tell(ctx, e)
}

func (s *KeyStore) tellGenerated(ctx context.Context, key *keyfile.RSAKey, start time.Time) error {
	if ctx.Err() != nil {
		return fault.Ended(ctx) // the key is dropped, and nobody hears of it
	}
	// A store that is closed meanwhile waits for the Auditor: an event that it breaks off would
	// count as lost.
	e := Event{Type: EventKeyGenerated, Fingerprint: hexFingerprint(key), Bits: key.Bits(),
		Duration: time.Since(start)}
	return s.tell(context.WithoutCancel(ctx), e)
}

func hexFingerprint(key *keyfile.RSAKey) string {
	return hybrid.HexFingerprint(key.Fingerprint())
}

// keyStates are the states of a body's keys by fingerprint.
type keyStates map[string]keyfile.State

func statesOf(b *keyfile.Body) keyStates {
	states := make(keyStates, len(b.Keys))
	for _, e := range b.Keys {
		states[hexFingerprint(e.Key)] = e.State
	}
	addConfigStates(states, b)
	return states
}

func (k keyStates) primary() string {
	for fp, state := range k {
		if state == keyfile.Primary {
			return fp
		}
	}
	return ""
}

// keyChanges sees what a change makes of the keys.
type keyChanges struct{ before, after keyStates }

// watch wraps the f of a change.
func (c *keyChanges) watch(f func(*keyfile.Body) error) func(*keyfile.Body) error {
	return func(b *keyfile.Body) error {
		c.before = statesOf(b)
		if err := f(b); err != nil {
			return err
		}
		c.after = statesOf(b)
		return nil
	}
}

// tellChanges tells what a change did that ended with err, which comes back.
func (s *KeyStore) tellChanges(ctx context.Context, c *keyChanges, err error) error {
	if err != nil && !unconfirmed(err) {
		return s.failed(ctx, err)
	}
	if c.after == nil {
		return err
	}
	tell := func(e Event) {
		if untold := s.tell(ctx, e); untold != nil {
			err = &untoldError{fault.Join(err, untold)}
		}
	}
	was, is := c.before.primary(), c.after.primary()
	if is != was && is != "" {
		tell(Event{Type: EventKeyRotated, Fingerprint: is, OldFingerprint: was, Keys: len(c.after)})
	}
	for fp, state := range c.after {
		if _, known := c.before[fp]; !known && state == configListed {
			tell(Event{Type: EventKeyGenerated, Fingerprint: fp,
				Reason: "a configuration of Oblivious HTTP"})
		}
	}
	for fp, state := range c.before {
		now, kept := c.after[fp]
		switch {
		case !kept:
			tell(Event{Type: EventKeyDeleted, Fingerprint: fp})
		case now == keyfile.Retired && state != keyfile.Retired:
			tell(Event{Type: EventKeyRetired, Fingerprint: fp})
		}
	}
	return err
}

// useDataKey lends f the data key of a generation, or the newest for 0, and returns its generation.
func (s *KeyStore) useDataKey(generation uint32, f func(dataKey []byte) error) (uint32, error) {
	dataKey, generation, err := s.dataKey(generation)
	if err != nil {
		return 0, err
	}
	defer dataKey.Destroy()
	defer s.sweeper.Soon()
	erase.Do(func() { err = f(dataKey.Bytes()) })
	if err != nil {
		return 0, keyStoreError(err)
	}
	return generation, nil
}

// dataGeneration is the newest generation of data keys that is known here; 0 if there is none.
func (s *KeyStore) dataGeneration() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.dataKeys); n > 0 {
		return s.dataKeys[n-1].generation
	}
	return 0
}

// tellUnopened tells of data at rest that did not open; err comes back.
func (s *KeyStore) tellUnopened(err error) error {
	if !errors.Is(err, ErrDecryption) {
		return err
	}
	return fault.Join(err, s.tell(context.Background(), Event{Type: EventDecryptionRefused,
		Path: s.path(), Reason: "data at rest"}))
}

// isNews reports whether a failure of the background is another one than the last, which was told
// already.
func isNews(before, now error) bool {
	return now != nil && (before == nil || before.Error() != now.Error())
}

// fileEvent is the event that an error of the file system is, if it is one.
func fileEvent(err error) (Event, bool) {
	if denied, ok := errors.AsType[*fsafe.PermissionError](err); ok {
		return Event{Type: EventPermissionsRefused, Path: denied.Path, Reason: denied.Reason}, true
	}
	if errors.Is(err, ErrInsecurePermissions) {
		return Event{Type: EventPermissionsRefused, Reason: "not a regular file or folder"}, true
	}
	if errors.Is(err, ErrLockLost) {
		return Event{Type: EventLockLost}, true
	}
	return Event{}, false
}
