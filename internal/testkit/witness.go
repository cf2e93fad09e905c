// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
)

// Witness is a proxy between a client and a server on loopback. It passes every byte on and keeps a
// copy of it. A test searches the copies afterwards. The Witness records a byte before the other
// side can receive it. Its methods are safe for concurrent use.
//
// mu guards the fields below it and the data of every stream.
type Witness struct {
	t      testing.TB
	target string
	limit  int // bytes kept, of all connections together
	srv    *tcpServer

	mu      sync.Mutex
	streams []*stream
	size    int
	lost    bool // more bytes than limit arrived
}

// stream is one direction of one connection.
type stream struct {
	conn       int
	fromClient bool
	data       []byte
}

// Hit is a place of a marker.
type Hit struct {
	Conn       int  // counted from 0
	FromClient bool // sent by the client; otherwise by the server
	// how the marker was written: "plain", or the encodings that were undone, the outermost first,
	// as in "chunks, base64, JSON"
	Form string
}

func (h Hit) String() string {
	from := "server"
	if h.FromClient {
		from = "client"
	}
	return fmt.Sprintf("connection %d, from the %s, %s", h.Conn, from, h.Form)
}

const (
	witnessLimit = 64 << 20
	// minMarker is the least length of a marker in bytes: a shorter one could occur by chance.
	// [forms] relies on it, and ignores shorter texts.
	minMarker = 8
)

// NewWitness starts a witness in front of targetAddr (host:port), and stops it when the test ends.
// It reads plain HTTP/1.1: it cannot look into TLS.
func NewWitness(t testing.TB, targetAddr string) *Witness {
	t.Helper()
	w := &Witness{t: t, target: targetAddr, limit: witnessLimit, srv: listenTCP(t)}
	w.srv.serve(w.relay)
	return w
}

// Addr is the host:port that clients connect to.
func (w *Witness) Addr() string { return w.srv.Addr() }

// relay joins a client's connection with a new one to the target until both directions have ended.
func (w *Witness) relay(client net.Conn) {
	server, err := net.Dial("tcp", w.target)
	if err != nil {
		return // the client sees its connection closed
	}
	if !w.srv.track(server) {
		return
	}
	defer w.srv.untrack(server)

	w.mu.Lock()
	conn := len(w.streams) / 2
	up, down := &stream{conn: conn, fromClient: true}, &stream{conn: conn}
	w.streams = append(w.streams, up, down)
	w.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { w.copy(server, client, up) })
	wg.Go(func() { w.copy(client, server, down) })
	wg.Wait()
}

// copy records and passes on until src ends, which it tells dst; an error ends both connections.
func (w *Witness) copy(dst, src net.Conn, s *stream) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		w.record(s, buf[:n])
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err == io.EOF {
			if half, ok := dst.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	dst.Close()
	src.Close()
}

// record keeps a copy of b, up to the limit.
func (w *Witness) record(s *stream, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = w.lost || len(b) > w.limit-w.size
	if w.lost {
		return
	}
	w.size += len(b)
	s.data = append(s.data, b...)
}

// snapshot copies the streams recorded so far, and fails the test if bytes were lost.
func (w *Witness) snapshot() []stream {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost {
		w.t.Errorf("testkit: the witness lost the bytes after its first %d", w.size)
	}
	var all []stream
	for _, s := range w.streams {
		all = append(all, stream{s.conn, s.fromClient, slices.Clone(s.data)})
	}
	return all
}

// Bytes returns everything that was recorded: for each connection in turn, the bytes of the client
// and then the bytes of the server.
func (w *Witness) Bytes() []byte {
	w.t.Helper()
	var all []byte
	for _, s := range w.snapshot() {
		all = append(all, s.data...)
	}
	return all
}

// Find returns the places of the marker in the recorded streams: as it is, JSON-escaped,
// percent-encoded, in hex or in base64, in any two or three of these inside each other, within
// gzip, and across the boundaries of writes and chunks. It searches each direction of each
// connection by itself. A marker has at least 8 bytes.
func (w *Witness) Find(marker string) []Hit {
	w.t.Helper()
	return w.find(marker)[marker]
}

// find looks for all markers in one walk through the forms.
func (w *Witness) find(markers ...string) map[string][]Hit {
	w.t.Helper()
	if len(markers) == 0 {
		w.t.Fatal("testkit: a witness was asked about no marker")
	}
	for _, marker := range markers {
		if len(marker) < minMarker {
			w.t.Fatalf("testkit: marker %q is shorter than %d bytes", marker, minMarker)
		}
	}
	hits := make(map[string][]Hit)
	for _, s := range w.snapshot() {
		forms(s.data, func(form string, text []byte) {
			for _, marker := range markers {
				if bytes.Contains(text, []byte(marker)) {
					hits[marker] = append(hits[marker], Hit{s.conn, s.fromClient, form})
				}
			}
		})
	}
	return hits
}

// MustNotSee fails the test if one of the markers crossed the wire in any form that [Witness.Find]
// knows. It also fails if it cannot tell: if no HTTP/1 was recorded, because nothing passed through
// the witness or because TLS did.
func (w *Witness) MustNotSee(markers ...string) {
	w.t.Helper()
	if !bytes.Contains(w.Bytes(), []byte("HTTP/1.")) {
		w.t.Error("testkit: the witness recorded no HTTP, so it has nothing to say")
	}
	hits := w.find(markers...)
	for _, marker := range markers {
		for _, hit := range hits[marker] {
			w.t.Errorf("testkit: marker %q is on the wire: %s", marker, hit)
		}
	}
}

// MustSee fails the test if one of the markers did not cross the wire in any form.
func (w *Witness) MustSee(markers ...string) {
	w.t.Helper()
	hits := w.find(markers...)
	for _, marker := range markers {
		if len(hits[marker]) == 0 {
			w.t.Errorf("testkit: marker %q is not on the wire", marker)
		}
	}
}
