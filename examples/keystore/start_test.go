// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

const (
	password    = "the key store's passphrase"
	newPassword = "another passphrase"
	notPassword = "not the passphrase"
)

// session has the surroundings of a run. Answers are the lines that the user types on the terminal;
// nil means that there is no terminal.
type session struct {
	env      map[string]string
	stdin    io.Reader
	answers  []string
	terminal bool // standard output is one
}

type result struct {
	status         int
	stdout, stderr string
	prompts        []string
}

func (s session) run(ctx context.Context, args ...string) (r result) {
	var stdout, stderr bytes.Buffer
	p := &keystore{
		env: func(name string) string {
			return s.env[name]
		}, stdin: s.stdin, stdout: &stdout, stderr: &stderr,
		isTerminal: func(stream any) bool { return s.terminal && stream == any(&stdout) },
	}
	p.ask = func(_ context.Context, prompt string) ([]byte, error) {
		if s.answers == nil {
			return nil, errNoTerminal
		}
		r.prompts = append(r.prompts, prompt)
		if len(r.prompts) > len(s.answers) {
			return nil, io.EOF
		}
		return []byte(s.answers[len(r.prompts)-1]), nil
	}
	r.status = p.run(ctx, args)
	r.stdout, r.stderr = stdout.String(), stderr.String()
	return r
}

// unlocked returns a session with the passphrase of the key store in its environment, and other
// variables in pairs.
func unlocked(pairs ...string) session {
	s := session{env: map[string]string{storePassword: password}, stdin: strings.NewReader("")}
	for i := 0; i < len(pairs); i += 2 {
		s.env[pairs[i]] = pairs[i+1]
	}
	return s
}

// succeeds runs s, and fails the test if the exit status is not 0.
func (s session) succeeds(t *testing.T, args ...string) result {
	t.Helper()
	r := s.run(t.Context(), args...)
	if r.status != 0 {
		t.Fatalf("%q: exit status %d, %s", args, r.status, r.stderr)
	}
	s.keepsSecrets(t, r, args)
	return r
}

// fails runs s, and fails the test unless there is this exit status, one line with this text on
// standard error, and nothing on standard output.
func (s session) fails(t *testing.T, status int, text string, args ...string) result {
	t.Helper()
	r := s.run(t.Context(), args...)
	if r.status != status || r.stdout != "" || !strings.Contains(r.stderr, text) {
		t.Errorf("%q: exit status %d, want %d with %q, stdout %q, stderr %q", args, r.status,
			status, text, r.stdout, r.stderr)
	}
	if !strings.HasPrefix(r.stderr, "keystore: ") || strings.Count(r.stderr, "\n") != 1 ||
		strings.Contains(r.stderr, "sealedchat: ") {
		t.Errorf("%q: want one line, got %q", args, r.stderr)
	}
	s.keepsSecrets(t, r, args)
	return r
}

func (s session) keepsSecrets(t *testing.T, r result, args []string) {
	t.Helper()
	secrets := append([]string{"PRIVATE KEY--"}, s.answers...)
	for _, name := range []string{storePassword, newStorePassword, filePassword} {
		secrets = append(secrets, s.env[name])
	}
	for _, secret := range secrets {
		if secret != "" && strings.Contains(r.stdout+r.stderr, secret) {
			t.Errorf("%q prints %q", args, secret)
		}
	}
}

// template is a store that tests copy, since making one costs more than opening it.
var template = sync.OnceValues(func() (file []byte, err error) {
	parent, err := os.MkdirTemp("", "keystore")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(parent)
	secret := sealedchat.NewSecret([]byte(password))
	defer secret.Destroy()
	dir := filepath.Join(parent, "keys")
	store, err := sealedchat.CreateKeyStore(context.Background(), dir, secret,
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return os.ReadFile(storeFile(dir))
})

// newStore returns the folder of a store with one key of 2048 bits.
func newStore(t *testing.T) string {
	t.Helper()
	file, err := template()
	if err != nil {
		t.Fatal(err)
	}
	dir := newFolder(t)
	write(t, storeFile(dir), file)
	return dir
}

// newFolder makes a folder that is private enough for the package, on Windows too.
func newFolder(t *testing.T) string {
	t.Helper()
	d, err := fsafe.CreateDir(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.Path()
}

func storeFile(dir string) string { return filepath.Join(dir, "keystore.json") }

func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// unchanged fails the test if the file of the store has changed.
func unchanged(t *testing.T, dir string) func() {
	before := read(t, storeFile(dir))
	return func() {
		t.Helper()
		if !bytes.Equal(read(t, storeFile(dir)), before) {
			t.Error("the file of the key store was changed")
		}
	}
}

// keys lists the store's keys: rows of fields, without the head.
func keys(t *testing.T, dir string) [][]string {
	t.Helper()
	r := unlocked().succeeds(t, "list", "-keys", dir)
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if head := strings.Join(strings.Fields(lines[0]),
		" "); head != "STATE BITS CREATED ACTIVATED RETIRED FINGERPRINT" {
		t.Fatalf("list begins with %q", lines[0])
	}
	var rows [][]string
	for _, line := range lines[1:] {
		row := strings.Fields(line)
		if len(row) != 6 || len(row[5]) != 64 {
			t.Fatalf("list has the line %q", line)
		}
		rows = append(rows, row)
	}
	return rows
}
