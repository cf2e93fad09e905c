// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// TestSealable: in no buffer that the runtime hands out is there room for the plaintext alone.
func TestSealable(t *testing.T) {
	for n := 280; n <= recordSize; n++ {
		fit := sealable(n)
		if fit > n || fit < n-recordHeader-17 {
			t.Fatalf("%d of %d", fit, n)
		}
		record := append(make([]byte, recordHeader, 8), make([]byte, fit)...)
		if cap(record)-len(record) < 17 {
			t.Fatalf("%d bytes leave room for %d", fit, cap(record)-len(record))
		}
	}
	for n := range 280 {
		if fit := sealable(n); fit > n || n > 0 && fit <= 0 {
			t.Fatalf("%d of %d", fit, n)
		}
	}
}

// scripted is a connection that reads from a script and keeps what is written.
type scripted struct {
	net.Conn
	in      io.Reader
	out     bytes.Buffer
	failing bool
	seen    func(p []byte)
}

func (s *scripted) Read(p []byte) (int, error) {
	if s.seen != nil {
		s.seen(p)
	}
	return s.in.Read(p)
}

func (s *scripted) Write(p []byte) (int, error) {
	if s.failing {
		return 0, io.ErrClosedPipe
	}
	return s.out.Write(p)
}

func (s *scripted) Close() error { return nil }

// TestConnClearsWhatItReadsInto: before it waits.
func TestConnClearsWhatItReadsInto(t *testing.T) {
	for size, cleared := range map[int]bool{1: true, readBuffer: true, readBuffer + 1: false} {
		var dirty bool
		s := &scripted{in: strings.NewReader("x"), seen: func(p []byte) {
			dirty = strings.Trim(string(p), "\x00") != ""
		}}
		c := newConn(s, false, new(copies))
		p := bytes.Repeat([]byte("s"), size)
		if n, err := c.Read(p); n != 1 || err != nil || dirty == cleared {
			t.Errorf("%d bytes: %d, %v, left as they were: %v", size, n, err, dirty)
		}
	}
}

// TestDrained: it waits for a reader that waits, or for the end of the connection, and not for
// long.
func TestDrained(t *testing.T) {
	for name, test := range map[string]struct {
		then func(c *conn)
		want bool
	}{
		"read":    {func(c *conn) { go func() { _, _ = c.Read(make([]byte, 10)) }() }, true},
		"closed":  {func(c *conn) { _ = c.Close() }, false},
		"severed": {func(c *conn) { c.sever() }, false},
		"nothing": {func(*conn) { time.Sleep(maxDrain) }, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			c, drained := newConn(ours, false, new(copies)), make(chan bool, 1)
			go func() { drained <- c.drained() }()
			synctest.Wait()
			if len(drained) > 0 {
				t.Errorf("%s: it did not wait", name)
			}
			test.then(c)
			synctest.Wait()
			if len(drained) == 0 {
				t.Fatalf("%s: it waits", name)
			}
			if got := <-drained; got != test.want || c.drained() != test.want {
				t.Errorf("%s: %v", name, got)
			}
			theirs.Close()
		})
	}
}

// sticky keeps the buffers that it is asked to fill.
type sticky struct {
	io.Reader
	asked [][]byte
}

func (s *sticky) Read(p []byte) (int, error) {
	s.asked = append(s.asked, p)
	return s.Reader.Read(p)
}

// TestConnClearsItsCopies: of content, written or not.
func TestConnClearsItsCopies(t *testing.T) {
	content := strings.Repeat("secret", 10_000)
	for name, open := range map[string]func() io.Reader{
		"whole":   func() io.Reader { return strings.NewReader(content) },
		"limited": func() io.Reader { return io.LimitReader(strings.NewReader(content), 50_000) },
		"bytes":   func() io.Reader { return iotest.OneByteReader(strings.NewReader(content)) },
		"broken": func() io.Reader {
			return io.MultiReader(strings.NewReader(content), iotest.ErrReader(io.ErrNoProgress))
		},
	} {
		for _, failing := range []bool{false, true} {
			r, inner := open(), &scripted{failing: failing}
			c := newConn(inner, false, new(copies))
			c.begin(true)
			source := &sticky{Reader: r}
			var from io.Reader = source
			if l, ok := r.(*io.LimitedReader); ok {
				source.Reader = l.R
				from = &io.LimitedReader{R: source, N: l.N}
			}
			n, err := c.ReadFrom(from)
			if failing != (err == io.ErrClosedPipe) && name != "broken" ||
				name == "broken" && err == nil {
				t.Errorf("%s, failing %v: %v", name, failing, err)
			}
			if got := inner.out.String(); int64(len(got)) != n || !strings.HasPrefix(content, got) {
				t.Errorf("%s: %d bytes written, %d told", name, len(got), n)
			}
			if want := failing || name == "broken"; c.during.Load() != want {
				t.Errorf("%s, failing %v: the content counts as whole: %v", name, failing,
					!c.during.Load())
			}
			for _, b := range source.asked {
				if bytes.Contains(b[:cap(b)], []byte("secret")) {
					t.Fatalf("%s, failing %v: a copy is left", name, failing)
				}
			}
		}
	}
}

// TestRecordsComeAlone: a header, then its record, whatever arrives at once.
func TestRecordsComeAlone(t *testing.T) {
	stream := "\x16\x03\x03\x00\x02ab\x17\x03\x03\x00\x00\x17\x03\x03\x00\x05hello"
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader {
			return r
		}, "bytes": iotest.OneByteReader, "half": iotest.HalfReader,
		"end with data": iotest.DataErrReader,
	} {
		r := newRecords(&scripted{in: wrap(strings.NewReader(stream))})
		var pieces []string
		for {
			p := bytes.Repeat([]byte("s"), 600)
			n, err := r.Read(p)
			pieces = append(pieces, string(p[:n]))
			if r.have > 0 || r.left > 0 {
				if n > recordHeader {
					t.Errorf("%s: %q", name, p[:n])
				}
			}
			if err != nil {
				break
			}
		}
		if got := strings.Join(pieces, ""); got != stream {
			t.Errorf("%s: %q", name, got)
		}
		if want := "\x16\x03\x03\x00\x02|ab|\x17\x03\x03\x00\x00|\x17\x03\x03\x00\x05|hello|"; name == "at once" && strings.Join(pieces, "|") != want {
			t.Errorf("%q", pieces)
		}
	}
}

// TestRecordsClear: where a header goes, the record before it is overwritten.
func TestRecordsClear(t *testing.T) {
	var dirty bool
	r := newRecords(&scripted{in: strings.NewReader("\x17\x03\x03\x00\x01x")})
	r.in.Reset(&scripted{in: strings.NewReader("\x17\x03\x03\x00\x01x"), seen: func([]byte) {}})
	p := bytes.Repeat([]byte("s"), 9000)
	if n, _ := r.Read(p); n != recordHeader || bytes.Contains(p, []byte("s")) {
		dirty = true
	}
	if dirty {
		t.Error("what stood there is left")
	}
}
