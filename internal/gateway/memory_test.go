// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// bodyOf is the body of a message with content, of which the source has only so much.
func bodyOf(t *testing.T, content string, cut int) *bhttp.Body {
	t.Helper()
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{
		Method: "POST", Scheme: "https", Authority: "a.test", Path: "/",
	}, []byte(content), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, body, err := bhttp.ReadRequest(bytes.NewReader(message[:len(message)-cut]), bhttp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// What is read is the content, and no more memory is taken than one piece ahead of it.
func TestReadPieces(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 513, 8 << 10, 8<<10 + 1, pieceSize, 3*pieceSize + 1} {
		var b buffers
		want := strings.Repeat("0123456789", size/10+1)[:size]
		read, err := b.readPieces(bodyOf(t, want, 0))
		if got := string(bytes.Join(read, nil)); err != nil || got != want {
			t.Errorf("%d bytes: %d came, %v", size, len(got), err)
		}
		taken := 0
		for _, p := range read {
			taken += cap(p)
		}
		if taken > size+pieceSize {
			t.Errorf("%d bytes: memory of %d", size, taken)
		}
		b.wipe(read)
		for i, p := range read {
			if p = p[:cap(p)]; bytes.Count(p, []byte{0}) != len(p) {
				t.Errorf("%d bytes: piece %d is left", size, i)
			}
		}
	}
	for _, size := range []int{100, 10 << 10, 3 * pieceSize} {
		var b buffers
		body := bodyOf(t, strings.Repeat("x", size), 50)
		if read, err := b.readPieces(body); !errors.Is(err, bhttp.ErrTruncated) || read != nil {
			t.Errorf("%d bytes, cut: %d pieces, %v", size, len(read), err)
		}
		if _, err := body.Left(); !errors.Is(err, bhttp.ErrTruncated) {
			t.Errorf("%d bytes, cut: then %v", size, err)
		}
	}
	stated := bodyOf(t, strings.Repeat("x", 1<<20), 1<<20) // and none of it comes
	var b buffers
	if left, err := stated.Left(); left != 1<<20 || err != nil {
		t.Errorf("%d stated, %v", left, err)
	}
	if _, err := b.readPieces(stated); !errors.Is(err, bhttp.ErrTruncated) {
		t.Error(err)
	}
}

// Memory that is used again holds nothing, and other memory is not taken back.
func TestBuffersHoldNothing(t *testing.T) {
	var b buffers
	for range 100 {
		p := b.get()
		if len(p) != pieceSize || bytes.Count(p, []byte{0}) != len(p) {
			t.Fatal("not wiped")
		}
		copy(p, "content of one client")
		b.wipe([][]byte{p[:7]})
	}
	for _, size := range []int{0, 1, pieceSize - 1, pieceSize + 1} {
		b.put(make([]byte, size))
	}
	for range 5 {
		if p := b.get(); len(p) != pieceSize {
			t.Errorf("%d bytes", len(p))
		}
	}
}

// At the end Left says what Read says.
func TestLeftAtTheEnd(t *testing.T) {
	body := bodyOf(t, "x", 0)
	for want := range 2 {
		left, err := body.Left()
		if left != int64(1-want) || (err == io.EOF) != (want == 1) {
			t.Errorf("%d left, %v", left, err)
		}
		_, _ = body.Read(make([]byte, 1))
	}
}

// brokenClient takes some writes and fails then. net/http may go on reading what failed: over
// HTTP/2 another goroutine does.
type brokenClient struct {
	*httptest.ResponseRecorder
	left int
}

func (w *brokenClient) Write(p []byte) (int, error) {
	if w.left--; w.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return w.ResponseRecorder.Write(p)
}

// Memory of sealed chunks is used again once all of them were taken, and not after a failure.
func TestSealedMemory(t *testing.T) {
	long := `{"x":"` + strings.Repeat("y", 5*pieceSize) + `"}`
	for name, declared := range map[string]bool{"a known length": true, "none": false} {
		again := 0
		for left := range 16 {
			r := newRig(t, nil)
			r.Answer = func(*http.Request, []byte) (*http.Response, error) {
				resp := answerOf("application/json", strings.NewReader(long))
				if declared {
					resp.ContentLength = int64(len(long))
				}
				return resp, nil
			}
			s := r.Seal(fakes.Inner{})
			w := &brokenClient{httptest.NewRecorder(), left}
			r.s.ServeHTTP(w, fakes.OHTTPPost(t, bytes.NewReader(s.Body)))
			a := s.Open(w.ResponseRecorder)
			kept := r.s.sealed.pool.Get() != nil
			switch whole := a.Err == nil; {
			case whole && a.Body != long:
				t.Errorf("%s: %d bytes came", name, len(a.Body))
			case !whole && kept:
				t.Errorf("%s: after %d writes memory is taken back that may be in use", name, left)
			case whole && kept: // the pool may drop it
				again++
			}
		}
		if again == 0 {
			t.Errorf("%s: no memory was used again", name)
		}
	}
}

// An answer in one piece states its length; others come as the upstream sends them.
func TestStatedLengths(t *testing.T) {
	for name, c := range map[string]struct {
		kind   string
		length int
		stated bool
	}{
		"short": {"application/json", len(testkit.FineAnswer), true},
		"JSON":  {"application/json", -1, false}, "events": {"text/event-stream", -1, false},
	} {
		r := newRig(t, nil)
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			resp := answerOf(c.kind, strings.NewReader(testkit.FineAnswer))
			resp.ContentLength = int64(c.length)
			return resp, nil
		}
		s := r.Seal(fakes.Inner{})
		w := r.Send(s)
		want := ""
		if c.stated {
			want = strconv.Itoa(w.Body.Len())
		}
		if got := w.Header().Get("Content-Length"); got != want {
			t.Errorf("%s: length %q, want %q", name, got, want)
		}
		if a := s.Open(w); a.Err != nil || a.Body != testkit.FineAnswer {
			t.Errorf("%s: %q, %v", name, a.Body, a.Err)
		}
	}
}
