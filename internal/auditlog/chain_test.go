// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// writer makes lines that follow each other.
type writer struct {
	key  *Key
	head Head
}

func (w *writer) line(change func(*Line)) []byte {
	l := &Line{Seq: w.head.Seq + 1, Generation: 1, Prev: w.head.MAC,
		Event: fmt.Appendf(nil, `"n":%d`,
			w.head.Seq)}
	if change != nil {
		change(l)
	}
	text := w.key.Append(nil, l)
	w.head = l.Head()
	return text[:len(text)-1]
}

func (w *writer) lines(n int) (lines [][]byte) {
	for range n {
		lines = append(lines, w.line(nil))
	}
	return lines
}

func onlyKey(k *Key) func(uint32) (*Key, error) {
	return func(generation uint32) (*Key, error) {
		if generation == 1 {
			return k, nil
		}
		return nil, nil
	}
}

// check runs lines through a chain, and what stands behind them.
func check(c *Chain, lines [][]byte, rest []byte) *Problem {
	for i, line := range lines {
		if err := c.Step("f", i+1, line); err != nil {
			return err.(*Problem)
		}
	}
	if err := c.Finish("f", len(lines)+1, rest); err != nil {
		return err.(*Problem)
	}
	return nil
}

func TestChain(t *testing.T) {
	key := testKey(t, 1)
	w := &writer{key: key}
	five := w.lines(5)
	head := w.head
	stranger := &writer{key: testKey(t, 2), head: head}
	other := &writer{key: key, head: Head{Seq: 1, MAC: [32]byte{9}}} // the same key, another log
	foreign := []byte(`{"seq":6,"key":2,` + string(five[0][len(`{"seq":1,"key":1,`):]))
	pick := func(numbers ...int) (lines [][]byte) {
		for _, n := range numbers {
			lines = append(lines, five[n-1])
		}
		return lines
	}
	flip := func(n int) [][]byte {
		lines := slices.Clone(five)
		lines[n-1] = bytes.Clone(lines[n-1])
		lines[n-1][30] ^= 1
		return lines
	}
	for what, c := range map[string]struct {
		lines [][]byte
		rest  string
		want  Head
		problem
	}{
		"whole":         {lines: five},
		"empty":         {},
		"with the head": {lines: five, want: head},
		"first changed": {lines: flip(1), problem: problem{Changed, 1, 1, 0}},
		"changed":       {lines: flip(3), problem: problem{Changed, 3, 3, 0}},
		"last changed":  {lines: flip(5), problem: problem{Changed, 5, 5, 0}},
		"empty line": {lines: append(pick(1, 2), nil, five[2]),
			problem: problem{Changed, 3, 3, 0}},
		"two lines": {lines: append(pick(1), []byte("x"), []byte("y")), problem: problem{Changed,
			2, 2, 0}},
		"stranger's": {lines: append(slices.Clone(five), stranger.line(nil)),
			problem: problem{Changed, 6, 6, 0}},
		"unknown key": {lines: append(slices.Clone(five), foreign), problem: problem{Changed, 6, 6,
			0}},
		"one removed":      {lines: pick(1, 2, 4, 5), problem: problem{Removed, 3, 3, 1}},
		"two removed":      {lines: pick(1, 4, 5), problem: problem{Removed, 2, 2, 2}},
		"first removed":    {lines: pick(2, 3, 4, 5), problem: problem{Removed, 1, 1, 1}},
		"swapped":          {lines: pick(1, 3, 2, 4, 5), problem: problem{Reordered, 2, 2, 0}},
		"swapped far":      {lines: pick(1, 5, 3, 4, 2), problem: problem{Reordered, 2, 2, 0}},
		"backwards":        {lines: pick(5, 4, 3, 2, 1), problem: problem{Reordered, 2, 6, 0}},
		"twice":            {lines: pick(1, 2, 2, 3), problem: problem{Reordered, 3, 3, 0}},
		"again at the end": {lines: pick(1, 2, 3, 4, 5, 3), problem: problem{Reordered, 6, 6, 0}},
		"removed, garbage": {lines: append(pick(1, 3), []byte("x"), five[3]),
			problem: problem{Removed, 2,
				2, 1}},
		"another log's": {lines: append(pick(1), other.line(nil)),
			problem: problem{Removed, 2, 2, 0}},
		"torn":    {lines: five, rest: `{"seq":6,"k`, problem: problem{Torn, 6, 6, 0}},
		"garbage": {lines: five, rest: `x`, problem: problem{Changed, 6, 6, 0}},
		"cut off": {lines: pick(1, 2, 3), want: head, problem: problem{CutOff, 4, 4, 2}},
		"cut off, torn": {lines: pick(1, 2, 3), rest: `{"seq"`, want: head,
			problem: problem{CutOff, 4,
				4, 2}},
		"replaced": {lines: five, want: Head{Seq: 3, MAC: [32]byte{1}}, problem: problem{Replaced,
			3, 3, 0}},
	} {
		t.Run(what, func(t *testing.T) {
			chain := &Chain{Key: onlyKey(key), Want: c.want}
			got := check(chain, c.lines, []byte(c.rest))
			if c.problem == (problem{}) {
				if got != nil || int(chain.Lines) != len(c.lines) ||
					chain.WantFound != (c.want != Head{}) {
					t.Errorf("%v, %+v", got, chain)
				}
				return
			}
			if got == nil || (problem{got.Finding, got.Line, got.Seq, got.Missing}) != c.problem {
				t.Errorf("found %+v, want %+v", got, c.problem)
			}
		})
	}
}

type problem struct {
	finding Finding
	line    int
	seq     uint64
	missing uint64
}

// Lines say which files were dropped, and only that.
func TestChainBegins(t *testing.T) {
	key := testKey(t, 1)
	w := &writer{key: key}
	w.lines(9)
	lines := w.lines(2)
	w.line(func(l *Line) { l.Begins = 10; lines = append(lines, w.key.Append(nil, l)) })
	lines[2] = lines[2][:len(lines[2])-1]
	if p := check(&Chain{Key: onlyKey(key)}, lines[:2], nil); p == nil || p.Finding != Removed ||
		p.Seq != 1 || p.Missing != 9 || p.Line != 1 {
		t.Errorf("nobody dropped anything: %+v", p)
	}
	chain := &Chain{Key: onlyKey(key), Want: Head{Seq: 3}}
	if p := check(chain, lines, nil); p != nil || chain.First != 10 || chain.Lines != 3 ||
		chain.WantFound {
		t.Errorf("%+v, %+v", p, chain)
	}
	if p := check(&Chain{Key: onlyKey(key)}, lines[1:], nil); p == nil || p.Finding != Removed ||
		p.Seq != 10 || p.Missing != 1 {
		t.Errorf("more is missing than was dropped: %+v", p)
	}
}

func TestChainTorn(t *testing.T) {
	key := testKey(t, 1)
	w := &writer{key: key}
	lines := w.lines(2)
	after := w.head
	third := w.line(nil)
	for _, n := range []int{1, 20, len(third) - 1, len(third)} {
		fragment := third[:n]
		w.head = after
		note := w.line(func(l *Line) { l.Torn, l.TornSum = uint64(n), sha256.Sum256(fragment) })
		whole := append(slices.Clone(lines), fragment, note)
		chain := &Chain{Key: onlyKey(key)}
		if p := check(chain, append(slices.Clone(whole), w.line(nil)), nil); p != nil ||
			chain.Torn != 1 || chain.Lines != 4 {
			t.Errorf("%d bytes: %+v, %+v", n, p, chain)
		}
		for what, wrong := range map[string][][]byte{
			"no fragment": append(slices.Clone(lines), note),
			"another": append(slices.Clone(lines), append([]byte("x"), fragment[1:]...),
				note),
			"elsewhere":         append(slices.Clone(lines[:1]), fragment, lines[1], note),
			"twice":             append(slices.Clone(lines), fragment, fragment, note),
			"without its note":  append(slices.Clone(lines), third[:min(n, len(third)-1)], third),
			"note of the other": append(slices.Clone(lines[:1]), note),
		} {
			if p := check(&Chain{Key: onlyKey(key)}, wrong, nil); p == nil || p.Finding == Torn {
				t.Errorf("%d bytes, %s: %+v", n, what, p)
			}
		}
	}
}

func TestChainKeyError(t *testing.T) {
	w := &writer{key: testKey(t, 1)}
	broken := errors.New("broken")
	c := &Chain{Key: func(uint32) (*Key, error) { return nil, broken }}
	if err := c.Step("f", 1, w.line(nil)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}
