// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
)

// KeyStoreOptions shapes a key store. The zero value, and a nil pointer, are the defaults.
type KeyStoreOptions struct {
	// Bits is the size of generated RSA keys: 2048, 3072 or 4096; 0 = 4096, after which the
	// protocol is named. Generating 4096 bits takes 0.1 to 3.5 s.
	Bits int
	// Iterations of PBKDF2-HMAC-SHA256 (RFC 8018) over the passphrase, 600,000 to 10,000,000. 0 =
	// 600,000, about 130 ms. A file with fewer is rewritten when it is opened, and every other
	// process that has it open has to open it again.
	Iterations int
	// Rotation says when keys are replaced. Zero: RSA keys every 24 h, key configurations every
	// hour.
	Rotation Rotation
	// Memory says what becomes of keys for which there is no locked memory: MemoryBestEffort, the
	// zero value, MemoryRequired, which makes their store fail with ErrMemoryLimit, or MemoryOff.
	Memory MemoryPolicy
	// Audit is told of keys, data at rest, and refused files. nil = no events, until SetAuditor.
	Audit Auditor
	// Logger gets fingerprints, rotations and failures to save. nil = silent.
	Logger *slog.Logger
}

// engine gives the options in the terms of package keystore.
func (o *KeyStoreOptions) engine() (*keystore.Options, error) {
	if o == nil {
		return nil, nil
	}
	if err := o.Memory.validate(); err != nil {
		return nil, &ConfigError{Field: "KeyStoreOptions.Memory", Err: err}
	}
	return &keystore.Options{
		Bits: o.Bits, Iterations: o.Iterations, Rotation: keystore.Rotation(o.Rotation),
		Memory: o.Memory.internal(), Tell: tellKeyEvents(o.Audit), Logger: o.Logger,
	}, nil
}

// tellKeyEvents hands the events of a key store to an Auditor.
func tellKeyEvents(a Auditor) func(context.Context, keystore.Event) error {
	if a == nil {
		return nil
	}
	var t auditSink
	t.set(a)
	return func(ctx context.Context, e keystore.Event) error { return t.tell(ctx, keyEvent(e)) }
}

// keyEvent is an event of a key store in the terms of an Auditor.
func keyEvent(e keystore.Event) Event {
	return Event{
		Time: e.Time, Type: EventType(e.Type),
		Fingerprint: e.Fingerprint, OldFingerprint: e.OldFingerprint,
		Path: e.Path, Bits: e.Bits, Keys: e.Keys, Generation: e.Generation, Bytes: e.Bytes,
		Duration: e.Duration, Reason: e.Reason,
	}
}

// KeyStore holds the RSA keys that answers are sealed to (in a client) or requests (in a gateway),
// in memory or in a file under a passphrase; a gateway's keys for Oblivious HTTP; and the server
// keys that [FirstUse] remembers. It may be shared by several clients and gateways, and its file by
// several processes; all methods may be called from several goroutines. Make one with
// [CreateKeyStore], [OpenKeyStore] or [NewEphemeralKeyStore], and close it after the clients and
// gateways that use it.
//
// Methods that change the store wait for its lock until ctx ends, 10 s at most where ctx has no
// deadline. Their errors are [ErrLocked], [ErrLockLost], [ErrClosed], [ErrUnconfirmed],
// [ErrKeyStoreDamaged], [ErrInsecurePermissions], [ErrPassphrase] when another process changed the
// passphrase, [ErrMemoryLimit], [ErrAudit], those of files, and what each says of its own.
type KeyStore struct{ store *keystore.Store }

// NewEphemeralKeyStore makes a store that lives in memory alone. Its key is generated for the first
// caller that needs it, once however many ask; [SecureCompletionClient.Warm] and [KeyStore.Public]
// do it ahead of time. With [KeyStore.ImportPEM] it serves where keys are mounted read-only; set
// Rotation.Every to -1 there, or the imported key is replaced after a day. Errors are
// [*ConfigError], and [ErrMemoryLimit] under MemoryRequired. The caller closes it.
func NewEphemeralKeyStore(o *KeyStoreOptions) (*KeyStore, error) {
	return newKeyStore(o, keystore.New)
}

// CreateKeyStore makes a new store in the folder dir ("" = sealedchat in the user's configuration
// folder), generates its first key, and opens it. The folder and its parents are made, with mode
// 0700, where they do not exist; on Unix systems an existing folder must be the current user's and
// closed to others ([ErrInsecurePermissions]). A folder with a key store in it is
// [ErrKeyStoreExists] and stays as it is. passphrase has at least 8 bytes ([ErrInvalidRequest]) and
// stays the caller's. The file system needs hard links. [ErrUnconfirmed] means that the store
// exists all the same: open it with [OpenKeyStore]. Other errors: [*ConfigError] for o,
// [ErrLocked], [ErrMemoryLimit], [ErrAudit], those of files.
func CreateKeyStore(
	ctx context.Context, dir string, passphrase *Secret, o *KeyStoreOptions,
) (*KeyStore, error) {
	return newKeyStore(o, func(o *keystore.Options) (*keystore.Store, error) {
		return keystore.Create(ctx, dir, passphrase, o)
	})
}

// OpenKeyStore opens the store in the folder dir ("" as in [CreateKeyStore]). It never makes or
// changes one, except a file with fewer PBKDF2 iterations than it should have. passphrase stays the
// caller's, and may be destroyed afterwards. When the file is deleted while the store is open, its
// keys go on in memory until Close: save them with [KeyStore.ExportPEM].
//
// Errors: [fs.ErrNotExist], [ErrPassphrase], [ErrKeyStoreDamaged], [ErrInsecurePermissions] with
// what fixes it, or for a link, which is refused; [ErrLocked], [ErrClosed] for a nil or destroyed
// passphrase, [*ConfigError] for o, [ErrMemoryLimit], [ErrAudit].
func OpenKeyStore(
	ctx context.Context, dir string, passphrase *Secret, o *KeyStoreOptions,
) (*KeyStore, error) {
	return newKeyStore(o, func(o *keystore.Options) (*keystore.Store, error) {
		return keystore.Open(ctx, dir, passphrase, o)
	})
}

func newKeyStore(
	o *KeyStoreOptions, open func(*keystore.Options) (*keystore.Store, error),
) (*KeyStore, error) {
	options, err := o.engine()
	if err != nil {
		return nil, err
	}
	store, err := open(options)
	if wrong, ok := errors.AsType[*keystore.OptionError](err); ok {
		return nil, &ConfigError{Field: "KeyStoreOptions." + wrong.Field, Err: wrong.Err}
	}
	if err != nil {
		return nil, err
	}
	return &KeyStore{store}, nil
}

// SetAuditor tells a from now on, in place of KeyStoreOptions.Audit, and at once what
// CreateKeyStore or OpenKeyStore did, if no Auditor was told that yet. It is for an [AuditLog],
// which needs the open store for its key:
//
//	store, err := OpenKeyStore(ctx, dir, passphrase, nil)
//	log, err := OpenAuditLog(ctx, path, store, nil)
//	err = store.SetAuditor(ctx, log.Record)
//	…
//	store.Close() // after the clients and gateways; rotation in the background tells until here
//	log.Close()
//
// nil ends that. The error is [ErrAudit] with a's own for what is told at once; a is set all the
// same.
func (s *KeyStore) SetAuditor(ctx context.Context, a Auditor) error {
	return s.store.SetTell(ctx, tellKeyEvents(a))
}

// Public is the public half of the RSA key in use, generated now if there is none yet. Errors:
// [ErrClosed], the end of ctx, and those of generating and saving a key.
func (s *KeyStore) Public(ctx context.Context) (*PublicKey, error) {
	key, err := s.store.Public(ctx)
	if err != nil {
		return nil, err
	}
	return publicKeyOf(key), nil
}

// Signer is the fingerprint of the key that signs a gateway's list of configurations for Oblivious
// HTTP, made now if there is none yet, with configurations. It is what clients pin ([Pin]): it
// stays the same when configurations are replaced. Errors: [ErrClosed], the end of ctx, and those
// of saving keys.
func (s *KeyStore) Signer(ctx context.Context) (string, error) {
	if _, err := s.store.Configs(ctx); err != nil {
		return "", err
	}
	return s.store.Signer()
}

// KeyInfo describes a key of a [KeyStore].
type KeyInfo struct {
	Fingerprint string // see PublicKey.Fingerprint: what clients pin
	// Kind is "RSA"; "X-Wing" or "X25519" for a key configuration of Oblivious HTTP; or "Ed25519"
	// for the key that signs the list of configurations, see PublicKey.Signer.
	Kind      string
	ID        uint8 // of a key configuration: its id in the list, and in each request
	Bits      int   // of an RSA key
	Locked    bool  // its private numbers lie in memory that cannot be swapped out
	Created   time.Time
	Activated time.Time // when it came into use; zero for the key of KeyStore.Next, and for Ed25519
	Retired   time.Time // when it was replaced, and opens only what was sealed before; zero: in use

	// The rest says how a key lay in its file, and is what ImportPEM returns.
	Format     string // "PKCS#8", "PKCS#1", "PBES2", or "JavaScript", that client's own encryption
	KDF        string // "PBKDF2-HMAC-SHA256" and the like; "" if the file was not encrypted
	Iterations int    // of the KDF
	Weak       bool   // fewer than 600,000 iterations: guessing that file's passphrase is cheaper
	Public     bool   // a public key block stood in the text as well, and belongs to the key
}

// Keys lists the RSA keys, the primary one first, then that of [KeyStore.Next] if there is one,
// then the retired ones, those that were retired last first; then the key configurations for
// Oblivious HTTP, those in use first, and the key that signs their list. A key that was not needed
// yet is not there: see [KeyStore.Public] and [Gateway.Keys]. A closed store has none. The caller
// owns the slice.
func (s *KeyStore) Keys() []KeyInfo {
	var list []KeyInfo
	for _, i := range s.store.Keys() {
		list = append(list, KeyInfo(i))
	}
	return list
}

// ImportPEM makes the private key in a PEM file the primary one; the one before is retired, as in a
// rotation. text is the file's content. It reads what the Python and the JavaScript client and
// openssl write: PKCS#8 and PKCS#1, plain; PKCS#8 in PBES2 with PBKDF2 and AES-CBC (RFC 8018); and
// the JavaScript client's own encryption. passphrase is nil for a plain file. Importing the primary
// key again changes nothing; importing that of [KeyStore.Next] is to rotate to it. A public key
// block in the same file is checked to be the key's own:
// append public_key.pem to have it checked. text and passphrase stay the caller's; wipe text.
//
// Errors: [ErrInvalidRequest] for a key that was retired here before, which is to be deleted first;
// [ErrUnconfirmed], with the key's description; [ErrPassphrase] when it is wrong, missing, or given
// for a plain file; [ErrPrivateKey] for everything that is not an RSA key of 2048 to 8192 bits, two
// primes and an exponent of at least 65537, for encryptions that are too weak or too costly, with
// the openssl command that converts them, and for more than 64 KiB; and those of [KeyStore].
func (s *KeyStore) ImportPEM(
	ctx context.Context, text []byte, passphrase *Secret,
) (*KeyInfo, error) {
	var p keystore.Secret
	if passphrase != nil {
		p = passphrase
	}
	info, err := s.store.ImportPEM(ctx, text, p)
	return (*KeyInfo)(info), err
}

// ExportPEM writes the key with this fingerprint ("" = the primary one) as PKCS#8 in PBES2:
// PBKDF2-HMAC-SHA256 with 600,000 iterations, AES-256-CBC. openssl and the Python client read it.
// passphrase has at least 8 bytes and stays the caller's; so is the result. CBC carries no
// authentication: a person who can write the file can damage the key. Errors: [ErrInvalidRequest]
// for a short passphrase or a fingerprint that no RSA key has, [ErrClosed], [ErrAudit].
func (s *KeyStore) ExportPEM(
	ctx context.Context, fingerprint string, passphrase *Secret,
) ([]byte, error) {
	return s.store.ExportPEM(ctx, fingerprint, passphrase)
}

// Delete wipes a retired RSA key before its grace is over, or the key of [KeyStore.Next], and takes
// it out of the file. The primary key cannot be deleted: rotate first. Errors: [ErrInvalidRequest]
// for that key, or a fingerprint that no RSA key has; and those of [KeyStore].
func (s *KeyStore) Delete(ctx context.Context, fingerprint string) error {
	return s.store.Delete(ctx, fingerprint)
}

// ChangePassphrase rewrites the file under a new passphrase of at least 8 bytes with a new salt,
// and starts a new generation of data keys; what was sealed before still opens. old must open the
// file ([ErrPassphrase]). Other processes that have the store open go on with the keys they know,
// and can neither save, nor see later changes, nor open what is sealed from now on, until they open
// it again. A copy of the old file still opens with the old passphrase. Both passphrases stay the
// caller's. After an error the old passphrase holds, unless the error is [ErrUnconfirmed], or only
// [ErrAudit]: then the new one does. An ephemeral store, or a passphrase that is too short, is
// [ErrInvalidRequest]; other errors are those of [KeyStore].
func (s *KeyStore) ChangePassphrase(ctx context.Context, old, new *Secret) error {
	return s.store.ChangePassphrase(ctx, old, new)
}

// MaxSealedData is the most that [KeyStore.Seal] takes, in bytes: 100 MiB.
const MaxSealedData = keyfile.MaxDataSize

// Seal encrypts data to be kept outside the process: AES-256-GCM under a key derived by HKDF-SHA256
// from the store's data key, a fresh salt, and label. The label, up to 1,024 bytes, says what the
// data is, and [KeyStore.Open] must be given the same one, so that one blob cannot take another's
// place. The result is 69 bytes longer than plaintext, which stays as it is.
//
// Errors: [ErrTooLarge] over 100 MiB, [ErrInvalidRequest] for a longer label, and for an ephemeral
// store, which could never open it again; [ErrClosed], [ErrMemoryLimit], [ErrAudit].
func (s *KeyStore) Seal(label string, plaintext []byte) ([]byte, error) {
	return s.store.Seal(label, plaintext)
}

// Open decrypts what [KeyStore.Seal] returned under the same label, also after a change of the
// passphrase and after rotations. sealed stays as it is; the result is new memory, which the caller
// wipes. Data that does not open is [ErrDecryption]; [ErrPassphrase] when it was sealed after
// another process changed the passphrase. Other errors are those of Seal.
func (s *KeyStore) Open(label string, sealed []byte) ([]byte, error) {
	return s.store.Open(label, sealed)
}

// Close wipes the keys: at once, or when the last request that uses them has ended. It ends the
// rotation in the background and waits for a generation that is under way, some seconds at most.
// The file stays. Idempotent.
func (s *KeyStore) Close() { s.store.Close() }

// folder is where the store is kept, nil for memory. It is closed with the store.
func (s *KeyStore) folder() *fsafe.Dir { return s.store.Dir() }
