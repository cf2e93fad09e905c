// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

func TestRun(t *testing.T) {
	_, clientKeys := keys()
	for _, sdk := range []string{"openai-go", "go-openai"} {
		w := newWorld(t, false)
		args := []string{"-url", w.url(), "-insecure-http", "-sdk", sdk, "-pin"}
		var out bytes.Buffer
		if err := run(t.Context(), append(args, w.pin(t), prompt), goodKey, clientKeys,
			&out); err != nil || out.String() != answer+" to "+prompt+"\n" {
			t.Errorf("%s: %v, %q", sdk, err, &out)
		}
		w.check(t, true)
		out.Reset()
		if err := run(t.Context(), append(args, configOf(t, w.gateway), "-ohttp", prompt), goodKey,
			clientKeys, &out); err != nil || out.String() != answer+" to "+prompt+"\n" {
			t.Errorf("%s with -ohttp: %v, %q", sdk, err, &out)
		}
		out.Reset()
		err := run(t.Context(), append(args, otherPin(w.pin(t)), prompt), goodKey, clientKeys, &out)
		if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); !ok || out.Len() != 0 {
			t.Errorf("%s with a wrong pin: %v, %q", sdk, err, &out)
		}
		if err := run(t.Context(), append(args, "no fingerprint", prompt), goodKey, clientKeys,
			&out); err == nil {
			t.Errorf("%s: a pin that is none passed", sdk)
		}
	}
	if err := run(t.Context(), []string{"-url", "https://127.0.0.1:1", "-sdk", "other"}, "",
		clientKeys, &bytes.Buffer{}); err == nil {
		t.Error("an unknown SDK passed")
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
