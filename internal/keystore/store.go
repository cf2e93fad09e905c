// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package keystore keeps a client's or a gateway's keys, in memory or in a file under a passphrase
// that several processes share: RSA keys for protocol v1, key configurations for Oblivious HTTP
// with the key that signs their list, data keys, and the server keys that were trusted on first
// use.
//
//   - store.go: what a store is; making, opening and closing one
//   - keys.go: the life of a key; load.go: working keys in locked memory
//   - change.go: the one way in which a store changes
//   - rotate.go: keys that are made when they are needed, or due; next.go: one made ahead of time
//   - configs.go, signer.go: the list of configurations, and its signature
//   - pem.go, atrest.go, pins.go: key files, data at rest, remembered server keys
//   - tell.go, errors.go: what an Auditor is told; errors
package keystore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

const (
	fileName     = "keystore.json"
	writeLock    = "keystore.lock" // held while the file is read, changed and replaced
	rotationLock = "rotation.lock" // held while a process makes the next key, so that only one does

	minPassphrase = 8  // bytes
	masterKeySize = 32 // bytes
	seedSize      = 32 // bytes
)

// Secret is a passphrase. It lends its bytes to f, which does not keep them.
type Secret interface {
	Use(f func([]byte) error) error
	Len() int
}

// Options shape a store. The zero value, and a nil pointer, are the defaults.
type Options struct {
	Bits       int // of generated RSA keys: 2048, 3072 or 4096; 0 = 4096
	Iterations int // of PBKDF2; 0 = keyfile.MinIterations
	Rotation   Rotation
	Memory     locked.Policy
	Tell       func(context.Context, Event) error // see SetTell; nil = nobody
	Logger     *slog.Logger                       // nil = silent

	// For tests: keys that need not be generated, and a KDF of one iteration.
	NewKey  func(bits int) (*rsa.PrivateKey, error)
	WeakKDF bool
}

// OptionError says which field of Options is wrong.
type OptionError struct {
	Field string
	Err   error
}

func (e *OptionError) Error() string { return "keystore: " + e.Field + ": " + e.Err.Error() }
func (e *OptionError) Unwrap() error { return e.Err }

// Store is a key store. Its methods may be called from several goroutines.
//
// Of a store with a file, the file is the truth and memory follows: a change reads the file,
// changes what it says, makes in memory every key that is new, replaces the file, and only then
// takes over what it says. So memory never has a key that a crash could lose, and a file that was
// written can be used. keys.go has the life of a key.
//
// Locks are taken in this order:
//
//  1. the file rotation.lock, by the process that makes an RSA key;
//  2. the file keystore.lock, by the process that replaces the file;
//  3. turn, which holds a token while a goroutine of this process changes the store, or reloads it;
//  4. signing;
//  5. mu;
//  6. Key.mu, and rotator.mu, of which no goroutine holds two.
//
// tell is called with none of 2 to 6 held, the logger with none of 4 to 6: both may call methods
// that read the store.
type Store struct {
	bits       int
	iterations int
	rotation   Rotation
	policy     locked.Policy
	memory     *locked.Arena // for operations
	log        *slog.Logger
	newKey     func(bits int) (*rsa.PrivateKey, error)
	moveConfig func(*ohttp.PrivateKey, []byte) error // its MoveTo, except in tests
	kdf        []keyfile.Option
	aes128     atomic.Pointer[bool] // see OfferAES128; nil until it is called

	dir *fsafe.Dir // nil: in memory alone

	life    context.Context // ends with Close
	end     context.CancelFunc
	turn    chan struct{}
	rotator rotator
	sweeper erase.Sweeper // of the garbage that private keys, data keys and sealing leave

	prepared preparedKeys // belongs to the goroutine that has the turn
	signing  sync.Mutex

	mu         sync.Mutex
	entries    []*entry // the current keys and the retired ones, in the order of their making
	signer     signer   // of the list of configurations
	pins       map[string]keyfile.Pin
	dataKeys   []dataKey // ascending generations
	master     *keyfile.MasterKey
	masterAt   *locked.Buffer // where the master key's secret lies
	dataKeysAt *locked.Buffer // and the data keys, one after the other
	version    fsafe.Version  // of the file that the fields above were read from
	generation uint64         // that file's own count of its changes
	closed     bool
	told       func(context.Context, Event) error
	opening    bool    // until Create or Open is done
	untold     []Event // of Create or Open, while nobody is told
	cleanup    sync.WaitGroup
}

type dataKey struct {
	generation uint32
	key        []byte // a part of dataKeysAt
}

// New makes a store in memory alone. Its RSA key is made for the first caller that needs one.
func New(o *Options) (*Store, error) {
	if o == nil {
		o = &Options{}
	}
	s := &Store{
		bits: o.Bits, iterations: o.Iterations, rotation: o.Rotation.withDefaults(),
		policy: o.Memory,
		log:    o.Logger, newKey: o.NewKey, told: o.Tell,
		moveConfig: (*ohttp.PrivateKey).MoveTo, turn: make(chan struct{}, 1),
		pins: make(map[string]keyfile.Pin),
	}
	if s.newKey == nil {
		s.newKey = func(bits int) (*rsa.PrivateKey, error) {
			return rsa.GenerateKey(rand.Reader, bits)
		}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	switch s.bits {
	case 0:
		s.bits = 4096
	case 2048, 3072, 4096:
	default:
		return nil, &OptionError{"Bits", fmt.Errorf("%d is not one of 2048, 3072, 4096", s.bits)}
	}
	if every := s.rotation.ConfigEvery; every > 0 && every < leastConfigRotation {
		return nil, &OptionError{"Rotation.ConfigEvery",
			fmt.Errorf("%v is too often; want %v or more", every, leastConfigRotation)}
	}
	if s.iterations == 0 {
		s.iterations = keyfile.MinIterations
	}
	if s.iterations < keyfile.MinIterations || s.iterations > keyfile.MaxIterations {
		return nil, &OptionError{"Iterations",
			fmt.Errorf("want %d to %d", keyfile.MinIterations, keyfile.MaxIterations)}
	}
	if o.WeakKDF {
		s.kdf, s.iterations = []keyfile.Option{keyfile.AllowWeak}, 1
	}
	s.memory = locked.NewArena(s.policy)
	if s.policy == locked.Required {
		// It takes its first pages at once: a process that cannot lock any learns of it when it
		// starts.
		b, err := s.memory.Alloc(1)
		if err != nil {
			return nil, err
		}
		b.Destroy() // the arena keeps one empty chunk
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.rotator.init()
	return s, nil
}

// Create makes a store in a folder, "" for the user's own, where none is, and opens it.
func Create(ctx context.Context, dir string, passphrase Secret, o *Options) (*Store, error) {
	return begin(ctx, o, func(s *Store) error { return s.create(ctx, dir, passphrase) })
}

// Open opens the store in a folder, "" for the user's own.
func Open(ctx context.Context, dir string, passphrase Secret, o *Options) (*Store, error) {
	return begin(ctx, o, func(s *Store) error {
		return passphraseError(s.open(ctx, dir, passphrase), passphrase)
	})
}

func begin(ctx context.Context, o *Options, open func(*Store) error) (*Store, error) {
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	s.opening = true
	if err := s.opened(ctx, open(s)); err != nil {
		s.Close()
		return nil, err
	}
	s.startWorker()
	return s, nil
}

func (s *Store) create(ctx context.Context, dir string, passphrase Secret) (err error) {
	if err := validPassphrase(passphrase); err != nil {
		return err
	}
	if dir, err = folder(dir); err != nil {
		return err
	}
	if s.dir, err = fsafe.CreateDir(dir); err != nil {
		return fileError(err)
	}
	if exists, err := s.dir.Exists(fileName); err != nil || exists {
		return s.existsError(err)
	}
	if err := s.derive(passphrase, s.newMaster); err != nil {
		return err
	}
	key, err := s.generate(ctx, "")
	if err != nil {
		return err
	}
	defer key.Wipe()
	now := time.Now()
	first := keyfile.Entry{State: keyfile.Primary, Created: now, Activated: now, Key: key}
	body := &keyfile.Body{Generation: 1, Keys: []keyfile.Entry{first}}
	if err := addDataKey(body, now); err != nil {
		return err
	}
	defer body.Wipe()
	lock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	file, err := keyfile.Seal(body, s.master)
	if err != nil {
		return storeError(err)
	}
	defer s.wipePrepared()
	if _, err := s.prepare(body); err != nil { // or there would be a file, and no store
		return err
	}
	if err := s.dir.CreateFile(fileName, file); errors.Is(err, fsafe.ErrNotDurable) {
		if err := s.write(file); err != nil {
			return &unconfirmedError{fmt.Errorf("the key store exists: %w", err)}
		}
	} else if err != nil {
		return s.existsError(err)
	}
	return s.load()
}

// existsError is the error of a folder that has a store already, or could not be looked at.
func (s *Store) existsError(err error) error {
	if err == nil || errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s", fault.ErrKeyStoreExists, filepath.Join(s.dir.Path(), fileName))
	}
	return fileError(err)
}

func (s *Store) open(ctx context.Context, dir string, passphrase Secret) (err error) {
	if dir, err = folder(dir); err != nil {
		return err
	}
	if s.dir, err = fsafe.OpenDir(dir); err != nil {
		return missingError(dir, fsafe.MissingFirst(filepath.Join(dir, fileName), err))
	}
	for {
		if err = s.unlock(ctx, dir, passphrase); !errors.Is(err, errChangedElsewhere) {
			return err
		}
	} // the file was rewritten meanwhile, perhaps under the same passphrase
}

func (s *Store) unlock(ctx context.Context, dir string, passphrase Secret) error {
	f, version, err := s.readFile()
	if err != nil {
		return missingError(dir, err)
	}
	unlock := func(p []byte) (*keyfile.MasterKey, error) { return f.Unlock(p, s.options()...) }
	if err := s.derive(passphrase, unlock); err != nil {
		return err
	}
	if err := s.adoptFile(f, version); err != nil || f.Iterations >= s.iterations {
		return err
	}
	return s.rewrite(ctx, passphrase, nil)
}

func missingError(dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sealedchat: no key store in %s; make one with CreateKeyStore, "+
			"or with: go run -C examples/keystore . create: %w", dir, fs.ErrNotExist)
	}
	return fileError(err)
}

// folder is dir, or the default one for "".
func folder(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	dir, err := fsafe.DefaultDir()
	if err != nil {
		return "", fmt.Errorf("sealedchat: no folder for the current user: %w", err)
	}
	return dir, nil
}

// validPassphrase judges a new passphrase. One that is text and ends in a line break is a file that
// was not trimmed: with what its owner types at a prompt the store would not open.
func validPassphrase(p Secret) error {
	switch n := p.Len(); {
	case n == 0:
		if err := p.Use(func([]byte) error { return nil }); err != nil { // nil, or destroyed
			return fmt.Errorf("%w: the passphrase: %s", fault.ErrInvalidRequest, fault.Reason(err))
		}
		return fmt.Errorf("%w: the passphrase is empty, want %d bytes or more",
			fault.ErrInvalidRequest, minPassphrase)
	case n < minPassphrase:
		return fmt.Errorf("%w: a passphrase of %d bytes, want %d or more",
			fault.ErrInvalidRequest, n, minPassphrase)
	}
	if endsInLineBreak(p) {
		return fmt.Errorf("%w: %s", fault.ErrInvalidRequest, lineBreakHint)
	}
	return nil
}

const lineBreakHint = "the passphrase ends in a line break: trim it, as ReadSecret does for a file"

// endsInLineBreak tells text with a line break at its end from random bytes.
func endsInLineBreak(p Secret) (ends bool) {
	_ = p.Use(func(b []byte) error {
		text := bytes.TrimRight(b, "\r\n")
		ends = len(text) < len(b) && utf8.Valid(text) &&
			bytes.IndexFunc(text, unicode.IsControl) < 0
		return nil
	})
	return ends
}

// passphraseError adds to an error of opening with p, if p is likely to be an untrimmed one.
func passphraseError(err error, p Secret) error {
	if errors.Is(err, fault.ErrPassphrase) && endsInLineBreak(p) {
		return fmt.Errorf("%w: %s", err, lineBreakHint)
	}
	return err
}

func (s *Store) newMaster(p []byte) (*keyfile.MasterKey, error) {
	return keyfile.NewMasterKey(p, s.iterations, s.options()...)
}

// derive makes the master key from the passphrase, and moves it into locked memory.
func (s *Store) derive(passphrase Secret, kdf func([]byte) (*keyfile.MasterKey, error)) error {
	defer s.sweeper.Soon()
	return passphrase.Use(func(p []byte) error {
		master, err := kdf(p)
		if err != nil {
			return storeError(err)
		}
		at, err := locked.NewResting(s.policy, masterKeySize)
		if err != nil {
			master.Wipe()
			return err
		}
		if err := master.MoveTo(at.Bytes()); err != nil {
			master.Wipe()
			at.Destroy()
			return storeError(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wipeMaster()
		s.master, s.masterAt = master, at
		return nil
	})
}

// wipeMaster wipes the master key. s.mu is held.
func (s *Store) wipeMaster() {
	if s.master != nil {
		wipeMasterKey(s.master, s.masterAt)
		s.master, s.masterAt = nil, nil
	}
}

func wipeMasterKey(k *keyfile.MasterKey, at *locked.Buffer) {
	if at.Bytes() != nil { // or the program has purged memguard's memory
		k.Wipe()
	}
	at.Destroy()
}

// Bits is the size of RSA keys that the store generates.
func (s *Store) Bits() int { return s.bits }

// Policy is the policy for memory that the store was made with.
func (s *Store) Policy() locked.Policy { return s.policy }

// Dir is the store's folder, until Close; nil for a store in memory alone.
func (s *Store) Dir() *fsafe.Dir { return s.dir }

// Sweep has the garbage collected soon that private keys and sealing have left.
func (s *Store) Sweep() { s.sweeper.Soon() }

// Close wipes the keys: at once, or when the last request that uses them has ended. It ends the
// rotation in the background and waits for a key that is being generated, some seconds at most. The
// file stays.
func (s *Store) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.cleanup.Wait()
		return
	}
	s.closed = true
	s.cleanup.Add(1)
	defer s.cleanup.Done()
	s.mu.Unlock()
	s.end()
	s.rotator.wait()
	s.turn <- struct{}{} // a change that is under way sees the end of life, and ends
	defer s.sweeper.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		e.Release()
	}
	s.entries = nil
	s.signer.wipe()
	s.dropDataKeys()
	s.wipeMaster()
	s.memory.Close() // keys in use give back what they have when they are released
	if s.dir != nil {
		_ = s.dir.Close()
	}
}
