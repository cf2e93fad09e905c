// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/examples/internal/demo"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const francePlain = "The capital of France is Paris. You said: “" + question +
	"” (I am a demo that only repeats.)\n"

func TestDemoOverOHTTP(t *testing.T) {
	testkit.NoLeaks(t)
	for _, args := range [][]string{{"-protocol", "ohttp"}, {"-protocol", "ohttp", "-stream"},
		{"-protocol", "envelope", "-stream"}} {
		r := session{}.run(t.Context(), append(args, "-show-wire", "-tier", "maximum", question)...)
		if r.status != 0 || r.stdout != francePlain {
			t.Errorf("%v: status %d, stdout %q\n%s", args, r.status, r.stdout, r.stderr)
		}
		if strings.Contains(r.stderr, "Paris") || strings.Contains(r.stderr, question) {
			t.Errorf("%v: the wire shows it:\n%s", args, r.stderr)
		}
		if ohttp := args[1] == "ohttp"; ohttp != strings.Contains(r.stderr,
			"/.well-known/ohttp-gateway") || (ohttp &&
			strings.Contains(r.stderr, "X-Security-Tier")) {
			t.Errorf("%v:\n%s", args, r.stderr)
		}
	}
}

// arrivals is a writer that notes when its pieces arrive.
type arrivals struct {
	text  strings.Builder
	times []time.Time
}

func (a *arrivals) Write(b []byte) (int, error) {
	a.times = append(a.times, time.Now())
	return a.text.Write(b)
}

func TestWordsAppearAsTheyCome(t *testing.T) {
	var out arrivals
	p := &chat{
		env: func(string) string {
			return ""
		}, stdin: strings.NewReader(""), stdout: &out, stderr: io.Discard,
		isTerminal: func(any) bool { return false }, maxRetries: -1, patience: time.Hour,
	}
	if status := p.run(t.Context(), []string{"-protocol", "ohttp", "-stream",
		question}); status != 0 || out.text.String() != francePlain {
		t.Fatalf("status %d, %q", status, out.text.String())
	}
	words := strings.Count(francePlain, " ") + 1
	if len(out.times) != words+1 { // and the line break
		t.Errorf("%d words in %d pieces", words, len(out.times)-1)
	}
	if took, least := out.times[len(out.times)-1].Sub(
		out.times[0]), time.Duration(words-1)*demo.Typing; took < least*9/10 {
		t.Errorf("from the first to the last word it took %v, the model types for %v", took, least)
	}
}

func TestConversationStreams(t *testing.T) {
	r := session{stdin: strings.NewReader("hello\nand now?\n/quit\n"), terminal: true,
		screen: true}.run(t.Context(), "-protocol", "ohttp", "-stream")
	want := "Hello! You said: “hello” (I am a demo that only repeats.)\n" +
		"You said: “and now?” You said one thing before: “hello” (I am a demo that only repeats.)\n"
	if r.status != 0 || r.stdout != want {
		t.Errorf("status %d, stdout %q\n%s", r.status, r.stdout, r.stderr)
	}
}

// If a server does not speak the protocol, the client does not try another one.
func TestNoFallingBack(t *testing.T) {
	srv := testkit.TLSServer(t, http.NotFoundHandler())
	r := session{env: withKey()}.run(t.Context(), "-url", srv.URL, "-cacert", writeCert(t, srv),
		"-model", "m", "-protocol", "ohttp", "hi")
	if r.status != 1 || r.stdout != "" || !strings.HasSuffix(r.stderr,
		"does "+srv.URL+" speak -protocol ohttp?\n") {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
}

// failingWriter accepts a few pieces and then fails.
type failingWriter struct{ left int }

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left--; w.left < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

func TestOutputThatFailsEndsTheStream(t *testing.T) {
	testkit.NoLeaks(t)
	for _, input := range []string{"", "hello\nhello\n"} { // a prompt, and a conversation
		args := []string{"-protocol", "ohttp", "-stream"}
		if input == "" {
			args = append(args, question)
		}
		var stderr strings.Builder
		stdin := strings.NewReader(input)
		p := &chat{
			env: func(string) string {
				return ""
			}, stdin: stdin, stdout: &failingWriter{left: 2}, stderr: &stderr,
			isTerminal: func(stream any) bool {
				return stream == stdin
			}, maxRetries: -1, patience: time.Hour,
		}
		if status := p.run(t.Context(), args); status != 1 ||
			strings.Count(stderr.String(), "writing the answer: disk full") != 1 {
			t.Errorf("status %d\n%s", status, stderr.String())
		}
	}
}
