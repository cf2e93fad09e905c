// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/auditfile"
)

func TestAuditLog(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	if h := l.Head(); h != (AuditHead{}) {
		t.Errorf("the head of an empty log is %v", h)
	}
	mustVerify(t, path, keys, nil)
	writeNotes(t, l, 0, 3)
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	r := mustVerify(t, path, keys, nil)
	if r.Lines != 3 || r.First != 1 || r.Head != l.Head() || r.Head.Seq != 3 || r.HeadChecked || len(r.Files) != 1 {
		t.Errorf("%+v", r)
	}
	head := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if err := l.Record(t.Context(), note(9)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	l = openAuditLog(t, path, keys, nil)
	if l.Head() != head {
		t.Errorf("opened again, the head is %v, was %v", l.Head(), head)
	}
	writeNotes(t, l, 3, 5)
	if r := mustVerify(t, path, keys, &head); r.Lines != 5 || !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	for i, line := range logLines(t, path) {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.Type != EventNote || e.Severity != SeverityInfo || e.PID != os.Getpid() || e.User == "" || time.Since(e.Time) > time.Minute ||
			fmt.Sprint(e.Details["n"]) != fmt.Sprint(i) {
			t.Errorf("line %d is %+v", i, e)
		}
	}
}

func TestAuditLogSurvivesChangeOfPassphrase(t *testing.T) {
	dir := storeDir(t)
	keys, _ := createWeak(t, dir, nil)
	path := filepath.Join(t.TempDir(), "audit", "log")
	mine := openAuditLog(t, path, keys, nil)
	other := openWeak(t, dir, passphrase, nil) // as in another process
	theirs := openAuditLog(t, path, other, nil)
	writeNotes(t, mine, 0, 2)
	writeNotes(t, theirs, 2, 3)
	if err := keys.ChangePassphrase(t.Context(), secret(t, passphrase), secret(t, passphrase2)); err != nil {
		t.Fatal(err)
	}
	writeNotes(t, mine, 3, 5)
	writeNotes(t, theirs, 5, 6) // with the key that it knows
	writeNotes(t, mine, 6, 7)
	var generations []string
	for _, line := range logLines(t, path) {
		_, rest, _ := bytes.Cut(line, []byte(`"key":`))
		generations = append(generations, string(rest[:1]))
	}
	if got := strings.Join(generations, ""); got != "1112212" {
		t.Errorf("generations %s", got)
	}
	mustVerify(t, path, keys, nil)
	mustVerify(t, path, openWeak(t, dir, passphrase2, nil), nil)
	if _, err := VerifyAuditLog(t.Context(), path, other, nil); !errors.Is(err, ErrPassphrase) {
		t.Errorf("with a store that does not know the new generation: %v", err)
	}
	keys.Close()
	writeNotes(t, mine, 7, 8) // the log has its key
	mustVerify(t, path, openWeak(t, dir, passphrase2, nil), nil)
}

func TestOpenAuditLogRefusals(t *testing.T) {
	keys, _ := createWeak(t, storeDir(t), nil)
	closed, _ := createWeak(t, storeDir(t), nil)
	closed.Close()
	ephemeral, err := NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ephemeral.Close()
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "audit.log")
	for what, c := range map[string]struct {
		path string
		keys *KeyStore
		o    *AuditLogOptions
		want error
	}{
		"no store":        {path, nil, nil, ErrInvalidRequest},
		"ephemeral store": {path, ephemeral, nil, ErrInvalidRequest},
		"closed store":    {path, closed, nil, ErrClosed},
		"no path":         {"", keys, nil, ErrInvalidRequest},
		"a folder":        {dir + "/", keys, nil, ErrInvalidRequest},
		"dots":            {dir + "/..", keys, nil, ErrInvalidRequest},
		"flush":           {path, keys, &AuditLogOptions{Flush: 2}, nil},
		"failure":         {path, keys, &AuditLogOptions{OnFailure: -1}, nil},
		"small files":     {path, keys, &AuditLogOptions{MaxFileBytes: 1 << 10}, nil},
		"negative size":   {path, keys, &AuditLogOptions{MaxFileBytes: -1}, nil},
		"one file":        {path, keys, &AuditLogOptions{MaxFiles: 1}, nil},
		"many files":      {path, keys, &AuditLogOptions{MaxFiles: 10_001}, nil},
	} {
		l, err := OpenAuditLog(t.Context(), c.path, c.keys, c.o)
		_, config := errors.AsType[*ConfigError](err)
		if l != nil || err == nil || (c.want == nil) != config || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
		if c.o != nil {
			continue
		}
		if r, err := VerifyAuditLog(t.Context(), c.path, c.keys, nil); r != nil || !errors.Is(err, c.want) {
			t.Errorf("%s, verifying: %v, %v", what, r, err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
	if _, err := VerifyAuditLog(t.Context(), path, keys, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	openAuditLog(t, path, keys, nil)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuditLog(t.Context(), path, keys, nil); !errors.Is(err, ErrInsecurePermissions) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open to others: %v", err)
	}
	if _, err := VerifyAuditLog(t.Context(), path, keys, nil); !errors.Is(err, ErrInsecurePermissions) {
		t.Errorf("verifying what is open to others: %v", err)
	}
}

func TestRecordRefusals(t *testing.T) {
	l, path, keys := startAuditLog(t, &AuditLogOptions{OnFailure: AuditGoOn})
	writeNotes(t, l, 0, 1)
	for what, c := range map[string]struct {
		e    Event
		want error
	}{
		"no type":      {Event{}, ErrInvalidRequest},
		"unknown type": {Event{Type: "request_sealed "}, ErrInvalidRequest},
		"no JSON":      {Event{Type: EventNote, Details: map[string]any{"f": func() {}}}, ErrInvalidRequest},
		"infinite":     {Event{Type: EventNote, Details: map[string]any{"s": circle()}}, ErrInvalidRequest},
		"large":        {Event{Type: EventNote, Details: map[string]any{"s": strings.Repeat("x", 64<<10)}}, ErrTooLarge},
	} {
		if err := l.Record(t.Context(), c.e); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := l.Record(t.Context(), Event{Type: EventNote, Details: map[string]any{"s": strings.Repeat("x", 60<<10)}}); err != nil {
		t.Errorf("nearly too large: %v", err)
	}
	if r := mustVerify(t, path, keys, nil); r.Lines != 2 || r.Lost != 0 {
		t.Errorf("%+v", r)
	}
}

func circle() any {
	m := map[string]any{}
	m["m"] = m
	return m
}

// An unfinished last line, of whatever length, is no tampering; the log goes on, and says so.
func TestAuditLogTornLine(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	writeNotes(t, l, 0, 3)
	l.Close()
	whole := readLog(t, path)
	lines := logLines(t, path)
	last := len(lines[2])
	for cut := 1; cut < last; cut++ {
		writeLog(t, path, whole[:len(whole)-cut])
		mustFind(t, "torn", path, keys, nil, AuditLogError{File: "audit.log", Line: 3, Seq: 3, Finding: AuditTorn})
		if cut%7 != 1 && cut != last-1 {
			continue
		}
		l := openAuditLog(t, path, keys, nil)
		writeNotes(t, l, 3, 5)
		if r := mustVerify(t, path, keys, nil); r.Torn != 1 || r.Lines != 4 || r.Head != l.Head() {
			t.Fatalf("cut %d: %+v", cut, r)
		}
		l.Close()
		// The note vouches for the unfinished line, too.
		after := logLines(t, path)
		after[2][0] ^= 1
		writeLog(t, path, bytes.Join(after, nil))
		mustFind(t, "fragment changed", path, keys, nil, AuditLogError{File: "audit.log", Line: 3, Seq: 3, Finding: AuditChanged})
		writeLog(t, path, bytes.Join(append(after[:2], after[3:]...), nil))
		mustFind(t, "fragment removed", path, keys, nil, AuditLogError{File: "audit.log", Line: 3, Seq: 3, Finding: AuditRemoved})
	}
	// Zeros, as some file systems leave them after a power cut.
	writeLog(t, path, append(bytes.Clone(whole[:len(whole)-last/2]), make([]byte, 100)...))
	mustFind(t, "zeros", path, keys, nil, AuditLogError{File: "audit.log", Line: 3, Finding: AuditTorn})
	for what, text := range map[string][]byte{"half": whole[:len(whole)-last/2], "nothing": whole[:len(whole)-last]} {
		for _, zeros := range []int{64<<10 - last/2, 64 << 10, 1 << 20} {
			writeLog(t, path, append(bytes.Clone(text), make([]byte, zeros)...))
			mustFind(t, what+" and zeros", path, keys, nil, AuditLogError{File: "audit.log", Line: 3, Finding: AuditTorn})
			l = openAuditLog(t, path, keys, nil)
			writeNotes(t, l, 3, 5)
			if r := mustVerify(t, path, keys, nil); r.Lines != 4 || what == "half" && r.Torn != 1 {
				t.Errorf("%s and %d zeros: %+v", what, zeros, r)
			}
			l.Close()
		}
	}
	writeLog(t, path, append(append(bytes.Clone(whole), make([]byte, 1<<20)...), 'x'))
	mustFind(t, "zeros and more", path, keys, nil, AuditLogError{File: "audit.log", Line: 4, Finding: AuditChanged})
	// What no writer of the log begins with is nobody's unfinished line, also after the log went on.
	writeLog(t, path, append(bytes.Clone(whole), "{\"seq\":5,"...))
	mustFind(t, "appended", path, keys, nil, AuditLogError{File: "audit.log", Line: 4, Seq: 4, Finding: AuditChanged})
	l = openAuditLog(t, path, keys, nil)
	writeNotes(t, l, 3, 4)
	mustFind(t, "appended, then gone on", path, keys, nil, AuditLogError{File: "audit.log", Line: 4, Seq: 4, Finding: AuditChanged})
}

// What a running process has written cannot be taken back under its hands.
func TestAuditLogNoticesCutsWhileItRuns(t *testing.T) {
	for what, cut := range map[string]func(path string, lines [][]byte) error{
		"a line":     func(path string, lines [][]byte) error { return os.Truncate(path, int64(len(lines[0])+len(lines[1]))) },
		"all":        func(path string, _ [][]byte) error { return os.Truncate(path, 0) },
		"the file":   func(path string, _ [][]byte) error { return os.Remove(path) },
		"half":       func(path string, lines [][]byte) error { return os.Truncate(path, int64(len(lines[0])+30)) },
		"everything": func(path string, _ [][]byte) error { return os.RemoveAll(path + ".lock") },
	} {
		l, path, keys := startAuditLog(t, nil)
		writeNotes(t, l, 0, 3)
		if err := cut(path, logLines(t, path)); err != nil {
			t.Fatal(err)
		}
		writeNotes(t, l, 3, 5)
		_, err := VerifyAuditLog(t.Context(), path, keys, nil)
		if want := what != "everything"; errors.Is(err, ErrAuditTampered) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Close wipes the keys, the older ones too.
func TestAuditLogCloseWipesKeys(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	writeNotes(t, l, 0, 1)
	if err := keys.ChangePassphrase(t.Context(), secret(t, passphrase), secret(t, passphrase2)); err != nil {
		t.Fatal(err)
	}
	old := l.key
	writeNotes(t, l, 1, 2)
	lines := logLines(t, path)
	fits := func(key *auditfile.Key, n int) bool {
		text := bytes.TrimSuffix(lines[n], []byte("\n"))
		line, err := auditfile.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return key.Fits(text, line)
	}
	newest, known := l.key, l.keyOf(1)
	if old == newest || fits(old, 0) || !fits(known, 0) || !fits(newest, 1) {
		t.Errorf("before Close: %v %v %v", fits(old, 0), fits(known, 0), fits(newest, 1))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if fits(known, 0) || fits(newest, 1) {
		t.Error("Close left keys that sign")
	}
}

func TestAuditLogHead(t *testing.T) {
	l, path, keys := startAuditLog(t, nil)
	writeNotes(t, l, 0, 2)
	early := l.Head()
	writeNotes(t, l, 2, 4)
	late := l.Head()
	l.Close()
	lines := logLines(t, path)
	writeLog(t, path, bytes.Join(lines[:3], nil))
	if r := mustVerify(t, path, keys, nil); r.Lines != 3 { // nothing shows
		t.Errorf("%+v", r)
	}
	if r := mustVerify(t, path, keys, &early); !r.HeadChecked {
		t.Errorf("%+v", r)
	}
	mustFind(t, "cut off", path, keys, &late, AuditLogError{File: "audit.log", Line: 4, Seq: 4, Missing: 1, Finding: AuditCutOff})
	writeLog(t, path, nil)
	mustFind(t, "emptied", path, keys, &late, AuditLogError{File: "audit.log", Line: 1, Seq: 1, Missing: 4, Finding: AuditCutOff})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l = openAuditLog(t, path, keys, nil)
	writeNotes(t, l, 10, 16)
	mustFind(t, "another log", path, keys, &late, AuditLogError{File: "audit.log", Line: 4, Seq: 4, Finding: AuditReplaced})

	if h, err := ParseAuditHead(" " + late.String() + "\n"); err != nil || h != late {
		t.Errorf("%v, %v", h, err)
	}
	for _, text := range []string{"", "4", "4-", "-" + strings.Repeat("0", 64), "0-" + strings.Repeat("0", 64), "4-" + strings.Repeat("0", 62), "4-" + strings.Repeat("g", 64), "x-" + strings.Repeat("0", 64), late.String() + "00"} {
		if _, err := ParseAuditHead(text); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAuditLogFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, path, keys := startAuditLog(t, &AuditLogOptions{Flush: FlushEachSecond})
		var syncs atomic.Int32
		var fails atomic.Pointer[error]
		l.sync = func(*os.File) error {
			syncs.Add(1)
			if err := fails.Load(); err != nil {
				return *err
			}
			return nil
		}
		step := func(what string, d time.Duration, want int) {
			time.Sleep(d)
			synctest.Wait()
			if n := int(syncs.Load()); n != want {
				t.Errorf("%s: %d syncs, want %d", what, n, want)
			}
		}
		step("nothing to do", time.Hour, 0)
		writeNotes(t, l, 0, 5)
		step("written, not confirmed", 999*time.Millisecond, 0)
		step("a second later", 2*time.Millisecond, 1)
		step("nothing more", time.Hour, 1)
		failure := error(fs.ErrInvalid)
		fails.Store(&failure)
		writeNotes(t, l, 5, 6)
		step("fails", 2*time.Second, 2)
		fails.Store(nil)
		if err := l.Record(t.Context(), note(6)); !errors.Is(err, ErrUnconfirmed) || !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("after a failure in the background: %v", err)
		}
		if r := mustVerify(t, path, keys, nil); r.Lines != 7 || r.Lost != 0 {
			t.Errorf("it is written: %+v", r)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		step("Close confirms, and nothing is left in the background", time.Hour, 3)
	})
	l, _, _ := startAuditLog(t, nil)
	var syncs int
	l.sync = func(*os.File) error { syncs++; return nil }
	writeNotes(t, l, 0, 3)
	if syncs != 3 {
		t.Errorf("%d syncs for 3 events", syncs)
	}
	l.sync = func(*os.File) error { return fs.ErrInvalid }
	if err := l.Record(t.Context(), note(3)); !errors.Is(err, ErrUnconfirmed) || !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("unconfirmed: %v", err)
	}
}

// Close comes while others write: each event is written or refused, none is lost.
func TestAuditLogCloseRace(t *testing.T) {
	for _, flush := range []AuditFlush{FlushEachEvent, FlushEachSecond} {
		l, path, keys := startAuditLog(t, &AuditLogOptions{Flush: flush})
		var wg sync.WaitGroup
		var mu sync.Mutex
		written := 0
		for i := range 8 {
			wg.Go(func() {
				for n := range 20 {
					err := l.Record(context.Background(), note(n))
					mu.Lock()
					switch {
					case err == nil:
						written++
					case !errors.Is(err, ErrClosed):
						t.Error(err)
					}
					mu.Unlock()
					_ = l.Head()
				}
			})
			if i == 4 {
				wg.Go(func() {
					if err := l.Close(); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if r := mustVerify(t, path, keys, nil); int(r.Lines) != written {
			t.Errorf("%d lines, %d were reported", r.Lines, written)
		}
	}
}

// A call that ends while another process has the log is told so, and counted.
func TestAuditLogLost(t *testing.T) {
	for _, policy := range []AuditFailure{AuditStop, AuditGoOn} {
		l, path, keys := startAuditLog(t, &AuditLogOptions{OnFailure: policy})
		lock, err := l.dir.Lock(t.Context(), l.name+lockSuffix)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err = l.Record(ctx, note(0))
		cancel()
		if policy == AuditStop && !errors.Is(err, ErrLocked) || policy == AuditGoOn && err != nil {
			t.Errorf("%v: %v", policy, err)
		}
		l.turn <- struct{}{}
		err = l.Record(ctx, note(1))
		<-l.turn
		if policy == AuditStop && !errors.Is(err, context.DeadlineExceeded) || policy == AuditGoOn && err != nil {
			t.Errorf("%v: %v", policy, err)
		}
		if err := lock.Unlock(); err != nil {
			t.Fatal(err)
		}
		writeNotes(t, l, 2, 4)
		if r := mustVerify(t, path, keys, nil); r.Lines != 2 || r.Lost != 2 {
			t.Errorf("%+v", r)
		}
		if lines := logLines(t, path); !bytes.Contains(lines[0], []byte(`,"lost":2,`)) || bytes.Contains(lines[1], []byte(`"lost"`)) {
			t.Errorf("%s", lines)
		}
		if err := l.Close(); err != nil {
			t.Errorf("it was said: %v", err)
		}
	}
}

// Files are ended by size and dropped by number; the chain goes on over them. What somebody else removes shows, and what
// is left stays.
func TestRotatedAuditLog(t *testing.T) {
	o := &AuditLogOptions{MaxFileBytes: 64 << 10, MaxFiles: 3}
	l, path, keys := startAuditLog(t, o)
	fill := func(files int) {
		t.Helper()
		large := Event{Type: EventNote, Details: map[string]any{"s": strings.Repeat("x", 20_000)}}
		for range 3 * files { // three fit into one
			if err := l.Record(t.Context(), large); err != nil {
				t.Fatal(err)
			}
		}
	}
	older := func(r *AuditReport, i int) string { return r.Files[i] }
	fill(2)
	r := mustVerify(t, path, keys, nil)
	if r.Lines != 6 || r.First != 1 || len(r.Files) != 2 || filepath.Base(older(r, 0)) != "audit.log.000001" {
		t.Errorf("%+v", r)
	}
	early := l.Head()
	fill(4)
	r = mustVerify(t, path, keys, nil)
	if r.Lines != 9 || r.First != 10 || len(r.Files) != 3 || filepath.Base(older(r, 0)) != "audit.log.000004" {
		t.Errorf("%+v", r)
	}
	if r := mustVerify(t, path, keys, &early); r.HeadChecked {
		t.Error("its line was dropped")
	}
	for _, file := range r.Files {
		if info, err := os.Stat(file); err != nil || info.Size() > o.MaxFileBytes || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	text := readLog(t, older(r, 1))
	writeLog(t, older(r, 1), text[:len(text)-1])
	mustFind(t, "only the line feed cut", path, keys, nil, AuditLogError{File: "audit.log.000005", Line: 3, Seq: 15, Finding: AuditChanged})
	writeLog(t, older(r, 1), text)
	// A crash between two files: the current one is missing, or empty.
	l.Close()
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), "audit.log.000006")); err != nil {
		t.Fatal(err)
	}
	head := AuditHead(mustVerify(t, path, keys, &r.Head).Head)
	l = openAuditLog(t, path, keys, o)
	if l.Head() != head {
		t.Errorf("the head is %v, want %v", l.Head(), head)
	}
	mustVerify(t, path, keys, &head)
	fill(1)
	r = mustVerify(t, path, keys, &head)
	if r.First != 13 || r.Lines != 9 || len(r.Files) != 3 {
		t.Errorf("%+v", r)
	}
	// Somebody removes the oldest file, and later the limit would have.
	if err := os.Remove(older(r, 0)); err != nil {
		t.Fatal(err)
	}
	mustFind(t, "oldest removed", path, keys, nil, AuditLogError{File: "audit.log.000006", Line: 1, Seq: 13, Missing: 3, Finding: AuditRemoved})
	fill(1)
	mustFind(t, "and one written", path, keys, nil, AuditLogError{File: "audit.log.000006", Line: 1, Seq: 13, Missing: 3, Finding: AuditRemoved})
	fill(1)
	mustFind(t, "and another one", path, keys, nil, AuditLogError{File: "audit.log.000006", Line: 1, Seq: 13, Missing: 3, Finding: AuditRemoved})
	if _, err := os.Stat(older(r, 1)); err != nil {
		t.Errorf("what is left was deleted: %v", err)
	}
}
