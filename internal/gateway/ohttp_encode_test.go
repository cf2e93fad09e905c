// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestCommentSize(t *testing.T) {
	for pad := 2; pad <= ohttp.MaxChunk; pad *= 2 {
		for from := 1 << 20; from < 1<<20+pad; from += max(1, pad/600) {
			for written := max(from-3, 1); written <= from; written++ {
				want := 2
				for (written+varintLength(want)+want)%pad != 0 {
					want++
				}
				if got := commentSize(written, pad); got != want {
					t.Fatalf("written %d, pad %d: %d, want %d", written, pad, got, want)
				}
			}
		}
	}
}

func varintLength(n int) int {
	switch {
	case n < 64:
		return 1
	case n < 16384:
		return 2
	}
	return 4
}

func withoutComments(events string) string {
	var b strings.Builder
	for line := range strings.Lines(events) {
		if !strings.HasPrefix(line, ":..") && line != ":\n" && line != ":.\n" {
			b.WriteString(line)
		}
	}
	return b.String()
}

// chunkLengths are the plaintext lengths of a sealed answer's chunks.
func chunkLengths(t *testing.T, sealed []byte) (lengths []int) {
	t.Helper()
	r := bytes.NewReader(sealed[32:])
	for {
		n, _, err := bhttp.ReadVarint(r)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return append(lengths, r.Len()-16)
		}
		lengths = append(lengths, int(n)-16)
		_, _ = r.Seek(int64(n), io.SeekCurrent)
	}
}

// With padding on, an observer sees multiples only.
func TestObliviousPadding(t *testing.T) {
	var events []string
	for i := range 300 {
		events = append(events, fmt.Sprintf("data: {\"n\":%q}\n\n", strings.Repeat("x", i*i%997)))
	}
	events = append(events, "data: "+strings.Repeat("y", 50<<10)+"\n\n", "data: [DONE]\n\n")
	whole := strings.Join(events, "")
	cut := func(size int) (p []string) {
		for rest := whole; rest != ""; rest = rest[min(size, len(rest)):] {
			p = append(p, rest[:min(size, len(rest))])
		}
		return p
	}
	for _, pad := range []int{2, 64, 1024, 16384} {
		for name, p := range map[string][]string{
			"events": events, "in 7s": cut(7), "in 1000s": cut(1000), "at once": {whole},
		} {
			r := newRig(t, func(c *Config) { c.OHTTP.Padding = pad })
			r.Answer = func(*http.Request, []byte) (*http.Response, error) {
				return answerOf("text/event-stream", &pieces{left: append([]string(nil), p...)}),
					nil
			}
			s := r.Seal(fakes.Inner{})
			w := r.Send(s)
			lengths := chunkLengths(t, w.Body.Bytes())
			for i, n := range lengths {
				if n%pad != 0 {
					t.Errorf("pad %d, %s: chunk %d has %d bytes", pad, name, i, n)
				}
			}
			if name == "events" && len(lengths) < len(events) {
				t.Errorf("%d chunks for %d events", len(lengths), len(events))
			}
			if a := s.Open(w); a.Err != nil || withoutComments(a.Body) != whole {
				t.Errorf("pad %d, %s: %v", pad, name, a.Err)
			}
		}
	}
	for name, answer := range map[string]func() *http.Response{
		"declared": func() *http.Response {
			return testkit.Respond(200, testkit.FineAnswer, "Content-Type", "application/json")
		},
		"unknown": func() *http.Response {
			return answerOf("application/json", strings.NewReader(testkit.FineAnswer))
		},
		"an error": func() *http.Response {
			return testkit.Respond(400, `{"error":{}}`, "Content-Type", "application/json")
		},
		"not forwarded": func() *http.Response { return testkit.Respond(401, `{}`) },
	} {
		r := newRig(t, func(c *Config) { c.OHTTP.Padding = 2048 })
		r.Answer = func(*http.Request, []byte) (*http.Response, error) { return answer(), nil }
		s := r.Seal(fakes.Inner{})
		w := r.Send(s)
		if lengths := chunkLengths(t, w.Body.Bytes()); len(lengths) != 1 || lengths[0] != 2048 {
			t.Errorf("%s: chunks of %v", name, lengths)
		}
		if a := s.Open(w); a.Err != nil {
			t.Errorf("%s: %v", name, a.Err)
		}
	}
}
