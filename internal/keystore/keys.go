// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
)

// The life of a key, which is the same for RSA keys and for key configurations of Oblivious HTTP:
//
//	made → current → retired → expired → wiped
//
// A current RSA key is the primary one, of which there is one at most; current configurations are
// listed, one of each KEM. An RSA key that was made ahead of time is the next one, of which there
// is one at most: it opens nothing before it is current (next.go). A retired key opens requests
// that were sealed before it was replaced, until its grace is over. Then it is expired: it opens
// nothing, and the store that finds it takes it out of the file. A key is wiped when it is no
// longer in the store and the last request that uses it has ended. The two kinds differ in how long
// they are current, and in their grace.

// life is a key's life so far.
type life struct {
	config                      bool          // of a key configuration, not of an RSA key
	state                       keyfile.State // of a configuration never Next
	created, activated, retired time.Time     // zero: not yet
}

func (l life) isCurrent() bool { return l.state == keyfile.Primary }

// isDue reports whether a current key is to be replaced by age.
func (r Rotation) isDue(l life, now time.Time) bool {
	every := r.every(l.config)
	return l.isCurrent() && every > 0 && passed(l.activated, every, now)
}

// every is the age at which a current key is replaced; not above 0: never.
func (r Rotation) every(config bool) time.Duration {
	if config {
		return r.ConfigEvery
	}
	return r.Every
}

// grace is how long a retired key opens requests.
func (r Rotation) grace(config bool) time.Duration {
	if config {
		return configGrace
	}
	return r.Grace
}

// isExpired reports whether a retired key's grace is over.
func (r Rotation) isExpired(l life, now time.Time) bool {
	return l.state == keyfile.Retired && passed(l.retired, r.grace(l.config), now)
}

// untilNext is how long it takes until one of the two is true, at most wait.
func (r Rotation) untilNext(l life, now time.Time, wait time.Duration) time.Duration {
	if l.state == keyfile.Retired {
		return min(wait, remaining(l.retired, r.grace(l.config), now))
	}
	if every := r.every(l.config); l.isCurrent() && every > 0 {
		return min(wait, remaining(l.activated, every, now))
	}
	return wait
}

// passed reports whether a duration has passed since a time. A time far ahead comes from a wrong
// clock, and counts as past.
func passed(since time.Time, d time.Duration, now time.Time) bool {
	age := now.Sub(since)
	return age >= d || age < -clockSkew
}

// remaining is how long it takes until passed is true.
func remaining(since time.Time, d time.Duration, now time.Time) time.Duration {
	if passed(since, d, now) {
		return 0
	}
	return since.Add(d).Sub(now)
}

// Key is a working key of either kind with a count of its users: the store itself, and every
// running request. The last one to release it wipes it.
type Key struct {
	RSA   *hybrid.PrivateKey // nil for a configuration
	OHTTP *ohttp.PrivateKey  // nil for an RSA key
	Seen  replay.Seen        // the answers that RSA has opened, for all clients of the store

	fingerprint string
	memory      *locked.Buffer // has of OHTTP all that crypto/hpke can do without

	mu    sync.Mutex
	users int
}

// entry is a key in the store with its life so far. It never changes.
type entry struct {
	*Key
	life
}

func (k *Key) retain() {
	k.mu.Lock()
	k.users++
	k.mu.Unlock()
}

// Release ends a use. The last one wipes the key.
func (k *Key) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users--; k.users == 0 {
		k.wipe()
	}
}

// IsWiped reports that the last user has released the key, and that its numbers are gone.
func (k *Key) IsWiped() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.users == 0 && (k.RSA == nil || k.RSA.RSA() == nil && !k.RSA.Locked())
}

// wipe clears the key. Memory that memguard has destroyed is cleared, and cannot be written any
// more.
func (k *Key) wipe() {
	if k.RSA != nil {
		k.RSA.Wipe()
		return
	}
	if !k.isPurged() {
		k.OHTTP.Close() // waits for requests that are being opened
	}
	k.memory.Destroy()
}

// isPurged reports that the program has had memguard destroy its buffers, this key's with them.
func (k *Key) isPurged() bool {
	if k.RSA != nil {
		return k.RSA.Purged()
	}
	return k.memory.Bytes() == nil
}

// isConfig reports whether k is the key of a configuration with this KEM.
func (k *Key) isConfig(kem uint16) bool { return k.OHTTP != nil && k.OHTTP.Config().KEM() == kem }

// record is a key as a body has it: of the one kind or the other.
type record struct {
	life
	fingerprint string
	rsa         *keyfile.RSAKey
	config      *keyfile.ConfigKey
}

// records lists those keys of a body that can be used here. Keys of KEMs that are not known here,
// or that FIPS 140 rules out, stay in the file.
func records(b *keyfile.Body) ([]record, error) {
	list := make([]record, 0, len(b.Keys)+len(b.ConfigKeys))
	for _, e := range b.Keys {
		list = append(list, record{
			life{false, e.State, e.Created, e.Activated, e.Retired}, fingerprintOf(e.Key), e.Key,
			nil,
		})
	}
	for i := range b.ConfigKeys {
		c := &b.ConfigKeys[i]
		key, err := newConfig(c)
		if errors.Is(err, ohttp.ErrNoSuite) {
			continue
		} else if err != nil {
			return nil, err
		}
		fingerprint := hybrid.HexFingerprint(key.Config().Fingerprint())
		key.Close()
		list = append(list, record{lifeOf(*c), fingerprint, nil, c})
	}
	return list, nil
}

// lifeOf is the life of a configuration's key.
func lifeOf(c keyfile.ConfigKey) life {
	l := life{true, keyfile.Primary, c.Created, c.Created, c.Retired}
	if !c.Retired.IsZero() {
		l.state = keyfile.Retired
	}
	return l
}

func fingerprintOf(key *keyfile.RSAKey) string { return hybrid.HexFingerprint(key.Fingerprint()) }

func newConfig(c *keyfile.ConfigKey) (key *ohttp.PrivateKey, err error) {
	make := ohttp.NewPrivateKey
	if c.AES128 {
		make = ohttp.NewPrivateKeyAES128
	}
	erase.Do(func() { key, err = make(c.ID, c.KEM, c.Seed) })
	if err != nil && !errors.Is(err, ohttp.ErrNoSuite) {
		return nil, fmt.Errorf("%w: a configuration key", fault.ErrKeyStoreDamaged)
	}
	return key, err
}

// appendTo copies a key that is in the store into a body, which owns the copy.
func (e *entry) appendTo(b *keyfile.Body, options []keyfile.Option) error {
	if e.RSA != nil {
		key, err := keyfile.NewRSAKey(e.RSA.RSA(), options...)
		if err != nil {
			return storeError(err)
		}
		b.Keys = append(b.Keys, keyfile.Entry{
			State: e.state, Created: e.created, Activated: e.activated, Retired: e.retired,
			Key: key,
		})
		return nil
	}
	c := keyfile.ConfigKey{
		ID: e.OHTTP.Config().ID(), KEM: e.OHTTP.Config().KEM(), Created: e.created,
		Retired: e.retired, AES128: e.OHTTP.OffersAES128(),
	}
	erase.Do(func() { c.Seed = e.OHTTP.Seed() }) // copies go through registers
	b.ConfigKeys = append(b.ConfigKeys, c)
	return nil
}

// promote makes key the body's primary key, and retires the one before. The body takes key over.
func (s *Store) promote(b *keyfile.Body, key *keyfile.RSAKey) error {
	now := wallTime()
	s.retirePrimary(b, now)
	if err := hasRoom(b); err != nil {
		return err
	}
	entry := keyfile.Entry{State: keyfile.Primary, Created: now, Activated: now, Key: key}
	b.Keys = append(b.Keys, entry)
	countRotation(b, now)
	return nil
}

func countRotation(b *keyfile.Body, now time.Time) {
	b.Rotations++
	b.Rotated = now
}

func (s *Store) retirePrimary(b *keyfile.Body, now time.Time) {
	for i := range b.Keys {
		if b.Keys[i].State == keyfile.Primary {
			b.Keys[i].State, b.Keys[i].Retired = keyfile.Retired, now
		}
	}
	s.dropExpired(b, now)
}

// hasRoom is an error if there is no room for another RSA key.
func hasRoom(b *keyfile.Body) error {
	if len(b.Keys) >= mostKeys {
		return fmt.Errorf("%w: %d keys are still in their grace", fault.ErrTooLarge, len(b.Keys))
	}
	return nil
}

// wallTime is now without the monotonic clock, which may stand still while the machine sleeps.
func wallTime() time.Time { return time.Now().Round(0) }

// replaceConfigs retires the configurations that are listed and makes new ones, if there are any.
func (s *Store) replaceConfigs(b *keyfile.Body, now time.Time) error {
	if len(b.ConfigKeys) == 0 {
		return nil
	}
	for i := range b.ConfigKeys {
		if b.ConfigKeys[i].Retired.IsZero() {
			b.ConfigKeys[i].Retired = now
		}
	}
	s.dropExpired(b, now)
	return s.makeConfigs(b, now)
}

// makeConfigs adds one key for each KEM, and the signer if there is none: their seeds, which b
// owns.
func (s *Store) makeConfigs(b *keyfile.Body, now time.Time) error {
	if b.Signer == nil {
		b.Signer = make([]byte, seedSize)
		_, _ = rand.Read(b.Signer)
	}
	offer := len(b.ConfigKeys) > 0 && b.ConfigKeys[len(b.ConfigKeys)-1].AES128
	if said := s.aes128.Load(); said != nil {
		offer = *said
	}
	for _, kem := range KEMs {
		id, err := freeID(b)
		if err != nil {
			return err
		}
		seed, err := ohttp.NewSeed(kem)
		if err != nil {
			continue // X25519, where FIPS 140 rules it out
		}
		b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{ID: id, KEM: kem, Seed: seed,
			Created: now, AES128: offer})
	}
	return nil
}

// freeID is the next id after the one that was given last, so that an id that was in use lately
// does not come back soon.
func freeID(b *keyfile.Body) (uint8, error) {
	if len(b.ConfigKeys) >= mostKeys {
		return 0, fmt.Errorf("%w: %d keys are still in their grace", fault.ErrTooLarge,
			len(b.ConfigKeys))
	}
	var id uint8
	if n := len(b.ConfigKeys); n > 0 {
		id = b.ConfigKeys[n-1].ID + 1
	}
	for slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool { return c.ID == id }) {
		id++
	}
	return id, nil
}

// dropExpired takes out the keys whose grace is over, and reports whether there were any.
func (s *Store) dropExpired(b *keyfile.Body, now time.Time) bool {
	before := len(b.Keys) + len(b.ConfigKeys)
	b.Keys = slices.DeleteFunc(b.Keys, func(e keyfile.Entry) bool {
		if e.State != keyfile.Retired || !passed(e.Retired, s.rotation.Grace, now) {
			return false
		}
		e.Key.Wipe()
		return true
	})
	b.ConfigKeys = slices.DeleteFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool {
		if c.Retired.IsZero() || !passed(c.Retired, configGrace, now) {
			return false
		}
		clear(c.Seed)
		return true
	})
	return len(b.Keys)+len(b.ConfigKeys) < before
}

// primary is the RSA key in use, or nil. s.mu is held.
func (s *Store) primary() *entry {
	for _, e := range s.entries {
		if e.RSA != nil && e.isCurrent() {
			return e
		}
	}
	return nil
}

// usable is a key that is in the store and works, or nil. s.mu is held.
func (s *Store) usable(fingerprint string) *Key {
	for _, e := range s.entries {
		if e.fingerprint == fingerprint && !e.isPurged() {
			return e.Key
		}
	}
	return nil
}

// retain returns the RSA keys that open requests at this time, except those that the caller has
// already. The caller releases them.
func (s *Store) retain(now time.Time, have ...*Key) []*Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []*Key
	// the one that was replaced last is the likeliest
	for _, e := range slices.Backward(s.entries) {
		if e.RSA != nil && e.state != keyfile.Next && !slices.Contains(have, e.Key) &&
			!s.rotation.isExpired(e.life, now) {
			e.retain()
			keys = append(keys, e.Key)
		}
	}
	return keys
}

// any reports whether f is true of a key that is in the store.
func (s *Store) any(f func(*entry) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.entries, f)
}

// Info describes a key.
type Info struct {
	Fingerprint string
	Kind        string // "RSA", "X-Wing" or "X25519"; "Ed25519" for the signer of configurations
	ID          uint8  // of a configuration
	Bits        int    // of an RSA key
	Locked      bool
	Created     time.Time
	Activated   time.Time
	Retired     time.Time

	Format     string
	KDF        string
	Iterations int
	Weak       bool
	Public     bool
}

// Keys lists the RSA keys, then the configurations, then their signer. Current ones come before the
// next one, and that before retired ones, of which the one that was retired last comes first. A
// closed store has none.
func (s *Store) Keys() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Info
	for _, e := range s.entries {
		if e.RSA != nil {
			list = append(list, e.info())
		}
	}
	slices.SortStableFunc(list, func(a, b Info) int {
		if c := currentFirst(a, b); c != 0 {
			return c
		}
		return cmp.Or(nextLast(a, b), b.Retired.Compare(a.Retired))
	})
	var configs []Info
	for _, kem := range KEMs {
		for _, e := range slices.Backward(s.entries) {
			if e.isConfig(kem) {
				configs = append(configs, e.info())
			}
		}
	}
	slices.SortStableFunc(configs, currentFirst)
	list = append(list, configs...)
	if s.signer.isThere() {
		list = append(list, Info{
			Fingerprint: s.signer.fingerprint(), Kind: "Ed25519", Locked: s.signer.seed.Locked(),
		})
	}
	return list
}

func currentFirst(a, b Info) int {
	switch {
	case a.Retired.IsZero() == b.Retired.IsZero():
		return 0
	case a.Retired.IsZero():
		return -1
	}
	return 1
}

// IsNext reports whether i is of a key that was made ahead of time.
func (i Info) IsNext() bool { return i.Kind == "RSA" && i.Activated.IsZero() }

// nextLast puts the next key behind others of which none is retired.
func nextLast(a, b Info) int {
	switch {
	case a.IsNext() == b.IsNext():
		return 0
	case b.IsNext():
		return -1
	}
	return 1
}

func (e *entry) info() Info {
	i := Info{
		Fingerprint: e.fingerprint, Created: e.created, Activated: e.activated, Retired: e.retired,
	}
	if e.RSA != nil {
		i.Kind, i.Bits, i.Locked = "RSA", e.RSA.Public().Bits(), e.RSA.Locked()
		return i
	}
	c := e.OHTTP.Config()
	i.Kind, i.ID, i.Locked = ohttp.Kind(c.KEM()), c.ID(), e.memory.Locked()
	return i
}
