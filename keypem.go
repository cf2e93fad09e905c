// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// PEMReport says how an imported key lay in its file.
type PEMReport struct {
	Fingerprint string
	Bits        int
	Format      string // "PKCS#8", "PKCS#1", "PBES2", or "JavaScript", that client's own encryption
	KDF         string // "PBKDF2-HMAC-SHA256" and the like; "" if the file was not encrypted
	Iterations  int    // of the KDF
	Weak        bool   // fewer than 600,000 iterations: whoever has that file has it easier
	Public      bool   // a public key block stood in the text as well, and belongs to the key
}

// ImportPEM makes the private key in a PEM file the primary one; the one before is retired, as in a rotation. text is the
// file's content. It reads what the Python and the JavaScript client and openssl write: PKCS#8 and PKCS#1, plain; PKCS#8 in PBES2 with PBKDF2
// and AES-CBC (RFC 8018); and the JavaScript client's own encryption. passphrase is nil for a plain file. Importing the
// primary key again changes nothing. A public key block in the same file is checked to be the key's own: append
// public_key.pem to have it checked. text and passphrase stay the caller's; wipe text.
//
// Errors: [ErrInvalidRequest] for a key that was retired here before, which is to be deleted first; [ErrUnconfirmed], with
// a report; [ErrPassphrase] when it is wrong, missing, or given for a plain file; [ErrPrivateKey] for everything that is
// not an RSA key of 2048 to 8192 bits, two primes and an exponent of at least 65537, for encryptions that are too weak or
// too costly, with the openssl command that converts them, and for more than 64 KiB; and those of [KeyStore].
func (s *KeyStore) ImportPEM(ctx context.Context, text []byte, passphrase *Secret) (*PEMReport, error) {
	defer s.sweeper.Soon()
	key, report, err := parsePEM(text, passphrase, s.options())
	if err != nil {
		return nil, err
	}
	fp := key.Fingerprint()
	result := &PEMReport{
		Fingerprint: hex.EncodeToString(fp[:]), Bits: key.Bits(), Format: string(report.Container),
		KDF: report.KDF, Iterations: report.Iterations, Weak: report.Weak, Public: report.Public,
	}
	err = s.change(ctx, func(b *keyfile.Body) error {
		for _, e := range b.Keys {
			if e.Key.Fingerprint() != fp {
				continue
			}
			if e.State == keyfile.Primary {
				return errNoChange
			}
			return fmt.Errorf("%w: this key was retired here before; delete it first", ErrInvalidRequest)
		}
		return s.promote(b, key)
	})
	key.Wipe()
	if err != nil && !stands(err) {
		return nil, err
	}
	s.keyInUse()
	return result, fault.Join(err, s.tell(ctx, Event{
		Type: EventKeyImported, Fingerprint: result.Fingerprint, Bits: result.Bits, Reason: result.Format,
	}))
}

func parsePEM(text []byte, passphrase *Secret, options []keyfile.Option) (key *keyfile.RSAKey, report *keyfile.Report, err error) {
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

// ExportPEM writes the key with this fingerprint ("" = the primary one) as PKCS#8 in PBES2: PBKDF2-HMAC-SHA256 with
// 600,000 iterations, AES-256-CBC. openssl and the Python client read it. passphrase has at least 8 bytes and stays
// the caller's; so is the result. CBC carries no authentication: whoever can write the file can damage the key. Errors:
// [ErrInvalidRequest] for a short passphrase or a fingerprint that no key has, [ErrClosed], [ErrAudit].
func (s *KeyStore) ExportPEM(ctx context.Context, fingerprint string, passphrase *Secret) ([]byte, error) {
	if err := validPassphrase(passphrase); err != nil {
		return nil, err
	}
	held, err := s.find(ctx, fingerprint)
	if err != nil {
		return nil, err
	}
	defer held.release()
	defer s.sweeper.Soon()
	if held.Purged() {
		return nil, s.errClosed()
	}
	key, err := keyfile.NewRSAKey(held.RSA(), s.options()...)
	if err != nil {
		return nil, keyStoreError(err)
	}
	defer key.Wipe()
	var text []byte
	err = passphrase.Use(func(p []byte) (err error) {
		text, err = keyfile.MarshalPBES2(key, p, 0, s.options()...)
		return err
	})
	if err != nil {
		return nil, keyStoreError(err)
	}
	e := Event{Type: EventKeyExported, Fingerprint: held.Public().Fingerprint(), Bits: held.Public().Bits()}
	if err := s.tell(ctx, e); err != nil {
		return nil, err
	}
	return text, nil
}

// find returns the key with this fingerprint, retained.
func (s *KeyStore) find(ctx context.Context, fingerprint string) (*heldKey, error) {
	if fingerprint == "" {
		return s.hold(ctx)
	}
	fp, err := hybrid.ParseFingerprint(fingerprint)
	if err != nil {
		return nil, err
	}
	fingerprint = hex.EncodeToString(fp[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, s.errClosed()
	}
	for _, k := range s.keys {
		if k.Public().Fingerprint() == fingerprint {
			k.retain()
			return k.heldKey, nil
		}
	}
	return nil, fmt.Errorf("%w: no key with this fingerprint", ErrInvalidRequest)
}

// Delete wipes a retired RSA key before its grace is over, and takes it out of the file. The primary key cannot be deleted:
// rotate first. Errors: [ErrInvalidRequest] for that key, or a fingerprint that no key has; and those of [KeyStore].
func (s *KeyStore) Delete(ctx context.Context, fingerprint string) error {
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
				return fmt.Errorf("%w: the primary key cannot be deleted, rotate first", ErrInvalidRequest)
			}
			e.Key.Wipe()
			b.Keys = append(b.Keys[:i], b.Keys[i+1:]...)
			return nil
		}
		return fmt.Errorf("%w: no key with this fingerprint", ErrInvalidRequest)
	})
}

// ChangePassphrase rewrites the file under a new passphrase of at least 8 bytes with a new salt, and starts a new
// generation of data keys; what was sealed before still opens. old must open the file ([ErrPassphrase]). Other
// processes that have the store open go on with the keys they know, and can neither save, nor see later changes, nor open
// what is sealed from now on, until they open it again. A copy of the old file still opens with the old passphrase. Both
// passphrases stay the caller's. After an error the old passphrase holds, unless the error is [ErrUnconfirmed], or only
// [ErrAudit]: then the new one does. An ephemeral store, or a passphrase that is too short, is [ErrInvalidRequest]; other
// errors are those of [KeyStore].
func (s *KeyStore) ChangePassphrase(ctx context.Context, old, new *Secret) error {
	if s.dir == nil {
		return fmt.Errorf("%w: an ephemeral key store has no passphrase", ErrInvalidRequest)
	}
	if err := validPassphrase(new); err != nil {
		return err
	}
	if err := s.checkPassphrase(old); err != nil {
		return s.failed(ctx, err)
	}
	err := s.rewrite(ctx, new, func(b *keyfile.Body) error { return addDataKey(b, time.Now()) })
	if err != nil && !unconfirmed(err) {
		return s.failed(ctx, err)
	}
	return fault.Join(err, s.tell(ctx, Event{Type: EventPassphraseChanged, Path: s.path(), Generation: s.dataGeneration()}))
}

func (s *KeyStore) checkPassphrase(p *Secret) error {
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
			return keyStoreError(err)
		}
		defer master.Wipe()
		body, err := keyfile.Open(file, master)
		if err != nil {
			return keyStoreError(err)
		}
		body.Wipe()
		return nil
	})
}
