// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package erase

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const stackVar = "SEALEDCHAT_TEST_STACK" // set in the child of TestDoOnLargeStacks

// stackDepths are how much of the stack was in use before, in KiB.
var stackDepths = []int{0, 30, 60, 100, 150, 200, 400, 1000, 3000}

// stackUses are ways to call Do. Each plants secrets with collect, which runs collections.
var stackUses = []struct {
	name string
	run  func(c *stackCase)
}{
	{"used before", func(c *stackCase) {
		deeper(c.kib, func() {})
		Do(c.secret)
	}},
	{"in use", func(c *stackCase) { deeper(c.kib, func() { Do(c.secret) }) }},
	{"half in use", func(c *stackCase) {
		deeper(c.kib, func() {})
		deeper(c.kib/2, func() { Do(c.secret) })
	}},
	{"nested", func(c *stackCase) {
		deeper(c.kib, func() {})
		Do(func() { c.around(func() { Do(c.secret) }) })
	}},
	{"nested, in use", func(c *stackCase) {
		deeper(c.kib, func() { Do(func() { c.around(func() { Do(c.secret) }) }) })
	}},
	{"nested, further down", func(c *stackCase) {
		deeper(c.kib, func() {})
		Do(func() {
			c.around(func() {
				deeper(8, func() { Do(func() { deeper(8, func() { Do(c.secret) }) }) })
				Do(c.secret) // and again
			})
		})
	}},
	{"many times", func(c *stackCase) {
		for range 5 {
			deeper(c.kib, func() {})
			Do(c.secret)
			runtime.GC() // which halves the stack
			Do(c.secret)
		}
	}},
	{"that panics", func(c *stackCase) {
		deeper(c.kib, func() {})
		defer func() { _ = recover() }()
		Do(func() { c.around(func() { panic("x") }) })
	}},
	{"on a locked thread", func(c *stackCase) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		deeper(c.kib, func() {})
		Do(func() { c.around(func() { Do(c.secret) }) })
	}},
}

// stackCase is one use at one depth. Its secret is known to both processes, and lies in frames of
// around only: the collector moves these frames, if it moves the stack.
type stackCase struct {
	seed uint64
	kib  int
}

// stackCases calls each for all uses at all depths.
func stackCases(each func(name string, run func(c *stackCase), c *stackCase)) {
	seed := uint64(1)
	for _, u := range stackUses {
		for _, kib := range stackDepths {
			each(fmt.Sprintf("%d KiB %s", kib, u.name), u.run, &stackCase{seed, kib})
			seed++
		}
	}
}

// fill makes the secret of a seed: splitmix64.
func fill(b *[64]byte, seed uint64) {
	x := seed << 32
	for i := 0; i < len(b); i += 8 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(b[i:], z^z>>31)
	}
}

// secret has the secret in its frame while the collector works.
//
//go:noinline
func (c *stackCase) secret() { c.around(func() {}) }

//go:noinline
func (c *stackCase) around(f func()) {
	var frame [64]byte
	fill(&frame, c.seed)
	for range 2 {
		runtime.GC()
		runtime.Gosched()
	}
	f()
	runtime.GC()
	if frame[0]^frame[1]^frame[63] == 0 {
		fill(&frame, c.seed)
	}
	runtime.KeepAlive(&frame)
}

// deeper calls f with so much more of the stack in use.
//
//go:noinline
func deeper(kib int, f func()) {
	if kib <= 0 {
		f()
		return
	}
	var frame [1 << 10]byte
	deeper(kib-1, f)
	runtime.KeepAlive(&frame)
}

// TestStackChild is the process that TestDoOnLargeStacks reads. It is told the number of a case,
// runs it on a new goroutine, which stays, and answers.
func TestStackChild(t *testing.T) {
	how := os.Getenv(stackVar)
	if how == "" {
		t.Skip("it is for TestDoOnLargeStacks")
	}
	stay := make(chan struct{})
	defer close(stay)
	runs := make(map[string]func())
	stackCases(func(_ string, run func(*stackCase), c *stackCase) {
		if how == "control" { // without Do
			run = func(c *stackCase) { deeper(4, c.secret) } // below what the goroutine does next
		}
		runs[fmt.Sprint(c.seed)] = func() { run(c) }
	})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		done := make(chan struct{})
		go func() {
			runs[lines.Text()]()
			close(done)
			<-stay
		}()
		<-done
		fmt.Println("done")
	}
}

// The stack that Do runs on is never moved with secrets in it, however large it has been: nothing
// of them is anywhere in the process afterwards. (To read the race detector's memory takes half a
// minute.)
func TestDoOnLargeStacks(t *testing.T) {
	control, careful := startStackChild(t, "control"), startStackChild(t, "Do")
	stackCases(func(name string, _ func(*stackCase), c *stackCase) {
		var b [64]byte
		fill(&b, c.seed)
		search := testkit.NewSecretSearch([]testkit.MemorySecret{{Row: "stack", Name: name,
			Bytes: b[:]}})
		if c.kib == 0 && len(control.hits(c, search)) == 0 {
			t.Errorf("%s: control: without Do nothing is found", name)
		}
		for _, h := range careful.hits(c, search) {
			t.Error(h)
		}
	})
}

type stackChild struct {
	t   *testing.T
	pid int
	in  io.Writer
	out *bufio.Reader
}

func startStackChild(t *testing.T, how string) *stackChild {
	t.Helper()
	cmd := testkit.Child(t, []string{stackVar + "=" + how}, "-test.run=^TestStackChild$",
		"-test.count=1")
	in, out := testkit.StartChild(t, cmd)
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return &stackChild{t, cmd.Process.Pid, in, out}
}

// hits returns the secrets in the memory of the child after it has run the case.
func (s *stackChild) hits(c *stackCase, search *testkit.SecretSearch) []testkit.MemoryHit {
	s.t.Helper()
	fmt.Fprintln(s.in, c.seed)
	if line, err := s.out.ReadString('\n'); err != nil || line != "done\n" {
		s.t.Fatalf("the child says %q, %v", line, err)
	}
	scan, err := testkit.ScanProcess(s.pid, search)
	if errors.Is(err, fs.ErrPermission) {
		s.t.Skipf("this process may not read the memory of its children: %v", err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return scan.Hits
}

// BenchmarkDoOnLargeStacks calls Do where so much of the stack was in use before.
func BenchmarkDoOnLargeStacks(b *testing.B) {
	for _, kib := range append([]int{1}, stackDepths...) {
		b.Run(fmt.Sprintf("%d_KiB", kib), func(b *testing.B) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				deeper(kib, func() {})
				for b.Loop() {
					Do(func() {})
				}
			}()
			<-done
		})
	}
}
