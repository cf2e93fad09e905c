// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"io"
	"os"
	"os/signal"
	"sync"
	"time"
)

const (
	closePatience = 5 * time.Second // for one closer; a key that is being generated takes up to 3.5 s
	raisePatience = time.Second     // for a signal to end the process
)

// CloseOnSignal is for programs that have no signal handling of their own. On SIGINT or SIGTERM (on Windows Ctrl-C, and the
// end of the console, the session or the system) it closes the closers, in the order given, and then lets the signal take
// its usual course, which ends the process with the signal's status. A Close that takes more than 5 s is no longer waited
// for, one that panics does not keep the others from their turn, and a second signal ends the process at once. A signal
// that the process ignores (nohup) stays ignored.
//
// A program that also listens with [signal.Notify] gets the signal when it arrives, and again when the closing is done; its
// handler then keeps the process alive, except on Windows. Call Close in that handler instead. Call CloseOnSignal once,
// with everything: of two the first that is done ends the process.
//
// stop ends the listening. When a signal came before, it waits for the closing, so that "defer stop()" in main does not
// cut it short; a closer must not call it. It may be called several times, by several goroutines.
func CloseOnSignal(closers ...io.Closer) (stop func()) {
	arrived := make(chan os.Signal, 2)
	for _, s := range endingSignals() {
		if !signal.Ignored(s) { // Notify would end that
			signal.Notify(arrived, s)
		}
	}
	stopping, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case first := <-arrived:
			last := closeAll(closers, first, arrived)
			signal.Stop(arrived)
			raise(last)
		case <-stopping:
			signal.Stop(arrived)
			select {
			case first := <-arrived: // just before: nobody else will see it
				raise(closeAll(closers, first, arrived))
			default:
			}
		}
	}()
	end := sync.OnceFunc(func() { close(stopping) })
	return func() {
		end()
		<-done
	}
}

// closeAll returns when all are closed or given up, or with a second signal, and returns the signal to end with.
func closeAll(closers []io.Closer, first os.Signal, arrived <-chan os.Signal) os.Signal {
	for _, c := range closers {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			defer func() { _ = recover() }() // the process ends by the signal, and in order
			_ = c.Close()
		}()
		patience := time.NewTimer(closePatience)
		select {
		case <-closed:
		case <-patience.C:
		case second := <-arrived:
			return second
		}
		patience.Stop()
	}
	return first
}
