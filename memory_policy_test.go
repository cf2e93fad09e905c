// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestMemoryPolicies(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	for _, p := range []MemoryPolicy{MemoryBestEffort, MemoryRequired, MemoryOff} {
		b := []byte(secretMarker)
		s, err := p.NewSecret(b)
		if err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		if !bytes.Equal(b, make([]byte, len(b))) || s.Len() != len(b) {
			t.Errorf("%v: not moved", p)
		}
		if (p == MemoryRequired && !s.Locked()) || (p == MemoryOff && s.Locked()) {
			t.Errorf("%v: locked %v", p, s.Locked())
		}
		s.Destroy()
	}
	b := []byte(secretMarker)
	s, err := MemoryPolicy(3).NewSecret(b)
	if c, ok := errors.AsType[*ConfigError](err); !ok || c.Field != "MemoryPolicy" || s != nil || string(b) != secretMarker {
		t.Errorf("an unknown policy: %v", err)
	}
	if text := fmt.Sprint(MemoryBestEffort, MemoryRequired, MemoryOff, MemoryPolicy(7)); text != "BestEffort Required Off MemoryPolicy(7)" {
		t.Error(text)
	}
}

func TestMemoryConfigErrors(t *testing.T) {
	loose, off := storedKeys(t, "rsa-2048"), memoryOff(t)
	for field, c := range map[string]Config{
		"Config.Memory": {Memory: 3}, "Config.APIKey": {Memory: MemoryRequired, APIKey: off}, "Config.Keys": {Memory: MemoryRequired, Keys: loose},
	} {
		c.Trust = TrustHTTPS()
		_, err := NewSecureCompletionClient(c)
		if e, ok := errors.AsType[*ConfigError](err); !ok || e.Field != field || (c.Memory == MemoryRequired) != errors.Is(err, ErrMemoryLimit) {
			t.Errorf("%s: %v", field, err)
		}
	}
	_, err := NewEphemeralKeyStore(&KeyStoreOptions{Memory: 3})
	if e, ok := errors.AsType[*ConfigError](err); !ok || e.Field != "KeyStoreOptions.Memory" {
		t.Errorf("key store: %v", err)
	}
}

func memoryOff(t testing.TB) *Secret {
	s, err := MemoryOff.NewSecret([]byte("an-api-key"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Destroy)
	return s
}

// A Secret that is lost is wiped and counted; one that is in use meanwhile is neither.
func TestLeakedSecret(t *testing.T) {
	before := MemoryReport()
	lose := func() {
		if _, err := NewSecret([]byte(secretMarker)); err != nil {
			t.Error(err)
		}
	}
	lose()
	for end := time.Now().Add(time.Minute); MemoryReport().Leaked == before.Leaked; runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("not found")
		}
	}
	// It is wiped, too: in ordinary memory that can be seen.
	var left []byte
	loseOff := func() {
		s, err := MemoryOff.NewSecret([]byte(secretMarker))
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Use(func(b []byte) error { left = b; return nil })
	}
	before = MemoryReport()
	loseOff()
	for end := time.Now().Add(time.Minute); MemoryReport().Secrets >= before.Secrets+1; runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("not wiped")
		}
	}
	if !bytes.Equal(left, make([]byte, len(secretMarker))) {
		t.Errorf("left behind: %q", left)
	}
	inUse := func() {
		s, _ := NewSecret([]byte(secretMarker))
		found := MemoryReport().Leaked
		_ = s.Use(func(b []byte) error {
			for range 5 {
				runtime.GC()
				time.Sleep(time.Millisecond)
			}
			if string(b) != secretMarker || MemoryReport().Leaked != found {
				t.Error("wiped while in use")
			}
			return nil
		})
		s.Destroy()
	}
	inUse()
}

func TestMemoryReport(t *testing.T) {
	before := MemoryReport()
	s := secret(t, secretMarker)
	m := MemoryReport()
	n := int64(len(secretMarker))
	if m.InUse != before.InUse+n || m.Secrets != before.Secrets+1 || m.Peak < m.InUse || (m.Unlocked == before.Unlocked) != s.Locked() {
		t.Errorf("before %v, now %v", before, m)
	}
	if m.Platform != runtime.GOOS+"/"+runtime.GOARCH || m.PageSize < 4096 || (s.Locked() && m.Locked < int64(m.PageSize)) {
		t.Errorf("%v", m)
	}
	off := memoryOff(t)
	if now := MemoryReport(); now.Unlocked < m.Unlocked+int64(off.Len()) || now.Level != MemoryWiped {
		t.Errorf("with something unlocked: %v", now)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "memory", m)
	for _, want := range []string{"memory.in_use=", "memory.limit=", "memory.level=", "memory.core_dumps_off="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in %s", want, &log)
		}
	}
	if text := m.String(); !strings.Contains(text, fmt.Sprintf("%d bytes in use", m.InUse)) || !strings.Contains(text, m.Platform) {
		t.Error(text)
	}
}

// ScrubHeap leaves the collector's percentage as it was, however many run, and reaches every class of small objects.
func TestScrubHeap(t *testing.T) {
	was := debug.SetGCPercent(77)
	defer debug.SetGCPercent(was)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(ScrubHeap)
	}
	wg.Wait()
	if now := debug.SetGCPercent(77); now != 77 {
		t.Errorf("the percentage is %d", now)
	}
	for _, size := range []int{8, 16, 48, 6700, 10240, 19000, 32768} {
		if !coversClass(size) {
			t.Errorf("no object of %d bytes", size)
		}
	}
}

// coversClass tells whether one of scrubClasses takes the memory of objects of size bytes.
func coversClass(size int) bool {
	rounded := cap(append([]byte(nil), make([]byte, size)...))
	for _, n := range scrubClasses() {
		if cap(append([]byte(nil), make([]byte, n)...)) == rounded {
			return true
		}
	}
	return false
}

// Only internal/locked may bring memguard and memcall in: they end the process where it errs. One test is a program that
// purges memguard.
func TestOnlyLockedImportsMemguard(t *testing.T) {
	root, found := testkit.Dir(t), 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return nil // vet's business
		}
		for _, i := range file.Imports {
			if !strings.HasPrefix(i.Path.Value, `"github.com/awnumar/`) {
				continue
			}
			if found++; filepath.Dir(path) != filepath.Join(root, "internal", "locked") && path != filepath.Join(root, "keystore_purge_test.go") {
				t.Errorf("%s imports %s", path, i.Path.Value)
			}
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("%d imports found, %v", found, err)
	}
}
