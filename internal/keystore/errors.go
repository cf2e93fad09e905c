// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"errors"
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

var (
	// errNoChange ends a change that turned out to be none.
	errNoChange = errors.New("nothing to change")

	errChangedElsewhere = fmt.Errorf(
		"%w: the passphrase was changed elsewhere, open the key store again", fault.ErrPassphrase)
)

func (s *Store) errClosed() error { return fmt.Errorf("%w: key store", fault.ErrClosed) }

// unconfirmedError is an ErrUnconfirmed of the store's own, on which it decides. An Auditor's error
// may be an ErrUnconfirmed, too.
type unconfirmedError struct{ err error }

func (e *unconfirmedError) Error() string {
	return fault.ErrUnconfirmed.Error() + ": " + e.err.Error()
}

func (e *unconfirmedError) Unwrap() []error { return []error{fault.ErrUnconfirmed, e.err} }

// isUnconfirmed reports whether the file was replaced although there is an error.
func isUnconfirmed(err error) bool {
	_, ok := errors.AsType[*unconfirmedError](err)
	return ok
}

// fileError gives errors of files the module's sentinels, and storeError those of their contents.
func fileError(err error) error {
	if errors.Is(err, fsafe.ErrTooLarge) || errors.Is(err, fsafe.ErrChanged) {
		return fsafe.FaultAs(fault.ErrKeyStoreDamaged, err)
	}
	return fsafe.Fault(err)
}

func storeError(err error) error {
	if errors.Is(err, fault.ErrMemoryLimit) {
		return err
	}
	switch err { // the sentinels say the same
	case keyfile.ErrPassphrase:
		return fault.ErrPassphrase
	case keyfile.ErrDecryption:
		return fault.ErrDecryption
	}
	for _, m := range []struct{ from, to error }{
		{keyfile.ErrPassphrase, fault.ErrPassphrase},
		{keyfile.ErrPassphraseNeeded, fault.ErrPassphrase},
		{keyfile.ErrPassphraseSuperfluous, fault.ErrPassphrase},
		{keyfile.ErrDamaged, fault.ErrKeyStoreDamaged},
		{keyfile.ErrVersion, fault.ErrKeyStoreDamaged},
		{keyfile.ErrKDFCost, fault.ErrKeyStoreDamaged},
		{keyfile.ErrTooLarge, fault.ErrTooLarge},
		{keyfile.ErrDecryption, fault.ErrDecryption},
	} {
		if errors.Is(err, m.from) {
			return fmt.Errorf("%w: %w", m.to, err)
		}
	}
	return fmt.Errorf("sealedchat: key store: %w", err)
}

// importError is keyStoreError for a key file: what is not the passphrase's fault is
// fault.ErrPrivateKey.
func importError(err error) error {
	for _, passphrase := range []error{
		keyfile.ErrPassphrase, keyfile.ErrPassphraseNeeded, keyfile.ErrPassphraseSuperfluous,
	} {
		if errors.Is(err, passphrase) {
			return fmt.Errorf("%w: %w", fault.ErrPassphrase, err)
		}
	}
	return fmt.Errorf("%w: %w", fault.ErrPrivateKey, err)
}
