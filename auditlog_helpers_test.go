// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// note is an event of a program's own, numbered.
func note(n int) Event { return Event{Type: EventNote, Details: map[string]any{"n": n}} }

// startAuditLog opens a log in a new folder, with a key store of its own.
func startAuditLog(t testing.TB, o *AuditLogOptions) (l *AuditLog, path string, keys *KeyStore) {
	t.Helper()
	keys, _ = createWeak(t, storeDir(t), nil)
	path = filepath.Join(t.TempDir(), "log", "audit.log")
	return openAuditLog(t, path, keys, o), path, keys
}

func openAuditLog(t testing.TB, path string, keys *KeyStore, o *AuditLogOptions) *AuditLog {
	t.Helper()
	l, err := OpenAuditLog(t.Context(), path, keys, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// writeNotes writes the notes from to to-1.
func writeNotes(t testing.TB, l *AuditLog, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := l.Record(t.Context(), note(n)); err != nil {
			t.Fatalf("note %d: %v", n, err)
		}
	}
}

// mustVerify expects a log that is as it was written.
func mustVerify(t testing.TB, path string, keys *KeyStore, head string) *AuditReport {
	t.Helper()
	r, err := VerifyAuditLog(t.Context(), path, keys, head)
	if err != nil {
		t.Fatalf("%v\n%s", err, logText0(path))
	}
	return r
}

// mustFind expects a finding, and its sentinel.
func mustFind(t testing.TB, what, path string, keys *KeyStore, head string, want AuditReport) {
	t.Helper()
	got, err := VerifyAuditLog(t.Context(), path, keys, head)
	if got == nil || err == nil || got.Finding != want.Finding || got.Line != want.Line ||
		filepath.Base(got.File) != want.File ||
		got.Seq != want.Seq || got.Missing != want.Missing {
		t.Errorf("%s: found %+v, %v, want %+v", what, got, err, want)
		return
	}
	if errors.Is(err, ErrAuditTorn) == errors.Is(err, ErrAuditTampered) || errors.Is(err,
		ErrAuditTorn) != (got.Finding == AuditTorn) {
		t.Errorf("%s: the sentinel of %v", what, err)
	}
	if !strings.Contains(err.Error(), got.File) || !strings.HasSuffix(err.Error(), got.Finding) {
		t.Errorf("%s: the words of %v", what, err)
	}
}

func logText0(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
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

// heard is an Auditor that keeps what it is told, and fails where it is to.
type heard struct {
	mu     sync.Mutex
	events []Event
	fail   map[EventType]error
}

func (h *heard) Record(_ context.Context, e Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.fail[e.Type]; err != nil {
		return err
	}
	h.events = append(h.events, e)
	return nil
}

func (h *heard) failOn(err error, types ...EventType) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = make(map[EventType]error)
	for _, t := range types {
		h.fail[t] = err
	}
}

// take returns what was told since the last time.
func (h *heard) take() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := h.events
	h.events = nil
	return events
}

func typesOf(events []Event) string {
	var types []string
	for _, e := range events {
		types = append(types, string(e.Type))
	}
	return strings.Join(types, " ")
}

// mustHear expects events of these types since the last time, and returns them.
func (h *heard) mustHear(t testing.TB, what, types string) []Event {
	t.Helper()
	events := h.take()
	if got := typesOf(events); got != types {
		t.Errorf("%s: told %q, want %q", what, got, types)
	}
	for _, e := range events {
		if e.Time.IsZero() || e.PID != os.Getpid() || e.User == "" ||
			e.Severity != eventTypes[e.Type].severity {
			t.Errorf("%s: %s is not filled in: %+v", what, e.Type, e)
		}
	}
	return events
}
