// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

var errDeaf = errors.New("deaf")

// heard is an Auditor that keeps the types of events, and fails where it is told to.
type heard struct {
	mu    sync.Mutex
	types []string
	err   error
	on    []string
}

func (h *heard) tell(_ context.Context, e Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.Contains(h.on, e.Type) {
		return h.err
	}
	h.types = append(h.types, e.Type)
	return nil
}

func (h *heard) failOn(err error, types ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err, h.on = err, types
}

func (h *heard) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	types := strings.Join(h.types, " ")
	h.types = nil
	return types
}

// An error that was told is not told again.
func TestLostLockIsToldOnce(t *testing.T) {
	dir, h := storeDir(t), &heard{}
	var path string
	s, _ := createWeak(t, dir, &Options{Rotation: Rotation{Every: -1},
		Tell: func(ctx context.Context, e Event) error {
			path = e.Path
			return h.tell(ctx, e)
		}})
	h.take()
	lost := s.failed(t.Context(), fault.ErrLockLost)
	if types := h.take(); types != LockLost || !errors.Is(lost, fault.ErrLockLost) || path != dir {
		t.Errorf("told %q of %s, %v", types, path, lost)
	}
	_ = s.failed(t.Context(), lost)
	if types := h.take(); types != "" {
		t.Errorf("told again: %s", types)
	}
}

// An Auditor whose own disk does not confirm says nothing of the store's file.
func TestAuditUnconfirmedIsNotTheStores(t *testing.T) {
	deaf := fmt.Errorf("%w: the log's disk: %w", fault.ErrUnconfirmed, errDeaf)
	other := &unconfirmedError{errDeaf} // another store's, which the Auditor uses
	for _, deaf := range []error{deaf, other, &unauditedError{errDeaf}, &reportedError{errDeaf}} {
		refused := func(what string, err error) {
			t.Helper()
			wantError(t, what, err, errDeaf)
			if errors.Is(err, fault.ErrUnconfirmed) || stands(err) {
				t.Errorf("%s: it looks done: %v", what, err)
			}
		}
		dir, h := storeDir(t), &heard{}
		h.failOn(deaf, KeyGenerated)
		o := Options{Rotation: Rotation{Every: -1}, Tell: h.tell}
		s, _ := weakStore(t, &o)
		s.opening = true
		refused("create", s.opened(t.Context(), s.create(t.Context(), dir, secret(t, passphrase))))
		if types := h.take(); types != "" {
			t.Errorf("told %s", types)
		}
		h.failOn(nil)
		s, _ = createWeak(t, storeDir(t), &o)
		h.failOn(deaf, KeyGenerated, LockLost)
		refused("rotate", s.Rotate(t.Context()))
		refused("lost lock", s.failed(t.Context(), fault.ErrLockLost))
	}
}

// A store that is closed while its Auditor hears of a new key waits for it, and does not break it
// off.
func TestCloseWaitsForTheAuditor(t *testing.T) {
	s, _ := createWeak(t, storeDir(t), nil)
	hears, ends := make(chan struct{}), make(chan struct{})
	var armed, broken atomic.Bool // it hears of the first key as well
	if err := s.SetTell(t.Context(), func(ctx context.Context, e Event) error {
		if e.Type == KeyGenerated && armed.Load() {
			close(hears)
			<-ends
			broken.Store(ctx.Err() != nil)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	rotated, closed := make(chan error), make(chan struct{})
	go func() { rotated <- s.Rotate(t.Context()) }()
	<-hears
	go func() { s.Close(); close(closed) }()
	<-s.life.Done()
	close(ends)
	if err := <-rotated; !errors.Is(err, fault.ErrClosed) {
		t.Errorf("Rotate: %v", err)
	}
	if <-closed; broken.Load() {
		t.Error("broken off")
	}
}
