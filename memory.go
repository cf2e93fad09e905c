// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/harden"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

const redacted = "[REDACTED]"

// Secret holds bytes that must not be printed, swapped out or left lying about: an API key, a
// request, an answer. They live outside the Go heap, unless the policy is [MemoryOff] or there is
// no memory to be had there; they are locked into RAM where the system allows it ([Secret.Locked]),
// and on Linux left out of core dumps. Printing a *Secret in any way, logging it or marshalling it
// gives "[REDACTED]".
//
// A Secret that is not destroyed is wiped by the garbage collector some time after it became
// unreachable, and counted in [MemoryStatus].Leaked.
//
// All methods may be called from several goroutines, and on a nil *Secret or a zero one, which are
// like a destroyed one.
type Secret struct {
	mu    sync.Mutex
	buf   *locked.Buffer // nil once destroyed
	watch locked.Watch   // wipes buf if Destroy is not called
	users int            // running Use calls; the last one wipes when destroyed is set
	dead  bool
}

// NewSecret copies b into protected memory and wipes b, under [MemoryBestEffort];
// [MemoryPolicy.NewSecret] insists on locked memory, or does without. The caller destroys it with
// [Secret.Destroy]. A string that b was made of, such as [os.Getenv]'s, is not wiped.
func NewSecret(b []byte) *Secret {
	s, _ := MemoryBestEffort.NewSecret(b) // which has no error
	return s
}

// maxSecretFile bounds the file of a secret, in bytes.
const maxSecretFile = 64 << 10

// ReadSecret reads a file that holds a secret and nothing else: an API key, a passphrase. It drops
// one final line break (LF or CR LF), which editors and echo add; the rest is the secret, byte for
// byte. The caller destroys it. Who may read the file is not looked at: Kubernetes and systemd
// mount secrets as they see fit. Errors: those of files; [ErrInvalidRequest] for a file that is
// empty then, [ErrTooLarge] for one of more than 64 KiB.
func ReadSecret(path string) (*Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: reading a secret: %w", err)
	}
	defer f.Close()
	content := make([]byte, maxSecretFile+1) // in one piece: growing would leave copies behind
	defer clear(content)
	n, err := io.ReadFull(f, content)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, path, maxSecretFile)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("sealedchat: reading a secret: %w", err)
	}
	text, cut := bytes.CutSuffix(content[:n], []byte("\n"))
	if cut {
		text = bytes.TrimSuffix(text, []byte("\r"))
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("%w: there is no secret in %s", ErrInvalidRequest, path)
	}
	return NewSecret(text), nil
}

// newBuffer makes a Secret of n zero bytes in an arena, and lends them to the caller, who fills
// them before the Secret is handed out.
func newBuffer(a *locked.Arena, n int) (*Secret, []byte, error) {
	buf, err := a.Alloc(n)
	if err != nil {
		return nil, nil, err
	}
	return secretOf(buf), buf.Bytes(), nil
}

// keep cuts a Secret of newBuffer to its first n bytes, before it is handed out.
func (s *Secret) keep(n int) { s.buf.Narrow(0, n) }

// Use calls f with the bytes, which f may change but must not keep: they are gone once the Secret
// is destroyed. It returns what f returns, or [ErrClosed] after Destroy. Calls may overlap and
// nest.
func (s *Secret) Use(f func(b []byte) error) error {
	if s == nil {
		return fmt.Errorf("%w: the secret is nil; make it with NewSecret", ErrClosed)
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

// Locked reports whether the bytes are locked into RAM: false when the lock limit of the process
// (ulimit -l) did not allow it, under [MemoryOff], and after Destroy.
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

// MemoryPolicy says what becomes of secrets for which there is no locked memory left: pages that
// are never swapped out. How much a process may lock is limited (ulimit -l, often 8 MiB; root
// without limit; on Windows its minimum working set, some 200 KB).
type MemoryPolicy string

// The policies. "" is MemoryBestEffort.
const (
	// MemoryBestEffort locks what fits. The rest is wiped after use all the same, but may be
	// swapped out until then; MemoryReport and Secret.Locked tell.
	MemoryBestEffort MemoryPolicy = "best effort"
	// MemoryRequired refuses what does not fit, with ErrMemoryLimit: private keys, keys made of
	// passphrases, API keys, and the bodies of Complete. Chat, Stream and HTTPClient handle Go
	// strings and bytes by their nature: prompts and answers there are in ordinary memory under
	// every policy.
	MemoryRequired MemoryPolicy = "required"
	// MemoryOff takes ordinary memory, and wipes it. Nothing is locked.
	MemoryOff MemoryPolicy = "off"
)

func (p MemoryPolicy) validate() error {
	switch p {
	case "", MemoryBestEffort, MemoryRequired, MemoryOff:
		return nil
	}
	return errors.New("want MemoryBestEffort, MemoryRequired or MemoryOff")
}

// internal is the policy in the terms of package locked.
func (p MemoryPolicy) internal() locked.Policy {
	switch p {
	case MemoryRequired:
		return locked.Required
	case MemoryOff:
		return locked.Off
	}
	return locked.BestEffort
}

// NewSecret copies b into memory under the policy and wipes b. The caller destroys it with
// [Secret.Destroy]. The error is [ErrMemoryLimit], with MemoryRequired alone, or [*ConfigError] for
// an unknown policy; b then stays as it is.
func (p MemoryPolicy) NewSecret(b []byte) (*Secret, error) {
	if err := p.validate(); err != nil {
		return nil, &ConfigError{Field: "MemoryPolicy", Err: err}
	}
	buf, err := locked.NewWith(p.internal(), len(b))
	if err != nil {
		return nil, err
	}
	erase.Do(func() { copy(buf.Bytes(), b) }) // a copy goes through registers
	clear(b)
	return secretOf(buf), nil
}

// secretOf makes a Secret of a buffer, which it takes over.
func secretOf(buf *locked.Buffer) *Secret {
	s := &Secret{buf: buf}
	s.watch = locked.WatchOwner(s, buf)
	return s
}

// newArena makes the memory for what a client or a key store does. Under MemoryRequired it takes
// its first pages at once, so that a process without any learns of it when it starts, and not with
// its first request.
func newArena(p MemoryPolicy) (*locked.Arena, error) {
	a := locked.NewArena(p.internal())
	if p == MemoryRequired {
		b, err := a.Alloc(1)
		if err != nil {
			return nil, err
		}
		b.Destroy() // the arena keeps one empty chunk
	}
	return a, nil
}

// MemoryStatus is what [MemoryReport] returns, and what events of an [Auditor] tell. It holds no
// secret and may be logged. Sizes are in bytes.
type MemoryStatus struct {
	// AllLocked: all that is in use is locked; while nothing is in use, a page could be locked.
	// Otherwise some of it is wiped after use, but may be swapped out until then.
	AllLocked bool   `json:"all_locked"`
	Platform  string `json:"platform"` // "linux/amd64"
	PageSize  int    `json:"page_size"`

	InUse    int64 `json:"in_use"`   // bytes of secrets, in their buffers
	Unlocked int64 `json:"unlocked"` // of these, the bytes that are not locked
	Peak     int64 `json:"peak"`     // the most bytes that were in use at once
	Locked   int64 `json:"locked"`   // bytes in locked pages, with what is free in them
	// Limit is what the process may lock, this package and others together: RLIMIT_MEMLOCK, or on
	// Windows the minimum working set. A process with CAP_IPC_LOCK, such as root's, may lock more.
	// Negative: none, or not known.
	Limit int64 `json:"limit"`
	// Misses counts the buffers that were to be locked and did not fit, since the process started.
	Misses int64 `json:"misses"`

	Secrets int64 `json:"secrets"` // how many there are that are not destroyed yet
	// Leaked counts those that were not destroyed: the garbage collector found them and had them
	// wiped.
	Leaked int64 `json:"leaked"`

	// CoreDumpsOff reports that a crash writes no core: the process is not dumpable, or RLIMIT_CORE
	// is 0 and cores are files. (A core_pattern that pipes cores to a program does not obey
	// RLIMIT_CORE.) Locked pages are in no core anyway. False on Windows, where crash dumps are the
	// system's matter.
	CoreDumpsOff bool `json:"core_dumps_off"`
	// Dumpable reports that other processes of the same user may read this one's memory, as far as
	// the system's other rules let them. True wherever HardenProcess cannot change it.
	Dumpable bool `json:"dumpable"`
	// RuntimeSecret reports that the program was built with GOEXPERIMENT=runtimesecret.
	RuntimeSecret bool `json:"runtime_secret"`
}

// MemoryReport tells how the memory of this process's secrets is protected at the moment. It counts
// what this package has for all clients, key stores and Secrets together. It costs some system
// calls and, on Linux, the reading of a small file. Safe for concurrent use.
func MemoryReport() MemoryStatus {
	s := locked.Report()
	return MemoryStatus{
		AllLocked: s.Level == locked.Locked,
		Platform:  runtime.GOOS + "/" + runtime.GOARCH, PageSize: s.PageSize,
		InUse: s.InUse, Unlocked: s.Unlocked, Peak: s.Peak, Locked: s.Locked, Limit: s.Limit,
		Misses: s.Misses, Secrets: s.Watched, Leaked: s.Leaked,
		CoreDumpsOff: harden.CoreDumpsOff(), Dumpable: harden.Dumpable(),
		RuntimeSecret: erase.RuntimeSecret,
	}
}

// allLocked is MemoryReport's AllLocked, for less.
func allLocked() bool { return locked.Report().Level == locked.Locked }

// HardenProcess makes it harder for other processes of the same user to read this one's memory. It
// is for the program, not for libraries: it changes the whole process, for good, and nothing in
// this package calls it. Call it first in main.
//
// On Linux the process becomes undumpable (PR_SET_DUMPABLE), and its core dumps are off
// (RLIMIT_CORE, which importing this package has set to 0 already: memguard does). After that
//
//   - only root can still attach a debugger, read /proc/PID/mem, or get a core;
//   - the files in /proc/PID belong to root: the program itself can no longer read its own
//     /proc/self/environ or write /proc/self/oom_score_adj, unless it is root, and ps and perf of
//     the same user see less;
//   - programs that this one starts inherit the limit of 0 on cores, not the rest.
//
// On other Unix systems core dumps are switched off, and on Windows nothing is; the error then says
// so, and is errors.ErrUnsupported. Idempotent. [MemoryReport] tells what holds.
func HardenProcess() error { return harden.Process() }

// ScrubHeap overwrites what the heap has free, where the standard library leaves copies of secrets
// that nothing can reach any more (crypto/rsa: the padded message and intermediate numbers of each
// answer opened), and gives free memory back to the system. It costs five garbage collections, of
// the host's garbage too, and has GOMAXPROCS at 1 meanwhile: about 10 ms with a small heap, and in
// proportion more with a large one. On a heap of tens of megabytes with many gaps some copies may
// survive, and so may what lay where another goroutine's stack lies now. It reaches nothing that is
// still referenced: close clients and key stores first where that counts. Nothing in this package
// calls it. Safe for concurrent use.
func ScrubHeap() { harden.Scrub() }
