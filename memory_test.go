// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const secretMarker = "marker-7f3a9c-secret"

func TestSecretUse(t *testing.T) {
	input := []byte(secretMarker)
	s := NewSecret(input)
	defer s.Destroy()
	if !bytes.Equal(input, make([]byte, len(secretMarker))) {
		t.Errorf("the input was not wiped: %q", input)
	}
	if s.Len() != len(secretMarker) {
		t.Errorf("Len is %d", s.Len())
	}
	sentinel := errors.New("from f")
	err := s.Use(func(b []byte) error {
		if string(b) != secretMarker || cap(b) != len(b) {
			t.Errorf("got %q, cap %d", b, cap(b))
		}
		b[0] = 'M' // f may change the bytes
		return s.Use(func(b []byte) error {
			if b[0] != 'M' {
				t.Error("a nested Use sees other bytes")
			}
			return sentinel
		})
	})
	if err != sentinel {
		t.Errorf("Use returned %v", err)
	}
}

func TestSecretAfterDestroy(t *testing.T) {
	destroyed := secret(t, secretMarker)
	destroyed.Destroy()
	destroyed.Destroy()
	empty := secret(t, "")
	empty.Destroy()
	for name, s := range map[string]*Secret{"destroyed": destroyed, "nil": nil, "empty": empty,
		"zero": {}} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("panic: %v", p)
				}
			}()
			err := s.Use(func([]byte) error { t.Error("f was called"); return nil })
			if !errors.Is(err, ErrClosed) {
				t.Errorf("Use: %v", err)
			}
			if s.Len() != 0 || s.Locked() {
				t.Errorf("Len %d, Locked %v", s.Len(), s.Locked())
			}
			s.Destroy()
			if text := fmt.Sprint(s); !strings.Contains(text, redacted) && s != nil {
				t.Errorf("prints as %q", text)
			}
		})
	}
}

func TestEmptySecret(t *testing.T) {
	s := secret(t, "")
	called := false
	if err := s.Use(func(b []byte) error {
		called = len(b) == 0
		return nil
	}); err != nil || !called {
		t.Errorf("Use: %v, called %v", err, called)
	}
	if s.Locked() {
		t.Error("nothing cannot be locked")
	}
}

// Destroy within Use, or beside it, leaves the bytes to those who use them, and nobody new comes
// in.
func TestSecretDestroyWithinUse(t *testing.T) {
	s := secret(t, secretMarker)
	err := s.Use(func(b []byte) error {
		s.Destroy()
		if string(b) != secretMarker {
			t.Errorf("wiped while in use: %q", b)
		}
		if s.buf == nil {
			t.Error("given back while in use")
		}
		return s.Use(func([]byte) error { t.Error("a Use after Destroy got in"); return nil })
	})
	if !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if s.buf != nil {
		t.Error("not wiped when the last Use returned")
	}
}

func TestSecretDestroyWaitsForPanickingUse(t *testing.T) {
	s := secret(t, secretMarker)
	func() {
		defer func() { _ = recover() }()
		_ = s.Use(func([]byte) error { s.Destroy(); panic("x") })
	}()
	if s.buf != nil || s.users != 0 {
		t.Error("a panic in Use keeps the bytes")
	}
}

func TestSecretConcurrency(t *testing.T) {
	for range 20 {
		s := secret(t, secretMarker)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for range 20 {
					err := s.Use(func(b []byte) error {
						// wiped or unmapped memory would show, or fault
						if string(b) != secretMarker {
							t.Errorf("got %q", b)
						}
						return nil
					})
					if err != nil && !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					_, _ = s.Len(), s.Locked()
				}
			})
			if i == 8 {
				wg.Go(s.Destroy)
			}
		}
		wg.Wait()
		if s.buf != nil {
			t.Fatal("never wiped")
		}
	}
}

// holders have a secret where printers and encoders find it in different ways.
type (
	exportedHolder   struct{ Key *Secret }
	unexportedHolder struct{ key *Secret }
	valueHolder      struct{ Key Secret }
	hiddenHolder     struct{ key Secret }
	anyHolder        struct {
		Any  any
		List []*Secret
		Map  map[string]*Secret
		Keys map[*Secret]int
	}
)

func TestSecretIsRedacted(t *testing.T) {
	s := secret(t, secretMarker)
	value, hidden := &valueHolder{}, &hiddenHolder{}
	for _, own := range []*Secret{&value.Key, &hidden.key} {
		own.buf = secret(t, secretMarker).buf
	}
	things := map[string]any{
		"pointer": s, "field": exportedHolder{s}, "field of pointer": &exportedHolder{s},
		"unexported field": unexportedHolder{s}, "pointer to it": &unexportedHolder{s},
		"by value": value, "by value, unexported": hidden,
		"containers": anyHolder{s, []*Secret{s}, map[string]*Secret{"k": s},
			map[*Secret]int{s: 1}},
		"pointer to pointer": &s, "response": Response{Body: s},
		"pointer to response": &Response{Body: s},
		"config":              Config{APIKey: s}, "gateway config": GatewayConfig{UpstreamKey: s},
	}
	for name, v := range things {
		var outputs []string
		for _, verb := range "vsdqxXTtbcoOUeEfFgGp" {
			for _, flags := range []string{"", "+", "#", "-30", "030", " ", "+#"} {
				outputs = append(outputs, fmt.Sprintf("%"+flags+string(verb), v))
			}
		}
		outputs = append(outputs, fmt.Sprint(v), fmt.Sprintln(v), fmt.Errorf("%v", v).Error())
		if b, err := json.Marshal(v); err == nil {
			outputs = append(outputs, string(b))
		}
		if b, err := xml.Marshal(v); err == nil {
			outputs = append(outputs, string(b))
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v, slog.Group("g", "v", v))
		slog.New(slog.NewTextHandler(&log, nil)).With("w", v).Info("x", "v", v)
		outputs = append(outputs, log.String())
		for _, out := range outputs {
			for _, form := range []string{secretMarker, fmt.Sprintf("%x", secretMarker),
				fmt.Sprintf("%X", secretMarker),
				strings.Trim(fmt.Sprint([]byte(secretMarker)), "[]"),
				strings.Trim(fmt.Sprintf("%#v", []byte(secretMarker)), "[]byte{}")} {
				if strings.Contains(out, form) {
					at := strings.Index(out, form)
					t.Fatalf("%s: the secret is in …%q…", name, out[max(0, at-100):at+len(form)])
				}
			}
		}
	}
}

func TestSecretSaysSo(t *testing.T) {
	s := secret(t, secretMarker)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T", "%10s"} {
		want := redacted
		if verb == "%T" {
			want = "*sealedchat.Secret"
		}
		if got := fmt.Sprintf(verb, s); got != want {
			t.Errorf("%s gives %q", verb, got)
		}
	}
	b, err := json.Marshal(map[string]any{"s": s, "h": exportedHolder{s}, "l": []*Secret{s}})
	if want := `{"h":{"Key":"[REDACTED]"},"l":["[REDACTED]"],"s":"[REDACTED]"}`; err != nil ||
		string(b) != want {
		t.Errorf("JSON: %s, %v", b, err)
	}
	var text encoding.TextMarshaler = s
	if b, err := text.MarshalText(); err != nil || string(b) != redacted {
		t.Errorf("text: %s, %v", b, err)
	}
	if v := slog.AnyValue(s).Resolve(); v.String() != redacted {
		t.Errorf("slog: %v", v)
	}
}

func TestMemoryPolicies(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	for _, p := range []MemoryPolicy{"", MemoryBestEffort, MemoryRequired, MemoryOff} {
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
	s, err := MemoryPolicy("3").NewSecret(b)
	if c, ok := errors.AsType[*ConfigError](err); !ok || c.Field != "MemoryPolicy" || s != nil ||
		string(b) != secretMarker {
		t.Errorf("an unknown policy: %v", err)
	}
	if text := fmt.Sprint(MemoryBestEffort, ", ", MemoryRequired, ", ",
		MemoryOff); text != "best effort, required, off" {
		t.Error(text)
	}
}

func TestMemoryConfigErrors(t *testing.T) {
	loose, off := storedKeys(t, "rsa-2048"), memoryOff(t)
	for field, c := range map[string]Config{
		"Config.Memory": {Memory: "Required"}, "Config.APIKey": {Memory: MemoryRequired,
			APIKey: off}, "Config.Keys": {Memory: MemoryRequired, Keys: loose},
	} {
		c.BaseURL, c.Trust = "https://server.test", TrustHTTPS()
		_, err := NewSecureCompletionClient(c)
		if e, ok := errors.AsType[*ConfigError](err); !ok || e.Field != field ||
			(c.Memory == MemoryRequired) != errors.Is(err, ErrMemoryLimit) {
			t.Errorf("%s: %v", field, err)
		}
	}
	_, err := NewEphemeralKeyStore(&KeyStoreOptions{Memory: "3"})
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
	lose := func() { NewSecret([]byte(secretMarker)) }
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
	for end := time.Now().Add(
		time.Minute); MemoryReport().Secrets >= before.Secrets+1; runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("not wiped")
		}
	}
	if !bytes.Equal(left, make([]byte, len(secretMarker))) {
		t.Errorf("left behind: %q", left)
	}
	inUse := func() {
		s := NewSecret([]byte(secretMarker))
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
	if m.InUse != before.InUse+n || m.Secrets != before.Secrets+1 || m.Peak < m.InUse ||
		(m.Unlocked == before.Unlocked) != s.Locked() {
		t.Errorf("before %v, now %v", before, m)
	}
	if m.Platform != runtime.GOOS+"/"+runtime.GOARCH || m.PageSize < 4096 ||
		(s.Locked() && m.Locked < int64(m.PageSize)) {
		t.Errorf("%v", m)
	}
	off := memoryOff(t)
	if now := MemoryReport(); now.Unlocked < m.Unlocked+int64(off.Len()) || now.AllLocked {
		t.Errorf("with something unlocked: %v", now)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "memory", m)
	for _, want := range []string{
		`"all_locked":`, fmt.Sprintf(`"in_use":%d,`, m.InUse), `"limit":`, `"core_dumps_off":`,
		`"platform":"` + m.Platform + `"`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in %s", want, &log)
		}
	}
}

// Only internal/locked may bring memguard and memcall in: they end the process where it errs. One
// test is a program that purges memguard.
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
			if found++; filepath.Dir(path) != filepath.Join(root, "internal", "locked") &&
				path != filepath.Join(root, "keystore_test.go") {
				t.Errorf("%s imports %s", path, i.Path.Value)
			}
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("%d imports found, %v", found, err)
	}
}
