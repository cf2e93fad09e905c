// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

func TestUsage(t *testing.T) {
	for line, want := range map[string]string{
		"":                          "no command, want create, list",
		"remove":                    `unknown command "remove"`,
		"delete":                    "delete: -fingerprint is required",
		"delete 00":                 `unexpected argument "00"`,
		"delete -out f":             "not defined: -out",
		"-keys x list":              `unknown command "-keys"`,
		"CREATE":                    "unknown command",
		"create -fast":              "create -h)",
		"create extra":              `unexpected argument "extra"`,
		"create -bits":              "-bits",
		"create -bits many":         "-bits",
		"create -iterations 1e6":    "-iterations",
		"create -label l":           "not defined: -label",
		"list x":                    `unexpected argument "x"`,
		"list -bits 2048":           "not defined: -bits",
		"rotate -iterations 1":      "not defined: -iterations",
		"next x":                    `unexpected argument "x"`,
		"next -fingerprint 00":      "not defined: -fingerprint",
		"import":                    "which file?",
		"import a b":                `unexpected argument "b"`,
		"import a -keys b":          "flags come before the file",
		"import -out a b":           "not defined: -out",
		"export":                    "-out is required",
		"export a":                  "unexpected argument",
		"export -fingerprint 00":    "-out is required",
		"passwd x":                  "unexpected argument",
		"passwd -password x":        "not defined: -password",
		"seal":                      "-label is required",
		"seal file":                 "-label is required",
		"seal -label a b c":         `unexpected argument "c"`,
		"open":                      "-label is required",
		"open -label a b c":         `unexpected argument "c"`,
		"seal -label " + long(1025): "more than 1024 bytes",
		"open -label " + long(1025): "more than 1024 bytes",
	} {
		t.Run(line, func(t *testing.T) {
			r := session{answers: []string{},
				env: map[string]string{"NOMYO_KEY_DIR": t.TempDir()}}.fails(t, 2, want,
				strings.Fields(line)...)
			if len(r.prompts) != 0 {
				t.Errorf("asked %q", r.prompts)
			}
		})
	}
	session{}.fails(t, 2, "-keys is empty", "list", "-keys", "")
	unlocked().fails(t, 1, "no key store in a b [2J;", "list", "-keys", "a\nb\x1b[2J")
}

func long(n int) string { return strings.Repeat("l", n) }

func TestHelp(t *testing.T) {
	for _, args := range []string{"-h", "-help", "--help", "help"} {
		if r := (session{}).run(t.Context(), args); r.status != 0 || r.stdout != "" ||
			strings.Count(r.stderr, "usage: keystore ") != len(commands()) {
			t.Errorf("%s: %+v", args, r)
		}
	}
	for _, c := range commands() {
		r := session{}.run(t.Context(), c.name, "-help")
		if r.status != 0 || r.stdout != "" || !strings.HasPrefix(r.stderr,
			"usage: keystore "+c.name) || !strings.Contains(r.stderr, "-keys folder") {
			t.Errorf("%s: %+v", c.name, r)
		}
		for _, name := range strings.Fields(c.flags) {
			if !strings.Contains(r.stderr, "\n  -"+name+" ") ||
				!strings.Contains(c.synopsis, "-"+name+" ") {
				t.Errorf("%s: -%s is not explained: %s", c.name, name, r.stderr)
			}
		}
	}
}

func TestFolder(t *testing.T) {
	base := t.TempDir()
	for _, name := range []string{"XDG_CONFIG_HOME", "HOME", "LocalAppData"} {
		t.Setenv(name, base)
	}
	want, err := fsafe.DefaultDir() // the folder that the package uses for ""
	if err != nil {
		t.Fatal(err)
	}
	unlocked().fails(t, 1, "no key store in "+want+";", "list")
	unlocked("NOMYO_KEY_DIR", base+"1").fails(t, 1, "no key store in "+base+"1;", "list")
	unlocked("NOMYO_KEY_DIR", base+"1").fails(t, 1, "no key store in "+base+"2;", "list", "-keys",
		base+"2")
}
