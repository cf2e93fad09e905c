// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sse

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// eventsIn reads text in the given way, and returns its events as "name|data".
func eventsIn(text io.Reader, most int) (all []string, err error) {
	r := NewReader(text, most)
	defer r.Wipe()
	for {
		e, err := r.Next()
		if err != nil {
			return all, err
		}
		all = append(all, e.Name+"|"+string(e.Data))
	}
}

func TestEventReader(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"one":   {"data: a\n\n", []string{"|a"}},
		"CR LF": {"data: a\r\n\r\ndata: b\r\n\r\n", []string{"|a", "|b"}},
		"CR":    {"data: a\r\rdata: b\r\r", []string{"|a", "|b"}},
		"all kinds": {"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", []string{"|a", "|b",
			"|c"}},
		"lines": {"data: a\ndata:b\ndata:  c\ndata\ndata:\n\n",
			[]string{"|a\nb\n c\n\n"}},
		"a name": {"event: error\ndata: {}\n\ndata: x\n\n", []string{"error|{}",
			"|x"}},
		"a name alone":  {"event: error\n\ndata: x\n\n", []string{"|x"}},
		"the last name": {"event: a\nevent: b\ndata:\n\n", []string{"b|"}},
		"a long name": {"event: " + strings.Repeat("n", 65) + "\ndata: x\n\n",
			[]string{"|x"}},
		"comments": {": hello\n\n:\n\n:data: x\n\ndata: a\n: more\ndata: b\n\n",
			[]string{"|a\nb"}},
		"other fields": {"id: 1\nretry: 5\nfoo: bar\nnonsense\ndata: a\n\n",
			[]string{"|a"}},
		"case matters":         {"Data: a\nDATA: b\n\n", nil},
		"a mark":               {"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", []string{"|a"}},
		"no empty line":        {"data: a\n\ndata: b", []string{"|a", "|b"}},
		"no empty line, break": {"data: b\n", []string{"|b"}},
		"nothing":              {"", nil},
		"only breaks":          {"\n\r\n\r\r", nil},
		"colons":               {"data: a: b :c\n\n", []string{"|a: b :c"}},
		"done":                 {"data: [DONE]\n\n", []string{"|[DONE]"}},
	} {
		for way, read := range map[string]func(io.Reader) io.Reader{
			"at once":      func(r io.Reader) io.Reader { return r },
			"byte by byte": iotest.OneByteReader,
			"in halves":    iotest.HalfReader,
			"with its end": iotest.DataErrReader,
		} {
			got, err := eventsIn(read(strings.NewReader(test.text)), 1000)
			if err != io.EOF || !slices.Equal(got, test.want) {
				t.Errorf("%s, %s: %q, %v", name, way, got, err)
			}
		}
	}
}

func TestEventReaderLimits(t *testing.T) {
	const most = 100
	for name, test := range map[string]struct {
		text string
		ok   bool
	}{
		"a line":           {"data:" + strings.Repeat("x", most-6) + "\n\n", true},
		"a long line":      {"data:" + strings.Repeat("x", most) + "\n\n", false},
		"an endless line":  {strings.Repeat("x", 10000), false},
		"a long comment":   {":" + strings.Repeat("x", most+1) + "\n\n", false},
		"many lines":       {strings.Repeat("data:xxx\n", 30) + "\n", false},
		"many empty lines": {strings.Repeat("data\n", 200) + "\n", false},
		"many events":      {strings.Repeat("data:xxx\n\n", 3000), true},
		"many comments":    {strings.Repeat(": keep alive\n\n", 3000), true},
	} {
		_, err := eventsIn(strings.NewReader(test.text), most)
		if test.ok != (err == io.EOF) || test.ok == errors.Is(err, fault.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken")
	r := NewReader(io.MultiReader(strings.NewReader("data: a\n\ndata: b\n"),
		iotest.ErrReader(broken)), most)
	if e, err := r.Next(); err != nil || string(e.Data) != "a" {
		t.Errorf("%q, %v", e.Data, err)
	}
	for range 2 { // what was not complete is not handed out
		if e, err := r.Next(); err != broken || e.Data != nil {
			t.Errorf("%q, %v", e.Data, err)
		}
	}
	r.Wipe()
	if _, err := r.Next(); err != broken {
		t.Errorf("after wiping: %v", err)
	}
}

// An event is there as soon as its empty line is: whoever waits for the byte after it waits for the
// next token.
func TestEventsAreNotHeldBack(t *testing.T) {
	for _, end := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		in, out := io.Pipe()
		go func() { _, _ = io.WriteString(out, "data: a"+end) }()
		r := NewReader(in, 100)
		if e, err := r.Next(); err != nil || string(e.Data) != "a" {
			t.Errorf("%q: %q, %v", end, e.Data, err)
		}
		in.Close()
	}
}

func FuzzEventReader(f *testing.F) {
	f.Add("data: a\r\n\r\nevent: error\rdata: b\n\n", uint8(3))
	f.Add("\xef\xbb\xbf: c\n\ndata\ndata:\n", uint8(1))
	f.Add("data: [DONE]", uint8(0))
	f.Fuzz(func(t *testing.T, text string, step uint8) {
		const most = 64
		want, wantErr := eventsIn(strings.NewReader(text), most)
		got, err := eventsIn(&stepReader{text, int(step)%7 + 1}, most)
		if !slices.Equal(got, want) || (err == io.EOF) != (wantErr == io.EOF) {
			t.Fatalf("in steps: %q, %v\nat once: %q, %v", got, err, want, wantErr)
		}
		size := 0
		for _, e := range got {
			_, data, _ := strings.Cut(e, "|")
			size += len(data)
			if len(data) > most {
				t.Errorf("an event of %d bytes", len(data))
			}
		}
		if size > len(text) {
			t.Errorf("%d bytes from %d", size, len(text))
		}
		if err != io.EOF && !errors.Is(err, fault.ErrTooLarge) {
			t.Errorf("%v", err)
		}
	})
}

// stepReader yields a few bytes at a time.
type stepReader struct {
	rest string
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if r.rest == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.step)], r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
