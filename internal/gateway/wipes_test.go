// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// spiedAnswer remembers the memory that an answer was read into.
type spiedAnswer struct {
	io.Reader
	seen [][]byte
}

func (b *spiedAnswer) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.seen = append(b.seen, p[:n:n])
	return n, err
}

func (b *spiedAnswer) Close() error { return nil }

var errPanic = errors.New("panic")

// Nothing of an answer over Oblivious HTTP stays in the memory that it was read into, which the
// next request gets, whatever becomes of the answer.
func TestObliviousAnswersAreWiped(t *testing.T) {
	t.Parallel()
	const marker = "marker-1234567890"
	long := strings.Repeat(marker+" and so on ", 20_000)
	event := `data: {"choices":[{"index":0,"delta":{"content":"` + marker + `"}}]}` + "\n\n"
	const done = "data: [DONE]\n\n"
	broken := iotest.ErrReader(errors.New("the upstream breaks off"))
	text, events := "text/plain", "text/event-stream"
	of := func(s string) io.Reader { return strings.NewReader(s) }
	known := int64(len(long))
	for name, c := range map[string]struct {
		kind    string
		length  int64
		body    io.Reader
		padding int
		auditor error // or it panics, with errPanic
	}{
		"small":         {text, 17, of(marker), 0, nil},
		"long":          {text, known, of(long), 0, nil},
		"padded":        {text, known, of(long), 512, nil},
		"shorter":       {text, 900, of(marker), 0, nil},
		"cut":           {text, 900, io.MultiReader(of(marker), broken), 0, nil},
		"JSON":          {"application/json", -1, of(`{"x":"` + long + `"}`), 0, nil},
		"JSON, no end":  {"application/json", -1, of(`{"x":"` + marker), 0, nil},
		"JSON, cut":     {"application/json", -1, io.MultiReader(of(long), broken), 0, nil},
		"events":        {events, -1, of(strings.Repeat(event, 2000) + done), 0, nil},
		"padded events": {events, -1, of(strings.Repeat(event, 200) + done), 512, nil},
		"not audited":   {text, 17, of(marker), 0, errors.New("no")},
		"panics":        {text, 17, of(marker), 0, errPanic},
	} {
		spy := &spiedAnswer{Reader: c.body}
		r := newRig(t, func(cfg *Config) {
			cfg.OHTTP.Padding = c.padding
			cfg.Tell = func(_ context.Context, e Event) error {
				if e.Type == ResponseSealed && c.auditor == errPanic {
					panic("the auditor")
				} else if e.Type == ResponseSealed {
					return c.auditor
				}
				return nil
			}
			cfg.UpstreamTransport = answers(c.length, c.kind, 1, spy)
		})
		s := r.Seal(fakes.Inner{})
		r.Send(s)
		if len(spy.seen) == 0 {
			t.Errorf("%s: it was never read", name)
		}
		for _, p := range spy.seen {
			if bytes.Contains(p, []byte(marker[:8])) {
				t.Errorf("%s: a buffer of %d bytes still has it", name, len(p))
			}
		}
	}
}

// A transport of the operator's own may bring a header that is larger than a piece of memory. The
// gateway's takes 64 KiB.
func TestLargeUpstreamHeader(t *testing.T) {
	t.Parallel()
	for size, want := range map[int]int{1000: 200, 62_000: 200, 65_000: 200, 65_536: 502,
		66_300: 502, 100_000: 502} {
		for _, length := range []int64{2, -1} {
			r := newRig(t, func(cfg *Config) {
				cfg.UpstreamTransport = answers(length, "application/json", size,
					io.NopCloser(strings.NewReader("{}")))
			})
			s := r.Seal(fakes.Inner{})
			a := s.Open(r.Send(s))
			if a.Err != nil || a.Status != want {
				t.Errorf("%d bytes, length %d: %d, %v, want %d", size, length, a.Status, a.Err, want)
			}
		}
	}
}

// answers is an upstream with one answer, and an id of so many bytes.
func answers(length int64, kind string, id int, body io.ReadCloser) http.RoundTripper {
	return testkit.RoundTrip(func(req *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
		return &http.Response{
			StatusCode: 200, ProtoMajor: 1, ContentLength: length, Request: req, Body: body,
			TransferEncoding: []string{"chunked"}, // an end of its own
			Header: http.Header{
				"Content-Type": {kind}, "X-Request-Id": {strings.Repeat("x", id)},
			},
		}, nil
	})
}

// goneSecret is a secret that was destroyed.
type goneSecret struct{}

func (goneSecret) Use(func([]byte) error) error { return errors.New("destroyed") }
func (goneSecret) Len() int                     { return 3 }

// A request that does not go upstream is wiped as well.
func TestUnsentRequestIsWiped(t *testing.T) {
	t.Parallel()
	content := []byte("the prompt")
	sent := httpx.NewSent(nil, content)
	w := &upstreamWay{base: &url.URL{Scheme: "https", Host: "upstream.test"}, key: goneSecret{}}
	_, p := w.request(t.Context(), &upstreamCall{method: "POST", header: http.Header{},
		content: sent})
	if p == nil {
		t.Fatal("it is sent without its key")
	}
	sent.Finish()
	if len(bytes.Trim(content, "\x00")) > 0 {
		t.Errorf("%q is left", content)
	}
}
