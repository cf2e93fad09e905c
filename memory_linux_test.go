// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestHardenProcess(t *testing.T) {
	testkit.RunInChild(t, "harden", func(t *testing.T) {
		if before := MemoryReport(); !before.Dumpable {
			t.Errorf("before: %v", before)
		}
		for range 2 {
			if err := HardenProcess(); err != nil {
				t.Fatal(err)
			}
		}
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Fatal(err)
		}
		if after := MemoryReport(); after.Dumpable || !after.CoreDumpsOff || limit.Cur != 0 {
			t.Errorf("after: %v, %v", after, limit)
		}
	})
}

// TestMemoryRequired works, and under a limit of nothing everything that would have to lock is refused, with the figures.
func TestMemoryRequired(t *testing.T) {
	testkit.RunInChild(t, "required", func(t *testing.T) {
		key := testkit.Key(t, "rsa-2048")
		dir, err := os.MkdirTemp("", "sealedchat") // and not t.TempDir, in a folder that only root may change
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := errors.Join(os.Chown(dir, 65534, 65534), unix.Setgroups(nil), unix.Setgid(65534), unix.Setuid(65534)); err != nil {
				t.Fatal(err)
			}
		}
		passphrase := secret(t, "correct horse battery")
		required := &KeyStoreOptions{Memory: MemoryRequired}
		for what, f := range map[string]func() error{
			"secret":         func() error { _, err := MemoryRequired.NewSecret([]byte("x")); return err },
			"ephemeral":      func() error { _, err := NewEphemeralKeyStore(required); return err },
			"new key store":  func() error { _, err := CreateKeyStore(t.Context(), dir, passphrase, required); return err },
			"open key store": func() error { _, err := OpenKeyStore(t.Context(), dir, passphrase, required); return err },
			"client": func() error {
				_, err := NewSecureCompletionClient(Config{BaseURL: "https://server.test", Trust: TrustHTTPS(), Memory: MemoryRequired})
				return err
			},
		} {
			err := f()
			limit, ok := errors.AsType[*locked.LimitError](err)
			if !ok || !errors.Is(err, ErrMemoryLimit) || limit.Limit != 0 || limit.InUse != 0 || limit.Needed < int64(os.Getpagesize()) {
				t.Errorf("%s: %v", what, err)
			}
		}
		store, err := NewEphemeralKeyStore(nil)
		if err == nil {
			err = store.adopt(key)
		}
		if err != nil || passphrase.Locked() || MemoryReport().AllLocked || MemoryReport().Misses == 0 {
			t.Errorf("best effort: %v, %v", err, MemoryReport())
		}
		_ = store.Close()
	})
}

// A client that insists on locked memory completes, and refuses a body that is not.
func TestCompleteRequired(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	store, err := NewEphemeralKeyStore(&KeyStoreOptions{Memory: MemoryRequired})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.adopt(testkit.Key(t, "rsa-2048")); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(startGateway(t, answerText("Paris"), nil))
	defer server.Close()
	client := startClient(t, server.URL, func(c *Config) { c.Memory, c.Keys = MemoryRequired, store })
	text := `{"model":"m","messages":[{"role":"user","content":"x"}]}`
	body, err := MemoryRequired.NewSecret([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Destroy()
	answer, err := client.Complete(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	if !answer.Body.Locked() {
		t.Error("the answer is not locked")
	}
	answer.Body.Destroy()
	loose, err := MemoryOff.NewSecret([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer loose.Destroy()
	if _, err := client.Complete(t.Context(), loose); !errors.Is(err, ErrMemoryLimit) {
		t.Errorf("a body in ordinary memory: %v", err)
	}
}

// Whoever is asked for more keys, an Auditor for example, is not asked where signals are held back: what he starts would
// never get them.
func TestAuditorMayStartProcesses(t *testing.T) {
	dir := storeDir(t)
	one, _ := createWeak(t, dir, nil)
	two := openWeak(t, dir, passphrase, nil)
	if _, err := one.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-2048"), nil); err != nil {
		t.Fatal(err)
	}
	told := false
	if err := two.SetAuditor(t.Context(), Auditor(func(_ context.Context, e Event) error {
		if e.Type != EventKeyLoaded {
			return nil
		}
		told = true
		status, err := os.ReadFile("/proc/thread-self/status")
		if err != nil || !strings.Contains(string(status), "SigBlk:\t0000000000000000") {
			t.Errorf("signals are held back: %v\n%s", err, status)
		}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	e, err := publicOf(t, "rsa-2048").seal([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := two.store.OpenEnvelope(t.Context(), e); err != nil || string(text) != "x" || !told {
		t.Errorf("%q, %v; told %v", text, err, told)
	}
}
