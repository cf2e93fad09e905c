// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// What works on many bytes at once leaves the last of them in vector registers. A signal writes
// these into a frame that nobody clears, at any moment: a test that looks at memory afterwards
// finds that once in many runs. This one stops the client's threads whenever they enter the kernel,
// leave it, or are about to take a signal, and looks at the registers themselves.

// registerSizes are prompts in characters: copies of different lengths use different registers.
var registerSizes = []int{40, 100, 300, memoryPromptSize, 3000, 20_000, 100_000}

// TestNoContentInRegisters has a client make rounds while it is traced. No vector register may hold
// a piece of a prompt or of an answer where a signal could write it down: outside erase.Do.
func TestNoContentInRegisters(t *testing.T) {
	if underRace || runtimeSecret {
		// runtime/secret clears signal frames itself, and its sections cannot be seen from outside
		t.Skip("what is measured is the ordinary build")
	}
	for _, protocol := range slices.Sorted(maps.Keys(memoryProtocols)) {
		t.Run(protocol, func(t *testing.T) {
			r := startMemoryRun(t, memoryScenario{protocol: protocol})
			r.tell("warm")
			w := watchRegisters(t, r.cmd.Process.Pid)
			for _, size := range registerSizes {
				for _, rest := range []string{"", `,"stream":true`, `,"n":1,"user":"someone"`} {
					prompt := randomText(size)
					w.lookFor(r.registerSecrets(prompt))
					r.tell("round", fmt.Appendf(nil,
						`{"model":"m","messages":[{"role":"user","content":"%s"}]%s}`, prompt, rest))
					w.mustFindNothing(fmt.Sprintf("a prompt of %d characters%s", size, rest))
				}
			}
			w.control(r.memoryProcess)
		})
	}
}

// TestNoKeysInRegisters has a client open a key store, import a key and seal for the disk in the
// same way.
func TestNoKeysInRegisters(t *testing.T) {
	if underRace || runtimeSecret {
		t.Skip("what is measured is the ordinary build")
	}
	dir, passphrase := filepath.Join(t.TempDir(), "store"), randomText(40)
	stored, imported := testkit.Key(t, "client-4096"), testkit.Key(t, "other-4096")
	file := writeKeyStore(t, dir, passphrase, stored)
	secrets := append(storeSecrets(t, file, passphrase, stored), keySecrets("the key's", stored)...)
	secrets = append(secrets, keySecrets("the imported key's", imported)...)
	apiKey := randomText(48)
	secrets = append(secrets,
		testkit.MemorySecret{Row: rowAPIKey, Name: "API key", Bytes: apiKey})
	p := startMemoryProcess(t, "client")
	w := watchRegisters(t, p.cmd.Process.Pid)
	w.lookFor(secrets)
	p.tell("open "+dir+" http://127.0.0.1:1 "+strings.Repeat("0", 64)+" v1", passphrase, apiKey)
	p.tell("import", testkit.KeyPEM(t, "other-4096"))
	p.tell("rest")
	p.tell("close")
	w.mustFindNothing("opening, importing, sealing for the disk, closing")
	w.control(p)
}

// TestNoConfigKeysInRegisters has a gateway load its keys for Oblivious HTTP, sign lists and open
// requests in the same way.
func TestNoConfigKeysInRegisters(t *testing.T) {
	if underRace || runtimeSecret {
		t.Skip("what is measured is the ordinary build")
	}
	dir, passphrase := filepath.Join(t.TempDir(), "store"), randomText(40)
	writeKeyStore(t, dir, passphrase, testkit.Key(t, "rsa-2048"))
	maker := startMemoryProcess(t, "client")
	maker.tell("serve "+dir, passphrase)
	maker.tell("end")
	p := startMemoryProcess(t, "client")
	w := watchRegisters(t, p.cmd.Process.Pid)
	w.lookFor(configSecrets(t, dir, passphrase))
	g := &gatewayMemory{memoryRun: &memoryRun{memoryProcess: p}}
	g.use("http://" + p.tell("serve "+dir, passphrase))
	p.tell("end")
	w.mustFindNothing("loading, signing, opening, closing")
	w.control(p)
}

// registerSecrets are a prompt and its answer, and what the client has in its key store. The API
// key is a header in version 1, and so a string; over Oblivious HTTP it is sealed.
func (r *memoryRun) registerSecrets(prompt []byte) []testkit.MemorySecret {
	all := slices.DeleteFunc(slices.Clone(r.fixed), func(s testkit.MemorySecret) bool {
		return s.Row == rowAPIKey && r.protocol == "v1"
	})
	return append(all,
		testkit.MemorySecret{Row: rowContent, Name: "prompt", Bytes: prompt},
		testkit.MemorySecret{Row: rowContent, Name: "answer", Bytes: memoryAnswer(string(prompt))})
}

// registerWatch traces a process until that ends.
type registerWatch struct {
	t       testing.TB
	search  atomic.Pointer[testkit.SecretSearch]
	outside atomic.Int64 // how often registers were looked at
	within  atomic.Int64 // how often a thread was in erase.Do, and they were not

	mu   sync.Mutex
	seen []string
}

func (w *registerWatch) lookFor(secrets []testkit.MemorySecret) {
	w.search.Store(testkit.NewSecretSearch(secrets))
}

// found returns what was seen since the last call.
func (w *registerWatch) found() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

func (w *registerWatch) mustFindNothing(when string) {
	w.t.Helper()
	for _, s := range w.found() {
		w.t.Errorf("%s: %s", when, s)
	}
}

// control has the process make an ordinary copy, which leaves something in registers.
func (w *registerWatch) control(p *memoryProcess) {
	w.t.Helper()
	if outside, within := w.outside.Load(), w.within.Load(); outside < 100 || within < 10 {
		w.t.Errorf("control: threads were looked at %d times, and %d times in erase.Do", outside,
			within)
	}
	planted := randomText(memoryPromptSize)
	w.lookFor([]testkit.MemorySecret{{Row: "control", Name: "a copy", Bytes: planted}})
	p.tell("plant heap", planted)
	if len(w.found()) == 0 {
		w.t.Error("control: what an ordinary copy leaves in registers is not found")
	}
}

// watchRegisters begins to trace a process, which the end of the test kills. One thread does all of
// it: that is how ptrace works.
func watchRegisters(t *testing.T, pid int) *registerWatch {
	t.Helper()
	w := &registerWatch{t: t}
	began, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := seizeThreads(pid)
		began <- err
		if err == nil {
			w.trace()
		}
	}()
	if err := <-began; errors.Is(err, unix.EPERM) && os.Getenv(memoryVar) != "full" {
		t.Skipf("this process may not trace its children: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		<-ended
	})
	return w
}

// seizeThreads attaches to all threads of a process, and stops them.
func seizeThreads(pid int) error {
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	seized := make(map[int]bool)
	for again := true; again; { // until no thread is new: those of a seized one are traced already
		again = false
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			return err
		}
		for _, path := range threads {
			tid, err := strconv.Atoi(filepath.Base(path))
			if err != nil || seized[tid] {
				continue
			}
			seized[tid], again = true, true
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, options)
			if err == nil {
				err = unix.PtraceInterrupt(tid)
			} else if len(seized) > 1 && errors.Is(err, unix.EPERM) {
				err = nil // it came with the thread that started it
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("ptrace: %w", err)
			}
		}
	}
	return nil
}

// trace has the threads run from one entry to or exit from the kernel to the next.
func (w *registerWatch) trace() {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return // ECHILD: all have ended
		}
		if !status.Stopped() {
			continue
		}
		signal, isEvent := status.StopSignal(), status>>16 != 0
		switch {
		case isEvent:
			signal = 0
		case signal == unix.SIGTRAP|0x80: // entry or exit
			w.look(tid)
			signal = 0
		default: // a signal is about to come
			w.look(tid)
		}
		_ = unix.PtraceSyscall(tid, int(signal)) // fails if the thread was killed
	}
}

// look searches the vector registers of a thread that has stopped, unless it is in erase.Do. That
// holds SIGURG back, with which the runtime interrupts, and not SIGABRT.
func (w *registerWatch) look(tid int) {
	var mask uint64
	if ptrace(unix.PTRACE_GETSIGMASK, tid, unsafe.Sizeof(mask),
		uintptr(unsafe.Pointer(&mask))) != nil {
		return // the thread was killed
	}
	if mask>>(unix.SIGURG-1)&1 == 1 && mask>>(unix.SIGABRT-1)&1 == 0 {
		w.within.Add(1)
		return
	}
	var state [16 << 10]byte // as XSAVE writes it
	const vectors = 0x202    // NT_X86_XSTATE
	v := unix.Iovec{Base: &state[0], Len: uint64(len(state))}
	if ptrace(unix.PTRACE_GETREGSET, tid, vectors, uintptr(unsafe.Pointer(&v))) != nil {
		return
	}
	w.outside.Add(1)
	search := w.search.Load()
	if search == nil {
		return
	}
	for _, m := range search.Find(state[:v.Len]) {
		const registers = 160 // where X0 lies
		w.mu.Lock()
		w.seen = append(w.seen, fmt.Sprintf("%s in X%d (at %d)", m, (m.At-registers)/16, m.At))
		w.mu.Unlock()
	}
}

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0,
		0); errno != 0 {
		return errno
	}
	return nil
}
