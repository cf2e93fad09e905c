// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

const childVar, dirVar = "REPLAY_TEST_CHILD", "REPLAY_TEST_DIR"

// children are what the test binary does instead of testing when it runs itself again.
var children = map[string]func(d *fsafe.Dir) error{
	"server": childServer, "claimer": childClaimer, "full": childFull,
}

func TestMain(m *testing.M) {
	name := os.Getenv(childVar)
	if name == "" {
		os.Exit(m.Run())
	}
	d, err := fsafe.CreateDir(os.Getenv(dirVar))
	if err == nil {
		err = children[name](d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// command is a child that is not started yet. It is killed when the test ends.
func command(t testing.TB, name, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), childVar+"="+name, dirVar+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// cache is what both kinds are.
type cache interface {
	Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error)
	Release(ctx context.Context, id [32]byte) error
	Knows(id [32]byte) bool
}

// fakeClock is a clock for all caches of a test.
type fakeClock struct {
	at   time.Time
	aged time.Duration
}

func newFakeClock() *fakeClock { return &fakeClock{at: time.Unix(0, time.Now().UnixNano())} }

func (c *fakeClock) clock() clock {
	return clock{now: func() time.Time { return c.at }, age: func() time.Duration { return c.aged }}
}

func (c *fakeClock) pass(d time.Duration) { c.at, c.aged = c.at.Add(d), c.aged+d }

func openFolder(t testing.TB, path string) *fsafe.Dir {
	t.Helper()
	d, err := fsafe.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func newFolder(t testing.TB) *fsafe.Dir {
	t.Helper()
	return openFolder(t, filepath.Join(t.TempDir(), "keys"))
}

// openFile is a process of its own on the folder, as far as the file can tell.
func openFile(t testing.TB, d *fsafe.Dir, entries int, c *fakeClock) *File {
	t.Helper()
	f := NewFile(d, entries)
	if c != nil {
		f.clock = c.clock()
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// remote is a File in another process, whose clock is the test's.
type remote struct {
	t     testing.TB
	clock *fakeClock
	in    io.Writer
	out   *bufio.Reader
}

const serverEntries = 8

func childServer(d *fsafe.Dir) error {
	c := &fakeClock{}
	f := NewFile(d, serverEntries)
	f.clock, f.spare = c.clock(), 16
	defer f.Close()
	for {
		var op string
		var id, client byte
		var until, now int64
		_, err := fmt.Fscanln(os.Stdin, &op, &id, &client, &until, &now, &c.aged)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.at = time.Unix(0, now)
		var ok bool
		switch op {
		case "claim":
			ok, err = f.Claim(context.Background(), [32]byte{id}, [32]byte{client},
				time.Unix(0, until))
		case "release":
			err = f.Release(context.Background(), [32]byte{id})
		}
		fmt.Println(ok, errors.Is(err, ErrFull))
		if err != nil && !errors.Is(err, ErrFull) {
			return err
		}
	}
}

func startRemote(t testing.TB, dir string, c *fakeClock) *remote {
	t.Helper()
	cmd := command(t, "server", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("child:", err)
		}
	})
	return &remote{t, c, in, bufio.NewReader(out)}
}

func (r *remote) ask(op string, id, client byte, until time.Time) (ok bool, err error) {
	fmt.Fprintln(r.in, op, id, client, until.UnixNano(), r.clock.at.UnixNano(), int64(r.clock.aged))
	var full bool
	if _, err := fmt.Fscanln(r.out, &ok, &full); err != nil {
		r.t.Fatal("the child says:", err)
	}
	if full {
		err = ErrFull
	}
	return ok, err
}

func (r *remote) Claim(_ context.Context, id, client [32]byte, until time.Time) (bool, error) {
	return r.ask("claim", id[0], client[0], until)
}

func (r *remote) Release(_ context.Context, id [32]byte) error {
	_, err := r.ask("release", id[0], 0, time.Unix(0, 0))
	return err
}

func (r *remote) Knows([32]byte) bool { panic("not asked of another process") }

// TestConformance asks caches of every kind the same, in random order, and wants the same answers.
func TestConformance(t *testing.T) {
	kinds := map[string]func(t *testing.T, c *fakeClock) func() cache{
		"one file": func(t *testing.T, c *fakeClock) func() cache {
			f := openFile(t, newFolder(t), serverEntries, c)
			f.spare = 16
			return func() cache { return f }
		},
		"opened again and again": func(t *testing.T, c *fakeClock) func() cache {
			d := newFolder(t)
			var last *File
			return func() cache {
				if last != nil {
					last.crash()
				}
				last = openFile(t, d, serverEntries, c)
				last.spare = 16
				return last
			}
		},
		"three on one file": func(t *testing.T, c *fakeClock) func() cache {
			d := newFolder(t)
			var files [3]*File
			for i := range files {
				files[i] = openFile(t, d, serverEntries, c)
				files[i].spare = 16
			}
			return func() cache { return files[rand.IntN(3)] }
		},
		"two processes": func(t *testing.T, c *fakeClock) func() cache {
			d := newFolder(t)
			p := []*remote{startRemote(t, d.Path(), c), startRemote(t, d.Path(), c)}
			return func() cache { return p[rand.IntN(2)] }
		},
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				seed := rand.Uint64()
				c := newFakeClock()
				conform(t, seed, c, kind(t, c))
			}
		})
	}
}

func conform(t *testing.T, seed uint64, c *fakeClock, pick func() cache) {
	random := rand.New(rand.NewPCG(seed, 0))
	memory := NewMemory(serverEntries)
	memory.clock = c.clock()
	said := map[string]int{}
	for i := range 600 {
		id, client := [32]byte{byte(random.IntN(24))}, [32]byte{byte(random.IntN(3))}
		other := pick()
		switch random.IntN(8) {
		case 0, 1:
			if err := errors.Join(memory.Release(t.Context(), id),
				other.Release(t.Context(), id)); err != nil {
				t.Fatal(err)
			}
			continue
		case 2:
			c.pass(time.Duration(random.IntN(6)) * time.Second)
		case 3:
			if f, ok := other.(*File); ok { // one that has read to the end
				_ = f.Release(t.Context(), [32]byte{255})
				f.readAll(t)
				if got, want := f.Knows(id), memory.Knows(id); got != want {
					t.Fatalf("seed %d, step %d: knows %v, want %v", seed, i, got, want)
				}
			}
		}
		until := c.at.Add(20 * time.Second)
		if client == ([32]byte{}) { // protocol v1 has one window for all
			until = c.at.Add(time.Duration(1+random.IntN(40)) * time.Second)
		}
		want, wantErr := memory.Claim(t.Context(), id, client, until)
		got, err := other.Claim(t.Context(), id, client, until)
		if got != want || errors.Is(err, ErrFull) != (wantErr != nil) ||
			err != nil && wantErr == nil {
			t.Fatalf("seed %d, step %d: id %d of client %d: %v, %v; want %v, %v",
				seed, i, id[0], client[0], got, err, want, wantErr)
		}
		said[fmt.Sprint(want, " ", wantErr)]++
	}
	for _, answer := range []string{"true <nil>", "false <nil>", "false full"} {
		if said[answer] == 0 {
			t.Errorf("seed %d: no answer was %s", seed, strings.TrimSpace(answer))
		}
	}
}

// crash lets go of the file as the end of the process would.
func (f *File) crash() {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	f.pending = false
	f.drop()
}

func (f *File) readAll(t *testing.T) {
	t.Helper()
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if err := f.lockCurrent(); err != nil {
		t.Fatal(err)
	}
	if err := fsafe.UnlockFile(f.file); err != nil {
		t.Fatal(err)
	}
}
