// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"net"
	"sync"
	"testing"
)

// tcpServer runs a function on each connection to a loopback port. When the test ends it closes the
// port and every connection, and waits for the functions to return.
type tcpServer struct {
	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
}

// listenTCP opens the port, so that its address is known; connections wait until serve is called.
func listenTCP(t testing.TB) *tcpServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	s := &tcpServer{ln: ln, open: make(map[net.Conn]bool)}
	t.Cleanup(s.close)
	return s
}

// serve begins to run handle on each connection, which is closed afterwards.
func (s *tcpServer) serve(handle func(net.Conn)) {
	s.wg.Go(func() {
		for {
			conn, err := s.ln.Accept()
			if err != nil {
				return
			}
			if s.track(conn) {
				s.wg.Go(func() {
					defer s.untrack(conn)
					handle(conn)
				})
			}
		}
	})
}

// Addr is host:port.
func (s *tcpServer) Addr() string { return s.ln.Addr().String() }

// track has conn closed with the server, and reports false, conn being closed, if that is now.
func (s *tcpServer) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return false
	}
	s.open[conn] = true
	return true
}

func (s *tcpServer) untrack(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
}

func (s *tcpServer) close() {
	s.ln.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.open {
		conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// ForeignAddress listens where loopback does not reach, if this machine has such an address.
func ForeignAddress(t testing.TB) net.Listener {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Skip(err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLoopback() || n.IP.IsLinkLocalUnicast() {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort(n.IP.String(), "0")); err == nil {
			return l
		}
	}
	t.Skip("no address but loopback")
	return nil
}
