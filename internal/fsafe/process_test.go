// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	childVar = "FSAFE_TEST_CHILD" // the name of the child that this process is to be
	dirVar   = "FSAFE_TEST_DIR"
)

// children are what the test binary does instead of testing when it runs itself again.
var children = map[string]func(d *Dir) error{
	"writer":  childWriter,
	"counter": childCounter,
	"holder":  childHolder,
	"saver":   childSaver,
	"full":    childFull,
	"write":   func(d *Dir) error { return dieAt(d, "write") },
	"sync":    func(d *Dir) error { return dieAt(d, "sync") },
	"rename":  func(d *Dir) error { return dieAt(d, "rename") },
	"syncDir": func(d *Dir) error { return dieAt(d, "syncDir") },
}

func TestMain(m *testing.M) {
	name := os.Getenv(childVar)
	if name == "" {
		os.Exit(m.Run())
	}
	d, err := OpenDir(os.Getenv(dirVar))
	if err == nil {
		err = children[name](d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// command returns a child that is not started yet.
func command(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	return testkit.Child(t, []string{childVar + "=" + name, dirVar + "=" + dir})
}

// start starts a child and returns its output.
func start(t *testing.T, name, dir string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := command(t, name, dir)
	_, out := testkit.StartChild(t, cmd)
	return cmd, out
}

// whole makes a version of a file of which every part can be told from every other version.
func whole(n int) []byte {
	body := bytes.Repeat([]byte(strconv.Itoa(n)+" "), 1+rand.IntN(2000))
	sum := sha256.Sum256(body)
	return append(sum[:], body...)
}

func checkWhole(data []byte) error {
	if len(data) < sha256.Size || sha256.Sum256(data[sha256.Size:]) != [sha256.Size]byte(data) {
		return fmt.Errorf("torn: %d bytes", len(data))
	}
	return nil
}

func childWriter(d *Dir) error {
	for i := range 12 {
		if err := d.WriteFile("f", whole(i)); err != nil {
			return err
		}
		data, err := d.ReadFile("f", 1<<20)
		if err != nil {
			return err
		}
		if err := checkWhole(data); err != nil {
			return err
		}
	}
	return nil
}

// TestManyWriters has 8 processes and 4 goroutines replace one file at once, without a lock.
func TestManyWriters(t *testing.T) {
	d := newDir(t)
	if err := d.WriteFile("f", whole(0)); err != nil {
		t.Fatal(err)
	}
	var writers, readers sync.WaitGroup
	for range 8 {
		cmd, _ := start(t, "writer", d.Path())
		writers.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Error("child:", err)
			}
		})
	}
	for range 4 {
		writers.Go(func() {
			if err := childWriter(d); err != nil {
				t.Error(err)
			}
		})
	}
	done := make(chan struct{})
	reads := 0
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			data, err := d.ReadFile("f", 1<<20)
			if err == nil {
				err = checkWhole(data)
			}
			if err != nil {
				t.Error(err)
				return
			}
			reads++
		}
	})
	writers.Wait()
	close(done)
	readers.Wait()
	t.Logf("%d reads beside 144 writes", reads)
	wantNames(t, d, "f")
}

func childCounter(d *Dir) error {
	for range 5 {
		l, err := d.Lock(context.Background(), "l")
		if err != nil {
			return err
		}
		data, err := d.ReadFile("n", 100)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(data))
		if err != nil {
			return err
		}
		if err := d.WriteFile("n", []byte(strconv.Itoa(n+1))); err != nil {
			return err
		}
		if err := l.Unlock(); err != nil {
			return err
		}
	}
	return nil
}

// TestLockBetweenProcesses counts in a file: without the lock, counts get lost.
func TestLockBetweenProcesses(t *testing.T) {
	d := newDir(t)
	write(t, d, "n", "0")
	var wg sync.WaitGroup
	for range 8 {
		cmd, _ := start(t, "counter", d.Path())
		wg.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Error("child:", err)
			}
		})
	}
	wg.Wait()
	wantFile(t, d, "n", "40")
	wantNames(t, d, "l", "n")
}

func childHolder(d *Dir) error {
	if _, err := d.Lock(context.Background(), "l"); err != nil {
		return err
	}
	fmt.Println("locked")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// TestKilledHolder kills a process that holds the lock: the next one gets it.
func TestKilledHolder(t *testing.T) {
	d := newDir(t)
	cmd := command(t, "holder", d.Path())
	in, err := cmd.StdinPipe() // stays open, so that the child stays
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatal(line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = d.Lock(ctx, "l")
	wantErr(t, err, ErrLocked)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	unlock(t, lock(t, d))
}

// dieAt kills its own process in the middle of a step of WriteFile.
func dieAt(d *Dir, step string) error {
	die := func() {
		p, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = p.Kill()
		}
		fmt.Fprintln(os.Stderr, err)
		select {}
	}
	switch step {
	case "write":
		d.ops.write = func(f *os.File, b []byte) (int, error) {
			f.Write(b[:len(b)/2])
			die()
			return 0, nil
		}
	case "sync":
		d.ops.sync = func(*os.File) error { die(); return nil }
	case "rename":
		d.ops.rename = func(_, _ string) error { die(); return nil }
	case "syncDir":
		d.ops.syncDir = func(*os.File) error { die(); return nil }
	}
	return d.WriteFile("f", []byte("new contents"))
}

func TestKilledAtEachStep(t *testing.T) {
	for step, want := range map[string]string{"write": "old", "sync": "old", "rename": "old",
		"syncDir": "new contents"} {
		d := newDir(t)
		write(t, d, "f", "old")
		cmd := command(t, step, d.Path())
		err := cmd.Run()
		if exit := new(exec.ExitError); !errors.As(err, &exit) ||
			exit.Exited() && exit.ExitCode() == 0 {
			t.Fatalf("%s: the child was to die: %v", step, err)
		}
		wantFile(t, d, "f", want)
		left := 1
		if step == "syncDir" {
			left = 0
		}
		l := lock(t, d)
		if n, err := l.RemoveStaleTemps("f"); n != left || err != nil {
			t.Fatalf("%s: removed %d temporary files, %v; want %d", step, n, err, left)
		}
		unlock(t, l)
		wantNames(t, d, "f", "l")
	}
}

func childSaver(d *Dir) error {
	l, err := d.Lock(context.Background(), "l")
	if err != nil {
		return err
	}
	if _, err := l.RemoveStaleTemps("f"); err != nil {
		return err
	}
	for i := 1; ; i++ {
		if err := d.WriteFile("f", append(whole(i),
			strconv.AppendInt([]byte{'\n'}, int64(i), 10)...)); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// TestKilledSaver kills a process that saves in a loop, at random moments: what it reported is
// there.
func TestKilledSaver(t *testing.T) {
	d := newDir(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 8 {
		cmd, out := start(t, "saver", d.Path())
		if _, err := out.Peek(1); err != nil { // it has begun
			t.Fatal(err)
		}
		// real time: this is about processes
		time.Sleep(time.Duration(rng.IntN(15_000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		reported, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			t.Fatal(err)
		}
		data, err := d.ReadFile("f", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		cut := bytes.LastIndexByte(data, '\n')
		saved, err := strconv.Atoi(string(data[cut+1:]))
		if err != nil || checkWhole(data[:cut]) != nil || saved != reported && saved != reported+1 {
			t.Fatalf("seed %d: reported %d, found %d, %v, %v", seed, reported, saved, err,
				checkWhole(data[:cut]))
		}
	}
	l := lock(t, d)
	if _, err := l.RemoveStaleTemps("f"); err != nil {
		t.Fatal(err)
	}
	unlock(t, l)
	wantNames(t, d, "f", "l")
}

// TestChildReportsErrors guards the tests above: a child that fails must be seen to.
func TestChildReportsErrors(t *testing.T) {
	cmd := command(t, "writer", filepath.Join(t.TempDir(), "none"))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err == nil || !strings.HasPrefix(said.String(), "writer: ") {
		t.Fatal(err, said.String())
	}
}
