// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestHardenProcess(t *testing.T) {
	testkit.RunInChild(t, "harden", func(t *testing.T) {
		if before := sealedchat.MemoryReport(); !before.Dumpable {
			t.Errorf("before: %v", before)
		}
		for range 2 {
			if err := sealedchat.HardenProcess(); err != nil {
				t.Fatal(err)
			}
		}
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Fatal(err)
		}
		if after := sealedchat.MemoryReport(); after.Dumpable || !after.CoreDumpsOff ||
			limit.Cur != 0 {
			t.Errorf("after: %v, %v", after, limit)
		}
	})
}

// TestMemoryRequired works, and under a limit of nothing everything that would have to lock is
// refused, with the figures.
func TestMemoryRequired(t *testing.T) {
	testkit.RunInChild(t, "required", func(t *testing.T) {
		key := testkit.Key(t, "rsa-2048")
		// and not t.TempDir, in a folder that only root may change
		dir, err := os.MkdirTemp("", "sealedchat")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := errors.Join(os.Chown(dir, 65534, 65534), unix.Setgroups(nil),
				unix.Setgid(65534), unix.Setuid(65534)); err != nil {
				t.Fatal(err)
			}
		}
		passphrase := secret(t, "correct horse battery")
		required := &sealedchat.KeyStoreOptions{Memory: sealedchat.MemoryRequired}
		for what, f := range map[string]func() error{
			"secret": func() error {
				_, err := sealedchat.MemoryRequired.NewSecret([]byte("x"))
				return err
			},
			"ephemeral": func() error {
				_, err := sealedchat.NewEphemeralKeyStore(required)
				return err
			},
			"new key store": func() error {
				_, err := sealedchat.CreateKeyStore(t.Context(), dir, passphrase, required)
				return err
			},
			"open key store": func() error {
				_, err := sealedchat.OpenKeyStore(t.Context(), dir, passphrase, required)
				return err
			},
			"client": func() error {
				_, err := sealedchat.NewSecureCompletionClient(
					sealedchat.Config{BaseURL: "https://server.test",
						Trust: sealedchat.TrustHTTPS(), Memory: sealedchat.MemoryRequired})
				return err
			},
		} {
			err := f()
			limit, ok := errors.AsType[*locked.LimitError](err)
			if !ok || !errors.Is(err, sealedchat.ErrMemoryLimit) || limit.Limit != 0 ||
				limit.InUse != 0 || limit.Needed < int64(os.Getpagesize()) {
				t.Errorf("%s: %v", what, err)
			}
		}
		store := memoryStore(t, nil)
		importKey(t, store, key)
		if passphrase.Locked() || sealedchat.MemoryReport().AllLocked ||
			sealedchat.MemoryReport().Misses == 0 {
			t.Errorf("best effort: %v", sealedchat.MemoryReport())
		}
		store.Close()
	})
}

// A client that insists on locked memory completes, and refuses a body that is not.
func TestCompleteRequired(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	store, err := sealedchat.NewEphemeralKeyStore(
		&sealedchat.KeyStoreOptions{Memory: sealedchat.MemoryRequired})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	importKey(t, store, testkit.Key(t, "rsa-2048"))
	server := httptest.NewServer(startGateway(t, testkit.AnswerText("Paris"), nil))
	defer server.Close()
	client := startClient(t, server.URL, func(c *sealedchat.Config) {
		c.Memory, c.Keys = sealedchat.MemoryRequired, store
	})
	text := `{"model":"m","messages":[{"role":"user","content":"x"}]}`
	body, err := sealedchat.MemoryRequired.NewSecret([]byte(text))
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
	loose, err := sealedchat.MemoryOff.NewSecret([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer loose.Destroy()
	if _, err := client.Complete(t.Context(), loose); !errors.Is(err, sealedchat.ErrMemoryLimit) {
		t.Errorf("a body in ordinary memory: %v", err)
	}
}

// Whoever is asked for more keys, an Auditor for example, is not asked where signals are held back:
// what he starts would never get them.
func TestAuditorMayStartProcesses(t *testing.T) {
	dir, pass := filepath.Join(t.TempDir(), "keys"), secret(t, "correct horse battery staple")
	o := &sealedchat.KeyStoreOptions{Bits: 2048}
	one, err := sealedchat.CreateKeyStore(t.Context(), dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := sealedchat.OpenKeyStore(t.Context(), dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if _, err := one.ImportPEM(t.Context(), testkit.KeyPEM(t, "rsa-2048"), nil); err != nil {
		t.Fatal(err)
	}
	var told atomic.Bool
	if err := two.SetAuditor(t.Context(), sealedchat.Auditor(func(_ context.Context,
		e sealedchat.Event) error {
		if e.Type != sealedchat.EventKeyLoaded {
			return nil
		}
		told.Store(true)
		status, err := os.ReadFile("/proc/thread-self/status")
		if err != nil || !strings.Contains(string(status), "SigBlk:\t0000000000000000") {
			t.Errorf("signals are held back: %v\n%s", err, status)
		}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	e, err := sealTo(publicOf(t, "rsa-2048"),
		[]byte(`{"model":"m","messages":[{"role":"user","content":"x"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, testkit.AnswerText("Paris"), func(c *sealedchat.GatewayConfig) {
		c.Keys = two
	})
	req := httptest.NewRequest(http.MethodPost, hybrid.PathCompletion,
		bytes.NewReader(envelope.Append(nil, e)))
	req.Header.Set(hybrid.HeaderPayloadID, testkit.UUID())
	req.Header.Set(hybrid.HeaderPublicKey, hybrid.PercentEncode(testkit.PublicPEM(t,
		"client-4096")))
	w := httptest.NewRecorder()
	g.ServeHTTP(w, req)
	if w.Code != http.StatusOK || !told.Load() {
		t.Errorf("%d %s; told %v", w.Code, w.Body, told.Load())
	}
}
