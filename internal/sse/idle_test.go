// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// paced is a stream whose pieces take their time. Closing it ends a Read that waits.
type paced struct {
	waits  []time.Duration // before each byte, and before the end
	closed chan struct{}
	end    error
}

func (p *paced) Read(b []byte) (int, error) {
	if len(p.waits) == 0 {
		return 0, p.end
	}
	wait := p.waits[0]
	p.waits = p.waits[1:]
	select {
	case <-time.After(wait):
	case <-p.closed:
		return 0, io.EOF // the worst that closing a body can look like
	}
	if len(p.waits) == 0 {
		return 0, p.end
	}
	b[0] = '.'
	return 1, nil
}

func (p *paced) Close() { close(p.closed) }

func TestIdle(t *testing.T) {
	const limit = time.Minute
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		waits []time.Duration
		limit time.Duration
		begun int // bytes
		end   error
		want  error
		bytes int
	}{
		"in time": {[]time.Duration{limit - 1, limit - 1, limit - 1}, limit, 0,
			io.EOF, io.EOF, 2},
		"late": {[]time.Duration{1, limit + 1, 1}, limit, 0, io.EOF,
			fault.ErrStalled, 1},
		"a late end": {[]time.Duration{1, 1, limit + 1}, limit, 0, io.EOF,
			fault.ErrStalled, 2},
		"thinking": {[]time.Duration{time.Hour, 1, 1}, limit, 1, io.EOF, io.EOF, 2},
		"thinking, then too long": {[]time.Duration{time.Hour, time.Hour, time.Hour, 1}, limit, 2,
			io.EOF, fault.ErrStalled, 2},
		"no limit": {[]time.Duration{time.Hour, time.Hour}, 0, 0, io.EOF, io.EOF, 1},
		"none by choice": {[]time.Duration{time.Hour, time.Hour}, -1, 0, io.EOF, io.EOF,
			1},
		"broken": {[]time.Duration{1, 1}, limit, 0, broken, broken, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, n := &paced{c.waits, make(chan struct{}), c.end}, 0
				r := NewIdle(src, c.limit, func() bool { return n >= c.begun }, src.Close)
				var err error
				for err == nil {
					var m int
					m, err = r.Read(make([]byte, 8))
					n += m
					time.Sleep(2 * limit) // the reader's own time does not count
				}
				if err != c.want || n != c.bytes {
					t.Errorf("%d bytes, %v", n, err)
				}
				if _, again := r.Read(make([]byte, 8)); again != c.want {
					t.Errorf("and then %v", again)
				}
			})
		})
	}
}

// The first event starts the clock, a comment does not.
func TestStreamBegins(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, ": ping\n\n": false, "data: x": false, "data: x\n": false, "event: x\n\n": false,
		"data: x\n\n": true,
		"data:" + strings.Repeat("x", 1000) + "\n\n": true, ":\n\ndata\n\n:": true,
	} {
		s := newStream()
		s.See([]byte(text))
		if s.Begun() != want {
			t.Errorf("%.20q: %v", text, s.Begun())
		}
	}
}
