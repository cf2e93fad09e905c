// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestKeyStoreEvents(t *testing.T) {
	dir, h := storeDir(t), &heard{}
	never := Rotation{Every: -1}
	s, m := createWeak(t, dir, &KeyStoreOptions{Rotation: never, Audit: h.Record})
	first := primaryOf(t, s)
	events := h.mustHear(t, "create", "key_generated key_loaded")
	// 0 where clocks are coarse
	if e := events[0]; e.Fingerprint != first || e.Bits != 2048 || e.Duration < 0 {
		t.Errorf("%+v", e)
	}
	if e := events[1]; e.Fingerprint != first || e.Keys != 1 ||
		e.Path != filepath.Join(dir, "keystore.json") {
		t.Errorf("%+v", e)
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := primaryOf(t, s)
	events = h.mustHear(t, "rotate", "key_generated key_rotated key_retired")
	if e := events[1]; e.Fingerprint != second || e.OldFingerprint != first || e.Keys != 2 {
		t.Errorf("%+v", e)
	}
	if e := events[2]; e.Fingerprint != first {
		t.Errorf("%+v", e)
	}
	if err := s.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if e := h.mustHear(t, "delete", "key_deleted")[0]; e.Fingerprint != first ||
		e.Severity != slog.LevelWarn {
		t.Errorf("%+v", e)
	}
	key, err := m.Make()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	report, err := s.ImportPEM(t.Context(), text, nil)
	if err != nil {
		t.Fatal(err)
	}
	events = h.mustHear(t, "import", "key_rotated key_retired key_imported")
	if e := events[2]; e.Fingerprint != report.Fingerprint || e.Bits != 2048 ||
		e.Reason != "PKCS#8" {
		t.Errorf("%+v", e)
	}
	if _, err := s.ExportPEM(t.Context(), "", secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	if e := h.mustHear(t, "export", "key_exported")[0]; e.Fingerprint != report.Fingerprint {
		t.Errorf("%+v", e)
	}
	if err := s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)); err != nil {
		t.Fatal(err)
	}
	if e := h.mustHear(t, "passphrase", "passphrase_changed")[0]; e.Generation != 2 {
		t.Errorf("%+v", e)
	}
	wantError(t, "old passphrase", s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)), ErrPassphrase)
	h.mustHear(t, "wrong passphrase", "decryption_refused")
	sealed, err := s.Seal("label", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if e := h.mustHear(t, "seal", "data_sealed")[0]; e.Bytes != 4 || e.Generation != 2 {
		t.Errorf("%+v", e)
	}
	if _, err := s.Open("label", sealed); err != nil {
		t.Fatal(err)
	}
	if e := h.mustHear(t, "open", "data_opened")[0]; e.Bytes != 4 {
		t.Errorf("%+v", e)
	}
	_, err = s.Open("other", sealed)
	wantError(t, "other label", err, ErrDecryption)
	h.mustHear(t, "other label", "decryption_refused")

	// Another process.
	o := &heard{}
	other, err := tryWeak(t, dir, passphrase2, &KeyStoreOptions{Rotation: never, Audit: o.Record})
	if err != nil {
		t.Fatal(err)
	}
	o.mustHear(t, "open", "key_loaded")
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if other.store.ConfigKey(t.Context(), 0, 0) != nil { // looks at the file once more
		t.Fatal("a key of no KEM")
	}
	if e := o.mustHear(t, "rotated elsewhere", "key_loaded")[0]; e.Fingerprint != primaryOf(t, s) {
		t.Errorf("%+v", e)
	}
	_, err = tryWeak(t, dir, passphrase, &KeyStoreOptions{Audit: o.Record})
	wantError(t, "wrong passphrase", err, ErrPassphrase)
	o.mustHear(t, "wrong passphrase", "decryption_refused")
}

func TestKeyStoreFileEvents(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("permissions are access lists there; internal/fsafe tests them")
	}
	dir, h := storeDir(t), &heard{}
	s, _ := createWeak(t, dir, &KeyStoreOptions{Rotation: Rotation{Every: -1}, Audit: h.Record})
	h.take()
	file := filepath.Join(dir, "keystore.json")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := tryWeak(t, dir, passphrase, &KeyStoreOptions{Audit: h.Record})
	wantError(t, "open", err, ErrInsecurePermissions)
	if e := h.mustHear(t, "open", "permissions_refused")[0]; e.Path != file ||
		e.Reason != "mode is 0644, want 0600" || e.Severity != slog.LevelError {
		t.Errorf("%+v", e)
	}
	wantError(t, "rotate", s.Rotate(t.Context()), ErrInsecurePermissions)
	if events := h.take(); typesOf(events) != "key_generated permissions_refused" {
		t.Errorf("%s", typesOf(events))
	}
}

// Before the fact an Auditor that fails stops the store; after it, the change stands and the error
// says so.
func TestAuditStopsTheKeyStore(t *testing.T) {
	dir, h := storeDir(t), &heard{}
	s, _ := createWeak(t, dir, &KeyStoreOptions{Rotation: Rotation{Every: -1}, Audit: h.Record})
	sealed, err := s.Seal("l", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rotate(t.Context()); err != nil { // so that the lock files are there
		t.Fatal(err)
	}
	stopped := func(what string, err error) {
		t.Helper()
		wantError(t, what, err, ErrAudit)
		wantError(t, what, err, errDeaf)
	}
	first := primaryOf(t, s)
	h.failOn(errDeaf, EventKeyGenerated, EventDataSealed, EventDataOpened, EventKeyExported)
	testkit.Unchanged(t, "stopped", dir, func() {
		stopped("rotate", s.Rotate(t.Context()))
		b, err := s.Seal("l", []byte("x"))
		stopped("seal", err)
		p, err := s.Open("l", sealed)
		stopped("open", err)
		e, err := s.ExportPEM(t.Context(), "", secret(t, passphrase))
		stopped("export", err)
		if b != nil || p != nil || e != nil {
			t.Error("something was handed out")
		}
	})
	if primaryOf(t, s) != first {
		t.Error("it was rotated")
	}
	h.failOn(errDeaf, EventKeyRotated, EventKeyRetired, EventKeyDeleted, EventPassphraseChanged,
		EventKeyLoaded)
	stopped("rotate", s.Rotate(t.Context()))
	if primaryOf(t, s) == first {
		t.Error("a rotation that has happened was undone")
	}
	stopped("delete", s.Delete(t.Context(), first))
	stopped("passphrase", s.ChangePassphrase(t.Context(), secret(t, passphrase),
		secret(t, passphrase2)))
	if n := len(s.Keys()); n != 2 {
		t.Errorf("%d keys", n)
	}
	_, err = tryWeak(t, dir, passphrase2, &KeyStoreOptions{Audit: h.Record})
	stopped("open", err)
}

// A store tells the log that has its key from the store: what came before is told later, and nobody
// waits for himself.
func TestAuditLogOfItsOwnStore(t *testing.T) {
	s, _ := createWeak(t, storeDir(t),
		&KeyStoreOptions{Rotation: Rotation{Every: 30 * time.Millisecond, Grace: -1}})
	path := filepath.Join(t.TempDir(), "log", "audit.log")
	l := openAuditLog(t, path, s, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.SetAuditor(ctx, l.Record); err != nil {
		t.Fatal(err)
	}
	// perhaps with a rotation in between
	for _, want := range []string{"key_generated", "key_loaded"} {
		if text := readLog(t, path); !bytes.Contains(text, []byte(`"type":"`+want+`"`)) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	for i := range 5 {
		old, next := passphrase, passphrase2
		if i%2 == 1 {
			old, next = next, old
		}
		if err := s.ChangePassphrase(ctx, secret(t, old), secret(t, next)); err != nil {
			t.Fatal(err)
		}
		if err := s.Rotate(ctx); err != nil {
			t.Fatal(err)
		}
		sealed, err := s.Seal("l", nil)
		if err == nil {
			_, err = s.Open("l", sealed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := mustVerify(t, path, s, "")
	s.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if r.Lines < 20 || r.Lost != 0 {
		t.Errorf("%+v", r)
	}
}

// An Auditor's error is ErrAudit, and never says that the store's file is unconfirmed.
func TestAuditorsUnconfirmedIsHidden(t *testing.T) {
	h := &heard{}
	s, _ := createWeak(t, storeDir(t), &KeyStoreOptions{Rotation: Rotation{Every: -1},
		Audit: h.Record})
	h.failOn(fmt.Errorf("%w: the log's disk: %w", ErrUnconfirmed, errDeaf), EventKeyGenerated,
		EventDataSealed)
	_, sealed := s.Seal("l", nil)
	for what, err := range map[string]error{"rotate": s.Rotate(t.Context()), "seal": sealed} {
		wantError(t, what, err, ErrAudit)
		wantError(t, what, err, errDeaf)
		if errors.Is(err, ErrUnconfirmed) {
			t.Errorf("%s: it looks done: %v", what, err)
		}
	}
}

// Each field of a key store's event is in the Auditor's event, under the same name, and each type
// is one that is known.
func TestKeyEvent(t *testing.T) {
	var e keystore.Event
	from := reflect.ValueOf(&e).Elem()
	for i := range from.NumField() {
		switch f := from.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(1765250382, 0)))
		case string:
			f.SetString("text of " + from.Type().Field(i).Name)
		case int, int64, time.Duration:
			f.SetInt(int64(100 + i))
		case uint32:
			f.SetUint(uint64(100 + i))
		default:
			t.Fatalf("%s has a type that the test does not know", from.Type().Field(i).Name)
		}
	}
	to := reflect.ValueOf(keyEvent(e))
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		got := to.FieldByName(name)
		if !got.IsValid() || fmt.Sprint(got) != fmt.Sprint(from.Field(i)) || got.IsZero() {
			t.Errorf("%s: got %v, want %v", name, got, from.Field(i))
		}
	}
	for _, known := range []string{
		keystore.KeyGenerated, keystore.KeyLoaded, keystore.KeyRotated, keystore.KeyRetired,
		keystore.KeyDeleted,
		keystore.KeyImported, keystore.KeyExported, keystore.PassphraseChanged, keystore.DataSealed,
		keystore.DataOpened, keystore.DecryptionRefused, keystore.PermissionsRefused,
		keystore.LockLost,
	} {
		if !EventType(known).valid() {
			t.Errorf("%s is no event", known)
		}
	}
}
