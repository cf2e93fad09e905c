// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestCloseDuringChangePassphrase has Close begin when the new passphrase is about to be written: whatever the error
// says has to be true of the disk.
func TestCloseDuringChangePassphrase(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	var closing sync.WaitGroup
	err := s.rewrite(t.Context(), secret(t, "another passphrase"), func(*keyfile.Body) error {
		closing.Go(func() { _ = s.Close() })
		<-s.life.Done()
		return nil
	})
	closing.Wait()
	opens := passphrase
	if err == nil || errors.Is(err, ErrUnconfirmed) {
		opens = "another passphrase"
	} else {
		wantError(t, "closing", err, ErrClosed)
	}
	again, err := tryWeak(t, dir, opens, nil)
	if err != nil {
		t.Fatalf("the passphrase that should hold: %v", err)
	}
	_ = again.Close()
}

// TestCloseDuringRotations races Close with callers who want a rotation.
func TestCloseDuringRotations(t *testing.T) {
	testkit.NoLeaks(t)
	for range 200 {
		s, m := weakStore(t, nil)
		if _, err := s.Public(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = m
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for {
					if err := s.Rotate(t.Context()); err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Errorf("Rotate: %v", err)
						}
						return
					}
				}
			})
		}
		_ = s.Close()
		callers.Wait()
	}
}

// TestCloseWhileWaitingForTheLock has another process hold the lock for longer than anybody waits.
func TestCloseWhileWaitingForTheLock(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	other := flock.New(filepath.Join(dir, writeLock))
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	waiting := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	go func() { waiting <- s.Delete(ctx, primaryOf(t, s)) }()
	for len(s.writing) == 0 { // until it is in there
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	_ = s.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	wantError(t, "the one who waited", <-waiting, ErrClosed)
}
