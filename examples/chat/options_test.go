// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestWrongInput(t *testing.T) {
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "text")
	if err := os.WriteFile(notPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	const url = "https://127.0.0.1:1"
	server := func(more ...string) []string {
		return append([]string{"-url", url, "-model", "m"}, more...)
	}
	pin := strings.Repeat("ab", 32)
	for _, c := range []struct {
		want  string
		args  []string
		stdin io.Reader
		env   map[string]string
	}{
		{want: "-nonsense", args: []string{"-nonsense", "hi"}},
		{want: "not defined", args: []string{"-two\nlines", "hi"}},
		{want: "-tier: ", args: []string{"-tier", "top", "hi"}},
		{want: "-tier: ", args: []string{"-tier", "Standard", "hi"}},
		{want: "-protocol: ", args: []string{"-protocol", "v2", "hi"}},
		{want: "-protocol: ", args: []string{"-protocol", "", "hi"}},
		{want: "-stream has to stand before", args: []string{"hi", "-stream"}},
		{want: "-timeout: ", args: []string{"-timeout", "-1s", "hi"}},
		{want: "-timeout: ", args: []string{"-timeout", "0", "hi"}},
		{want: "-timeout", args: []string{"-timeout", "soon", "hi"}},
		{want: "-show-wire has to stand before", args: []string{"hi", "-show-wire"}},
		{want: "-tier has to stand before", args: []string{"hi", "--tier=high"}},
		{want: "the prompt is empty", args: []string{""}},
		{want: "the prompt is empty", args: []string{" ", "\n"}},
		{want: "not UTF-8", args: []string{"a\xffb"}},
		{want: "no prompt", args: nil},
		{want: "no prompt", stdin: strings.NewReader(" \n\n")},
		{want: "not UTF-8", stdin: strings.NewReader("a\xff")},
		{want: "more than 10,485,760 bytes", stdin: strings.NewReader(strings.Repeat("a",
			maxPrompt+1))},
		{want: "reading the prompt: broken", stdin: iotest.ErrReader(errors.New("broken"))},
		{want: "-url: empty", args: []string{"-url", "", "hi"}},
		{want: "-url: insecure URL", args: []string{"-url", "http://127.0.0.1:1", "-model", "m",
			"hi"}},
		{want: "NOMYO_SERVER_URL: insecure URL", args: []string{"-model", "m", "hi"},
			env: map[string]string{"NOMYO_SERVER_URL": "http://a"}},
		{want: "-url: ", args: []string{"-url", "127.0.0.1:8443", "-model", "m", "hi"}},
		{want: "-url: ", args: []string{"-url", "https://user:secret@a", "-model", "m", "hi"}},
		{want: "-model is required with -url", args: []string{"-url", url, "hi"}},
		{want: "-model is required with NOMYO_SERVER_URL", args: []string{"hi"},
			env: map[string]string{"NOMYO_SERVER_URL": url}},
		{want: "-pin: a fingerprint is", args: server("-pin", "abc", "hi")},
		{want: "-pin: ", args: server("-pin", "", "hi")},
		{want: "-pin: ", args: server("-pin", pin+",", "hi")},
		{want: "-pin: ", args: server("-pin", pin, "-pin", pin[1:]+"g", "hi")},
		{want: "-pin needs -url", args: []string{"-pin", pin, "hi"}},
		{want: "-cacert needs -url", args: []string{"-cacert", notPEM, "hi"}},
		{want: "-cacert: no PEM certificate", args: server("-cacert", notPEM, "hi")},
		{want: "-cacert: ", args: server("-cacert", filepath.Join(dir, "missing"), "hi")},
		{want: "NOMYO_API_KEY: ", args: server("hi"),
			env: map[string]string{"NOMYO_API_KEY": "secret\r\nX: y"}},
	} {
		r := session{stdin: c.stdin, env: c.env}.run(t.Context(), c.args...)
		if r.status != 2 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 ||
			!strings.HasPrefix(r.stderr, "chat: ") || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%q: %+v, want status 2 and one line with %q", c.args, r, c.want)
		}
		if strings.Contains(r.stderr, "secret") {
			t.Errorf("%q: stderr holds a secret: %q", c.args, r.stderr)
		}
	}
}

func TestParse(t *testing.T) {
	p := &chat{env: func(string) string {
		return ""
	}, isTerminal: func(any) bool { return false }, stdin: iotest.ErrReader(errors.New("read"))}
	for want, args := range map[string][]string{
		"one two":       {"one", "two"},
		"-show-wire hi": {"--", "-show-wire", "hi"},
		"a -5 b":        {"a", "-5", "b"},
		" kept ":        {"-show-wire", " kept "},
	} {
		o, err := p.parse(args)
		if err == nil {
			// with a prompt in the arguments, the program does not read standard input
			err = p.readPrompt(t.Context(), o)
		}
		if err != nil || o.prompt != want || !o.demo || o.model != "demo" {
			t.Errorf("%q: %+v, %v", args, o, err)
		}
	}
}

func TestHelp(t *testing.T) {
	r := session{}.run(t.Context(), "-help")
	if r.status != 0 || r.stdout != "" || !strings.Contains(r.stderr, "-show-wire") {
		t.Errorf("%+v", r)
	}
}
