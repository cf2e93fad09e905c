// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]struct {
		err, stdout, stderr string
	}{
		"":             {},
		"-n 3":         {},
		"-h":           {"help", "", "usage: tool run [flags]\n"},
		"--help":       {"help", "", "  VARIABLE\n    \tsays so\n"},
		"-version":     {"help", "tool (sealedchat) ", ""},
		"-n x":         {"(see tool run -h)", "", ""},
		"-nonsense":    {"not defined: -nonsense (see tool run -h)", "", ""},
		"-version=may": {"-version", "", ""},
	} {
		var stdout, stderr bytes.Buffer
		f := flag.NewFlagSet("tool run", flag.ContinueOnError)
		f.Int("n", 0, "a `number`")
		err := Parse(f, strings.Fields(line), Usage{Lines: []string{"tool run [flags]"},
			Variables: []Variable{{"VARIABLE", "says so"}}}, &stdout, &stderr)
		text := fmt.Sprint(err)
		wrong := want.err != "" && want.err != "help"
		if (err == nil) != (want.err == "") || !strings.Contains(text, want.err) ||
			errors.Is(err, flag.ErrHelp) != (want.err == "help") || IsWrongInput(err) != wrong {
			t.Errorf("%q: %v", line, err)
		}
		if !strings.HasPrefix(stdout.String(), want.stdout) ||
			!strings.Contains(stderr.String(), want.stderr) ||
			(want.stderr == "") != (stderr.Len() == 0) ||
			(want.stdout == "") != (stdout.Len() == 0) {
			t.Errorf("%q: stdout %q, stderr %q", line, &stdout, &stderr)
		}
	}
}

func TestExplain(t *testing.T) {
	_, noUpstream := sealedchat.NewGateway(sealedchat.GatewayConfig{AllowUnauthenticated: true})
	fields := map[string]string{"GatewayConfig.Upstream": "-upstream"}
	for want, err := range map[string]error{
		"1 broken":           errors.New("broken"),
		"1 reading: ":        fmt.Errorf("reading: %w", sealedchat.ErrClosed),
		"2 -n: not a number": WrongInput("-n: %w", errors.New("not a number")),
		"2 -upstream: ":      noUpstream,
	} {
		text, status := Explain(err, fields)
		if got := fmt.Sprint(status, " ", text); strings.Contains(text, "sealedchat: ") ||
			!strings.HasPrefix(got, want) {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	var b strings.Builder
	Fail(&b, "tool", "two\nlines\x1b[31m\u009b")
	if b.String() != "tool: two lines [31m \n" {
		t.Errorf("%q", b.String())
	}
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good := write("good", "secret\n", 0o600)
	for name, c := range map[string]struct{ value, file, want string }{
		"neither":       {},
		"the variable":  {value: "text", want: "text"},
		"the file":      {value: "text", file: good, want: "secret"},
		"missing":       {value: "text", file: filepath.Join(dir, "missing"), want: "KEY_FILE: "},
		"an empty file": {file: write("empty", "", 0o600), want: "KEY_FILE: "},
	} {
		secret, err := Secret(func(name string) string {
			return map[string]string{"KEY": c.value, "KEY_FILE": c.file}[name]
		}, "KEY")
		got := fmt.Sprint(err)
		if err == nil && secret != nil {
			_ = secret.Use(func(b []byte) error { got = string(b); return nil })
			secret.Destroy()
		}
		if c.want == "" && (secret != nil || err != nil) || !strings.HasPrefix(got, c.want) ||
			err != nil && !IsWrongInput(err) {
			t.Errorf("%s: %q", name, got)
		}
	}

	for name, want := range map[string]string{
		good: "", dir: "not a regular file", filepath.Join(dir, "missing"): "no such file",
		write("long", "seven+1!", 0o600): "more than 7 bytes", write("e", "\r\n", 0o600): "is empty",
		write("open", "x", 0o644): "chmod 600",
	} {
		if runtime.GOOS == "windows" && (want == "chmod 600" || want == "no such file") {
			continue
		}
		secret, err := PrivateSecret(name, 7)
		if want == "" {
			if err != nil || secret.Len() != len("secret") {
				t.Errorf("%s: %v", name, err)
			}
			secret.Destroy()
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestKeyLines(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(name, []byte("# note\n\n one \r\ntwo"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := KeyLines(name, func(n int, line []byte) error {
		got = append(got, fmt.Sprint(n, string(line)))
		if string(line) == "two" {
			return errors.New("bad")
		}
		return nil
	})
	if fmt.Sprint(got) != "[3one 4two]" || err == nil || err.Error() != name+", line 4: bad" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSelfSigned(t *testing.T) {
	for host, names := range map[string][]string{
		"localhost": {"localhost", "127.0.0.1", "::1"}, "192.0.2.1": {"192.0.2.1", "127.0.0.1"},
		"a.example": {"a.example", "localhost"}, "": {"localhost"}, "::": {"127.0.0.1"},
	} {
		c, err := SelfSigned("test", host, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(c.Leaf)
		for _, name := range names {
			if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
				t.Errorf("%q: %v", host, err)
			}
		}
		if c.Leaf.VerifyHostname("b.example") == nil {
			t.Errorf("%q: good for another host", host)
		}
	}
}

func TestServerCheck(t *testing.T) {
	for line, want := range map[string]string{
		"": "", "-url https://a": "", "-url https://a -pin x,y -pin z": "",
		"-url ":            "-url: empty",
		"-pin x":           "-pin needs -url",
		"-cacert x":        "-cacert needs -url",
		"-tier top":        "-tier: ",
		"-protocol v2":     "-protocol: ",
		"-protocol ":       "-protocol: ",
		"-timeout 0":       "-timeout: ",
		"-timeout -1s":     "-timeout: ",
		"-url a -cacert x": "-cacert: ",
	} {
		var s Server
		f := flag.NewFlagSet("tool", flag.ContinueOnError)
		s.Flags(f, sealedchat.ProtocolOHTTP)
		args := strings.Split(line, " ") // a space at the end makes an empty value
		if line == "" {
			args = nil
		}
		if err := Parse(f, args, Usage{}, io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
		err := s.Check(f, func(string) string { return "" })
		if want == "" && err != nil || want != "" && (!IsWrongInput(err) ||
			!strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
		if strings.Contains(line, "-pin z") && s.Pins.String() != "x,y,z" {
			t.Errorf("%q: pins %q", line, s.Pins)
		}
	}
	text, status := new(Server).Explain(t.Context(), sealedchat.ErrTruncated)
	if status != StatusFailed || !strings.Contains(text, "what was printed is genuine") {
		t.Errorf("%d %q", status, text)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if text, _ := new(Server).Explain(ended, sealedchat.ErrTruncated); text != "interrupted" {
		t.Errorf("%q", text)
	}
}
