// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// MemoryPolicy says what becomes of secrets for which there is no locked memory left: pages that are never swapped out. How
// much a process may lock is limited (ulimit -l, often 8 MiB; root without limit; on Windows its minimum working set, some
// 200 KB).
type MemoryPolicy uint8

// The policies.
const (
	// MemoryBestEffort locks what fits. The rest is wiped after use all the same, but may be swapped out until then;
	// MemoryReport and Secret.Locked tell.
	MemoryBestEffort MemoryPolicy = iota
	// MemoryRequired refuses what does not fit, with ErrMemoryLimit: private keys, keys made of passphrases, API keys, and
	// the bodies of Complete. Chat, Stream and HTTPClient handle Go strings and bytes by their nature: prompts and answers
	// there are in ordinary memory under every policy.
	MemoryRequired
	// MemoryOff takes ordinary memory, and wipes it. Nothing is locked.
	MemoryOff
)

// String is the constant's name without "Memory".
func (p MemoryPolicy) String() string {
	switch p {
	case MemoryBestEffort:
		return "BestEffort"
	case MemoryRequired:
		return "Required"
	case MemoryOff:
		return "Off"
	}
	return fmt.Sprintf("MemoryPolicy(%d)", uint8(p))
}

func (p MemoryPolicy) validate() error {
	if p > MemoryOff {
		return errors.New("want MemoryBestEffort, MemoryRequired or MemoryOff")
	}
	return nil
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

// NewSecret copies b into memory under the policy and wipes b. The caller destroys it with [Secret.Destroy]. The error is
// [ErrMemoryLimit], with MemoryRequired alone, or [*ConfigError] for an unknown policy; b then stays as it is.
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

// newArena makes the memory for what a client or a key store does. Under MemoryRequired it takes its first pages at
// once, so that a process without any learns of it when it starts, and not with its first request.
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

// validateMemory checks that what a client borrows is as well protected as what it owns.
func (c *Config) validateMemory() error {
	if err := c.Memory.validate(); err != nil {
		return &ConfigError{Field: "Config.Memory", Err: err}
	}
	if c.Memory != MemoryRequired {
		return nil
	}
	if c.APIKey != nil && !c.APIKey.Locked() {
		return configError("Config.APIKey", "%w: it is not in locked memory; make it with MemoryRequired.NewSecret", ErrMemoryLimit)
	}
	if c.Keys != nil && c.Keys.store.Policy() != locked.Required {
		return configError("Config.Keys", "%w: Config.Memory is MemoryRequired, KeyStoreOptions.Memory is not", ErrMemoryLimit)
	}
	return nil
}
