// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestCreate(t *testing.T) {
	testkit.NoLeaks(t)
	dir := filepath.Join(t.TempDir(), "a", "keys")
	user := session{answers: []string{password, password}}
	for args, want := range map[string]string{
		"-bits 1024": "-bits: ", "-bits 1": "-bits: ", "-iterations 100000": "-iterations: ",
		"-iterations 10000001": "-iterations: ",
	} {
		user.fails(t, 2, want, append([]string{"create", "-keys", dir}, strings.Fields(args)...)...)
	}
	for name, c := range map[string]struct {
		answers []string
		want    string
	}{
		"no terminal":  {nil, "set NOMYO_KEY_PASSWORD"},
		"nothing":      {[]string{""}, "no passphrase"},
		"end of file":  {[]string{}, "no passphrase"},
		"asked once":   {[]string{password}, "no passphrase"},
		"mistyped":     {[]string{password, notPassword}, "the two passphrases differ"},
		"begins alike": {[]string{password, password[:9]}, "the two passphrases differ"},
		"too short":    {[]string{"1234567"}, "want 8 or more"},
	} {
		t.Run(name, func(t *testing.T) {
			session{answers: c.answers}.fails(t, 2, c.want, "create", "-keys", dir)
		})
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("wrong input made a folder")
	}

	r := user.succeeds(t, "create", "-keys", dir, "-bits", "2048")
	if len(r.prompts) != 2 || !strings.Contains(r.stderr, dir) {
		t.Errorf("asked %q, said %q", r.prompts, r.stderr)
	}
	if rows := keys(t, dir); len(rows) != 1 || rows[0][0] != "primary" || rows[0][1] != "2048" ||
		rows[0][5]+"\n" != r.stdout {
		t.Errorf("list has %q, create printed %q", rows, r.stdout)
	}
	check := unchanged(t, dir)
	for _, passphrase := range []string{password, newPassword} {
		unlocked(storePassword, passphrase).fails(t, 1, "there is a key store already", "create",
			"-keys", dir, "-bits", "2048")
	}
	check()
}

func TestRotate(t *testing.T) {
	testkit.NoLeaks(t)
	dir := newStore(t)
	first := keys(t, dir)[0]
	if first[4] != "-" {
		t.Errorf("a primary key that was retired: %q", first)
	}
	printed := unlocked("NOMYO_KEY_DIR", dir).succeeds(t, "rotate", "-bits", "2048").stdout
	rows := keys(t, dir)
	if len(rows) != 2 || rows[0][0] != "primary" || rows[0][5]+"\n" != printed ||
		rows[1][0] != "retired" || rows[1][5] != first[5] {
		t.Errorf("%q, printed %q, was %q", rows, printed, first)
	}
	for _, column := range []string{rows[0][2], rows[0][3], rows[1][2], rows[1][3], rows[1][4]} {
		if at, err := time.Parse(time.RFC3339, column); err != nil ||
			time.Since(at).Abs() > time.Minute || !strings.HasSuffix(column, "Z") {
			t.Errorf("a time in the list is %q", column)
		}
	}
	unlocked().fails(t, 2, "-bits: ", "rotate", "-keys", dir, "-bits", "1024")
}

func TestNext(t *testing.T) {
	testkit.NoLeaks(t)
	dir := newStore(t)
	first := keys(t, dir)[0]
	printed := unlocked().succeeds(t, "next", "-keys", dir, "-bits", "2048")
	again := unlocked("NOMYO_KEY_DIR", dir).succeeds(t, "next")
	next := strings.TrimSpace(printed.stdout)
	if again.stdout != printed.stdout || next == first[5] ||
		!strings.Contains(printed.stderr, "not in use before the next rotation") {
		t.Errorf("%+v, then %+v", printed, again)
	}
	rows := keys(t, dir)
	if len(rows) != 2 || rows[0][5] != first[5] || rows[1][0] != "next" || rows[1][5] != next ||
		rows[1][2] == "-" || rows[1][3] != "-" || rows[1][4] != "-" {
		t.Errorf("%q", rows)
	}
	if got := strings.TrimSpace(unlocked().succeeds(t, "rotate", "-keys", dir).stdout); got != next {
		t.Errorf("rotated to %s, want %s", got, next)
	}
	if rows = keys(t, dir); len(rows) != 2 || rows[0][5] != next || rows[1][0] != "retired" {
		t.Errorf("%q", rows)
	}
	gone := strings.TrimSpace(unlocked().succeeds(t, "next", "-keys", dir, "-bits", "2048").stdout)
	unlocked().succeeds(t, "delete", "-keys", dir, "-fingerprint", gone)
	if rows = keys(t, dir); len(rows) != 2 {
		t.Errorf("%q", rows)
	}
	unlocked().fails(t, 2, "-bits: ", "next", "-keys", dir, "-bits", "1024")
}

func TestDelete(t *testing.T) {
	testkit.NoLeaks(t)
	dir := newStore(t)
	retired := keys(t, dir)[0][5]
	primary := strings.TrimSpace(unlocked().succeeds(t, "rotate", "-keys", dir, "-bits",
		"2048").stdout)
	sealed := unlocked().succeeds(t, "seal", "-keys", dir, "-label", "note",
		writeTemp(t, "plain")).stdout
	check := unchanged(t, dir)
	for fingerprint, want := range map[string]string{
		primary:                  "keystore: the primary key cannot be deleted, rotate first\n",
		strings.ToUpper(primary): "keystore: the primary key cannot be deleted, rotate first\n",
		strings.Repeat("0", 64):  "no key with this fingerprint",
		retired[:63]:             "fingerprint",
		retired + "0":            "fingerprint",
		" ":                      "fingerprint",
		"xyz":                    "fingerprint",
	} {
		unlocked().fails(t, 2, want, "delete", "-keys", dir, "-fingerprint", fingerprint)
	}
	check()

	r := unlocked().succeeds(t, "delete", "-keys", dir, "-fingerprint", retired)
	if r.stdout != "" || !strings.Contains(r.stderr, "deleted; copies") {
		t.Errorf("printed %q, said %q", r.stdout, r.stderr)
	}
	if rows := keys(t, dir); len(rows) != 1 || rows[0][0] != "primary" || rows[0][5] != primary {
		t.Errorf("left are %q, want %s alone", rows, primary)
	}
	s := unlocked()
	s.stdin = strings.NewReader(sealed)
	if r := s.succeeds(t, "open", "-keys", dir, "-label", "note"); r.stdout != "plain" {
		t.Errorf("what was sealed before opens as %q", r.stdout)
	}
	check = unchanged(t, dir)
	unlocked().fails(t, 2, "no key with this fingerprint", "delete", "-keys", dir, "-fingerprint",
		retired)
	check()
}

// A retired key can be imported again in the way that the refusal names.
func TestDeleteThenImport(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	c := testkit.Vector(t, testkit.PrivateKey, "py-2048-nopw")
	file := writeTemp(t, string(c.File("private_key")))
	unlocked().succeeds(t, "import", "-keys", dir, file)
	unlocked().succeeds(t, "rotate", "-keys", dir, "-bits", "2048")
	unlocked().fails(t, 2, "delete it first", "import", "-keys", dir, file)
	unlocked().succeeds(t, "delete", "-keys", dir, "-fingerprint", c.Expected.SPKISHA256)
	if r := unlocked().succeeds(t, "import", "-keys", dir,
		file); r.stdout != c.Expected.SPKISHA256+"\n" {
		t.Errorf("printed %q", r.stdout)
	}
}

// Services that use the store do the work that is due by the clock, since they know its grace.
func TestOldKeysStay(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	synctest.Test(t, func(t *testing.T) { // where it is the year 2000
		unlocked().succeeds(t, "create", "-keys", dir, "-bits", "2048")
		unlocked().succeeds(t, "rotate", "-keys", dir, "-bits", "2048")
	})
	check := unchanged(t, dir)
	if rows := keys(t, dir); len(rows) != 2 || !strings.HasPrefix(rows[1][4], "2000-") {
		t.Errorf("%q", rows)
	}
	check()
	unlocked().succeeds(t, "rotate", "-keys", dir, "-bits", "2048")
	if rows := keys(t, dir); len(rows) != 3 {
		t.Errorf("after a rotation: %q", rows)
	}
}

func TestPasswd(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	sealed := unlocked().succeeds(t, "seal", "-keys", dir, "-label", "note",
		writeTemp(t, "plain")).stdout
	check := unchanged(t, dir)
	for want, answers := range map[string][]string{
		"the two passphrases differ": {password, newPassword, notPassword},
		"want 8 or more":             {password, "short"},
		"no passphrase":              {password, newPassword},
	} {
		session{answers: answers}.fails(t, 2, want, "passwd", "-keys", dir)
	}
	session{answers: []string{notPassword, newPassword, newPassword}}.fails(t, 1,
		"wrong passphrase", "passwd", "-keys", dir)
	unlocked(newStorePassword, "short").fails(t, 2, "want 8 or more", "passwd", "-keys", dir)
	unlocked().fails(t, 2, "set NOMYO_KEY_NEW_PASSWORD", "passwd", "-keys", dir)
	unlocked(newStorePassword, newPassword).fails(t, 2, "-iterations: ", "passwd", "-keys", dir,
		"-iterations", "599999")
	check()

	before := keys(t, dir)
	r := session{answers: []string{password, newPassword, newPassword}}.succeeds(t, "passwd",
		"-keys", dir)
	if len(r.prompts) != 3 || r.stdout != "" {
		t.Errorf("asked %q, printed %q", r.prompts, r.stdout)
	}
	unlocked().fails(t, 1, "wrong passphrase", "list", "-keys", dir)
	changed := unlocked(storePassword, newPassword)
	changed.stdin = strings.NewReader(sealed)
	if r := changed.succeeds(t, "open", "-keys", dir, "-label", "note"); r.stdout != "plain" {
		t.Errorf("what was sealed before opens as %q", r.stdout)
	}
	changed.env[newStorePassword] = password
	changed.succeeds(t, "passwd", "-keys", dir, "-iterations", "700000")
	if !bytes.Contains(read(t, storeFile(dir)), []byte("700000")) {
		t.Error("-iterations had no effect")
	}
	if after := keys(t, dir); !slices.EqualFunc(before, after, slices.Equal) {
		t.Errorf("keys were %q, are %q", before, after)
	}
}

func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	check := unchanged(t, dir)
	file := writeTemp(t, "content")
	for _, args := range [][]string{
		{"list"}, {"next"}, {"rotate"}, {"delete", "-fingerprint", strings.Repeat("0", 64)}, {"import"},
		{"export", "-out", file + ".new"}, {"passwd"}, {"seal", "-label", "l"},
		{"open", "-label", "l"},
	} {
		t.Run(args[0], func(t *testing.T) {
			args = append(args, "-keys", dir)
			if slices.Contains([]string{"import", "seal", "open"}, args[0]) {
				args = append(args, file)
			}
			wrong := unlocked(storePassword, notPassword, newStorePassword, newPassword,
				filePassword, newPassword)
			wrong.fails(t, 1, "wrong passphrase", args...)
			session{}.fails(t, 2, "set NOMYO_KEY_PASSWORD", args...)
			session{answers: []string{""}}.fails(t, 2, "no passphrase", args...)
		})
	}
	if _, err := os.Stat(file + ".new"); err == nil {
		t.Error("a file was exported")
	}
	check()
}

func TestBadStores(t *testing.T) {
	list := func(dir string) []string { return []string{"list", "-keys", dir} }
	dir := newFolder(t)
	for _, missing := range []string{dir, filepath.Join(dir, "missing")} {
		unlocked().fails(t, 1, "no key store in "+missing+"; make one with: keystore create",
			list(missing)...)
	}
	if _, err := os.Stat(filepath.Join(dir, "missing")); err == nil {
		t.Error("list made a folder")
	}
	dir = newStore(t)
	write(t, storeFile(dir), []byte("{}\n"))
	unlocked().fails(t, 1, "damaged key store", list(dir)...)
	write(t, storeFile(dir), nil)
	unlocked().fails(t, 1, "damaged key store", list(dir)...)
}

func TestInsecurePermissions(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("has no modes")
	}
	dir := newStore(t)
	for name, mode := range map[string]os.FileMode{dir: 0o755, storeFile(dir): 0o644} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		r := unlocked().fails(t, 1, "insecure permissions", "list", "-keys", dir)
		fix := regexp.MustCompile(`fix it with: (.*)\n`).FindStringSubmatch(r.stderr)
		if fix == nil {
			t.Fatalf("%s: no command that fixes it: %s", name, r.stderr)
		}
		if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c",
			fix[1]).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", fix[1], err, out)
		}
		unlocked().succeeds(t, "list", "-keys", dir)
	}
}

func TestInterrupt(t *testing.T) {
	dir := newStore(t)
	check := unchanged(t, dir)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"create"}, {"rotate"},
		{"export", "-out", filepath.Join(t.TempDir(), "key.pem")}} {
		if args[0] == "create" {
			args = append(args, "-keys", filepath.Join(t.TempDir(), "keys"))
		} else {
			args = append(args, "-keys", dir)
		}
		p := &keystore{env: func(string) string {
			return ""
		}, stdout: io.Discard, stderr: new(bytes.Buffer), isTerminal: isTerminal}
		p.ask = func(ctx context.Context, _ string) ([]byte, error) { return nil, ctx.Err() }
		if status := p.run(ended, args); status != 1 ||
			p.stderr.(*bytes.Buffer).String() != "keystore: interrupted\n" {
			t.Errorf("%q while asking: %d, %s", args, status, p.stderr)
		}
	}
	for _, command := range []string{"seal", "open"} { // while waiting for standard input
		s := unlocked()
		in, out := io.Pipe()
		defer out.Close()
		s.stdin = in
		if r := s.run(ended, command, "-keys", dir, "-label", "l"); r.status != 1 ||
			r.stderr != "keystore: interrupted\n" || r.stdout != "" {
			t.Errorf("%s: %+v", command, r)
		}
	}
	check()
}

func TestInterruptible(t *testing.T) {
	fault := errors.New("fault")
	if text, err := interruptible(t.Context(), func() ([]byte, error) {
		return []byte("text"), fault
	}); string(text) != "text" || err != fault {
		t.Errorf("%q, %v", text, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	_, err := interruptible(ctx, func() ([]byte, error) { cancel(); <-release; return nil, nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// The limits in the program are those of the package.
func TestLimits(t *testing.T) {
	secret := sealedchat.NewSecret([]byte(password))
	defer secret.Destroy()
	store, err := sealedchat.OpenKeyStore(t.Context(), newStore(t), secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for size, good := range map[int]bool{maxLabel: true, maxLabel + 1: false} {
		sealed, err := store.Seal(strings.Repeat("l", size), nil)
		if good != (err == nil) || good && len(sealed) != sealedGrowth {
			t.Errorf("a label of %d bytes: %v, %d bytes", size, err, len(sealed))
		}
	}
}
