// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

func TestAuditLog(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	if h := l.Head(); h != "" {
		t.Errorf("the head of an empty log is %v", h)
	}
	mustVerify(t, path, keys, "")
	writeNotes(t, l, 0, 3)
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" &&
		info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	r := mustVerify(t, path, keys, "")
	if r.Lines != 3 || r.First != 1 || r.Head != l.Head() || !strings.HasPrefix(r.Head, "3-") ||
		r.HeadChecked || len(r.Files) != 1 {
		t.Errorf("%+v", r)
	}
	head := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if err := l.Record(t.Context(), note(9)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	l = openAuditLog(t, path, keys, nil)
	if l.Head() != head {
		t.Errorf("opened again, the head is %v, was %v", l.Head(), head)
	}
	writeNotes(t, l, 3, 5)
	if r := mustVerify(t, path, keys, head); r.Lines != 5 || !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	for i, line := range logLines(t, path) {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.Type != EventNote || e.Severity != slog.LevelInfo || e.PID != os.Getpid() ||
			e.User == "" ||
			time.Since(e.Time) > time.Minute ||
			fmt.Sprint(e.Details["n"]) != fmt.Sprint(i) {
			t.Errorf("line %d is %+v", i, e)
		}
	}
}

func TestAuditLogSurvivesChangeOfPassphrase(t *testing.T) {
	dir := storeDir(t)
	keys, _ := createWeak(t, dir, nil)
	path := filepath.Join(t.TempDir(), "audit", "log")
	mine := openAuditLog(t, path, keys, nil)
	other := openWeak(t, dir, passphrase, nil) // as in another process
	theirs := openAuditLog(t, path, other, nil)
	writeNotes(t, mine, 0, 2)
	writeNotes(t, theirs, 2, 3)
	if err := keys.ChangePassphrase(t.Context(), secret(t, passphrase), secret(t,
		passphrase2)); err != nil {
		t.Fatal(err)
	}
	writeNotes(t, mine, 3, 5)
	writeNotes(t, theirs, 5, 6) // with the key that it knows
	writeNotes(t, mine, 6, 7)
	var generations []string
	for _, line := range logLines(t, path) {
		_, rest, _ := bytes.Cut(line, []byte(`"key":`))
		generations = append(generations, string(rest[:1]))
	}
	if got := strings.Join(generations, ""); got != "1112212" {
		t.Errorf("generations %s", got)
	}
	mustVerify(t, path, keys, "")
	mustVerify(t, path, openWeak(t, dir, passphrase2, nil), "")
	if _, err := VerifyAuditLog(t.Context(), path, other, ""); !errors.Is(err, ErrPassphrase) {
		t.Errorf("with a store that does not know the new generation: %v", err)
	}
	keys.Close()
	writeNotes(t, mine, 7, 8) // the log has its key
	mustVerify(t, path, openWeak(t, dir, passphrase2, nil), "")
}

func TestOpenAuditLogRefusals(t *testing.T) {
	keys, _ := createWeak(t, storeDir(t), nil)
	closed, _ := createWeak(t, storeDir(t), nil)
	closed.Close()
	ephemeral, err := NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ephemeral.Close()
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "audit.log")
	for what, c := range map[string]struct {
		path string
		keys *KeyStore
		o    *AuditLogOptions
		want error
	}{
		"no store":        {path, nil, nil, ErrInvalidRequest},
		"ephemeral store": {path, ephemeral, nil, ErrInvalidRequest},
		"closed store":    {path, closed, nil, ErrClosed},
		"no path":         {"", keys, nil, ErrInvalidRequest},
		"a folder":        {dir + "/", keys, nil, ErrInvalidRequest},
		"dots":            {dir + "/..", keys, nil, ErrInvalidRequest},
		"flush":           {path, keys, &AuditLogOptions{FlushEvery: -1}, nil},
		"head":            {path, keys, &AuditLogOptions{Head: "1-00"}, nil},
		"small files":     {path, keys, &AuditLogOptions{MaxFileBytes: 1 << 10}, nil},
		"negative size":   {path, keys, &AuditLogOptions{MaxFileBytes: -1}, nil},
		"one file":        {path, keys, &AuditLogOptions{MaxFiles: 1}, nil},
		"many files":      {path, keys, &AuditLogOptions{MaxFiles: 10_001}, nil},
	} {
		l, err := OpenAuditLog(t.Context(), c.path, c.keys, c.o)
		_, config := errors.AsType[*ConfigError](err)
		if l != nil || err == nil || (c.want == nil) != config || c.want != nil && !errors.Is(err,
			c.want) {
			t.Errorf("%s: %v", what, err)
		}
		if c.o != nil {
			continue
		}
		if r, err := VerifyAuditLog(t.Context(), c.path, c.keys, ""); r != nil || !errors.Is(err,
			c.want) {
			t.Errorf("%s, verifying: %v, %v", what, r, err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
	if _, err := VerifyAuditLog(t.Context(), path, keys, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	openAuditLog(t, path, keys, nil)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuditLog(t.Context(), path, keys, nil); !errors.Is(err,
		ErrInsecurePermissions) ||
		!strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open to others: %v", err)
	}
	if _, err := VerifyAuditLog(t.Context(), path, keys, ""); !errors.Is(err,
		ErrInsecurePermissions) {
		t.Errorf("verifying what is open to others: %v", err)
	}
}

func TestRecordRefusals(t *testing.T) {
	l, path, keys := startAuditLog(t, &AuditLogOptions{KeepGoing: true})
	writeNotes(t, l, 0, 1)
	for what, c := range map[string]struct {
		e    Event
		want error
	}{
		"no type":      {Event{}, ErrInvalidRequest},
		"unknown type": {Event{Type: "request_sealed "}, ErrInvalidRequest},
		"no JSON": {Event{Type: EventNote, Details: map[string]any{"f": func() {}}},
			ErrInvalidRequest},
		"infinite": {Event{Type: EventNote, Details: map[string]any{"s": circle()}},
			ErrInvalidRequest},
		"large": {Event{Type: EventNote, Details: map[string]any{"s": strings.Repeat("x",
			64<<10)}}, ErrTooLarge},
	} {
		if err := l.Record(t.Context(), c.e); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := l.Record(t.Context(), Event{Type: EventNote,
		Details: map[string]any{"s": strings.Repeat("x", 60<<10)}}); err != nil {
		t.Errorf("nearly too large: %v", err)
	}
	if r := mustVerify(t, path, keys, ""); r.Lines != 2 || r.Lost != 0 {
		t.Errorf("%+v", r)
	}
}

func circle() any {
	m := map[string]any{}
	m["m"] = m
	return m
}

func TestAuditLogHead(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	writeNotes(t, l, 0, 2)
	early := l.Head()
	writeNotes(t, l, 2, 4)
	late := l.Head()
	l.Close()
	lines := logLines(t, path)
	writeLog(t, path, bytes.Join(lines[:3], nil))
	if r := mustVerify(t, path, keys, ""); r.Lines != 3 { // nothing shows
		t.Errorf("%+v", r)
	}
	if r := mustVerify(t, path, keys, early); !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	cutOff := AuditReport{File: "audit.log", Line: 4, Seq: 4, Missing: 1, Finding: AuditCutOff}
	mustFind(t, "cut off", path, keys, late, cutOff)
	mustFind(t, "a head with white space", path, keys, " "+late+"\n", cutOff)
	writeLog(t, path, nil)
	mustFind(t, "emptied", path, keys, late, AuditReport{File: "audit.log", Line: 1, Seq: 1,
		Missing: 4, Finding: AuditCutOff})
	if err := errors.Join(os.Remove(path), os.Remove(path+".lock")); err != nil {
		t.Fatal(err)
	}
	l = openAuditLog(t, path, keys, nil)
	writeNotes(t, l, 10, 16)
	mustFind(t, "another log", path, keys, late, AuditReport{File: "audit.log", Line: 4, Seq: 4,
		Finding: AuditReplaced})

	zeros := strings.Repeat("0", 64)
	for _, text := range []string{
		" ", "4", "4-", "-" + zeros, "0-" + zeros, "4-" + zeros[2:], "4-" + strings.Repeat("g",
			64), "x-" + zeros, late + "00",
	} {
		if r, err := VerifyAuditLog(t.Context(), path, keys, text); r != nil || !errors.Is(err,
			ErrInvalidRequest) {
			t.Errorf("%q: %v", text, err)
		}
		_, err := OpenAuditLog(t.Context(), path, keys, &AuditLogOptions{Head: text})
		if config, ok := errors.AsType[*ConfigError](err); !ok ||
			config.Field != "AuditLogOptions.Head" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What cannot be written in JSON is refused, and the error says why.
func TestAuditEventYears(t *testing.T) {
	l, path, keys := startAuditLog(t, &AuditLogOptions{KeepGoing: true})
	east, west := time.FixedZone("", 14*3600), time.FixedZone("", -12*3600)
	record := map[string]Auditor{
		"file": l.Record, "logger": NewSlogAuditor(slog.New(slog.NewJSONHandler(io.Discard, nil))),
		"JSON": func(_ context.Context, e Event) error { _, err := json.Marshal(e); return err },
	}
	for name, record := range record {
		for year, at := range map[string]time.Time{
			"10000": time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
			"-1": time.Date(-1, 12, 31, 0, 0, 0, 0,
				time.UTC),
			"9999999": time.Date(9999999, 1, 1, 0, 0, 0, 0, time.UTC),
			"10000 ": time.Date(9999, 12, 31, 23,
				0, 0, 0, west),
			"-1 ": time.Date(0, 1, 1, 0, 0, 0, 0, east),
		} {
			err := record(t.Context(), Event{Type: EventNote, Time: at})
			if !errors.Is(err, ErrAudit) || !errors.Is(err, ErrInvalidRequest) ||
				!strings.Contains(err.Error(), "year "+strings.TrimSpace(year)) ||
				strings.Contains(err.Error(), "details") {
				t.Errorf("%s, %s: %v", name, year, err)
			}
		}
		for _, at := range []time.Time{
			time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC),
			time.Date(9999, 12, 31, 23, 59, 59, 999_999_999,
				time.UTC),
			time.Date(10000, 1, 1, 0, 0, 0, 0, east), time.Date(-1, 12, 31, 23, 0, 0, 0, west), {},
		} {
			if err := record(t.Context(), Event{Type: EventNote, Time: at}); err != nil &&
				name != "JSON" {
				t.Errorf("%s, %v: %v", name, at, err)
			}
		}
	}
	details := Event{Type: EventNote, Details: map[string]any{"at": time.Date(10000, 1, 1, 0, 0, 0,
		0,
		time.UTC)}}
	if err := l.Record(t.Context(), details); !errors.Is(err, ErrInvalidRequest) ||
		!strings.Contains(err.Error(), "details") {
		t.Errorf("in the details: %v", err)
	}
	if r := mustVerify(t, path, keys, ""); r.Lines != 5 || r.Lost != 0 {
		t.Errorf("%+v", r)
	}
	// A call that such an event belongs to is stopped.
	var tell auditSink
	tell.set(l.Record)
	if err := tell.tell(t.Context(), Event{Type: EventNote, Time: time.Date(10000, 1, 1, 0, 0, 0, 0,
		time.UTC)}); !errors.Is(err, ErrAudit) {
		t.Errorf("%v", err)
	}
}

// A nil log is no Auditor that says yes.
func TestNilAuditLog(t *testing.T) {
	var none *AuditLog
	if err := none.Record(t.Context(), note(1)); !errors.Is(err, ErrInvalidRequest) {
		t.Errorf("%v", err)
	}
	c, err := NewSecureCompletionClient(Config{BaseURL: "https://a.test", Trust: TrustHTTPS(),
		Audit: none.Record})
	if c != nil || !errors.Is(err, ErrAudit) || !errors.Is(err, ErrInvalidRequest) {
		t.Errorf("%v, %v", c, err)
	}
}

// oldLog unpacks a key store and a log that an earlier version wrote: two files of more, two
// generations of keys, lines of every severity, a line that a crash left unfinished, and lost
// events. Its passphrase is passphrase2.
func oldLog(t *testing.T) (dir string) {
	t.Helper()
	packed, err := os.Open(filepath.Join("testdata", "auditlog", "old.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	unzipped, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for files := tar.NewReader(unzipped); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = privateFolder(path)
		} else {
			var text []byte
			if text, err = io.ReadAll(files); err == nil {
				err = os.WriteFile(path, text, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// privateFolder makes a folder that only the user may enter, on Windows too.
func privateFolder(path string) error {
	d, err := fsafe.CreateDir(path)
	if err != nil {
		return err
	}
	return d.Close()
}

// TestOldAuditLog: a log of an earlier version verifies, each of its lines is written today as it
// was written then, and it goes on.
func TestOldAuditLog(t *testing.T) {
	dir := oldLog(t)
	keys := openWeak(t, filepath.Join(dir, "keys"), passphrase2, nil)
	path := filepath.Join(dir, "log", "audit.log")
	head := string(readLog(t, filepath.Join(dir, "head")))
	r := mustVerify(t, path, keys, head)
	if r.Lines != 10 || r.First != 4 || r.Head != head || !r.HeadChecked || r.Torn != 1 ||
		r.Lost != 2 || len(r.Files) != 2 || r.Finding != "" {
		t.Fatalf("%+v", r)
	}
	seen := make(map[string]int)
	for _, file := range r.Files {
		for _, line := range logLines(t, file) {
			var e Event
			if err := json.Unmarshal(line, &e); err != nil {
				if !bytes.Equal(line, []byte("{\"seq\":13,\"key\":2,\"prev\n")) {
					t.Errorf("%q: %v", line, err)
				}
				continue
			}
			event, err := e.fields()
			if err != nil || !bytes.Contains(line,
				append(append([]byte(","), event...), `,"mac":"`...)) {
				t.Errorf("%.300q is written as %.300q, %v", line, event, err)
			}
			seen[severityText(e.Severity)]++
		}
	}
	if seen["INFO"] != 7 || seen["WARN"] != 1 || seen["ERROR"] != 1 || seen["CRITICAL"] != 1 {
		t.Errorf("%v", seen)
	}
	l := openAuditLog(t, path, keys, &AuditLogOptions{Head: head, MaxFileBytes: 64 << 10,
		MaxFiles: 2})
	if l.Head() != head {
		t.Errorf("the head is %s", l.Head())
	}
	for range 4 {
		e := Event{Type: EventNote, Details: map[string]any{"s": strings.Repeat("x", 20_000)}}
		if err := l.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if r := mustVerify(t, path, keys, l.Head()); r.First != 7 || r.Lines != 11 ||
		!strings.HasPrefix(r.Head, "17-") || !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	text := readLog(t, path)
	writeLog(t, path, bytes.Replace(text, []byte("note"), []byte("nots"), 1))
	if _, err := VerifyAuditLog(t.Context(), path, keys, ""); !errors.Is(err, ErrAuditTampered) {
		t.Errorf("changed: %v", err)
	}
}
