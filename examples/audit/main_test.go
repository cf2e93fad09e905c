// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

const passphrase = "correct horse battery staple"

// world is a key store and a log.
type world struct {
	dir, path string
	log       *sealedchat.AuditLog
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: filepath.Join(t.TempDir(), "keys"), path: filepath.Join(t.TempDir(), "log",
		"audit.log")}
	pass := sealedchat.NewSecret([]byte(passphrase))
	defer pass.Destroy()
	keys, err := sealedchat.CreateKeyStore(t.Context(), w.dir, pass,
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if w.log, err = sealedchat.OpenAuditLog(t.Context(), w.path, keys,
		&sealedchat.AuditLogOptions{MaxFileBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.log.Close() })
	return w
}

func (w *world) write(t *testing.T, from, to int, filler string) {
	t.Helper()
	for n := from; n < to; n++ {
		e := sealedchat.Event{Type: sealedchat.EventNote, Details: map[string]any{"n": n,
			"token": "hidden", "filler": filler}}
		if err := w.log.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// run runs the program, and returns its output and its exit status.
func (w *world) run(ctx context.Context, pass string, args ...string) (stdout, stderr string,
	status int) {
	var out, problems bytes.Buffer
	p := &audit{stdout: &out, stderr: &problems, wait: time.Millisecond,
		env: func(name string) string {
			return map[string]string{"NOMYO_KEY_DIR": w.dir, "NOMYO_KEY_PASSWORD": pass}[name]
		}}
	status = p.run(ctx, args)
	return out.String(), problems.String(), status
}

func TestVerify(t *testing.T) {
	w := newWorld(t)
	w.write(t, 0, 3, "")
	head, said, status := w.run(t.Context(), passphrase, "verify", w.path)
	if status != 0 || head != w.log.Head()+"\n" || !strings.Contains(said, "3 events in 1 files") ||
		!strings.Contains(said, "no -head") {
		t.Errorf("%d: %s %s", status, head, said)
	}
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	head = strings.TrimSpace(head)
	if _, said, status := w.run(t.Context(), "", "verify", "-passphrase-file", file, "-head", head,
		w.path); status != 0 || strings.Contains(said, "no -head") {
		t.Errorf("%d: %s", status, said)
	}
	text, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		text   []byte
		args   []string
		status int
		says   string
	}{
		"changed": {bytes.Replace(text, []byte(`"n":1`), []byte(`"n":7`), 1), nil, 3,
			"audit.log, line 2"},
		"cut off": {text[:bytes.IndexByte(text, '\n')+1], []string{"-head", head}, 3,
			"entries 2 to 3 are missing"},
		"torn": {text[:len(text)-9], nil, 4, "unfinished"},
	} {
		if err := os.WriteFile(w.path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, said, status := w.run(t.Context(), passphrase, append(append([]string{"verify"},
			c.args...), w.path)...); status != c.status || out != "" ||
			!strings.Contains(said, c.says) {
			t.Errorf("%s: %d: %s %s", what, status, out, said)
		}
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, said, status := w.run(t.Context(), "", "verify", "-passphrase-file", file,
			w.path); status != 2 || !strings.Contains(said, "chmod 600") {
			t.Errorf("%d: %s", status, said)
		}
	}
	for what, c := range map[string]struct {
		pass   string
		args   []string
		status int
	}{
		"no command":       {passphrase, nil, 2},
		"unknown command":  {passphrase, []string{"x"}, 2},
		"no log":           {passphrase, []string{"verify"}, 2},
		"unknown flag":     {passphrase, []string{"verify", "-x", w.path}, 2},
		"bad head":         {passphrase, []string{"verify", "-head", "x", w.path}, 2},
		"empty head":       {passphrase, []string{"verify", "-head", "", w.path}, 2},
		"no passphrase":    {"", []string{"verify", w.path}, 2},
		"no such file":     {"", []string{"verify", "-passphrase-file", file + "x", w.path}, 2},
		"wrong passphrase": {passphrase + "x", []string{"verify", w.path}, 1},
		"missing log":      {passphrase, []string{"verify", w.path + "x"}, 1},
		"no log to tail":   {"", []string{"tail", w.path + "x"}, 1},
		"negative":         {"", []string{"tail", "-n", "-1", w.path}, 2},
		"help":             {"", []string{"tail", "-help"}, 0},
	} {
		if out, said, status := w.run(t.Context(), c.pass, c.args...); status != c.status ||
			out != "" ||
			said == "" {
			t.Errorf("%s: %d: %s %s", what, status, out, said)
		}
	}
}

// lockedBuffer is a buffer for the output of a running program.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), s)
}

func TestTail(t *testing.T) {
	w := newWorld(t)
	w.write(t, 0, 30, "")
	out, said, status := w.run(t.Context(), "", "tail", "-n", "2", w.path)
	if lines := strings.Split(out, "\n"); status != 0 || said != "" || len(lines) != 3 ||
		!strings.Contains(lines[1], `"n":29`) ||
		!strings.Contains(lines[1], "INFO") || !strings.Contains(lines[1], "note") ||
		strings.Contains(out, "hidden") || strings.Contains(out, "mac") {
		t.Errorf("%d: %s%s", status, out, said)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	shown := &lockedBuffer{}
	p := &audit{stdout: shown, stderr: shown, wait: time.Millisecond,
		env: func(string) string { return "" }}
	ended := make(chan int)
	go func() { ended <- p.run(ctx, []string{"tail", "-n", "1", "-f", w.path}) }()
	for shown.count("\n") < 1 && ctx.Err() == nil {
		time.Sleep(time.Millisecond) // real time: the program looks at a file
	}
	for n := 30; n < 50; n++ {
		w.write(t, n, n+1, strings.Repeat("x", 7000)) // over several files
		for shown.count(fmt.Sprintf(`"n":%d`, n)) < 1 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	if ctx.Err() != nil || shown.count("\n") != 21 {
		t.Errorf("%d lines", shown.count("\n"))
	}
	cancel()
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
	}
}

// A head whose line was dropped has an exit status of its own, and the program prints no other
// head. tail reports which events it did not see.
func TestDroppedHead(t *testing.T) {
	w := newWorld(t)
	w.write(t, 0, 1, "")
	head := w.log.Head()
	shown := &lockedBuffer{}
	p := &audit{stdout: shown, stderr: shown}
	first := lastLine(t, w.path)
	w.write(t, 1, 17*3, strings.Repeat("x", 25_000)) // 2 fit into a file, 16 files are kept
	if out, said, status := w.run(t.Context(), passphrase, "verify", "-head", head,
		w.path); status != 5 || out != "" || !strings.Contains(said, "dropped") {
		t.Errorf("%d: %s %s", status, out, said)
	}
	for _, line := range []string{first, lastLine(t, w.path)} {
		if err := p.print(line); err != nil {
			t.Fatal(err)
		}
	}
	if shown.count("?  events 2 to 50 are not shown") != 1 || shown.count("\n") != 3 {
		t.Errorf("%.300s", shown.text.String())
	}
}

func lastLine(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	return lines[len(lines)-1]
}
