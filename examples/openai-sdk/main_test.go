// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// once runs the program with an API key.
func once(t *testing.T, apiKey string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	_, clientKeys := keys()
	var out, errs bytes.Buffer
	p := &openaiSDK{env: func(name string) string {
		return map[string]string{keyVariable: apiKey}[name]
	}, stdout: &out, stderr: &errs, keys: clientKeys}
	status = p.run(t.Context(), args)
	return status, out.String(), errs.String()
}

func TestRun(t *testing.T) {
	for _, sdk := range []string{"openai-go", "go-openai"} {
		w := newWorld(t, false)
		args := []string{"-url", w.url(), "-insecure-http", "-sdk", sdk, "-pin"}
		if status, out, errs := once(t, goodKey, append(args, w.pin(t), prompt)...); status != 0 ||
			out != answer+" to "+prompt+"\n" || errs != "" {
			t.Errorf("%s: %d, %q, %q", sdk, status, out, errs)
		}
		w.check(t, true)
		if status, out, errs := once(t, goodKey, append(args, configOf(t, w.gateway), "-protocol",
			"ohttp", prompt)...); status != 0 || out != answer+" to "+prompt+"\n" {
			t.Errorf("%s over ohttp: %d, %q, %q", sdk, status, out, errs)
		}
		if status, out, errs := once(t, goodKey, append(args, otherPin(w.pin(t)),
			prompt)...); status != 1 || out != "" || !oneLine(errs) ||
			!strings.Contains(errs, "-pin "+w.pin(t)) {
			t.Errorf("%s with a wrong pin: %d, %q, %q", sdk, status, out, errs)
		}
		if status, out, errs := once(t, "another-key", append(args, w.pin(t),
			prompt)...); status != 1 || out != "" || !oneLine(errs) {
			t.Errorf("%s with a wrong key: %d, %q, %q", sdk, status, out, errs)
		}
	}
}

func oneLine(s string) bool {
	return strings.HasPrefix(s, "openai-sdk: ") && strings.Count(s, "\n") == 1
}

// Wrong input is one line and status 2, as of the other programs.
func TestWrongInput(t *testing.T) {
	const url = "https://127.0.0.1:1"
	for want, args := range map[string][]string{
		"-nonsense":             {"-nonsense"},
		"-url is required":      {prompt},
		"-url: ":                {"-url", "http://192.0.2.1", prompt},
		"-sdk: ":                {"-url", url, "-sdk", "other", prompt},
		"-protocol: ":           {"-url", url, "-protocol", "other", prompt},
		"-pin: ":                {"-url", url, "-pin", "no fingerprint", prompt},
		"0 arguments, want one": {"-url", url},
		"2 arguments, want one": {"-url", url, "two", "words"},
		"-cacert: ":             {"-url", url, "-cacert", "missing", prompt},
	} {
		status, out, errs := once(t, "", args...)
		if status != 2 || out != "" || !oneLine(errs) || !strings.Contains(errs, want) {
			t.Errorf("%q: %d, %q, %q", args, status, out, errs)
		}
	}
	if status, out, errs := once(t, "", "-h"); status != 0 || out != "" ||
		!strings.Contains(errs, keyVariable) || strings.Contains(errs, "demo") {
		t.Errorf("-h: %d, %q, %q", status, out, errs)
	}
	if status, out, _ := once(t, "", "-version"); status != 0 ||
		!strings.HasPrefix(out, "openai-sdk (sealedchat) ") {
		t.Errorf("-version: %d, %q", status, out)
	}
}

// functionLines are the lines between a function's head and its closing brace.
func functionLines(t *testing.T, source, name string) []string {
	t.Helper()
	_, rest, ok := strings.Cut(source, "\nfunc "+name+"(")
	if !ok {
		t.Fatalf("no function %s", name)
	}
	body, _, _ := strings.Cut(rest, "\n}")
	return strings.Split(body, "\n")[1:]
}

// The claim of this example: sealing is one line more.
func TestSealingIsOneLine(t *testing.T) {
	source, err := os.ReadFile("clients.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, sdk := range []string{"OpenAI", "GoOpenAI"} {
		plain, sealed := functionLines(t, string(source), "plain"+sdk),
			functionLines(t, string(source), "sealed"+sdk)
		if len(sealed) != len(plain)+1 {
			t.Errorf("%s: %d lines became %d", sdk, len(plain), len(sealed))
		}
		var more []string
		for _, line := range sealed {
			if len(plain) > 0 && line == plain[0] {
				plain = plain[1:]
			} else {
				more = append(more, strings.TrimSpace(line))
			}
		}
		if len(plain) != 0 || len(more) != 1 || !strings.Contains(more[0], "client.HTTPClient()") ||
			!strings.HasSuffix(more[0], "// the one line") {
			t.Errorf("%s: more lines %q, fewer %q", sdk, more, plain)
		}
	}
}

// openFiles counts the descriptors of this process. -1 means that the number is not known.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries)
}

// settled waits until a count is at most limit: goroutines and connections end a little later.
func settled(count func() int, limit int) int {
	for range 100 {
		if count() <= limit {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return count()
}

func TestThousandCallsLeaveNothing(t *testing.T) {
	w := newWorld(t, true)
	t.Setenv("OPENAI_BASE_URL", w.url()+"/v1")
	client := sealedOpenAI(goodKey, w.client(t, w.pin(t)))
	call := func(i int) {
		if i%4 == 3 {
			stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams())
			for stream.Next() {
			}
			if err := stream.Err(); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
			return // and forgets to close it
		}
		if _, err := client.Chat.Completions.New(t.Context(), openAIParams()); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	for i := range 20 {
		call(i)
	}
	runtime.GC()
	goroutines, files, before := runtime.NumGoroutine(), openFiles(), w.connections()
	for i := range 1000 {
		call(i)
	}
	if n := settled(runtime.NumGoroutine, goroutines); n > goroutines {
		t.Errorf("%d goroutines became %d", goroutines, n)
	}
	if n := settled(openFiles, files); n > files {
		t.Errorf("%d open files became %d", files, n)
	}
	if n := w.connections(); n != before || before < 1 {
		t.Errorf("%d connections became %d", before, n)
	}
	if fetches, sealed := w.counts(); fetches != 1 || sealed != 1020 {
		t.Errorf("%d key fetches, %d requests", fetches, sealed)
	}
}
