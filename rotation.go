// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/flight"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

// Rotation says when the primary key of a store is replaced, and with it a gateway's keys for Oblivious HTTP. The next one
// is generated in the background while the old one goes on working, so no request waits for it; a request ends with the key
// that it began with. A program that ends sooner than a key is made (up to 3.5 s) calls [KeyStore.Rotate] to have it.
//
// Processes that share a store have to agree: the shortest Grace wins, since whoever finds a key whose grace is over
// takes it out of the file. At most 128 keys are kept; with so many still in their grace nothing is rotated.
type Rotation struct {
	// Every is the age at which a key is replaced. 0 = 24 h; negative = never by age.
	Every time.Duration
	// AfterRequests replaces a key after so many requests of this process; those over Oblivious HTTP do not count. 0 = never
	// by number.
	AfterRequests int64
	// Grace is how long a replaced key still opens requests: for gateways, whose clients keep the old key for up to an
	// hour. Afterwards it is wiped, from the file too. 0 = 2 h; negative = none, right for stores that only clients use.
	Grace time.Duration
}

const (
	defaultRotation = 24 * time.Hour
	defaultGrace    = 2 * time.Hour

	lookEvery     = time.Second     // how often a busy store looks whether another process has replaced its file
	mostKeys      = 128             // each is tried on what does not open
	clockSkew     = time.Hour       // a time further ahead than this comes from a wrong clock, and counts as past
	rotationWait  = 2 * time.Minute // for another process that makes a key
	firstRetry    = time.Minute     // after a rotation that failed; doubles up to
	longestRetry  = time.Hour
	idleLookEvery = 30 * time.Second // how often an idle one looks
)

func (r Rotation) withDefaults() Rotation {
	if r.Every == 0 {
		r.Every = defaultRotation
	}
	if r.Grace == 0 {
		r.Grace = defaultGrace
	}
	r.Grace = max(r.Grace, 0)
	return r
}

// rotator is the part of a store that makes keys and looks after them in the background.
type rotator struct {
	making   flight.Group[bool] // reports whether a key was made
	wake     chan struct{}
	uses     atomic.Int64 // of the primary key, since it is one
	replaced atomic.Int64 // how often this process made another key the primary one
	looked   atomic.Int64 // when the file was last looked at: nanoseconds since the store was made
	since    time.Time
	start    sync.Once
	worker   sync.WaitGroup

	mu       sync.Mutex
	failures int
	failure  error
	retryAt  time.Time
}

func (r *rotator) init() {
	r.making.KeepGoing = true
	r.wake = make(chan struct{}, 1)
	r.since = time.Now()
}

func (r *rotator) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *rotator) wait() {
	r.worker.Wait()
	r.making.Close()
}

// acquire returns the primary key for a request, which counts. The caller releases it.
func (s *KeyStore) acquire(ctx context.Context) (*heldKey, error) {
	k, err := s.hold(ctx)
	if err == nil {
		s.used()
	}
	return k, err
}

// hold returns the primary key, made now if there is none yet. The caller releases it.
func (s *KeyStore) hold(ctx context.Context) (*heldKey, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, s.errClosed()
		}
		if k := s.primary(); k != nil {
			k.retain()
			s.mu.Unlock()
			return k.heldKey, nil
		}
		s.mu.Unlock()
		if _, err := s.rotator.making.Do(ctx, s.life, s.makeKey(false)); err != nil {
			return nil, s.waitError(ctx, err)
		}
	}
}

func (s *KeyStore) waitError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fault.Ended(ctx)
	case s.life.Err() != nil:
		return s.errClosed()
	}
	return err
}

// primary is the key in use, or nil. s.mu is held.
func (s *KeyStore) primary() *storedKeyEntry {
	for _, k := range s.keys {
		if k.state == keyfile.Primary {
			return k
		}
	}
	return nil
}

// used counts a request, and has the background look whether anything is to be done.
func (s *KeyStore) used() {
	n := s.rotator.uses.Add(1)
	if s.rotation.AfterRequests > 0 && n >= s.rotation.AfterRequests {
		s.rotator.nudge()
		return
	}
	if s.dir == nil {
		return
	}
	now := int64(time.Since(s.rotator.since))
	if last := s.rotator.looked.Load(); now-last >= int64(lookEvery) && s.rotator.looked.CompareAndSwap(last, now) {
		s.rotator.nudge()
	}
}

// openEnvelope opens e with the primary key or one that still has grace.
func (s *KeyStore) openEnvelope(ctx context.Context, e *envelope.Envelope) ([]byte, error) {
	primary, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer primary.release()
	held := s.retain(time.Now(), primary)
	defer func() {
		for _, k := range held {
			k.release()
		}
	}()
	keys := append([]*hybrid.PrivateKey{primary.PrivateKey}, privateKeys(held)...)
	return hybrid.Open(e, keys, func() []*hybrid.PrivateKey {
		// Another process may have rotated a moment ago, and its clients come here.
		if err := s.refresh(ctx); err != nil {
			return nil
		}
		more := s.retain(time.Now(), append(held, primary)...)
		held = append(held, more...)
		return privateKeys(more)
	}, nil)
}

// retain returns the keys that open requests at this time, but for those that the caller has already. The caller
// releases them.
func (s *KeyStore) retain(now time.Time, have ...*heldKey) []*heldKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []*heldKey
	for _, k := range slices.Backward(s.keys) { // the one that was replaced last is the likeliest
		if !slices.Contains(have, k.heldKey) && !s.expired(k.state, k.retired, now) {
			k.retain()
			keys = append(keys, k.heldKey)
		}
	}
	return keys
}

func (s *KeyStore) expired(state keyfile.State, retired, now time.Time) bool {
	return state == keyfile.Retired && over(retired, s.rotation.Grace, now)
}

// over reports whether life has passed since a time.
func over(since time.Time, life time.Duration, now time.Time) bool {
	age := now.Sub(since)
	return age >= life || age < -clockSkew
}

// Rotate replaces the primary key now, and a gateway's keys for Oblivious HTTP, and returns when the new one is in use and,
// with a file, on the disk. Callers that come while a rotation is under way share it. When it fails, the old key stays in
// use; only with [ErrUnconfirmed], or [ErrAudit] after the fact, the new one is. [ErrTooLarge]: 128 keys are still in their
// grace. Other errors are those of [KeyStore].
func (s *KeyStore) Rotate(ctx context.Context) error {
	for {
		made, err := s.rotator.making.Do(ctx, s.life, s.makeKey(true))
		if err != nil {
			return s.waitError(ctx, err)
		}
		if made {
			return nil
		}
	}
}

// RotationError is the error of the last rotation in the background, until one succeeds: nil when all is well. A
// rotation that failed is tried again after a minute, later after up to an hour.
func (s *KeyStore) RotationError() error {
	s.rotator.mu.Lock()
	defer s.rotator.mu.Unlock()
	return s.rotator.failure
}

// makeKey makes a key the primary one: if there is none, if the present one's time is over, or if forced to.
func (s *KeyStore) makeKey(forced bool) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		if s.dir != nil { // one process makes the key, the others find it when their turn comes
			lockCtx, cancel := context.WithTimeout(ctx, rotationWait)
			lock, err := s.dir.Lock(lockCtx, rotationLock)
			cancel()
			if err != nil {
				return false, s.failed(ctx, fileError(err))
			}
			defer lock.Unlock()
			if err := s.refresh(ctx); err != nil {
				return false, err
			}
		}
		if !forced && !s.due(time.Now()) {
			return false, nil
		}
		return s.replacePrimary(ctx, forced)
	}
}

// replacePrimary generates a key and makes it the primary one; unless forced, only in place of the one that is it now.
func (s *KeyStore) replacePrimary(ctx context.Context, forced bool) (made bool, err error) {
	s.mu.Lock()
	before := s.primary()
	s.mu.Unlock()
	key, err := s.generate(ctx)
	if err != nil {
		return false, err
	}
	defer key.Wipe()
	err = s.change(ctx, func(b *keyfile.Body) error {
		if !forced && before != nil && !hasPrimary(b, before.Public().Fingerprint()) {
			return errNoChange // another process was first, although the lock should have kept it out
		}
		made = true
		return s.promote(b, key)
	})
	if err != nil && !stands(err) {
		return false, err
	}
	if made {
		if before != nil {
			s.rotator.replaced.Add(1)
		}
		s.keyInUse()
	}
	return made, err
}

// due reports whether a new key is to be made unasked.
func (s *KeyStore) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.primary()
	if k == nil {
		return !s.closed
	}
	return (s.rotation.Every > 0 && over(k.activated, s.rotation.Every, now)) ||
		(s.rotation.AfterRequests > 0 && s.rotator.uses.Load() >= s.rotation.AfterRequests)
}

// generate makes a key. That cannot be interrupted.
func (s *KeyStore) generate(ctx context.Context) (*keyfile.RSAKey, error) {
	if ctx.Err() != nil {
		return nil, fault.Ended(ctx)
	}
	start := time.Now()
	var copied *keyfile.RSAKey
	var err error
	erase.Do(func() {
		key, newErr := s.newKey(s.bits)
		if newErr != nil {
			err = fmt.Errorf("sealedchat: generating a key: %w", newErr)
			return
		}
		defer erase.Wipe(key)
		if copied, newErr = keyfile.NewRSAKey(key, s.options()...); newErr != nil {
			err = keyStoreError(newErr)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := s.tellGenerated(ctx, copied, start); err != nil {
		copied.Wipe()
		return nil, err
	}
	s.log.DebugContext(ctx, "key generated", "bits", s.bits, "duration", time.Since(start))
	return copied, nil
}

// promote makes key the body's primary key, and retires the one before. The body takes key over.
func (s *KeyStore) promote(b *keyfile.Body, key *keyfile.RSAKey) error {
	now := time.Now().Round(0) // wall time: the monotonic clock may stand still while the machine sleeps
	for i := range b.Keys {
		if b.Keys[i].State == keyfile.Primary {
			b.Keys[i].State, b.Keys[i].Retired = keyfile.Retired, now
		}
	}
	s.dropExpired(b, now)
	if len(b.Keys) >= mostKeys {
		return fmt.Errorf("%w: %d keys are still in their grace", ErrTooLarge, len(b.Keys))
	}
	b.Keys = append(b.Keys, keyfile.Entry{State: keyfile.Primary, Created: now, Activated: now, Key: key})
	b.Rotations++
	b.Rotated = now
	return s.replaceConfigs(b, now)
}

// keyInUse is told when a new key has become the primary one.
func (s *KeyStore) keyInUse() {
	s.mu.Lock()
	k := s.primary()
	s.mu.Unlock()
	if k != nil {
		s.log.Info("key in use", "fingerprint", k.Public().Fingerprint(), "bits", k.Public().Bits())
	}
	s.report(nil)
	s.startWorker()
	s.rotator.nudge() // there is another time to wait for now
}

// dropExpired takes out the keys whose grace is over, and reports whether there were any.
func (s *KeyStore) dropExpired(b *keyfile.Body, now time.Time) bool {
	before := len(b.Keys)
	b.Keys = slices.DeleteFunc(b.Keys, func(e keyfile.Entry) bool {
		if !s.expired(e.State, e.Retired, now) {
			return false
		}
		e.Key.Wipe()
		return true
	})
	configs := s.dropExpiredConfigs(b, now)
	return len(b.Keys) < before || configs
}

// startWorker begins the work in the background, which ends with Close.
func (s *KeyStore) startWorker() {
	s.rotator.start.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closed {
			s.rotator.worker.Go(s.work)
		}
	})
}

func (s *KeyStore) work() {
	for {
		timer := time.NewTimer(s.untilNext(time.Now()))
		select {
		case <-s.life.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.rotator.wake:
			timer.Stop()
		}
		s.tend()
	}
}

// untilNext is how long the background has nothing to do unless it is woken.
func (s *KeyStore) untilNext(now time.Time) time.Duration {
	wait := longestRetry
	if s.dir != nil {
		wait = idleLookEvery
	}
	s.mu.Lock()
	for _, k := range s.keys {
		switch {
		case k.state == keyfile.Retired:
			wait = min(wait, left(k.retired, s.rotation.Grace, now))
		case k.state == keyfile.Primary && s.rotation.Every > 0:
			wait = min(wait, left(k.activated, s.rotation.Every, now))
		}
	}
	wait = s.untilConfigs(wait, now)
	s.mu.Unlock()
	s.rotator.mu.Lock()
	defer s.rotator.mu.Unlock()
	if s.rotator.failures > 0 { // what is due is tried again later; looking goes on
		wait = s.rotator.retryAt.Sub(now)
		if s.dir != nil {
			wait = min(wait, idleLookEvery)
		}
	}
	return max(wait, 0)
}

// left is how long it takes until over is true.
func left(since time.Time, life time.Duration, now time.Time) time.Duration {
	if over(since, life, now) {
		return 0
	}
	return since.Add(life).Sub(now)
}

// tend does what is due: take over what another process did, rotate, drop what is over.
func (s *KeyStore) tend() {
	s.rotator.mu.Lock()
	early := s.rotator.failures > 0 && time.Now().Before(s.rotator.retryAt)
	s.rotator.mu.Unlock()
	err := s.refresh(s.life)
	now := time.Now()
	due := s.due(now) && (s.dir != nil || s.hasKey()) // one that nobody has asked for yet is not made here
	if early && (err != nil || due || s.configsDue(now) || s.anyExpired()) {
		return
	}
	if err == nil && due {
		_, err = s.rotator.making.Do(s.life, s.life, s.makeKey(false))
		if errors.Is(err, ErrLocked) {
			return // another process is at it
		}
	}
	if err == nil && s.configsDue(time.Now()) {
		err = s.rotateConfigs(s.life)
	}
	if err == nil && s.anyExpired() {
		err = s.change(s.life, func(b *keyfile.Body) error {
			if !s.dropExpired(b, time.Now()) {
				return errNoChange
			}
			return nil
		})
	}
	s.report(err)
}

func (s *KeyStore) anyExpired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return slices.ContainsFunc(s.keys, func(k *storedKeyEntry) bool { return s.expired(k.state, k.retired, now) }) ||
		s.anyConfigExpired(now)
}

// report remembers how the background fares.
func (s *KeyStore) report(err error) {
	if s.life.Err() != nil || errors.Is(err, ErrClosed) {
		return
	}
	r := &s.rotator
	r.mu.Lock()
	news := isNews(r.failure, err)
	r.failure = err
	if err == nil {
		r.failures = 0
		r.mu.Unlock()
		return
	}
	wait := min(firstRetry<<min(r.failures, 10), longestRetry)
	r.failures++
	r.retryAt = time.Now().Add(wait)
	r.mu.Unlock() // a log handler may ask RotationError
	if news {
		err = s.failed(s.life, err)
	}
	s.log.Warn("key store: the work in the background failed, the keys stay as they are", "error", err, "again_in", wait)
}
