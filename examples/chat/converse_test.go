// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestConversation(t *testing.T) {
	testkit.NoLeaks(t)
	server := newRemote(t)
	input := "Hello\n\n  " + failing +
		"\n\xff\n/help\nWhat is the capital of Japan?\nand Italy?\n/quit\nnot sent\n"
	r := session{stdin: strings.NewReader(input), terminal: true, env: withKey()}.
		run(t.Context(), server.args("-pin", server.pin, "-system", "be kind")...)
	const end = " My instructions are: “be kind” (I am a demo that only repeats.)\n"
	want := "Hello! You said: “Hello”" + end +
		"The capital of Japan is Tokyo. You said: “What is the capital of Japan?” You said one " +
		"thing before: “Hello”" + end +
		"You said: “and Italy?” You said 2 things before, the last one: “What is the capital " +
		"of Japan?”" + end
	if r.status != 0 || r.stdout != want {
		t.Errorf("status %d, stdout:\n%swant:\n%s\n%s", r.status, r.stdout, want, r.stderr)
	}
	for text, n := range map[string]int{"> ": 8, "/help  this text": 1, "chat: the server answered 502": 1,
		"chat: the prompt is not UTF-8": 1} {
		if got := strings.Count(r.stderr, text); got != n {
			t.Errorf("stderr has %q %d times, want %d:\n%s", text, got, n, r.stderr)
		}
	}
	if n := server.completions.Load(); n != 4 {
		t.Errorf("%d requests reached the model, want 4", n)
	}
}

func TestConversationEnds(t *testing.T) {
	server := newRemote(t)
	args := server.args("-pin", server.pin)
	for name, c := range map[string]struct {
		input  string
		status int
	}{
		"at once":       {"", 0},
		"after a line":  {"Hello", 0},
		"line too long": {strings.Repeat("a", maxLine+1), 1},
	} {
		r := session{stdin: strings.NewReader(c.input), terminal: true,
			env: withKey()}.run(t.Context(), args...)
		if r.status != c.status {
			t.Errorf("%s: status %d, want %d, stderr %q", name, r.status, c.status, r.stderr)
		}
		if answered := strings.Count(r.stdout,
			"\n"); answered != map[string]int{"after a line": 1}[name] {
			t.Errorf("%s: stdout %q", name, r.stdout)
		}
	}

	t.Run("interrupt", func(t *testing.T) {
		testkit.NoLeaks(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		in, out := io.Pipe()
		go func() {
			// the third is taken when the first was answered
			for _, line := range []string{"Hello\n", "\n", "\n"} {
				io.WriteString(out, line)
			}
			cancel()
		}()
		r := session{stdin: in, terminal: true, env: withKey()}.run(ctx, args...)
		out.Close()
		if r.status != 0 || !strings.HasPrefix(r.stdout, "Hello!") ||
			strings.Contains(r.stderr, "interrupted") {
			t.Errorf("%+v", r)
		}
	})

	t.Run("no server", func(t *testing.T) {
		r := session{stdin: strings.NewReader("Hello\n"), terminal: true}.run(t.Context(), "-url",
			"https://127.0.0.1:1", "-model", "m")
		if r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "is the server running") {
			t.Errorf("%+v", r)
		}
	})
}
