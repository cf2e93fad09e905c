// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func writeTemp(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	write(t, name, []byte(content))
	return name
}

func TestImport(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	for name, want := range map[string]struct {
		report string
		weak   bool
	}{
		"py-2048-nopw": {"PKCS#8, not encrypted", false},
		"js-2048-nopw": {"PKCS#8, not encrypted", false},
		"py-2048-pw-ascii": {"PBES2, encrypted under PBKDF2-HMAC-SHA256 with 2048 iterations",
			true},
		"js-2048-pw-ascii": {"JavaScript, encrypted under PBKDF2-HMAC-SHA256 with 100000 " +
			"iterations", true},
	} {
		c := testkit.Vector(t, testkit.PrivateKey, name)
		file := writeTemp(t, string(c.File("private_key")))
		check := unchanged(t, dir)
		s := session{answers: []string{password}}
		if c.Password != nil {
			unlocked().fails(t, 2, "set NOMYO_FILE_PASSWORD", "import", "-keys", dir, file)
			unlocked(filePassword, *c.Password+" ").fails(t, 1, file+": wrong passphrase", "import",
				"-keys", dir, file)
			check()
			s.answers = []string{password, *c.Password}
		}
		r := s.succeeds(t, "import", "-keys", dir, file)
		if r.stdout != c.Expected.SPKISHA256+"\n" || len(r.prompts) != len(s.answers) {
			t.Errorf("%s: printed %q, want %s, asked %q", name, r.stdout, c.Expected.SPKISHA256,
				r.prompts)
		}
		if !strings.Contains(r.stderr, "2048-bit key of "+file+": "+want.report+"\n") ||
			strings.Contains(r.stderr, "are few") != want.weak ||
			!strings.Contains(r.stderr, "delete "+file) {
			t.Errorf("%s: said %q", name, r.stderr)
		}
		check = unchanged(t, dir) // importing it again changes nothing
		s.succeeds(t, "import", "-keys", dir, file)
		check()
	}
	if rows := keys(t, dir); len(rows) != 5 {
		t.Errorf("after four imports: %q", rows)
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	check := unchanged(t, dir)
	for name, want := range map[string]string{
		"js-1024-pw":             "unusable private key",
		"ec-pkcs8":               "unusable private key",
		"pem-public-key-instead": "public key",
		"ossl-legacy-pem-aes128": "openssl",
		"py-pw-iterations-2e31":  "iterations",
		"js-pw-corrupt-middle":   "contradict",
		"py-pw-truncated":        "unusable private key",
	} {
		c := testkit.Vector(t, testkit.PrivateKey, name)
		s := unlocked(filePassword, notPassword)
		if c.Password != nil {
			s.env[filePassword] = *c.Password
		}
		s.fails(t, 1, want, "import", "-keys", dir, writeTemp(t, string(c.File("private_key"))))
	}
	for content, want := range map[string]string{"": "no PEM block", "-----": "no PEM block",
		strings.Repeat("a", maxKeyFile+1): "more than 65536 bytes"} {
		unlocked().fails(t, 1, want, "import", "-keys", dir, writeTemp(t, content))
	}
	unlocked().fails(t, 1, "no such file", "import", "-keys", dir, filepath.Join(dir, "missing"))
	unlocked().fails(t, 1, "reading", "import", "-keys", dir, dir)
	check()
}

// pair writes a private key and its public key into a folder, as the Python and the JavaScript
// client do.
func pair(t *testing.T, private, public []byte) (privateName, publicName string) {
	t.Helper()
	dir := t.TempDir()
	privateName, publicName = filepath.Join(dir, "private_key.pem"),
		filepath.Join(dir, "public_key.pem")
	write(t, privateName, private)
	write(t, publicName, public)
	return privateName, publicName
}

func TestImportChecksPublicKey(t *testing.T) {
	dir := newStore(t)
	for _, name := range []string{"py-2048-nopw", "py-2048-pw-ascii", "js-2048-nopw",
		"js-2048-pw-ascii"} {
		c := testkit.Vector(t, testkit.PrivateKey, name)
		private, public := pair(t, bytes.TrimRight(c.File("private_key"), "\r\n"),
			c.File("public_key"))
		s := unlocked()
		if c.Password != nil {
			s.env[filePassword] = *c.Password
		}
		r := s.succeeds(t, "import", "-keys", dir, private)
		if r.stdout != c.Expected.SPKISHA256+"\n" ||
			!strings.Contains(r.stderr, "\nchecked: "+public+" is its public key\n") {
			t.Errorf("%s: printed %q, said %q", name, r.stdout, r.stderr)
		}
	}

	c := testkit.Vector(t, testkit.PrivateKey, "py-2048-nopw")
	only, _ := pair(t, c.File("private_key"), nil)
	if err := os.Remove(filepath.Join(filepath.Dir(only), "public_key.pem")); err != nil {
		t.Fatal(err)
	}
	_, both := pair(t, nil, c.File("private_key")) // the name of the file to import itself
	for _, file := range []string{only, both} {
		if r := unlocked().succeeds(t, "import", "-keys", newStore(t),
			file); strings.Contains(r.stderr, "checked") {
			t.Errorf("%s has no companion: said %q", file, r.stderr)
		}
	}
	t.Chdir(filepath.Dir(only))
	write(t, "public_key.pem", c.File("public_key"))
	if r := unlocked().succeeds(t, "import", "-keys", newStore(t),
		"private_key.pem"); !strings.Contains(r.stderr, "\nchecked: public_key.pem is") {
		t.Errorf("with a relative name: said %q", r.stderr)
	}
}

func TestImportRefusesOtherPublicKey(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	check := unchanged(t, dir)
	refused := func(c testkit.Case, private, public []byte, want string) {
		t.Helper()
		privateName, publicName := pair(t, private, public)
		s := unlocked()
		if c.Password != nil {
			s.env[filePassword] = *c.Password
		}
		want = strings.NewReplacer("PRIVATE", privateName, "PUBLIC", publicName).Replace(want)
		s.fails(t, 1, want, "import", "-keys", dir, privateName)
	}
	const mismatch = "keystore: PRIVATE, with PUBLIC beside it: unusable private key: the public " +
		"key does not belong to the private key\n"
	c := testkit.Vector(t, testkit.PrivateKey, "mismatched-public")
	refused(c, c.File("private_key"), c.File("public_key"), mismatch)
	refused(c, c.File("private_key"), append([]byte("\n\r\n"), c.File("public_key")...), mismatch)

	encrypted := testkit.Vector(t, testkit.PrivateKey, "js-2048-pw-ascii")
	good := testkit.Vector(t, testkit.PrivateKey, "py-2048-nopw")
	public := string(good.File("public_key"))
	refused(encrypted, encrypted.File("private_key"), []byte(public), mismatch)
	twice := append(good.File("private_key"), public...)
	refused(good, twice, encrypted.File("public_key"), mismatch)
	wrong := notPassword
	encrypted.Password = &wrong
	refused(encrypted, encrypted.File("private_key"), encrypted.File("public_key"),
		"keystore: PRIVATE: wrong passphrase")

	// A file that could hide the key from the check is no public key file.
	const useless = "keystore: PUBLIC: "
	for _, text := range []string{
		"", "\n", "text", "-----BEGIN PUBLIC KEY-----\n", "\xef\xbb\xbf" + public,
		"text\n" + public, public + "text", public + public,
		strings.Replace(public, "PUBLIC", "PRIVATE", 2),
		strings.Replace(public, "-----END", "----END", 1), string(good.File("private_key")),
		public + strings.Repeat("\n", maxKeyFile/2), strings.Replace(public, "M", "\n", 1),
		string(testkit.Vector(t, testkit.PrivateKey, "ec-pkcs8").File("public_key")),
	} {
		refused(good, good.File("private_key"), []byte(text), useless)
	}
	refused(good, good.File("private_key"), bytes.Repeat([]byte("\n"), maxKeyFile+1),
		"keystore: reading PUBLIC: more than 65536 bytes\n")
	large := append(good.File("private_key"), strings.Repeat("\n", maxKeyFile)...)[:maxKeyFile]
	refused(good, large, []byte(public),
		"keystore: PRIVATE, with PUBLIC beside it: unusable private key: too large")

	file := filepath.Join(newFolder(t), "private_key.pem")
	write(t, file, good.File("private_key"))
	if err := os.Mkdir(filepath.Join(filepath.Dir(file), "public_key.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	unlocked().fails(t, 1, "not a regular file", "import", "-keys", dir, file)
	check()
}

func TestImportWarnsOfOpenFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("has no modes")
	}
	file := writeTemp(t, string(testkit.Vector(t, testkit.PrivateKey,
		"py-2048-nopw").File("private_key")))
	for mode, warn := range map[os.FileMode]bool{0o604: true, 0o660: true, 0o400: false} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		r := unlocked().succeeds(t, "import", "-keys", newStore(t), file)
		if strings.Contains(r.stderr, "warning: others may use "+file) != warn {
			t.Errorf("mode %04o: %q", mode, r.stderr)
		}
	}
}

func TestExport(t *testing.T) {
	testkit.NoLeaks(t)
	dir, elsewhere := newStore(t), newFolder(t)
	unlocked().succeeds(t, "create", "-keys", elsewhere, "-bits", "2048")
	retired := keys(t, dir)[0][5]
	primary := strings.TrimSpace(unlocked().succeeds(t, "rotate", "-keys", dir, "-bits",
		"2048").stdout)
	for fingerprint, args := range map[string][]string{primary: nil,
		retired: {"-fingerprint", retired}} {
		out := filepath.Join(t.TempDir(), "key.pem")
		args = append([]string{"export", "-keys", dir, "-out", out}, args...)
		r := session{answers: []string{password, newPassword, newPassword}}.succeeds(t, args...)
		if len(r.prompts) != 3 || r.stdout != "" {
			t.Errorf("asked %q, printed %q", r.prompts, r.stdout)
		}
		if info, err := os.Stat(out); err != nil ||
			info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		if !bytes.HasPrefix(read(t, out), []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")) {
			t.Error("the file is not encrypted")
		}
		r = unlocked(filePassword, newPassword).succeeds(t, "import", "-keys", elsewhere, out)
		if r.stdout != fingerprint+"\n" || strings.Contains(r.stderr, "are few") {
			t.Errorf("what was exported is imported as %q, want %s: %s", r.stdout, fingerprint,
				r.stderr)
		}
	}
}

func TestExportRefuses(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	out := filepath.Join(t.TempDir(), "key.pem")
	s := unlocked(filePassword, newPassword)
	for want, fingerprint := range map[string]string{
		"no key with this fingerprint": strings.Repeat("0", 64), "fingerprint": "xyz"} {
		s.fails(t, 2, want, "export", "-keys", dir, "-out", out, "-fingerprint", fingerprint)
	}
	unlocked().fails(t, 2, "set NOMYO_FILE_PASSWORD", "export", "-keys", dir, "-out", out)
	unlocked(filePassword, "short").fails(t, 2, "want 8 or more", "export", "-keys", dir, "-out",
		out)
	session{answers: []string{password, newPassword, notPassword}}.fails(t, 2, "differ", "export",
		"-keys", dir, "-out", out)
	s.fails(t, 1, "no such file", "export", "-keys", dir, "-out", filepath.Join(out, "key.pem"))
	if _, err := os.Lstat(out); err == nil {
		t.Fatal("a file was made")
	}
	write(t, out, []byte("precious"))
	s.fails(t, 1, out+" exists already", "export", "-keys", dir, "-out", out)
	if string(read(t, out)) != "precious" {
		t.Error("a file was overwritten")
	}
	target := filepath.Join(t.TempDir(), "target")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(target, link); err != nil {
		t.Skip(err)
	}
	s.fails(t, 1, link+" exists already", "export", "-keys", dir, "-out", link)
	if _, err := os.Lstat(target); err == nil {
		t.Error("a link was followed")
	}
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	dir := newStore(t)
	check := unchanged(t, dir)
	for _, plain := range []string{"", strings.Repeat("\x00binary\xff", 40_000)} {
		s := unlocked()
		s.stdin = strings.NewReader(plain)
		sealed := s.succeeds(t, "seal", "-keys", dir, "-label", "note")
		if len(sealed.stdout) != len(plain)+sealedGrowth || sealed.stderr != "" {
			t.Errorf("%d bytes were sealed as %d, %s", len(plain), len(sealed.stdout),
				sealed.stderr)
		}
		s.stdin, s.terminal = nil, true // it may be read
		if r := s.succeeds(t, "open", "-keys", dir, "-label", "note",
			writeTemp(t, sealed.stdout)); r.stdout != plain {
			t.Errorf("%d bytes open as %d", len(plain), len(r.stdout))
		}
	}

	sealed := unlocked().succeeds(t, "seal", "-keys", dir, "-label", "note",
		writeTemp(t, "a note")).stdout
	flipped := []byte(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string][2]string{
		"other label": {"other", sealed}, "flipped": {"note", string(flipped)},
		"empty": {"note", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := unlocked()
			s.stdin = strings.NewReader(c[1])
			s.fails(t, 1, "decryption failed: sealed under another label", "open", "-keys", dir,
				"-label", c[0])
		})
	}
	s := unlocked()
	s.terminal = true
	s.fails(t, 2, "binary", "seal", "-keys", dir, "-label", "note")
	unlocked().fails(t, 1, "no such file", "seal", "-keys", dir, "-label", "note",
		filepath.Join(dir, "missing"))
	s = unlocked()
	s.stdin = iotest.ErrReader(errors.New("fault"))
	s.fails(t, 1, "reading standard input: fault", "open", "-keys", dir, "-label", "note")
	check()
}

func TestFullDisk(t *testing.T) {
	p := &keystore{stdout: failingWriter{}}
	if err := p.write([]byte("x")); err == nil || !strings.Contains(err.Error(),
		"writing the result") {
		t.Errorf("%v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestReadAll(t *testing.T) {
	for _, limit := range []int{0, 1, 100, 64 << 10, 300_000} {
		for _, size := range []int{0, 1, limit - 1, limit, limit + 1, 2*limit + 1} {
			if size < 0 {
				continue
			}
			want := bytes.Repeat([]byte("content"), size/7+1)[:size]
			for name, r := range map[string]io.Reader{
				"whole": bytes.NewReader(want), "halves": iotest.HalfReader(bytes.NewReader(want)),
				"with EOF": iotest.DataErrReader(bytes.NewReader(want)),
			} {
				got, err := readAll(r, limit)
				if size > limit {
					if err == nil || got != nil {
						t.Errorf("%s: %d bytes with a limit of %d: %v", name, size, limit, err)
					}
				} else if err != nil || !bytes.Equal(got, want) || cap(got) > max(limit, 64<<10)+1 {
					t.Errorf("%s: %d bytes with a limit of %d: %d, %v", name, size, limit, len(got),
						err)
				}
			}
		}
	}
	if _, err := readAll(io.LimitReader(endless{}, 1<<40), 1000); err == nil {
		t.Error("an endless stream was read")
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
