// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"log"
	"net"
	"sync"
	"time"
)

// This file sees to it that prompts and answers do not stay in the memory of a proxy that rests.

// discardLog is a log that nobody reads.
func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// wipedListener accepts connections that leave no content in net/http's buffers.
type wipedListener struct{ net.Listener }

func (l wipedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wipedConn{c}, nil
}

// wipedConn clears the buffers of net/http's server, which stay with a connection, and afterwards
// in a pool.
type wipedConn struct{ net.Conn }

// readBuffer is the size of net/http's buffer for reading. Larger ones are the client's own, which
// clears them itself.
const readBuffer = 4 << 10

// Read clears p before it waits: when a request is over, net/http waits here with the whole of its
// buffer, in which the prompt may still stand.
func (c *wipedConn) Read(p []byte) (int, error) {
	if len(p) <= readBuffer {
		clear(p)
	}
	return c.Conn.Read(p)
}

// Write clears p, which an io.Writer must not do in general. Here p is net/http's buffer, which is
// empty after Write, or the endpoint's own, which it clears as well.
func (c *wipedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	clear(p)
	return n, err
}

// CloseWrite lets net/http end a connection in such a way that its last answer arrives.
func (c *wipedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// wiper overwrites free memory once no request has run for a while.
type wiper struct {
	after time.Duration
	wipe  func()

	mu     sync.Mutex
	active int
	closed bool
	timer  *time.Timer // runs if active is 0, and there was a request
	wiping sync.WaitGroup
}

// begin notes the begin of a request.
func (w *wiper) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.active++
	w.stop()
}

// end notes its end.
func (w *wiper) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active--; w.active > 0 || w.closed {
		return
	}
	w.wiping.Add(1)
	w.timer = time.AfterFunc(w.after, func() {
		defer w.wiping.Done()
		w.wipe()
	})
}

// stop stops the timer, unless it has run. w.mu is held.
func (w *wiper) stop() {
	if w.timer != nil && w.timer.Stop() {
		w.wiping.Done()
	}
	w.timer = nil
}

// close waits for a wipe that runs. None follows.
func (w *wiper) close() {
	w.mu.Lock()
	w.closed = true
	w.stop()
	w.mu.Unlock()
	w.wiping.Wait()
}
