// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

const redacted = "[REDACTED]"

// Secret holds bytes that must not be printed, swapped out or left lying about: an API key, a request, an answer.
// They live outside the Go heap, unless the policy is [MemoryOff] or there is no memory to be had there; they are locked
// into RAM where the system allows it ([Secret.Locked]), and on Linux left out of core dumps. Printing a *Secret in any
// way, logging it or marshalling it gives "[REDACTED]".
//
// A Secret that nobody destroys is wiped by the garbage collector some time after it became unreachable, and counted in
// [MemoryStatus].Leaked.
//
// All methods may be called from several goroutines, and on a nil *Secret or a zero one, which are like a destroyed one.
type Secret struct {
	mu    sync.Mutex
	buf   *locked.Buffer // nil once destroyed
	watch locked.Watch   // wipes buf should nobody do so
	users int            // running Use calls; the last one wipes when destroyed is set
	dead  bool
}

// NewSecret copies b into protected memory and wipes b, under [MemoryBestEffort]; [MemoryPolicy.NewSecret] insists on
// locked memory, or does without. The caller destroys it with [Secret.Destroy]. The error is always nil. A string that b
// was made of, such as [os.Getenv]'s, is not wiped.
func NewSecret(b []byte) (*Secret, error) { return MemoryBestEffort.NewSecret(b) }

// newRoom makes a Secret of n zero bytes in an arena, and lends them to whoever fills them before anybody else knows of it.
func newRoom(a *locked.Arena, n int) (*Secret, []byte, error) {
	buf, err := a.Alloc(n)
	if err != nil {
		return nil, nil, err
	}
	return secretOf(buf), buf.Bytes(), nil
}

// keep cuts what newRoom made to its first n bytes, before anybody else knows of it.
func (s *Secret) keep(n int) { s.buf.Narrow(0, n) }

// Use calls f with the bytes, which f may change but must not keep: they are gone once the Secret is destroyed.
// It returns what f returns, or [ErrClosed] after Destroy. Calls may overlap and nest.
func (s *Secret) Use(f func(b []byte) error) error {
	if s == nil {
		return fmt.Errorf("%w: no secret", ErrClosed)
	}
	s.mu.Lock()
	if s.dead || s.buf == nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: secret destroyed", ErrClosed)
	}
	s.users++
	b := s.buf.Bytes()
	s.mu.Unlock()
	defer s.leave() // which also keeps s reachable, and so b in place, until f returns
	return f(b)
}

func (s *Secret) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	s.wipeIfDone()
}

func (s *Secret) wipeIfDone() {
	if s.dead && s.users == 0 && s.buf != nil {
		s.watch.Stop()
		s.buf.Destroy()
		s.buf = nil
	}
}

// Len is the number of bytes; 0 after Destroy.
func (s *Secret) Len() (n int) {
	_ = s.Use(func(b []byte) error { n = len(b); return nil })
	return n
}

// Locked reports whether the bytes are locked into RAM: false when the lock limit of the process (ulimit -l) did not
// allow it, under [MemoryOff], and after Destroy.
func (s *Secret) Locked() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.dead && s.buf != nil && s.buf.Locked()
}

// Destroy wipes the bytes, at once or when the last running Use returns. It is idempotent.
func (s *Secret) Destroy() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	s.wipeIfDone()
}

// Format prints "[REDACTED]", whatever the verb.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue logs "[REDACTED]".
func (s *Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText gives "[REDACTED]", so that encoding/json and others cannot spill the bytes.
func (s *Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
