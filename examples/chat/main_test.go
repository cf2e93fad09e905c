// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestDemo(t *testing.T) {
	testkit.NoLeaks(t)
	r := session{}.run(t.Context(), "-show-wire", "-system", "Answer like a pirate", "-tier",
		"maximum", question)
	want := "The capital of France is Paris. You said: “" + question +
		"” My instructions are: “Answer like a pirate” (I am a demo that only repeats.)\n"
	if r.status != 0 || r.stdout != want {
		t.Errorf("status %d, stdout %q, want %q\n%s", r.status, r.stdout, want, r.stderr)
	}
	for _, want := range []string{
		"No model was downloaded", "wire > GET https://127.0.0.1:",
		"wire > POST https://127.0.0.1:", "wire > Authorization: ********\n",
		"wire > X-Security-Tier: maximum\n", `wire > {"version":"1.0"`, "wire < HTTP/2.0 200 OK",
		`wire < {"version":"1.0"`, " bytes in all\n",
	} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, r.stderr)
		}
	}
	for _, secret := range []string{question, "Paris", "pirate", "Bearer"} {
		// base64 at any alignment, without the ends that share a byte with a neighbour
		for skip := range 3 {
			encoded := base64.StdEncoding.EncodeToString([]byte("xxx"[:skip] + secret))
			if middle := encoded[4 : len(encoded)-4]; len(middle) > 3 &&
				strings.Contains(r.stderr, middle) {
				t.Errorf("stderr has %q in base64", secret)
			}
		}
		if strings.Contains(r.stderr, secret) {
			t.Errorf("stderr has %q:\n%s", secret, r.stderr)
		}
	}
}

func TestDemoFromStdin(t *testing.T) {
	r := session{stdin: strings.NewReader("Two\nlines\r\n"), env: withKey()}.run(t.Context())
	if want := "You said: “Two\nlines” (I am a demo that only repeats.)\n"; r.status != 0 ||
		r.stdout != want {
		t.Errorf("status %d, stdout %q, want %q\n%s", r.status, r.stdout, want, r.stderr)
	}
	if strings.Contains(r.stderr, "wire") {
		t.Errorf("the wire was not asked for:\n%s", r.stderr)
	}
}

func TestURL(t *testing.T) {
	testkit.NoLeaks(t)
	server := newRemote(t)
	const answer = "You said: “two words” (I am a demo that only repeats.)\n"
	trusted := "trusted server key " + server.pin + "; pin it with: -pin " + server.pin + "\n"
	wrong := strings.Repeat("0", 64)
	down := testkit.TLSServer(t, http.NotFoundHandler())
	notFound := testkit.TLSServer(t, http.NotFoundHandler())
	downURL, downCert := down.URL, writeCert(t, down)
	down.Close()

	for name, c := range map[string]struct {
		args   []string
		env    map[string]string
		status int
		// the whole text, or its end after …, or its beginning before …
		stderr string
	}{
		"no pin":    {args: server.args("two", "words"), env: withKey(), stderr: trusted},
		"right pin": {args: server.args("-pin", server.pin, "two", "words"), env: withKey()},
		"one pin of two": {args: server.args("-pin", wrong+","+strings.ToUpper(server.pin),
			"two words"), env: withKey()},
		"repeated pin": {args: server.args("-pin", server.pin, "-pin", wrong, "two words"),
			env: withKey()},
		"environment": {args: server.args("two", "words")[2:],
			env:    map[string]string{"NOMYO_SERVER_URL": server.url, "NOMYO_API_KEY": apiKey},
			stderr: trusted},
		"wrong pin": {args: server.args("-pin", wrong, "two words"), env: withKey(),
			status: 1,
			stderr: "…(each -protocol has a pin of its own), so no prompt was sent; if its " +
				"operator confirms the new key, use: -pin " + server.pin + "\n"},
		"no API key": {args: server.args("-pin", server.pin, "two words"), status: 1,
			stderr: "…set NOMYO_API_KEY to a key of this server\n"},
		"wrong API key": {args: server.args("-pin", server.pin, "two words"),
			env: map[string]string{"NOMYO_API_KEY": "wrong"}, status: 1,
			stderr: "…set NOMYO_API_KEY to a key of this server\n"},
		"tier too high": {args: server.args("-pin", server.pin, "-tier", "maximum",
			"two words"), env: withKey(), status: 1,
			stderr: "…this key may not use the model or the tier\n"},
		"upstream fails": {args: server.args("-pin", server.pin, failing), env: withKey(),
			status: 1, stderr: "chat: the server answered 502…"},
		"unknown authority": {args: []string{"-url", server.url, "-model", "m", "two words"},
			status: 1, stderr: "…give it with -cacert FILE\n"},
		"nobody there": {args: []string{"-url", downURL, "-cacert", downCert, "-model", "m",
			"two words"}, status: 1, stderr: "…is the server running at " + downURL + "?\n"},
		"not a gateway": {args: []string{"-url", notFound.URL, "-cacert",
			writeCert(t, notFound), "-model", "m", "two words"}, status: 1,
			stderr: "…check -model and -url, which ends before /v1\n"},
	} {
		before := server.completions.Load()
		r := session{env: c.env}.run(t.Context(), c.args...)
		match := r.stderr == c.stderr
		if end, ok := strings.CutPrefix(c.stderr, "…"); ok {
			match = strings.HasSuffix(r.stderr, end) && strings.Count(r.stderr, "\n") == 1
		} else if start, ok := strings.CutSuffix(c.stderr, "…"); ok {
			match = strings.HasPrefix(r.stderr, start) && strings.Count(r.stderr, "\n") == 1
		}
		want := answer
		if c.status != 0 {
			want = ""
		}
		if r.status != c.status || r.stdout != want || !match {
			t.Errorf("%s: status %d, stdout %q, stderr %q, want %d, %q, %q", name, r.status,
				r.stdout, r.stderr, c.status, want, c.stderr)
		}
		if reached := server.completions.Load() > before; reached != (c.status == 0 ||
			name == "upstream fails") {
			t.Errorf("%s: the prompt reached the model: %t", name, reached)
		}
	}
}

func TestTimeout(t *testing.T) {
	srv := testkit.TLSServer(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}))
	r := session{}.run(t.Context(), "-url", srv.URL, "-cacert", writeCert(t, srv), "-model", "m",
		"-timeout", "30ms", "hi")
	if r.status != 1 || !strings.HasSuffix(r.stderr, "-timeout sets how long to wait\n") {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
}

func TestInterrupted(t *testing.T) {
	testkit.NoLeaks(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	srv := testkit.TLSServer(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel(errors.New("interrupt signal received")) // as signal.NotifyContext does
		<-r.Context().Done()
	}))
	r := session{}.run(ctx, "-url", srv.URL, "-cacert", writeCert(t, srv), "-model", "m", "hi")
	if r.status != 1 || r.stdout != "" || r.stderr != "chat: interrupted\n" {
		t.Errorf("%+v", r)
	}

	in, out := io.Pipe()
	defer out.Close()
	if r := (session{stdin: in}).run(ctx); r.status != 1 || r.stderr != "chat: interrupted\n" {
		t.Errorf("while reading the prompt: %+v", r)
	}
}

func TestScreen(t *testing.T) {
	server := newRemote(t)
	const evil = "red \x1b[31m alert\a\u009b"
	for screen, want := range map[bool]string{true: "“red [31m alert”", false: "“" + evil + "”"} {
		r := session{env: withKey(), screen: screen}.run(t.Context(),
			server.args("-pin", server.pin, evil)...)
		if r.status != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("screen %t: %+v", screen, r)
		}
	}
}

func TestWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		p := &chat{stderr: &b, patience: time.Second}
		early, late := p.while("early"), p.while("late")
		time.Sleep(999 * time.Millisecond)
		early()
		time.Sleep(time.Second)
		late()
		if b.String() != "late\n" {
			t.Errorf("printed %q, want only the late note", b.String())
		}
	})
}

func TestIsTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, stream := range map[string]any{"null device": null, "file": file, "pipe": r,
		"buffer": &strings.Builder{}, "nil": nil} {
		if isTerminal(stream) {
			t.Errorf("%s: is a terminal", name)
		}
	}
	if tty, err := os.Open("/dev/ptmx"); err == nil {
		defer tty.Close()
		if !isTerminal(tty) {
			t.Error("/dev/ptmx: not a terminal")
		}
	}
}
