// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func configFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "gateway.conf")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// A file has the names of the flags; the command line wins.
func TestConfigFile(t *testing.T) {
	file := configFile(t, "# a gateway\r\n\nupstream = http://127.0.0.1:1/v1\n"+
		"  allow-unauthenticated=true\nlisten = \"127.0.0.1:1\"\ndrain = 5s\nplaces = 7\n"+
		"allow = POST /v1/chat/completions, GET /v1/models\nallow = GET /health\n"+
		"write-cert = a=b\n")
	p := &gatewayProgram{}
	o, err := p.parse([]string{"-config", file, "-drain", "7s", "-listen", "127.0.0.1:2"})
	if err != nil {
		t.Fatal(err)
	}
	if o.upstream != "http://127.0.0.1:1/v1" || !o.allowAll || o.listen != "127.0.0.1:2" ||
		o.drain != 7*time.Second || o.places != 7 || o.writeCert != "a=b" ||
		!slices.Equal(o.allow, []string{"POST /v1/chat/completions", "GET /v1/models",
			"GET /health"}) {
		t.Errorf("%+v", o)
	}
}

// Whatever is wrong in a file is one line that says where, with exit status 2.
func TestWrongConfigFile(t *testing.T) {
	fine := "upstream = https://a.invalid/v1\nallow-unauthenticated = true\n"
	for text, want := range map[string]string{
		fine + "upstreams = x\n":                             "line 3: there is no \"upstreams\"",
		fine + "-listen = :1\n":                              "line 3: there is no \"-listen\"",
		fine + "config = other\n":                            "line 3: there is no \"config\"",
		fine + "version = true\n":                            "line 3: there is no \"version\"",
		fine + "h = true\n":                                  "line 3: there is no \"h\"",
		fine + "just words\n":                                "line 3: want \"name = value\"",
		fine + "= value\n":                                   "line 3: there is no \"\"",
		fine + "\n# x\nplaces = many\n":                      "line 5: places: ",
		fine + "places = -1\n":                               "-places: ",
		fine + "account-places = 1\n":                        "-account-places needs",
		fine + "timeout = 5\n":                               "line 3: timeout: ",
		fine + "timeout = -5s\n":                             "-timeout: out of range",
		fine + "body-timeout = -5s\n":                        "-body-timeout: out of range",
		fine + "replay-window = -5s\n":                       "-replay-window: out of range",
		fine + "max-request = -1\n":                          "-max-request: out of range",
		fine + "max-response = 99999999999\n":                "-max-response: out of range",
		fine + "plain-http = perhaps\n":                      "line 3: plain-http: ",
		fine + "upstream = https://b.invalid\n":              "line 3: upstream stands twice",
		fine + "allow = everything\n":                        "-allow: want a method and a path",
		fine + "drain = -1s\n":                               "-drain: negative",
		fine + "grace = -1s\n":                               "-grace: negative",
		fine + "clock-skew = -1s\n":                          "-clock-skew: negative",
		fine + "rotate = 1h\n":                               "-rotate needs -keys",
		fine + "keys = x\nrotate = -1h\n":                    "-rotate: negative",
		fine + "keys = x\nkeys = y\n":                        "line 4: keys stands twice",
		fine + "create-keys = true\n":                        "-create-keys needs -keys",
		fine + "audit = x\n":                                 "-audit needs -keys",
		fine + "replay-durable = true\n":                     "-replay-durable needs -replay",
		fine + "replay = http://a:secret@b\n":                "-replay: not a Redis URL",
		fine + "metrics = 9090\n":                            "-metrics: ",
		fine + "address-header = a b\n":                      "-address-header: ",
		fine + "plain-http = 1\ntls-cert = a\ntls-key = b\n": "exclude each other",
		fine + "plain-http = 1\nwrite-cert = a\n":            "-write-cert is for",
		fine + "protocols = envelope\nallow = GET /\n":       "-allow is for ohttp",
		fine + strings.Repeat("#", maxConfigFile):            "is too large",
	} {
		status, stdout, stderr := once(t, "-config", configFile(t, text))
		if status != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 ||
			!strings.Contains(stderr, want) || strings.Contains(stderr, "secret") {
			t.Errorf("%.200q: status %d, %q, want %q", text, status, stderr, want)
		}
	}
	for _, file := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none"), ""} {
		status, _, stderr := once(t, "-config", file)
		if status != 2 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, %q", file, status, stderr)
		}
	}
}

// A file of API keys names accounts. What is wrong with it says the line, and none of it.
func TestReadAccounts(t *testing.T) {
	list, err := readAccounts(keyFile(t, "# of the day\nfirst-key\n\nteam-a second-key\n"+
		"\tteam-a \t third-key\r\n#gone fourth-key\nme@home.example fifth#key\n", 0o600))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"key-1", "team-a", "team-a", "me@home.example"}
	if !slices.Equal(list.names, want) {
		t.Errorf("%q, want %q", list.names, want)
	}
	for text, want := range map[string]string{
		"":                             "no keys in",
		"# one\n\n":                    "no keys in",
		"good\na b MARKER\n":           "line 2: want a key, or a name and a key",
		"na\x00me MARKER\n":            "line 1: a name has",
		"näme MARKER\n":                "line 1: a name has",
		"a/b MARKER\n":                 "line 1: a name has",
		"a,b MARKER\n":                 "line 1: a name has",
		strings.Repeat("n", 65) + " M": "line 1: a name has",
		"name MARKERé\n":               "line 1: want 1 to 4096 visible ASCII",
		strings.Repeat("MARKER", 700):  "line 1: want 1 to 4096 visible ASCII",
		"a MARKER\nb MARKER\n":         "line 2: the key of line 1 again",
		"MARKER\n# x\n\na MARKER\n":    "line 4: the key of line 1 again",
		"MARKER\nkey-1 M2\n":           "line 2: key-1 is the name of a key without one",
		"key-2 M2\nMARKER\n":           "line 2: key-2 is the name of a key without one",
	} {
		_, err := readAccounts(keyFile(t, text, 0o600))
		if err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "MARKER") {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

// The files of examples/deploy have flags that there are.
func TestDeployedFlags(t *testing.T) {
	p := &gatewayProgram{}
	unit, err := os.ReadFile("../deploy/sealedchat-gateway@.service")
	if err != nil {
		t.Fatal(err)
	}
	_, start, _ := strings.Cut(string(unit), "\nExecStart=/usr/local/bin/sealedchat-gateway ")
	start, _, _ = strings.Cut(start, "\n")
	args := strings.Fields(strings.ReplaceAll(start, "%i", "1"))
	i := slices.Index(args, "-config")
	if i < 0 {
		t.Fatalf("the unit starts with %q", args)
	}
	args[i+1] = "../deploy/gateway.conf"
	o, err := p.parse(args)
	if err != nil || o.listen != "127.0.0.1:8441" || o.metrics != "127.0.0.1:9091" ||
		o.keys == "" || !o.replayDurable || o.addressHeader != "X-Forwarded-For" {
		t.Errorf("%+v, %v", o, err)
	}
	compose, err := os.ReadFile("../deploy/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, gateway, _ := strings.Cut(string(compose), "\n  gateway:\n")
	gateway, _, _ = strings.Cut(gateway, "\n  proxy:\n")
	args = nil
	for line := range strings.Lines(gateway) {
		if flag, ok := strings.CutPrefix(strings.TrimSpace(line), "- -"); ok {
			flag = strings.Replace(flag, "${UPSTREAM:-http://ollama:11434/v1}",
				"http://ollama:11434/v1", 1)
			args = append(args, "-"+flag)
		}
	}
	if o, err = p.parse(args); err != nil || len(args) < 8 || !o.insecureUpstream {
		t.Errorf("%q: %v", args, err)
	}
}
