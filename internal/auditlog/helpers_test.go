// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// testStore stands for a key store's file: its data keys, oldest first.
type testStore struct {
	mu   sync.Mutex
	keys [][]byte
}

func newTestStore() *testStore { return &testStore{keys: [][]byte{bytes.Repeat([]byte{1}, 32)}} }

// renew begins a generation, as a new passphrase does.
func (s *testStore) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, bytes.Repeat([]byte{byte(len(s.keys) + 1)}, 32))
}

// testKeys are the data keys that a process has: all, or those up to the generation knows.
type testKeys struct {
	store  *testStore
	knows  uint32 // 0: all
	closed bool
}

func (k *testKeys) DataGeneration() uint32 {
	if k.knows > 0 {
		return k.knows
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	return uint32(len(k.store.keys))
}

func (k *testKeys) UseDataKey(generation uint32, f func([]byte) error) (uint32, error) {
	known := k.DataGeneration()
	if generation == 0 {
		generation = known
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	switch {
	case k.closed:
		return 0, fault.ErrClosed
	case generation > uint32(len(k.store.keys)):
		return 0, fault.ErrDecryption
	case generation > known:
		return 0, fault.ErrPassphrase
	}
	return generation, f(bytes.Clone(k.store.keys[generation-1]))
}

// note is an event, numbered.
func note(n int) []byte { return fmt.Appendf(nil, `"type":"note","details":{"n":%d}`, n) }

func filledNote(filler int) []byte {
	return fmt.Appendf(nil, `"type":"note","details":{"s":"%s"}`, strings.Repeat("x", filler))
}

func largeNote() []byte { return filledNote(20_000) }

// startLog opens a log in a new folder, with keys of its own.
func startLog(t testing.TB, o *Options) (l *Log, path string, keys *testKeys) {
	t.Helper()
	keys = &testKeys{store: newTestStore()}
	path = filepath.Join(t.TempDir(), "log", "audit.log")
	return openLog(t, path, keys, o), path, keys
}

// withDefaults are the options as package sealedchat gives them.
func withDefaults(o *Options) Options {
	if o == nil {
		o = &Options{}
	}
	all := *o
	if all.MaxFileBytes == 0 {
		all.MaxFileBytes = 16 << 20
	}
	if all.MaxFiles == 0 {
		all.MaxFiles = 16
	}
	if all.Logger == nil {
		all.Logger = slog.New(slog.DiscardHandler)
	}
	return all
}

func openLog(t testing.TB, path string, keys Keys, o *Options) *Log {
	t.Helper()
	l, err := Open(t.Context(), path, keys, withDefaults(o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// writeNotes writes the notes from to to-1.
func writeNotes(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := l.Record(t.Context(), "note", note(n)); err != nil {
			t.Fatalf("note %d: %v", n, err)
		}
	}
}

// mustVerify expects a log that is as it was written.
func mustVerify(t testing.TB, path string, keys Keys, head Head) *Report {
	t.Helper()
	r, err := Verify(t.Context(), path, keys, head)
	if err != nil {
		text, _ := os.ReadFile(path)
		t.Fatalf("%v\n%s", err, text)
	}
	return r
}

// tampered reports whether an error of Verify says that a log was changed.
func tampered(err error) bool {
	problem, ok := errors.AsType[*Problem](err)
	return ok && problem.Finding != Torn
}

// mustFind expects a finding.
func mustFind(t testing.TB, what, path string, keys Keys, head Head, want Problem) {
	t.Helper()
	_, err := Verify(t.Context(), path, keys, head)
	got, ok := errors.AsType[*Problem](err)
	if !ok {
		t.Errorf("%s: found %v, want %q", what, err, want.Finding)
		return
	}
	if got.Finding != want.Finding || got.Line != want.Line ||
		filepath.Base(got.File) != want.File ||
		want.Seq != 0 && got.Seq != want.Seq || want.Missing != 0 && got.Missing != want.Missing {
		t.Errorf("%s: found %+v, want %+v", what, *got, want)
	}
}

func readLog(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeLog(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// logLines are the lines of a log, with their line feeds.
func logLines(t testing.TB, path string) [][]byte {
	t.Helper()
	lines := bytes.SplitAfter(readLog(t, path), []byte("\n"))
	return lines[:len(lines)-1]
}
