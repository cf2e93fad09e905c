// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrongInput(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.WriteFile(open, []byte("a-key-of-some-length"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	token := writePrivate(t, "a-token-of-some-length")
	const url = "https://127.0.0.1:1"
	for _, c := range []struct {
		want string
		args []string
		env  map[string]string
	}{
		{want: "-nonsense (see proxy -h)", args: []string{"-nonsense"}},
		{want: "only flags", args: []string{"prompt"}},
		{want: "-listen: ", args: []string{"-listen", "nowhere"}},
		{want: "-listen: unix", args: []string{"-listen", "unix:"}},
		{want: "-listen: unix", args: []string{"-listen", "unix:" + strings.Repeat("a", 104)}},
		{want: "-listen: ", args: []string{"-listen", "127.0.0.1:99999"}},
		{want: "-listen: ", args: []string{"-listen", "127.0.0.1:http.x"}},
		{want: "-listen: ", args: []string{"-listen", "127.0.0.1:"}},
		{want: "is not loopback", args: []string{"-listen", "0.0.0.0:0"}},
		{want: "is not loopback", args: []string{"-listen", ":0"}},
		{want: "is not loopback", args: []string{"-listen", "[::]:0"}},
		{want: "is not loopback", args: []string{"-listen", "192.0.2.1:0"}},
		{want: "is not loopback", args: []string{"-listen", "proxy.example:0"}},
		{want: "-host: ", args: []string{"-host", "a:80"}},
		{want: "-host: ", args: []string{"-host", "*"}},
		{want: "-host: ", args: []string{"-host", "a,,b"}},
		{want: "-host: ", args: []string{"-host", "http://a"}},
		{want: "-models is for", args: []string{"-models", "m"}},
		{want: "-max-body: ", args: []string{"-max-body", "0"}},
		{want: "-max-body: ", args: []string{"-max-body", "-1"}},
		{want: "-max-body: ", args: []string{"-max-body", "2147483648"}},
		{want: "-pass-key needs -url", args: []string{"-pass-key"}},
		{want: "exclude each other", args: []string{"-url", url, "-pass-key", "-key-file", open}},
		{want: "exclude each other", args: []string{"-url", url, "-pass-key", "-token", token}},
		{want: "-pass-key is for loopback", args: []string{"-url", url, "-pass-key", "-token", token,
			"-listen", "192.0.2.1:0"}},
		{want: "chmod 600", args: []string{"-url", url, "-key-file", open}},
		{want: "chmod 600", args: []string{"-token", open}},
		{want: "-token: ", args: []string{"-token", filepath.Join(dir, "missing")}},
		{want: "-token: a token of 5 bytes", args: []string{"-token", writePrivate(t, "short")}},
		{want: tokenVariable + ": a token", env: map[string]string{tokenVariable: "short"}},
		{want: tokenVariable + "_FILE: ", env: map[string]string{tokenVariable + "_FILE": dir}},
		{want: "NOMYO_API_KEY_FILE: ", args: []string{"-url", url},
			env: map[string]string{"NOMYO_API_KEY_FILE": dir}},
		{want: "NOMYO_API_KEY: ", args: []string{"-url", url},
			env: map[string]string{"NOMYO_API_KEY": "sesame\r\nX: y"}},
		{want: "use https\n", args: []string{"-url", "http://127.0.0.1:1"}},
		{want: "NOMYO_SERVER_PIN: ", args: []string{"-url", url},
			env: map[string]string{"NOMYO_SERVER_PIN": "abc"}},
		{want: "-url: insecure URL", args: []string{"-url", "http://192.0.2.1"}},
		{want: "-pin: ", args: []string{"-url", url, "-pin", "abc"}},
	} {
		var stdout, stderr bytes.Buffer
		p := &proxy{env: func(name string) string { return c.env[name] }, stdout: &stdout,
			stderr: &stderr}
		status := p.run(t.Context(), c.args)
		if status != 2 || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 ||
			!strings.HasPrefix(stderr.String(), "proxy: ") ||
			!strings.Contains(stderr.String(), c.want) {
			t.Errorf("%q: status %d, %q, %q, want one line with %q", c.args, status, &stdout,
				&stderr, c.want)
		}
		if strings.Contains(stderr.String(), "sesame") {
			t.Errorf("%q: %s", c.args, &stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	p := &proxy{stdout: &stdout, stderr: &stderr}
	if status := p.run(t.Context(), []string{"-h"}); status != 0 || stdout.Len() > 0 {
		t.Errorf("status %d, %s", status, &stdout)
	}
	for _, want := range []string{"-pass-key", "NOMYO_API_KEY_FILE", tokenVariable, "unix:PATH"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("-h lacks %s: %s", want, &stderr)
		}
	}
	if status := p.run(t.Context(), []string{"-version"}); status != 0 ||
		!strings.HasPrefix(stdout.String(), "proxy (sealedchat) ") {
		t.Errorf("status %d, %s", status, &stdout)
	}
}

// An address beyond loopback is served with a token, and the program says what that means.
func TestBeyondLoopback(t *testing.T) {
	r := start(t, map[string]string{tokenVariable: "a-token-of-some-length"}, "-listen", "0.0.0.0:0")
	if !strings.Contains(r.stderr.String(), "plain HTTP") {
		t.Errorf("the program does not warn: %s", r.stderr.String())
	}
	for at, beyond := range map[string]bool{"127.0.0.1:1": false, "localhost:1": false,
		"[::1]:1": false, "127.9.9.9:1": false, "unix:a": false, "[::ffff:127.0.0.1]:1": false,
		":1": true, "10.0.0.1:1": true, "localhost.example:1": true, "LOCALHOST:1": true} {
		if p, err := parsePlace(at); err != nil || p.beyond() != beyond {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// An address that is taken is named with its flag.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l, err := listen(t.Context(), place{network: "tcp", host: "127.0.0.1",
		address: taken.Addr().String()})
	if err == nil {
		l.Close()
	}
	if err == nil || !strings.HasPrefix(err.Error(), "-listen: ") {
		t.Error(err)
	}
}
