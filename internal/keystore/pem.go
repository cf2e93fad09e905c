// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// ImportPEM makes the private key in a PEM file the primary one; the one before is retired, as in a
// rotation. passphrase is nil for a plain file. Importing the primary key again changes nothing.
// The result has how the key lay in its file.
func (s *Store) ImportPEM(ctx context.Context, text []byte, passphrase Secret) (*Info, error) {
	defer s.sweeper.Soon()
	key, report, err := parsePEM(text, passphrase, s.options())
	if err != nil {
		return nil, err
	}
	fp := key.Fingerprint()
	result := &Info{
		Fingerprint: hybrid.HexFingerprint(fp), Kind: "RSA", Bits: key.Bits(),
		Format: string(report.Container),
		KDF:    report.KDF, Iterations: report.Iterations, Weak: report.Weak, Public: report.Public,
	}
	err = s.change(ctx, func(b *keyfile.Body) error {
		for _, e := range b.Keys {
			if e.Key.Fingerprint() != fp {
				continue
			}
			switch e.State {
			case keyfile.Primary:
				return errNoChange
			case keyfile.Next:
				return s.promoteNext(b, nil)
			}
			return fmt.Errorf("%w: this key was retired here before; delete it first",
				fault.ErrInvalidRequest)
		}
		return s.promote(b, key)
	})
	key.Wipe()
	if err != nil && !stands(err) {
		return nil, err
	}
	s.keyInUse()
	s.describe(result)
	return result, fault.Join(err, s.tell(ctx, Event{
		Type: KeyImported, Fingerprint: result.Fingerprint, Bits: result.Bits,
		Reason: result.Format,
	}))
}

// describe completes i with what the store has of the key by now.
func (s *Store) describe(i *Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if e.fingerprint == i.Fingerprint {
			now := e.info()
			i.Locked, i.Created, i.Activated, i.Retired = now.Locked, now.Created, now.Activated,
				now.Retired
		}
	}
}

func parsePEM(
	text []byte, passphrase Secret, options []keyfile.Option,
) (key *keyfile.RSAKey, report *keyfile.Report, err error) {
	parse := func(p []byte) error {
		key, report, err = keyfile.ParsePrivateKey(text, p, options...)
		return nil
	}
	if passphrase == nil {
		_ = parse(nil)
	} else if closed := passphrase.Use(parse); closed != nil {
		return nil, nil, closed
	}
	if err != nil {
		return nil, nil, importError(err)
	}
	return key, report, nil
}

// ExportPEM writes the key with this fingerprint ("" = the primary one) as PKCS#8 in PBES2.
func (s *Store) ExportPEM(
	ctx context.Context, fingerprint string, passphrase Secret,
) ([]byte, error) {
	if err := validPassphrase(passphrase); err != nil {
		return nil, err
	}
	held, err := s.find(ctx, fingerprint)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	defer s.sweeper.Soon()
	if held.isPurged() {
		return nil, s.errClosed()
	}
	key, err := keyfile.NewRSAKey(held.RSA.RSA(), s.options()...)
	if err != nil {
		return nil, storeError(err)
	}
	defer key.Wipe()
	var text []byte
	err = passphrase.Use(func(p []byte) (err error) {
		text, err = keyfile.MarshalPBES2(key, p, 0, s.options()...)
		return err
	})
	if err != nil {
		return nil, storeError(err)
	}
	e := Event{Type: KeyExported, Fingerprint: held.fingerprint, Bits: held.RSA.Public().Bits()}
	if err := s.tell(ctx, e); err != nil {
		return nil, err
	}
	return text, nil
}

// find returns the RSA key with this fingerprint, retained.
func (s *Store) find(ctx context.Context, fingerprint string) (*Key, error) {
	if fingerprint == "" {
		return s.current(ctx)
	}
	fp, err := hybrid.ParseFingerprint(fingerprint)
	if err != nil {
		return nil, err
	}
	fingerprint = hybrid.HexFingerprint(fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, s.errClosed()
	}
	for _, e := range s.entries {
		if e.RSA != nil && e.fingerprint == fingerprint {
			e.retain()
			return e.Key, nil
		}
	}
	return nil, fmt.Errorf("%w: no key with this fingerprint", fault.ErrInvalidRequest)
}

// Delete wipes the next RSA key, or a retired one before its grace is over, and takes it out of the
// file.
func (s *Store) Delete(ctx context.Context, fingerprint string) error {
	fp, err := hybrid.ParseFingerprint(fingerprint)
	if err != nil {
		return err
	}
	return s.change(ctx, func(b *keyfile.Body) error {
		for i, e := range b.Keys {
			if e.Key.Fingerprint() != fp {
				continue
			}
			if e.State == keyfile.Primary {
				return fmt.Errorf("%w: the primary key cannot be deleted, rotate first",
					fault.ErrInvalidRequest)
			}
			e.Key.Wipe()
			b.Keys = append(b.Keys[:i], b.Keys[i+1:]...)
			return nil
		}
		return fmt.Errorf("%w: no key with this fingerprint", fault.ErrInvalidRequest)
	})
}
