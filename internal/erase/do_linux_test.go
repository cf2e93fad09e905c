// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !(goexperiment.runtimesecret && (amd64 || arm64))

package erase

import (
	"bytes"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mask(t *testing.T) unix.Sigset_t {
	t.Helper()
	var now unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, nil, &now); err != nil {
		t.Fatal(err)
	}
	return now
}

// Inside, signals wait; afterwards the thread is as it was, however the work ended.
func TestDoBlocksSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := mask(t)
	Do(func() {
		inside := mask(t)
		for _, s := range []unix.Signal{unix.SIGURG, unix.SIGPROF, unix.SIGCHLD, unix.SIGTERM,
			unix.SIGUSR1} {
			if !hasSignal(inside, s) {
				t.Errorf("signal %d can interrupt", s)
			}
		}
		for _, s := range []unix.Signal{unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, 33} {
			if hasSignal(inside, s) {
				t.Errorf("signal %d waits", s)
			}
		}
	})
	if mask(t) != before {
		t.Error("the mask has changed")
	}
	func() {
		defer func() { _ = recover() }()
		Do(func() { panic("x") })
	}()
	if mask(t) != before {
		t.Error("the mask has changed after a panic")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer func() {
			if hasSignal(mask(t), unix.SIGURG) {
				t.Error("the mask has changed after Goexit")
			}
		}()
		Do(runtime.Goexit)
	})
	wg.Wait()
}

// What f wrote into its frame is gone, and with the collector at work all the while the frame has
// not moved.
func TestDoClearsTheStack(t *testing.T) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	done := make(chan struct{})
	go func() { // with a stack of its own, which is small to begin with
		defer close(done)
		for range 20 {
			var at uintptr
			moved := false
			Do(func() { at, moved = plant() })
			if moved {
				t.Error("the stack moved with a secret on it")
			}
			// this goroutine's own stack
			if bytes.Equal((*[32]byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at)))[:], pattern[:]) {
				t.Error("the secret is still on the stack")
			}
		}
	}()
	<-done
}

var pattern = [32]byte{0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
	13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 0x99}

//go:noinline
func plant() (at uintptr, moved bool) {
	frame := pattern
	at = uintptr(unsafe.Pointer(&frame))
	for range 4 {
		runtime.Gosched() // where the collector may shrink this stack
	}
	moved = uintptr(unsafe.Pointer(&frame)) != at
	frame[0]++
	frame[0]--
	return at, moved
}
