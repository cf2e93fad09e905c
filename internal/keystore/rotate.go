// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"errors"
	"fmt"
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

// Rotation says when keys are replaced, and how long replaced RSA keys open requests.
type Rotation struct {
	// age at which the primary RSA key is replaced; 0 = 24 h, negative = never
	Every         time.Duration
	AfterRequests int64         // replaces an RSA key after so many requests here; 0 = never
	Grace         time.Duration // how long a retired RSA key opens; 0 = 2 h, negative = 0
	// age at which configurations are replaced; 0 = 1 h, or never if Every is negative; negative =
	// never
	ConfigEvery time.Duration
}

const (
	defaultRotation       = 24 * time.Hour
	defaultGrace          = 2 * time.Hour
	defaultConfigRotation = time.Hour

	// configGrace is how long a configuration that was replaced opens requests: a client keeps a
	// list for an hour, and the rest is for requests on the way.
	configGrace = time.Hour + 5*time.Minute
	// leastConfigRotation keeps those in their grace below mostKeys, with as many KEMs.
	leastConfigRotation = 2 * time.Minute

	mostKeys     = 128              // of a kind; each RSA key is tried on what does not open
	clockSkew    = time.Hour        // a time further ahead than this counts as past
	rotationWait = 2 * time.Minute  // for another process that makes a key
	firstRetry   = time.Minute      // after a rotation that failed; doubles up to longestRetry
	longestRetry = time.Hour        //
	reloadEvery  = time.Second      // how often a busy store looks whether the file was replaced
	reloadIfIdle = 30 * time.Second // how often an idle one looks
)

func (r Rotation) withDefaults() Rotation {
	if r.ConfigEvery == 0 {
		r.ConfigEvery = defaultConfigRotation
		if r.Every < 0 {
			r.ConfigEvery = -1
		}
	}
	if r.Every == 0 {
		r.Every = defaultRotation
	}
	if r.Grace == 0 {
		r.Grace = defaultGrace
	}
	r.Grace = max(r.Grace, 0)
	return r
}

// rotator makes keys, and looks after them in the background.
//
// Its worker starts with the first key, and ends with Close. It wakes when a key is due or expired,
// when the file may have been replaced, and when it is nudged; then it runs maintain. After a
// failure it does nothing that is due until retryAt, except to reload the file.
type rotator struct {
	making     flight.Group[bool] // one key is made for all callers; reports whether one was made
	wake       chan struct{}      // holds a token while the worker is to look at once
	uses       atomic.Int64       // requests with the primary key, since it is that
	replaced   atomic.Int64       // how often this process replaced the primary key
	lastReload atomic.Int64       // of the file: nanoseconds since the store was made
	since      time.Time
	start      sync.Once
	worker     sync.WaitGroup

	mu       sync.Mutex
	failures int // in a row
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

// Acquire returns the primary key for a request, which counts. The caller releases it.
func (s *Store) Acquire(ctx context.Context) (*Key, error) {
	k, err := s.current(ctx)
	if err == nil {
		s.countRequest()
	}
	return k, err
}

// Public is the public half of the primary key, made now if there is none yet.
func (s *Store) Public(ctx context.Context) (*hybrid.PublicKey, error) {
	k, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	defer k.Release()
	return k.RSA.Public(), nil
}

// current returns the primary key, made now if there is none yet. The caller releases it.
func (s *Store) current(ctx context.Context) (*Key, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, s.errClosed()
		}
		if e := s.primary(); e != nil {
			e.retain()
			s.mu.Unlock()
			return e.Key, nil
		}
		s.mu.Unlock()
		if _, err := s.rotator.making.Do(ctx, s.life, s.makeKey(false)); err != nil {
			return nil, s.waitError(ctx, err)
		}
	}
}

// waitError is the error of a caller that waited for a key.
func (s *Store) waitError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fault.Ended(ctx)
	case s.life.Err() != nil:
		return s.errClosed()
	}
	return err
}

// countRequest counts a request, and wakes the worker if it may have something to do.
func (s *Store) countRequest() {
	n := s.rotator.uses.Add(1)
	if s.rotation.AfterRequests > 0 && n >= s.rotation.AfterRequests || s.mayReload() {
		s.rotator.nudge()
	}
}

// mayReload reports, once in reloadEvery, that it is time to look at the file.
func (s *Store) mayReload() bool {
	if s.dir == nil {
		return false
	}
	now, last := int64(time.Since(s.rotator.since)), s.rotator.lastReload.Load()
	return now-last >= int64(reloadEvery) && s.rotator.lastReload.CompareAndSwap(last, now)
}

// reloadSeldom takes over, once in reloadEvery, a file that another process has replaced. If it
// cannot, the known keys stay in use, and the worker reports it.
func (s *Store) reloadSeldom(ctx context.Context) {
	if s.mayReload() && s.refresh(ctx) != nil {
		s.rotator.nudge()
	}
}

// OpenEnvelope opens e with the primary key, or one that still has grace.
func (s *Store) OpenEnvelope(ctx context.Context, e *envelope.Envelope) ([]byte, error) {
	primary, err := s.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	keys := append([]*Key{primary}, s.retain(time.Now(), primary)...)
	defer func() {
		for _, k := range keys {
			k.Release()
		}
	}()
	return hybrid.Open(e, privateKeys(keys), func() []*hybrid.PrivateKey {
		// Another process may have rotated a moment ago, and its clients come here.
		if err := s.refresh(ctx); err != nil {
			return nil
		}
		more := s.retain(time.Now(), keys...)
		keys = append(keys, more...)
		return privateKeys(more)
	}, nil)
}

func privateKeys(keys []*Key) (list []*hybrid.PrivateKey) {
	for _, k := range keys {
		list = append(list, k.RSA)
	}
	return list
}

// Rotate replaces the primary key now, and the configurations, and returns when the new ones are in
// use and, with a file, on the disk. Callers that come while a rotation is under way share it.
func (s *Store) Rotate(ctx context.Context) error {
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

// Rotations is how often this process replaced the primary key.
func (s *Store) Rotations() int64 { return s.rotator.replaced.Load() }

// RotationError is the error of the last work in the background, until some succeeds.
func (s *Store) RotationError() error {
	s.rotator.mu.Lock()
	defer s.rotator.mu.Unlock()
	return s.rotator.failure
}

// makeKey makes a key the primary one: if there is none, if the present one's time is over, or if
// forced to.
func (s *Store) makeKey(forced bool) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		unlock, err := s.lockRotation(ctx)
		if err != nil {
			return false, err
		}
		defer unlock()
		if !forced && !s.isDue(time.Now()) {
			return false, nil
		}
		return s.replacePrimary(ctx, forced)
	}
}

// lockRotation makes this process the only one that makes a key. The others find it when their turn
// comes.
func (s *Store) lockRotation(ctx context.Context) (unlock func(), err error) {
	if s.dir == nil {
		return func() {}, nil
	}
	lockCtx, cancel := context.WithTimeout(ctx, rotationWait)
	defer cancel()
	lock, err := s.dir.Lock(lockCtx, rotationLock)
	if err != nil {
		return nil, s.failed(ctx, fileError(err))
	}
	if err := s.refresh(ctx); err != nil {
		lock.Unlock()
		return nil, err
	}
	return func() { lock.Unlock() }, nil
}

// replacePrimary makes the next key the primary one, or one that it generates if there is none;
// unless forced, only in place of the one that is it now.
func (s *Store) replacePrimary(ctx context.Context, forced bool) (made bool, err error) {
	s.mu.Lock()
	before := s.primary()
	s.mu.Unlock()
	var key *keyfile.RSAKey
	if s.next() == nil {
		if key, err = s.generate(ctx, ""); err != nil {
			return false, err
		}
		defer key.Wipe()
	}
	err = s.change(ctx, func(b *keyfile.Body) error {
		if !forced && before != nil && !hasPrimary(b, before.fingerprint) {
			// another process was first, although the lock should have kept it out
			return errNoChange
		}
		if err := s.promoteNext(b, key); err != nil {
			return err
		}
		made = true
		if !forced {
			return nil
		}
		return s.replaceConfigs(b, wallTime())
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

// isDue reports whether a new RSA key is to be made unasked.
func (s *Store) isDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.primary()
	if e == nil {
		return !s.closed
	}
	return s.rotation.isDue(e.life, now) ||
		s.rotation.AfterRequests > 0 && s.rotator.uses.Load() >= s.rotation.AfterRequests
}

// generate makes a key. That cannot be interrupted. The Auditor is told the reason.
func (s *Store) generate(ctx context.Context, reason string) (*keyfile.RSAKey, error) {
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
			err = storeError(newErr)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := s.tellGenerated(ctx, copied, start, reason); err != nil {
		copied.Wipe()
		return nil, err
	}
	s.log.DebugContext(ctx, "key generated", "bits", s.bits, "duration", time.Since(start))
	return copied, nil
}

// keyInUse is told when a new key has become the primary one.
func (s *Store) keyInUse() {
	s.mu.Lock()
	k := s.primary()
	s.mu.Unlock()
	if k != nil {
		s.log.Info("key in use", "fingerprint", k.fingerprint, "bits", k.RSA.Public().Bits())
	}
	s.record(nil)
	s.startWorker()
	s.rotator.nudge() // there is another time to wait for now
}

// startWorker begins the work in the background, which ends with Close.
func (s *Store) startWorker() {
	s.rotator.start.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closed {
			s.rotator.worker.Go(s.work)
		}
	})
}

func (s *Store) work() {
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
		s.maintain()
	}
}

// untilNext is how long the worker has nothing to do unless it is woken.
func (s *Store) untilNext(now time.Time) time.Duration {
	wait := longestRetry
	if s.dir != nil {
		wait = reloadIfIdle
	}
	s.mu.Lock()
	for _, e := range s.entries {
		wait = s.rotation.untilNext(e.life, now, wait)
	}
	s.mu.Unlock()
	s.rotator.mu.Lock()
	defer s.rotator.mu.Unlock()
	if s.rotator.failures > 0 { // the work that is due is tried again later; looking goes on
		wait = s.rotator.retryAt.Sub(now)
		if s.dir != nil {
			wait = min(wait, reloadIfIdle)
		}
	}
	return max(wait, 0)
}

// maintain does the work that is due: take over what another process did, rotate, drop expired
// keys.
func (s *Store) maintain() {
	s.rotator.mu.Lock()
	early := s.rotator.failures > 0 && time.Now().Before(s.rotator.retryAt)
	s.rotator.mu.Unlock()
	err := s.refresh(s.life)
	now := time.Now()
	isRSA := func(e *entry) bool { return e.RSA != nil }
	due := s.isDue(now) && (s.dir != nil || s.any(isRSA)) // a first key is not made here
	configsDue := func(e *entry) bool {
		return e.OHTTP != nil && s.rotation.isDue(e.life, time.Now())
	}
	expired := func(e *entry) bool { return s.rotation.isExpired(e.life, time.Now()) }
	if early && (err != nil || due || s.any(configsDue) || s.any(expired)) {
		return
	}
	if err == nil && due {
		_, err = s.rotator.making.Do(s.life, s.life, s.makeKey(false))
		if errors.Is(err, fault.ErrLocked) {
			return // another process is at it
		}
	}
	if err == nil && s.any(configsDue) {
		err = s.rotateConfigs(s.life)
	}
	if err == nil && s.any(expired) {
		err = s.change(s.life, func(b *keyfile.Body) error {
			if !s.dropExpired(b, time.Now()) {
				return errNoChange
			}
			return nil
		})
	}
	s.record(err)
}

// record remembers how the work in the background ended.
func (s *Store) record(err error) {
	if s.life.Err() != nil || errors.Is(err, fault.ErrClosed) {
		return
	}
	r := &s.rotator
	r.mu.Lock()
	last := r.failure
	r.failure = err
	if err == nil {
		r.failures = 0
		r.mu.Unlock()
		return
	}
	wait := min(firstRetry<<min(r.failures, 10), longestRetry)
	r.failures++
	r.retryAt = time.Now().Add(wait)
	r.mu.Unlock()                                   // a log handler may ask RotationError
	if last == nil || last.Error() != err.Error() { // the Auditor heard of the same one already
		err = s.failed(s.life, err)
	}
	s.log.Warn("key store: the work in the background failed, the keys stay as they are",
		"error", err, "again_in", wait)
}
