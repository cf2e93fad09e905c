// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	childVar = "AUDITLOG_TEST_CHILD" // the name of the child that this process is to be
	pathVar  = "AUDITLOG_TEST_PATH"
	argVar   = "AUDITLOG_TEST_ARG"
	longVar  = "SEALEDCHAT_LONG" // "1": tests with real time take longer
)

// children are what the test binary does when it runs itself again.
var children = map[string]func(t *testing.T, path, arg string){"writer": childWriter,
	"full": childFull}

// TestChild is not a test of its own: it is a process of the tests below.
func TestChild(t *testing.T) {
	name := os.Getenv(childVar)
	if name == "" {
		t.Skip("a process of other tests")
	}
	children[name](t, os.Getenv(pathVar), os.Getenv(argVar))
}

// child is a process that is not started yet. It is killed when the test ends.
func child(t testing.TB, name, path, arg string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestChild$", "-test.v=false", "-test.count=1")
	cmd.Env = append(os.Environ(), childVar+"="+name, pathVar+"="+path, argVar+"="+arg)
	cmd.Stderr = os.Stderr
	return cmd
}

// processKeys are the same in each process.
func processKeys() *testKeys { return &testKeys{store: newTestStore()} }

// auditorOptions are shared by the processes of a test.
var auditorOptions = Options{FlushEvery: time.Second, MaxFileBytes: 512 << 10, MaxFiles: 1000}

// childWriter writes events into a log: arg has who it is, and how many; 0 = until it is killed. It
// says which ones were reported as written.
func childWriter(t *testing.T, path, arg string) {
	me, number, _ := strings.Cut(arg, "\n")
	count, _ := strconv.Atoi(number)
	l, err := Open(t.Context(), path, processKeys(), withDefaults(&auditorOptions))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	if count > 0 { // so that none is done before the next one begins
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	// over several pages: a kill may come in the middle of the line
	filler := strings.Repeat("x", 10_000)
	for n := 0; n < count || count == 0; n++ {
		e := fmt.Appendf(nil, `"type":"note","details":{"who":%q,"n":%d,"filler":"%s"}`, me, n,
			filler[:10_000*(1-min(count, 1))])
		if err := l.Record(t.Context(), "note", e); err != nil {
			t.Fatal(err)
		}
		if count == 0 {
			fmt.Println(n)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSharedAuditLog has 8 processes write 2,000 events each into one log: every line is whole, in
// each process's order, and the chain verifies, over several files.
func TestSharedAuditLog(t *testing.T) {
	processes, events := 3, 200
	if os.Getenv(longVar) == "1" {
		processes, events = 8, 2000
	}
	keys := processKeys()
	path := filepath.Join(t.TempDir(), "log", "audit.log")
	start := time.Now()
	var running []*exec.Cmd
	var begin []io.Closer
	for i := range processes {
		cmd := child(t, "writer", path, fmt.Sprintf("%d\n%d", i, events))
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		ready := make([]byte, len("ready\n"))
		if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "ready\n" {
			t.Fatalf("process %d says %q, %v", i, ready, err)
		}
		running, begin = append(running, cmd), append(begin, in)
	}
	for _, in := range begin {
		_ = in.Close()
	}
	for i, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v", i, err)
		}
	}
	took := time.Since(start)
	r := mustVerify(t, path, keys, Head{})
	if want := uint64(processes * events); r.Lines != want || r.Torn != 0 || r.Lost != 0 ||
		r.First != 1 || r.Head.Seq != want {
		t.Errorf("%+v", r)
	}
	next := make(map[any]float64)
	for _, file := range r.Files {
		for _, line := range logLines(t, file) {
			var e struct{ Details map[string]any }
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if who := e.Details["who"]; e.Details["n"] != next[who] {
				t.Fatalf("of %v: %v, want %v", who, e.Details["n"], next[who])
			}
			next[e.Details["who"]]++
		}
	}
	t.Logf("%d lines of %d processes in %d files, in %v", r.Lines, processes, len(r.Files),
		took.Round(time.Millisecond))
}

// TestKilledAuditLog kills a process that writes all the time, at random moments, and has the next
// one go on: the log verifies up to an unfinished line, and goes on behind it; what was reported as
// written is there.
func TestKilledAuditLog(t *testing.T) {
	kills := 5
	if os.Getenv(longVar) == "1" {
		kills = 50
	}
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	keys := processKeys()
	path := filepath.Join(t.TempDir(), "log", "audit.log")
	torn, noted := 0, uint64(0)
	var before uint64
	for kill := range kills {
		said := runAndKillWriter(t, path, strconv.Itoa(kill), random)
		r, err := Verify(t.Context(), path, keys, Head{})
		if err != nil {
			if problem, ok := errors.AsType[*Problem](err); !ok || problem.Finding != Torn {
				t.Fatalf("seed %d, kill %d: %v", seed, kill, err)
			}
			torn++
		}
		if r.Lines < before+said || r.Lines > before+said+1 {
			t.Fatalf("seed %d, kill %d: %d lines, before it %d, and %d were reported", seed, kill,
				r.Lines,
				before, said)
		}
		before = r.Lines
		noted = r.Torn
	}
	l := openLog(t, path, keys, &auditorOptions)
	writeNotes(t, l, 0, 1)
	r := mustVerify(t, path, keys, Head{})
	if r.Lines != before+1 || int(r.Torn) != torn || r.Lost != 0 {
		t.Errorf("seed %d: %+v; %d lines were there, %d were unfinished, %d noted before", seed, r,
			before, torn, noted)
	}
	t.Logf("%d kills, %d lines, %d of them unfinished, %d files", kills, r.Lines, torn,
		len(r.Files))
}

// runAndKillAuditor returns how many events were reported as written.
func runAndKillWriter(t *testing.T, path, who string, random *rand.Rand) (said uint64) {
	cmd := child(t, "writer", path, who+"\n0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "ready\n" {
		t.Fatalf("the child says %q, %v", ready, err)
	}
	// real time: this is about processes
	timer := time.AfterFunc(time.Duration(random.IntN(20_000))*time.Microsecond,
		func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	return uint64(bytes.Count(rest, []byte("\n")))
}

// tampering is one way to change a log. It reports what it did, and whether lines are gone from the
// end and nothing else.
type tampering func(r *rand.Rand, files [][][]byte) (what string, cutEnd bool)

// TestTamperedAuditLog changes a log of several files in 1,000 random ways.
func TestTamperedAuditLog(t *testing.T) {
	rounds := 200
	if os.Getenv(longVar) == "1" {
		rounds = 1000
	}
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	l, path, keys := startLog(t, &Options{FlushEvery: time.Second, MaxFileBytes: 64 << 10,
		MaxFiles: 3})
	for n := range 60 {
		e := fmt.Appendf(nil, `"type":"note","details":{"n":%d,"filler":"%s"}`, n,
			strings.Repeat("y",
				random.IntN(8000)))
		if err := l.Record(t.Context(), "note", e); err != nil {
			t.Fatal(err)
		}
	}
	head := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := mustVerify(t, path, keys, head)
	if len(r.Files) != 3 || r.First == 1 {
		t.Fatalf("%+v: want three files, and older ones dropped", r)
	}
	var original [][]byte
	for _, file := range r.Files {
		original = append(original, readLog(t, file))
	}
	tamperings := map[string]tampering{"edit": tamperEdit, "delete": tamperDelete,
		"swap":     tamperSwap,
		"truncate": tamperTruncate, "append": tamperAppend}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range tamperings {
			if !yield(name) {
				return
			}
		}
	})
	found := make(map[string]int)
	for round := range rounds {
		var files [][][]byte
		for _, text := range original {
			lines := bytes.SplitAfter(bytes.Clone(text), []byte("\n"))
			files = append(files, lines[:len(lines)-1])
		}
		name := names[round%len(names)]
		what, cutEnd := tamperings[name](random, files)
		for i, file := range r.Files {
			writeLog(t, file, bytes.Join(files[i], nil))
		}
		_, err := Verify(t.Context(), path, keys, Head{})
		// which needs the head, but where a whole file went that said what was dropped before it
		if cutEnd {
			_, err = Verify(t.Context(), path, keys, head)
			name = "cut off, with the head"
		}
		if problem, ok := err.(*Problem); !ok || problem.Line == 0 || problem.File == "" {
			t.Errorf("seed %d, round %d: %s: not found: %v", seed, round, what, err)
			continue
		}
		found[name]++
	}
	t.Logf("seed %d: found %v", seed, found)
}

func pickLine(r *rand.Rand, files [][][]byte) (file, line int) {
	file = r.IntN(len(files))
	return file, r.IntN(len(files[file]))
}

func tamperEdit(r *rand.Rand, files [][][]byte) (string, bool) {
	f, l := pickLine(r, files)
	line := files[f][l]
	at := r.IntN(len(line))
	if r.IntN(3) == 0 {
		at = r.IntN(min(len(line), 120)) // where the numbers are
	}
	old := line[at]
	for line[at] == old {
		line[at] = byte(r.IntN(256))
	}
	return fmt.Sprintf("file %d, line %d, byte %d: %q instead of %q", f, l+1, at, line[at], old),
		false
}

func tamperDelete(r *rand.Rand, files [][][]byte) (string, bool) {
	f, l := pickLine(r, files)
	if r.IntN(8) == 0 { // a whole file but the last
		f = r.IntN(len(files) - 1)
		files[f] = nil
		return fmt.Sprintf("file %d emptied", f), false
	}
	n := 1 + r.IntN(min(3, len(files[f])-l))
	end := f == len(files)-1 && l+n == len(files[f])
	files[f] = slices.Delete(files[f], l, l+n)
	return fmt.Sprintf("file %d, %d lines from %d deleted", f, n, l+1), end
}

func tamperSwap(r *rand.Rand, files [][][]byte) (string, bool) {
	for {
		f1, l1 := pickLine(r, files)
		f2, l2 := pickLine(r, files)
		if f1 == f2 && l1 == l2 {
			continue
		}
		files[f1][l1], files[f2][l2] = files[f2][l2], files[f1][l1]
		return fmt.Sprintf("line %d of file %d and line %d of file %d swapped", l1+1, f1, l2+1, f2),
			false
	}
}

func tamperTruncate(r *rand.Rand, files [][][]byte) (string, bool) {
	f, l := pickLine(r, files)
	if r.IntN(2) == 0 {
		f = len(files) - 1
		l = r.IntN(len(files[f]))
	}
	at := r.IntN(len(files[f][l]))
	if r.IntN(4) == 0 {
		at = 0
	}
	files[f] = append(files[f][:l:l], files[f][l][:at])
	return fmt.Sprintf("file %d cut behind byte %d of line %d", f, at, l+1), f == len(files)-1 &&
		at == 0
}

func tamperAppend(r *rand.Rand, files [][][]byte) (string, bool) {
	f, l := pickLine(r, files)
	line := bytes.Clone(files[f][l]) // an old line again
	switch r.IntN(4) {
	case 0:
		line = []byte("x\n")
	case 1: // the next number, without the key
		last := files[len(files)-1][len(files[len(files)-1])-1]
		var n struct{ Seq uint64 }
		_ = json.Unmarshal(last, &n)
		line = bytes.Replace(last, fmt.Appendf(nil, `"seq":%d`, n.Seq), fmt.Appendf(nil, `"seq":%d`,
			n.Seq+1), 1)
	case 2:
		line = line[:len(line)-1]
	}
	to := r.IntN(len(files))
	files[to] = append(files[to], line)
	return fmt.Sprintf("file %d has %.30q at its end", to, line), false
}
