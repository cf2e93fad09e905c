// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

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
			if err != nil || !bytes.Contains(line, append(append([]byte(","), event...), `,"mac":"`...)) {
				t.Errorf("%.300q is written as %.300q, %v", line, event, err)
			}
			seen[severityText(e.Severity)]++
		}
	}
	if seen["INFO"] != 7 || seen["WARN"] != 1 || seen["ERROR"] != 1 || seen["CRITICAL"] != 1 {
		t.Errorf("%v", seen)
	}
	l := openAuditLog(t, path, keys, &AuditLogOptions{Head: head, MaxFileBytes: 64 << 10, MaxFiles: 2})
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
