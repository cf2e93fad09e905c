// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// This file is how a store tells an Auditor of its events. It does so while it holds neither its
// own locks nor the lock of the file, so that the Auditor may use the store.

// Event is one thing that happened in a store. Package sealedchat makes its own Event of it, which
// says what each type has.
type Event struct {
	Time           time.Time
	Type           string
	Fingerprint    string
	OldFingerprint string
	Path           string
	Bits           int
	Keys           int
	Generation     uint32
	Bytes          int64
	Duration       time.Duration
	Reason         string
}

// The types of events, under their names in package sealedchat.
const (
	KeyGenerated       = "key_generated"
	KeyLoaded          = "key_loaded"
	KeyRotated         = "key_rotated"
	KeyRetired         = "key_retired"
	KeyDeleted         = "key_deleted"
	KeyImported        = "key_imported"
	KeyExported        = "key_exported"
	PassphraseChanged  = "passphrase_changed"
	DataSealed         = "data_sealed"
	DataOpened         = "data_opened"
	DecryptionRefused  = "decryption_refused"
	PermissionsRefused = "permissions_refused"
	LockLost           = "lock_lost"
)

// SetTell has events told to f from now on, and at once those of Create or Open, if nobody was told
// of them yet. nil tells nobody. The error is f's for those that are told at once; f stays set all
// the same.
func (s *Store) SetTell(ctx context.Context, f func(context.Context, Event) error) (err error) {
	s.mu.Lock()
	s.told = f
	var untold []Event
	if f != nil {
		untold, s.untold = s.untold, nil
	}
	s.mu.Unlock()
	for _, e := range untold {
		err = fault.Join(err, tellTo(ctx, f, e))
	}
	return err
}

// tell tells the Auditor. Without one, the events until the store is open wait for SetTell: a
// handful.
func (s *Store) tell(ctx context.Context, e Event) error {
	e.Time = time.Now()
	s.mu.Lock()
	f := s.told
	if f == nil && s.opening {
		s.untold = append(s.untold, e)
	}
	s.mu.Unlock()
	return tellTo(ctx, f, e)
}

func tellTo(ctx context.Context, f func(context.Context, Event) error, e Event) error {
	if f == nil {
		return nil
	}
	if err := f(ctx, e); err != nil {
		return &auditorError{err}
	}
	return nil
}

// auditorError is an Auditor's error. It is all that the Auditor's error is, except ErrUnconfirmed
// and the types by which the store knows its own errors: the Auditor may use a key store of its
// own.
type auditorError struct{ err error }

func (e *auditorError) Error() string { return e.err.Error() }

func (e *auditorError) Is(target error) bool {
	return target != fault.ErrUnconfirmed && errors.Is(e.err, target)
}

func (e *auditorError) As(target any) bool {
	switch target.(type) {
	case **unconfirmedError, **unauditedError, **reportedError:
		return false
	}
	return errors.As(e.err, target)
}

// failed tells of err, the error of a call, if it is an event and was not told already: err comes
// back.
func (s *Store) failed(ctx context.Context, err error) error {
	if _, reported := errors.AsType[*reportedError](err); reported || err == nil {
		return err
	}
	e, ok := fileEvent(err)
	if errors.Is(err, fault.ErrPassphrase) && !errors.Is(err, errChangedElsewhere) {
		ok = true
		e = Event{
			Type: DecryptionRefused, Path: s.path(),
			Reason: "wrong passphrase or damaged key store",
		}
	}
	if !ok {
		return err
	}
	if e.Path == "" && s.dir != nil {
		e.Path = s.dir.Path()
	}
	return &reportedError{fault.Join(err, s.tell(ctx, e))}
}

// fileEvent is the event that an error of the file system is, if it is one.
func fileEvent(err error) (Event, bool) {
	if denied, ok := errors.AsType[*fsafe.PermissionError](err); ok {
		return Event{Type: PermissionsRefused, Path: denied.Path, Reason: denied.Reason}, true
	}
	if errors.Is(err, fault.ErrInsecurePermissions) {
		return Event{Type: PermissionsRefused, Reason: "not a regular file or folder"}, true
	}
	if errors.Is(err, fault.ErrLockLost) {
		return Event{Type: LockLost}, true
	}
	return Event{}, false
}

// reportedError is an error that is an event, and was told.
type reportedError struct{ error }

func (e *reportedError) Unwrap() error { return e.error }

// unauditedError is the Auditor's error about a change that stands.
type unauditedError struct{ error }

func (e *unauditedError) Unwrap() error { return e.error }

// stands reports whether a change was made although it returned err.
func stands(err error) bool {
	_, unaudited := errors.AsType[*unauditedError](err)
	return unaudited || isUnconfirmed(err)
}

// opened ends a Create or an Open, which may have failed with err.
func (s *Store) opened(ctx context.Context, err error) error {
	switch {
	case err == nil, isUnconfirmed(err):
		err = fault.Join(err, s.tellLoaded(ctx))
	default:
		err = s.failed(ctx, err)
	}
	s.mu.Lock()
	s.opening = false
	s.mu.Unlock()
	return err
}

func (s *Store) path() string {
	if s.dir == nil {
		return ""
	}
	return filepath.Join(s.dir.Path(), fileName)
}

func (s *Store) tellLoaded(ctx context.Context) error {
	e := Event{Type: KeyLoaded, Path: s.path()}
	s.mu.Lock()
	for _, k := range s.entries {
		if k.RSA != nil {
			e.Keys++
		}
	}
	if k := s.primary(); k != nil {
		e.Fingerprint, e.Bits = k.fingerprint, k.RSA.Public().Bits()
	}
	s.mu.Unlock()
	return s.tell(ctx, e)
}

func (s *Store) tellGenerated(
	ctx context.Context, key *keyfile.RSAKey, start time.Time, reason string,
) error {
	if ctx.Err() != nil {
		return fault.Ended(ctx) // the key is dropped, and nobody hears of it
	}
	// A store that is closed meanwhile waits for the Auditor: an event that it breaks off would
	// count as lost.
	e := Event{
		Type: KeyGenerated, Fingerprint: fingerprintOf(key), Bits: key.Bits(),
		Duration: time.Since(start), Reason: reason,
	}
	return s.tell(context.WithoutCancel(ctx), e)
}

// keyChanges sees what a change makes of the keys.
type keyChanges struct{ before, after []record }

// watch wraps the f of a change.
func (c *keyChanges) watch(f func(*keyfile.Body) error) func(*keyfile.Body) error {
	return func(b *keyfile.Body) (err error) {
		if c.before, err = records(b); err != nil {
			return err
		}
		if err = f(b); err != nil {
			return err
		}
		c.after, err = records(b)
		return err
	}
}

func primaryIn(keys []record) string {
	for _, r := range keys {
		if r.rsa != nil && r.isCurrent() {
			return r.fingerprint
		}
	}
	return ""
}

func find(keys []record, fingerprint string) *record {
	for i := range keys {
		if keys[i].fingerprint == fingerprint {
			return &keys[i]
		}
	}
	return nil
}

// tellChanges tells what a change did that ended with err, which comes back.
func (s *Store) tellChanges(ctx context.Context, c *keyChanges, err error) error {
	if err != nil && !isUnconfirmed(err) {
		return s.failed(ctx, err)
	}
	if c.after == nil {
		return err
	}
	tell := func(e Event) {
		if unaudited := s.tell(ctx, e); unaudited != nil {
			err = &unauditedError{fault.Join(err, unaudited)}
		}
	}
	was, is := primaryIn(c.before), primaryIn(c.after)
	if is != was && is != "" {
		tell(Event{Type: KeyRotated, Fingerprint: is, OldFingerprint: was, Keys: len(c.after)})
	}
	c.tellConfigs(tell)
	for _, r := range c.before {
		if r.config != nil {
			continue
		}
		switch now := find(c.after, r.fingerprint); {
		case now == nil:
			tell(Event{Type: KeyDeleted, Fingerprint: r.fingerprint})
		case !now.isCurrent() && r.isCurrent():
			tell(Event{Type: KeyRetired, Fingerprint: r.fingerprint})
		}
	}
	return err
}

// tellConfigs tells what a change did to the configurations. They are replaced each hour, all at
// once, and are wiped after a time that never changes: one event stands for all that.
func (c *keyChanges) tellConfigs(tell func(Event)) {
	current := func(keys, others []record) (list []record) {
		for _, r := range keys {
			if r.config != nil && r.isCurrent() {
				if other := find(others, r.fingerprint); other == nil || !other.isCurrent() {
					list = append(list, r)
				}
			}
		}
		return list
	}
	made, replaced := current(c.after, c.before), current(c.before, c.after)
	if len(made) > 0 && len(replaced) > 0 {
		tell(Event{
			Type: KeyRotated, Fingerprint: made[0].fingerprint,
			OldFingerprint: replaced[0].fingerprint, Keys: len(c.after), Reason: rotatedConfigs,
		})
		return
	}
	for _, r := range made {
		tell(Event{Type: KeyGenerated, Fingerprint: r.fingerprint, Reason: madeConfig})
	}
}

// Reasons of events about configurations.
const (
	madeConfig     = "a configuration of Oblivious HTTP"
	rotatedConfigs = "the configurations of Oblivious HTTP"
)

// tellUnopened tells of data at rest that did not open; err comes back.
func (s *Store) tellUnopened(err error) error {
	if !errors.Is(err, fault.ErrDecryption) {
		return err
	}
	e := Event{Type: DecryptionRefused, Path: s.path(), Reason: "data at rest"}
	return fault.Join(err, s.tell(context.Background(), e))
}
