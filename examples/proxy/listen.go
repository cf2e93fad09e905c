// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// place is where the proxy listens.
type place struct {
	network string // "tcp" or "unix"
	address string // with the port, or the path of the socket
	host    string // of a TCP address; "" = all of this machine's
}

const maxSocket = 103 // bytes of a socket's path: what macOS has room for, and Linux a few more

func parsePlace(s string) (place, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return place{}, errors.New("unix: wants the path of a socket")
		}
		if len(path) > maxSocket {
			return place{}, fmt.Errorf("unix: a path of %d bytes, which systems do not connect to: "+
				"want %d at most", len(path), maxSocket)
		}
		return place{network: "unix", address: path}, nil
	}
	host, err := program.CheckAddress(s)
	return place{network: "tcp", address: s, host: host}, err
}

// beyond reports whether others than this machine's users may reach the place.
func (p place) beyond() bool {
	if p.network == "unix" || p.host == "localhost" {
		return false
	}
	ip := net.ParseIP(p.host)
	return ip == nil || !ip.IsLoopback()
}

// listen opens the place.
func listen(ctx context.Context, at place) (net.Listener, error) {
	if at.network == "unix" {
		return listenUnix(ctx, at.address)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.address)
	if err != nil {
		return nil, fmt.Errorf("-listen: %w", err)
	}
	// a file of hosts can give localhost any address
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !at.beyond() {
		_ = l.Close()
		return nil, fmt.Errorf("%s is %s, which is not loopback", at.host, tcp.IP)
	}
	return l, nil
}

// listenUnix makes a socket that only its owner may use. It is made in a folder that nobody else
// can enter, and moved once it has its mode, so that there is no time between. It takes the place
// of a socket that nobody answers on, and of nothing else.
func listenUnix(ctx context.Context, path string) (_ net.Listener, err error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists already, and is no socket", path)
	default:
		dialer := net.Dialer{Timeout: time.Second}
		if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("another program listens on %s", path)
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s") // a path of a socket has 107 bytes at most
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	l, err := new(net.ListenConfig).Listen(ctx, "unix", made)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would be the name before the move
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return &unixListener{l, path}, nil
}

// unixListener takes its socket away at the end.
type unixListener struct {
	net.Listener
	path string
}

func (l *unixListener) Close() error {
	err := l.Listener.Close()
	if err == nil { // the first Close: by the second, the path may be another program's
		_ = os.Remove(l.path)
	}
	return err
}

const (
	headerTime = 10 * time.Second // for a request's header to come
	leaveTime  = time.Second      // for the body of a request that was refused
	pieceTime  = time.Minute      // for a client to take a piece of an answer, at most
	idleTime   = 2 * time.Minute  // of a connection between two requests
	maxHeader  = 64 << 10         // bytes
)

// newServer returns the HTTP server of an endpoint. The endpoint itself bounds the time for bodies
// and pieces: a limit for a whole request would cut streams.
func newServer(e *endpoint) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: e, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader, Protocols: protocols,
		DisableGeneralOptionsHandler: true,         // "OPTIONS *" is refused as the others are
		ErrorLog:                     discardLog(), // net/http quotes what it got
	}
}
